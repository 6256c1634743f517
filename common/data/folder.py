"""A folder of images with a folder for each class: its splits and classes, decoded once."""
from collections import Counter

import numpy as np

from common import UserError, say
from common.data.arrays import read_npz, save_npz
from common.data.images import SUFFIXES, decode_all, folders, image_files, passed_over, shape_of

TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")       # in capitals too


def read_folder(path, size=None, usual=32, channels=None):
    """{"x_train": uint8 (N, side, side, C), "y_train": labels, ..., "classes": their names} of a folder of images.

    {train,test}/<class>/, or other names of TRAIN and TEST; with no test set, or with the classes right inside, some of
    each class, chosen by a fixed seed, are the test set. Decoded once, to size x size (None: the side all have, or
    `usual`), and kept in the folder as long as its files are the same. channels None: 1 where all are grey. Prints how
    many images there are, and which files and folders are not used.
    """
    train, test, unused = layout(path)
    classes, passed = [folder.name for folder in folders(train)], Counter()
    files = {"train": labelled(train, classes, passed), "test": labelled(test, classes, passed) if test else []}
    beside = sum(file.suffix.lower() in SUFFIXES for top in {path, train, test or path} for file in top.iterdir()
                 if not file.name.startswith("."))
    passed += Counter({"outside the class folders": beside})
    if not test:
        files = split(files["train"], path)
    every, resized = [file for listed in files.values() for file, _ in listed], ""
    if size is None or channels is None:
        side, colours, sizes = shape_of(every, usual, size)
        if side != size and sizes != f"{side} x {side}":
            resized = f", resized from {sizes} (--image-size changes that)"
        size, channels = side, channels or colours
    say(f"{path}: {len(files['train'])} training and {len(files['test'])} test images "
        f"({f'{test.name}/' if test else 'a fifth of each class, chosen by a fixed seed'}), {len(classes)} "
        f"classes, {size} x {size}{resized}{passed_over(passed)}{'; not used: ' if unused else ''}"
        f"{', '.join(unused)}")
    stats = [file.stat() for file in every]
    listing = [f"{size} {channels} {' '.join(classes)}"] + [
        f"{split} {file.relative_to(path)} {s.st_size} {s.st_mtime_ns}" for (split, file), s in zip(
            [(split, file) for split in files for file, _ in files[split]], stats, strict=True)]
    kept = path / f"decoded-{size}{'-grey' if channels == 1 else ''}.npz"
    arrays = read_kept(kept, listing)
    if arrays is None:
        arrays = {}
        for part, listed in files.items():                   # shuffled, so that every part of a set has all classes
            listed = [listed[i] for i in np.random.default_rng(0).permutation(len(listed))]
            arrays[f"x_{part}"] = decode_all([file for file, _ in listed], size, channels)
            arrays[f"y_{part}"] = np.array([label for _, label in listed])
        save_npz(kept, {**arrays, "files": np.array(listing)})
    return {**arrays, "classes": classes}


def layout(path):
    """(folder of the training classes, that of the test classes or None, the folders beside them as text). UserError
    with the folders found and expected."""
    inside = {folder.name.lower(): folder for folder in folders(path)}
    train = next((inside[name] for name in TRAIN if name in inside), None)
    tests = [inside[name] for name in TEST if name in inside]
    top = train or path
    classes = {folder.name for folder in folders(top)}
    if not classes or not train and (tests or not has_images(path)):
        kinds = Counter(file.suffix.lower() or "other" for file in top.iterdir() if file.is_file())
        there = [*sorted(f"{name}/" for name in classes), *(f"{n} {kind} file(s)" for kind, n in kinds.items())]
        raise UserError(f"{top} has {', '.join(there) or 'nothing in it'}; expected are {path}/train/<class>/ and "
                        f"{path}/test/<class>/ (or val/), or {path}/<class>/, with images in them")
    for folder in folders(path) if not train else ():
        if {inner.name.lower() for inner in folders(folder)} & {*TRAIN, *TEST}:
            raise UserError(f"{folder} has {', '.join(f'{p.name}/' for p in folders(folder))} in it; give --dataset "
                            f"{folder}, or rename them if {folder.name} is a class")
    labelled = [folder for folder in tests if folders(folder)]
    fit = [folder for folder in labelled if classes >= {p.name for p in folders(folder)}]
    test = (fit or labelled or [None])[0]
    return top, test, [f"{folder.name}/{'' if folders(folder) else ' (it has no class folders)'}"
                       for folder in folders(path) if train and folder not in (train, test)]


def has_images(path):
    """Whether there is one in the folders of a folder."""
    return any(file.suffix.lower() in SUFFIXES for folder in folders(path) for file in folder.rglob("*"))


def labelled(path, classes, passed):
    """[(file, label), ...] of the images in path/<class>/; other files are counted in `passed`. UserError for a class
    without images, or one too many."""
    unknown = [folder.name for folder in folders(path) if folder.name not in classes]
    if unknown:
        raise UserError(f"{path} has {', '.join(unknown)} without training images; the classes are "
                        f"{', '.join(classes)}")
    found = []
    for label, cls in enumerate(classes):
        others = Counter()
        images = image_files(path / cls, others) if (path / cls).is_dir() else []
        if not images:
            raise UserError(f"{path / cls} holds no images{passed_over(others)}; read are {', '.join(SUFFIXES)}")
        found += [(file, label) for file in images]
        passed += others
    return found


def split(listed, path):
    """{"train": ..., "test": a fifth of every class, chosen by a fixed seed, at least one where there are two}."""
    rng, files = np.random.default_rng(0), {"train": [], "test": []}
    for label in range(listed[-1][1] + 1):
        mine = [pair for pair in listed if pair[1] == label]
        order = rng.permutation(len(mine))
        count = max(len(mine) // 5, min(len(mine) - 1, 1))
        files["test"] += [mine[i] for i in sorted(order[:count])]
        files["train"] += [mine[i] for i in sorted(order[count:])]
    if not files["test"]:
        raise UserError(f"{path} has one image of each class; a test set needs more")
    return files


def read_kept(kept, listing):
    """The arrays of an earlier run, or None if the images have changed or the file is damaged."""
    if not kept.is_file():
        return None
    try:
        if np.array_equal(read_npz(kept, ["files"])["files"], listing):
            return read_npz(kept)
    except UserError as error:
        say(f"note: {error.args[0].partition(' (')[0]}; the images are decoded again")
    return None
