"""Data sets on disk: an .npz of arrays, or a folder of images, {train,test}/<class>/*.png|jpg, decoded once."""
import os

import numpy as np

from common import UserError, checks


def read_npz(path, keys=("x_train", "y_train", "x_test", "y_test")):
    try:
        checks.arrays(path, keys)
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in keys}
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]}; needed are {', '.join(keys)}") from error
    except Exception as error:                               # numpy and zipfile have many words for a broken file
        raise UserError(f"{path} is no readable .npz of plain arrays ({error}); make or copy it again") from error


def save_npz(path, arrays):
    """Kept for the next run, where the folder can be written to; under a temporary name first, so never half a file."""
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(partial, **arrays)
        partial.replace(path)
    except OSError as error:
        print(f"note: cannot keep {path} for the next run ({error.strerror})")
    finally:
        if partial.exists():
            partial.unlink()


def read_folder(path):
    """{train,test}/<class>/*.png|jpg, decoded once and kept in the folder, as long as its files are the same."""
    classes = sorted(p.name for p in (path / "train").iterdir() if p.is_dir())
    if not classes:
        raise UserError(f"{path / 'train'} holds no folders; one for each class is needed")
    unknown = sorted({p.name for p in (path / "test").glob("*") if p.is_dir()} - set(classes))
    if unknown:
        raise UserError(f"{path / 'test' / unknown[0]} is a class that {path / 'train'} does not have")
    files, listing = {"train": [], "test": []}, []
    for split in files:
        for label, cls in enumerate(classes):
            found = [f for f in sorted((path / split / cls).glob("*")) if f.suffix.lower() in (".png", ".jpg", ".jpeg")]
            if not found:
                raise UserError(f"{path / split / cls} holds no .png or .jpg")
            files[split] += [(file, label) for file in found]
            listing += [f"{split}/{cls}/{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in found]
    kept = path / "decoded.npz"
    if kept.is_file() and np.array_equal(read_npz(kept, ["files"])["files"], listing):
        return read_npz(kept)
    arrays = decode(files)
    save_npz(kept, {**arrays, "files": np.array(listing)})
    return arrays


def decode(files):
    """{"train": [(file, label), ...], "test": ...} -> {"x_train": uint8 images, "y_train": labels, ...}."""
    from PIL import Image
    arrays, size = {}, None
    for split, listed in files.items():
        images = []
        for file, _ in listed:
            try:
                with Image.open(file) as image:
                    if image.mode.startswith(("I", "F")):
                        raise UserError(f"{file} has more than 8 bits a channel (mode {image.mode}); convert it to 8")
                    pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
            except OSError as error:
                raise UserError(f"{file} is no readable image ({error})") from error
            size = size or pixels.shape
            if pixels.shape != size:
                raise UserError(f"{file} is {pixels.shape}, the others are {size}; bring all to one size and mode")
            images.append(pixels)
        order = np.random.default_rng(0).permutation(len(images))      # so that every part of a set has all classes
        arrays[f"x_{split}"] = np.stack(images)[order]
        arrays[f"y_{split}"] = np.array([label for _, label in listed])[order]
    return arrays
