"""Image files as arrays: resized and cropped once, when they are decoded."""
import os
import stat
import warnings

import numpy as np

from common import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LARGEST = 256                  # larger images are not taken as they are, unless --image-size says so
MOST_PIXELS = 100_000_000      # in one file: 300 MB decoded; beyond it is a mistake, or a file made to fill the memory


def image_files(folder):
    """The images in a folder, sorted; hidden files are passed over. UserError for what only has an image's name."""
    found = [f for f in sorted(folder.iterdir()) if f.suffix.lower() in SUFFIXES and not f.name.startswith(".")]
    for file in found:
        try:
            regular = stat.S_ISREG(file.stat().st_mode)
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror})") from error
        if not regular:                                      # a FIFO would be waited for
            raise UserError(f"{file} is no file; take it out of the folder")
    return found


def folders(path):
    """The folders in a folder, sorted, without hidden ones and what unpacking on a Mac leaves."""
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith((".", "__")))


def opened(file):
    """The image, its pixels not decoded yet. UserError where it is none, or too large."""
    from PIL import Image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                  # of many pixels; looked at here
            image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise UserError(f"{file} has far too many pixels; take it out of the folder") from error
    except Exception as error:                               # a broken file makes PIL raise almost anything
        raise UserError(f"{file} is no readable image ({error})") from error
    if image.width * image.height > MOST_PIXELS:
        raise UserError(f"{file} has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}; take it out of "
                        "the folder")
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{file} has more than 8 bits a channel (mode {image.mode}); convert it to 8")
    return image


def shape_of(files, usual):
    """(side, channels) to decode to: the side all have, if they are square and not large, else `usual`; grey if all
    are."""
    sizes, modes = set(), set()
    for file in files:
        with opened(file) as image:
            sizes.add(image.size)
            modes.add("L" if image.mode in ("1", "L") else "RGB")
    width, height = min(sizes)
    side = width if len(sizes) == 1 and width == height <= LARGEST else usual
    return side, 3 if "RGB" in modes else 1


def decode(file, side, channels):
    """uint8 (side, side, channels): upright, its middle square, resized to the side."""
    from PIL import Image, ImageOps
    with opened(file) as image:
        try:
            ImageOps.exif_transpose(image, in_place=True)
            upright = image.convert("L" if channels == 1 else "RGB")
        except Exception as error:
            raise UserError(f"{file} is no readable image ({error})") from error
    if upright.size != (side, side):
        upright = ImageOps.fit(upright, (side, side), Image.Resampling.BILINEAR)
    return np.array(upright).reshape(side, side, channels)


def decode_all(files, side, channels):
    """uint8 (N, side, side, channels) of the files. UserError where that does not fit into the memory."""
    size, memory = len(files) * side * side * channels, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 2 * size > memory:                                    # once more on the device, or while it is shuffled
        raise UserError(f"{len(files):,} images of {side} x {side} need {2 * size / 1e9:.0f} GB, this machine has "
                        f"{memory / 1e9:.0f}; give a smaller --image-size")
    from tqdm import tqdm
    images = np.empty((len(files), side, side, channels), np.uint8)
    for i, file in enumerate(tqdm(files, leave=False, disable=None, unit="image")):
        images[i] = decode(file, side, channels)
    return images
