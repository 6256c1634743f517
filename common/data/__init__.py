"""Images in memory: where they come from, and batches of them.

    dataset = data.load("cifar10")                # uint8 images, labels, class count, mean and standard deviation
    train = data.Loader(dataset, "train", batch_size=128, device=device, crop=4, flip=True, seed=1)
    for images, labels in train.epoch(0): ...     # float (B, C, H, W), normalized and augmented; labels (B,)

A script with a network uses `for_network` or `for_arch`, which give the images as that network reads them. A name is
found, in this order, as DATA_DIR/name.npz (arrays x_train, y_train, x_test, y_test), as the folder DATA_DIR/name of
images (folder.py), or by torchvision's download (mnist, cifar10, cifar100). Any other name is a path to such a file or
folder. shapes10 and shapes100 are built in (synthetic.py).
"""
import copy
import os
from dataclasses import replace
from pathlib import Path

import torch

from common import UserError, models, say
from common.data import arrays
from common.data.arrays import STATISTICS, Dataset, balanced
from common.data.loader import Loader

__all__ = ["STATISTICS", "Dataset", "Loader", "adapt", "augmentation", "balanced", "for_arch", "for_network", "load"]


def load(name, data_dir=None, image_size=None, subset=None, holdout=0, channels=None, usual=32):
    """The data set `name` as a Dataset; subset: at most that many training and test images, balanced, by a
    fixed seed; holdout: the last that many training images are the test set, and are not trained on.

    A folder's images are resized and cropped to image_size (None: the side all have, or `usual`) and have so many
    channels (None: 1 if all are grey, else 3); a synthetic set has 28 x 28 grey images for 1. UserError if there is no
    such data, or it cannot be used.
    """
    directory = directory_of(data_dir)
    if name in arrays.SYNTHETIC:
        key = f"{name}-grey" if channels == 1 else name
        found = arrays.generated(name, channels == 1, directory / f"{key}.npz")
    else:
        path, key = find(name, directory)
        if path and (path.parent != directory or str(name) != Path(name).name):          # valid in every folder
            name = os.path.abspath(path)
        if path and path.is_dir():
            from common.data.folder import read_folder
            found = read_folder(path, image_size, usual, channels)
        else:
            found = arrays.read_npz(path) if path else arrays.download(name, directory)
    data = arrays.checked(found, key, name)
    if subset:
        train, test = (balanced(y, min(subset, len(y)), data.num_classes) for y in (data.y_train, data.y_test))
        data = replace(data, x_train=data.x_train[train], y_train=data.y_train[train],
                       x_test=data.x_test[test], y_test=data.y_test[test])
    return arrays.hold_out(data, holdout) if holdout else data


def directory_of(data_dir=None):
    return Path(data_dir or os.environ.get("DATA_DIR") or Path(__file__).resolve().parents[2] / "data")


def find(name, directory):
    """(file or folder that holds the data set, or None to download it; the name its statistics go by)."""
    given, name = str(name), str(Path(name))                 # without a trailing slash
    places = [(directory / f"{name}.npz", directory / name), (Path(f"{name}.npz"), Path(name))]
    for kept, images in places if given == Path(name).name else reversed(places):         # a path is looked at first
        for path in (kept, images):
            if path.is_file() and path.suffix == ".npz":
                return path, path.stem
        if images.is_dir():
            from common.data.folder import has_images  # only folders need it, and the files it imports
            if name not in arrays.DOWNLOADS or has_images(images):
                return images, images.stem
        if images.exists() and name not in arrays.DOWNLOADS:
            raise UserError(f"{images} is neither an .npz nor a folder; unpack an archive and give its folder, or make "
                            "an .npz with x_train, y_train, x_test, y_test")
        if name in arrays.DOWNLOADS:
            return None, name
    known = ", ".join([*arrays.DOWNLOADS, *arrays.SYNTHETIC])
    raise UserError(f"no data set {name!r}: it is none of {known}, and there is no {directory / name}.npz, no folder "
                    f"{directory / name} and no such path")


def for_network(model, path, name, data_dir=None, **flags):
    """The data set as for_arch gives it, its images as the model reads them; `path` is the model's file. UserError as
    adapt."""
    data = for_arch(model.arch, model.cfg, name, data_dir, start={"images": getattr(model, "images", None)}, **flags)
    adapt(model, data, path)
    return data


