"""Data sets on disk: an .npz of arrays, or a folder of images, a folder for each class, decoded once."""
import os

import numpy as np

from common import UserError, checks
from common.decoding import SUFFIXES, decode_all, folders, image_files, shape_of


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


def is_folder(path):
    """Whether it has a train/, or folders with images right inside."""
    return (path / "train").is_dir() or any(f.suffix.lower() in SUFFIXES for d in folders(path) for f in d.iterdir())


def read_folder(path, size=None, usual=32, channels=None):
    """{"x_train": uint8 (N, side, side, C), "y_train": labels, ..., "classes": their names} of a folder of images.

    {train,test}/<class>/*; val/ or valid/ for test/; with neither, or with the classes right inside, some of each
    class, chosen by a fixed seed, are the test set, which a line says. Decoded once, to size x size (None: the side all
    have, or `usual`), and kept in the folder as long as its files are the same. channels None: 1 where all are grey.
    """
    top = path / "train" if (path / "train").is_dir() else path
    classes = [folder.name for folder in folders(top)]
    if not classes:
        raise UserError(f"{top} holds no folders; one for each class is needed")
    test = next((path / name for name in ("test", "val", "valid") if (path / name).is_dir()), None)
    if test and top == path:
        raise UserError(f"{path} has a {test.name}/ but no train/")
    files = {"train": labelled(top, classes), "test": labelled(test, classes) if test else []}
    if not test:
        files = split(files["train"])
        if os.environ.get("RANK", "0") == "0":               # under torchrun one process says so
            print(f"note: {path} has no test/, val/ or valid/; {len(files['test'])} of its "
                  f"{len(files['train']) + len(files['test'])} images, chosen by a fixed seed, are the test set")
    every = [file for listed in files.values() for file, _ in listed]
    if size is None or channels is None:
        side, colours = shape_of(every, usual)
        size, channels = size or side, channels or colours
    stats = [file.stat() for file in every]
    listing = [f"{size} {channels} {' '.join(classes)}"] + [
        f"{split} {file.relative_to(path)} {s.st_size} {s.st_mtime_ns}" for (split, file), s in zip(
            [(split, file) for split in files for file, _ in files[split]], stats, strict=True)]
    kept = path / f"decoded-{size}{'-grey' if channels == 1 else ''}.npz"
    arrays = read_kept(kept, listing)
    if arrays is None:
        arrays = decode(files, size, channels)
        save_npz(kept, {**arrays, "files": np.array(listing)})
    return {**arrays, "classes": classes}


def labelled(path, classes):
    """[(file, label), ...] of the images in path/<class>/. UserError for a class without any, or one too many."""
    unknown = sorted({folder.name for folder in folders(path)} - set(classes))
    if unknown:
        raise UserError(f"{path / unknown[0]} is a class that {path.parent / 'train'} does not have")
    found = []
    for label, cls in enumerate(classes):
        images = image_files(path / cls) if (path / cls).is_dir() else []
        if not images:
            raise UserError(f"{path / cls} holds no {', '.join(SUFFIXES)}")
        found += [(file, label) for file in images]
    return found


def split(listed):
    """{"train": ..., "test": ...}: of every class a fifth, chosen by a fixed seed, at least one where there are two."""
    rng, files = np.random.default_rng(0), {"train": [], "test": []}
    for label in range(listed[-1][1] + 1):
        mine = [pair for pair in listed if pair[1] == label]
        order = rng.permutation(len(mine))
        count = max(len(mine) // 5, min(len(mine) - 1, 1))
        files["test"] += [mine[i] for i in sorted(order[:count])]
        files["train"] += [mine[i] for i in sorted(order[count:])]
    if not files["test"]:
        raise UserError(f"{listed[0][0].parent.parent} has one image of each class; a test set needs more")
    return files


def read_kept(kept, listing):
    """The arrays of an earlier run, or None where the files have changed since, or the file is damaged."""
    if not kept.is_file():
        return None
    try:
        if np.array_equal(read_npz(kept, ["files"])["files"], listing):
            return read_npz(kept)
    except UserError as error:
        print(f"note: {error.args[0].partition(' (')[0]}; the images are decoded again")
    return None


def decode(files, size, channels):
    """{"train": [(file, label), ...], "test": ...} -> {"x_train": uint8 images, "y_train": labels, ...}."""
    arrays = {}
    for part, listed in files.items():
        order = np.random.default_rng(0).permutation(len(listed))      # so that every part of a set has all classes
        arrays[f"x_{part}"] = decode_all([listed[i][0] for i in order], size, channels)
        arrays[f"y_{part}"] = np.array([listed[i][1] for i in order])
    return arrays
