"""Image files as arrays: resized and cropped once, when they are decoded."""
import os
import warnings

import numpy as np

from common import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm",
            ".pgm", ".pbm", ".pnm", ".tga")
LARGEST = 512                  # a common side above it needs --image-size
MOST_PIXELS = 100_000_000      # in one file: 300 MB decoded; beyond it is a mistake, or a file made to fill the memory


def image_files(folder, passed):
    """The images in a folder and in the folders inside it, sorted. The other files are counted in the Counter `passed`,
    by their suffix, hidden ones aside. UserError for what only has an image's name."""
    found, todo = [], [folder]
    while todo:
        for file in todo.pop().iterdir():
            kind = file.suffix.lower()
            if file.name.startswith("."):
                continue
            if kind in SUFFIXES:
                if not file.is_file():                       # reading a FIFO would wait
                    raise UserError(f"{file} is not a file that can be read; remove it from the folder")
                found.append(file)
            elif not file.is_dir():
                passed[f"{kind or 'without suffix'} (not read)"] += 1
            elif file.is_symlink():                          # it may lead back to where it is
                passed["linked folder"] += 1
            elif file.name != "__MACOSX":
                todo.append(file)
    return sorted(found)


def passed_over(passed):
    """A Counter of image_files as text: what was passed over, and why."""
    return "; passed over: " + ", ".join(f"{count} {what}" for what, count in sorted(passed.items())) if passed else ""


def folders(path):
    """The folders in a folder, without hidden ones and those that macOS archives add; sorted, as numbers if all names
    are numbers."""
    found = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name != "__MACOSX"]
    numbers = all(p.name.isascii() and p.name.isdecimal() for p in found)
    return sorted(found, key=lambda p: (int(p.name) if numbers else 0, p.name))


def opened(file):
    """The image, its pixels not decoded yet. UserError if it is not an image, or too large."""
    from PIL import Image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")                  # of many pixels; looked at here
            image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise UserError(f"{file} has far too many pixels; remove it from the folder") from error
    except Exception as error:                               # a broken file makes PIL raise almost anything
        raise UserError(f"{file} is not a readable image ({error})") from error
    if image.width * image.height > MOST_PIXELS:
        raise UserError(f"{file} has {image.width} x {image.height} pixels, more than {MOST_PIXELS:,}; take it out of "
                        "the folder")
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{file} has more than 8 bits a channel (mode {image.mode}); convert it to 8")
    return image


def shape_of(files, usual, side=None):
    """(side, channels, sizes as text) to decode to: `side`, else the side all have, if they are square, else `usual`;
    grey if all are. UserError for a common side above LARGEST."""
    sizes, modes = set(), set()
    for file in files:
        with opened(file) as image:
            sizes.add(image.size)
            modes.add("L" if image.mode in ("1", "L") else "RGB")
    (width, height), last = min(sizes), max(sizes)
    square = len(sizes) == 1 and width == height
    if not side and square and width > LARGEST:
        raise UserError(f"the images, such as {files[0]}, are {width} x {height}; give the --image-size to resize them "
                        "to, such as 224")
    text = f"{width} x {height}" + (f" to {last[0]} x {last[1]}" if len(sizes) > 1 else "")
    return side or (width if square else usual), 3 if "RGB" in modes else 1, text


def decode(file, side, channels):
    """uint8 (side, side, channels): upright, its middle square, resized to the side."""
    from PIL import Image, ImageOps
    with opened(file) as image:
        try:
            ImageOps.exif_transpose(image, in_place=True)
            upright = image.convert("L" if channels == 1 else "RGB")
        except Exception as error:
            raise UserError(f"{file} is not a readable image ({error})") from error
    if upright.size != (side, side):
        upright = ImageOps.fit(upright, (side, side), Image.Resampling.BILINEAR)
    return np.array(upright).reshape(side, side, channels)


def decode_all(files, side, channels):
    """uint8 (N, side, side, channels) of the files. UserError if that does not fit into memory."""
    size, memory = len(files) * side * side * channels, float("inf")
    if hasattr(os, "sysconf"):                               # not on Windows
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 2 * size > memory:                                    # once more on the device, or while it is shuffled
        raise UserError(f"{len(files):,} images of {side} x {side} need {2 * size / 1e9:.0f} GB, this machine has "
                        f"{memory / 1e9:.0f}; give a smaller --image-size")
    from tqdm import tqdm
    images = np.empty((len(files), side, side, channels), np.uint8)
    for i, file in enumerate(tqdm(files, leave=False, disable=None, unit="image")):
        images[i] = decode(file, side, channels)
    return images