def for_arch(arch, cfg, name, data_dir=None, image_size=None, subset=None, holdout=0, mean=None, std=None, start=None):
    """The data set as load gives it for a network that is to be trained on it: images of image_size, or of the side
    they have. start: the checkpoint it starts from, whose image size and normalization it keeps."""
    channels, usual, _ = models.input_shape(arch, cfg)
    size = usual if start or arch in models.ONE_SIZE else image_size
    data = load(name, data_dir, size, subset, holdout, channels, usual)
    if image_size and data.shape[1:] != (image_size, image_size):
        raise UserError(f"--image-size {image_size} resizes the images of a folder, for networks that read any size; "
                        f"those of {data.name} are {data.shape[2]} x {data.shape[1]}")
    return normalized(data, start and start.get("images"), mean, std)


def normalized(data, images, mean=None, std=None):
    """The data with the mean and std that are given, else with those of the images that a network was trained on, if
    its file says them. Prints what is used."""
    used = {"mean": data.mean, "std": data.std}
    if whose := images and len(images["mean"]) == len(data.mean):
        used = {key: tuple(images[key]) for key in used}
    given = {key: tuple(value) for key, value in (("mean", mean), ("std", std)) if value}
    for key, value in given.items():
        if len(value) != len(data.mean) or key == "std" and min(value) == 0:
            raise UserError(f"--{key} {' '.join(map(str, value))}: {data.name} has {len(data.mean)} channels, and each "
                            "needs its number, a standard deviation above 0")
    used |= given
    words = " and ".join(f"{key} {' '.join(f'{value:.4g}' for value in used[key])}" for key in used)
    usual = "usual for the data set" if (data.mean, data.std) in STATISTICS.values() else "measured on its images"
    source = "given" if given else "the network's file says" if whose else usual
    say(f"images normalized by {words}, as {source}")
    return replace(data, **used)


def augmentation(arch):
    """What the Loader does to training images of a network: nothing for the LeNets', since a mirrored digit is not a
    digit."""
    return {} if arch.startswith("lenet") else {"crop": 4, "flip": True}


def adapt(model, data, path):
    """Gives the network of `path` the image size, class names, mean and std of the data, for its counts and its file.
    UserError if it cannot be run on the data."""
    if model.cfg["num_classes"] != data.num_classes:
        raise UserError(f"{path} has {model.cfg['num_classes']} classes, {data.name} has {data.num_classes}; "
                        "give the --dataset it was trained on, or train it for this one with main.py --pretrained")
    reads = models.input_shape(model.arch, model.cfg)
    if ":" in model.arch:                                    # a network that is none of ours
        model.reads(data.shape)
    elif data.shape != reads:
        if data.shape[0] != reads[0] or data.shape[1] != data.shape[2] or model.arch in models.ONE_SIZE:
            raise UserError(f"{data.name} has images of {data.shape} (channels, height, width), a {model.arch} reads "
                            f"{reads}; give another --dataset, train another --arch, or convert the images")
        model.cfg["image_size"] = data.shape[1]              # what it is counted at from here on
        try:
            with torch.no_grad():
                copy.deepcopy(model).to("meta").eval()(torch.zeros(1, *data.shape, device="meta"))
        except RuntimeError as error:
            raise UserError(f"{data.name} has images of {data.shape[1]} x {data.shape[2]}, too small for a "
                            f"{model.arch}, which usually reads {reads[1]} x {reads[2]}") from error
        say(f"note: from here on {path} is counted for images of {data.shape[1]} x {data.shape[2]}, as {data.name} "
            f"has them, not of {reads[1]} x {reads[2]}")
    names, theirs = (getattr(model, "images", None) or {}).get("classes") or [], list(data.classes)
    if names and theirs and names != theirs:
        raise UserError(f"{path} was trained on the classes {', '.join(names)}; {data.name} has {', '.join(theirs)}; "
                        "rename its folders, or give the --dataset it was trained on")
    if hasattr(model, "images") and bool(names) != bool(theirs):       # of a file, not new
        say(f"note: {path if theirs else data.name} has no class names; its labels are taken as "
            f"{', '.join(f'{i} {name}' for i, name in enumerate((names or theirs)[:20]))}"
            f"{', ...' * (model.cfg['num_classes'] > 20)}")
    model.images = {"classes": theirs or names, "mean": list(data.mean), "std": list(data.std)}
