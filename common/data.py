"""Images in memory: where they come from, and batches of them.

    dataset = load("cifar10")                     # uint8 images, labels, class count, mean and standard deviation
    train = Loader(dataset, "train", batch_size=128, device=device, crop=4, flip=True, seed=1)
    for images, labels in train.epoch(0): ...     # float (B, C, H, W), normalized and augmented; labels (B,)

`name` is found, in this order, as DATA_DIR/name.npz (arrays x_train, y_train, x_test, y_test), as the folder
DATA_DIR/name of images (common/image_folder.py), or by torchvision's download (mnist, cifar10, cifar100). Any other
name is a path to such a file or folder. shapes10 and shapes100 are built in (common/synthetic.py).
"""
import copy
import os
from dataclasses import dataclass, replace

import numpy as np
import torch

from common import UserError, checkpoint, models
from common.image_folder import read_folder, read_npz
from common.loader import Loader as Loader  # data.Loader
from common.sources import SYNTHETIC, data_dir, download, find, synthetic

STATISTICS = {  # mean and std per channel; the slimming code uses CIFAR-10's for both sets, DeepHoyer raw MNIST
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "mnist": ((0.0,), (1.0,)),
    "shapes10": ((0.4968482441023285, 0.5000743363204658, 0.5002044883578431),
                 (0.28528036582598065, 0.28603824039470355, 0.2864997272972898)),
    "shapes10-grey": ((0.26340734993997594,), (0.25191033655996636,)),
    "shapes100": ((0.49906940755208345, 0.4980050643382354, 0.4925536086856618),
                  (0.28646099262979247, 0.2843556542337836, 0.2840030096177332)),
    "shapes100-grey": ((0.2647650210084033,), (0.2522351952640675,)),
}


@dataclass
class Dataset:
    """x: uint8 (N, H, W, C); y: int64 (N,); mean and std: C numbers for pixels in [0, 1]; classes: their names, if they
    have any."""
    name: str
    x_train: torch.Tensor
    y_train: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    num_classes: int
    mean: tuple
    std: tuple
    classes: tuple = ()

    @property
    def shape(self):
        """(C, H, W) of one image."""
        height, width, channels = self.x_train.shape[1:]
        return channels, height, width


def load(name, folder=None, grey=False, subset=None, holdout=0, size=None, usual=32, channels=None):
    """The data set `name` as a Dataset; subset: at most that many training and test images, balanced, by a
    fixed seed; holdout: the last that many training images are the test set, and are not trained on.

    grey: the 28 x 28 grey variant of a synthetic set. A folder's images are resized and cropped to size x size (None:
    the side all have, or `usual`) and have so many channels (None: 1 if all are grey, else 3). UserError where there
    is no such data or it is not usable.
    """
    folder = data_dir(folder)
    if name in SYNTHETIC:
        arrays, key = synthetic(name, folder, grey), f"{name}{'-grey' * grey}"
    else:
        path, key = find(name, folder)
        if path and path.parent != folder:                   # one that is found from everywhere
            name = os.path.abspath(path)
        arrays = (download(name, folder) if path is None else read_npz(path) if path.is_file()
                  else read_folder(path, size, usual, 1 if grey else channels))
    data = check(arrays, key, name)
    if subset:
        train, test = (balanced(y, min(subset, len(y)), data.num_classes) for y in (data.y_train, data.y_test))
        data = replace(data, x_train=data.x_train[train], y_train=data.y_train[train],
                       x_test=data.x_test[test], y_test=data.y_test[test])
    return hold_out(data, holdout) if holdout else data


def for_network(model, args, path, holdout=0):
    """The data set of args, its images as the model reads them; `path` is the model's file. UserError as check_fit."""
    channels, size, _ = models.input_shape(model.arch, model.cfg)
    data = load(args.dataset, args.data_dir, channels == 1, args.subset, holdout, size, channels=channels)
    data = sized(args, normalized(data, getattr(model, "images", None), args))
    check_fit(data, model, path)
    return data


def normalized(data, images, args):
    """The data with --mean and --std, else with those of the images that a network was trained on, if its file says
    them. Prints what is used."""
    used = {"mean": data.mean, "std": data.std}
    if whose := images and len(images["mean"]) == len(data.mean):
        used = {key: tuple(images[key]) for key in used}
    given = {key: tuple(getattr(args, key)) for key in used if getattr(args, key)}
    for key, value in given.items():
        if len(value) != len(data.mean) or key == "std" and min(value) == 0:
            raise UserError(f"--{key} {' '.join(map(str, value))}: {data.name} has {len(data.mean)} channels, and each "
                            "needs its number, a standard deviation above 0")
    used |= given
    words = " and ".join(f"{key} {' '.join(f'{value:.4g}' for value in used[key])}" for key in used)
    source = "as given" if given else "as the network's file says" if whose else "as usual for the data set"
    print(f"images normalized by {words}, {source}")
    return replace(data, **used)


def for_arch(arch, cfg, args, holdout=0, start=None):
    """The data set of args for a network that is to be trained on it: images of --image-size, or of the side they
    have. start: the checkpoint it starts from, whose image size and normalization it keeps."""
    channels, usual, _ = models.input_shape(arch, cfg)
    size = usual if start or arch in models.ONE_SIZE else args.image_size
    data = load(args.dataset, args.data_dir, channels == 1, args.subset, holdout, size, usual, channels)
    return sized(args, normalized(data, start and checkpoint.images_of(start), args))


def sized(args, data):
    """The data, if its images are of --image-size. Its name is args.dataset from here on, a path from the root."""
    args.dataset = data.name
    if args.image_size and data.shape[1:] != (args.image_size, args.image_size):
        raise UserError(f"--image-size {args.image_size} resizes the images of a folder, for networks that read any "
                        f"size; those of {data.name} are {data.shape[2]} x {data.shape[1]}")
    return data


def augmentation(arch):
    """What the Loader does to training images of a network: nothing for the LeNets', since a mirrored digit is not a
    digit."""
    return {} if arch.startswith("lenet") else {"crop": 4, "flip": True}


def hold_out(data, count):
    """The Dataset with its last `count` training images as a validation set in the place of the test set."""
    x, y = data.x_train, data.y_train
    if not 0 < count < len(y):
        raise UserError(f"--holdout {count}: there are {len(y)} training images")
    if len(y[:-count].unique()) < len(y.unique()) or len(y[-count:].unique()) == 1:
        raise UserError(f"--holdout {count} would take whole classes, or one only: {data.name} seems to be in the "
                        "order of its classes; bring it into a random one")
    return replace(data, x_train=x[:-count], y_train=y[:-count], x_test=x[-count:], y_test=y[-count:])


def check(arrays, key, name):
    """A Dataset from raw arrays: shapes, types and labels looked at once, statistics added."""
    tensors = {}
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"].reshape(-1)
        if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[-1] not in (1, 3)):
            raise UserError(f"{name}: x_{split} is {x.dtype} {x.shape}; needed is uint8 (N, H, W) or (N, H, W, 1 or 3)")
        if not len(x) or len(x) != len(y):
            raise UserError(f"{name}: {len(x)} {split} images, {len(y)} labels")
        if y.dtype.kind not in "iu" or y.min() < 0:
            raise UserError(f"{name}: y_{split} must be class numbers from 0")
        if int(y.max()) > 10 * len(arrays["y_train"]):
            raise UserError(f"{name}: a label {int(y.max())} in y_{split}, but {len(arrays['y_train'])} training "
                            "images; labels must be class numbers from 0")
        tensors[f"x_{split}"] = torch.from_numpy(np.ascontiguousarray(x if x.ndim == 4 else x[..., None]))
        tensors[f"y_{split}"] = torch.from_numpy(y.astype(np.int64))
    if tensors["x_train"].shape[1:] != tensors["x_test"].shape[1:]:
        raise UserError(f"{name}: training and test images differ in size")
    num_classes = int(tensors["y_train"].max()) + 1
    trained, tested = (set(tensors[f"y_{split}"].unique().tolist()) for split in ("train", "test"))
    if tested - trained:
        raise UserError(f"{name}: there are test images of class {numbers(tested - trained)}, but no training images")
    if missing := set(range(num_classes)) - trained:
        print(f"note: {name} has no images of class {numbers(missing)}; labels count from 0, so a network for it has "
              f"{num_classes} classes")
    if num_classes < 2:
        raise UserError(f"{name}: {num_classes} class; at least 2 are needed")
    if key in STATISTICS and len(STATISTICS[key][0]) == tensors["x_train"].shape[-1]:
        mean, std = STATISTICS[key]
    else:
        some = max(30_720_000 // tensors["x_train"][0].numel(), 1)       # 10,000 images of 32 x 32: 250 MB
        pixels = tensors["x_train"][:some].double().flatten(0, 2) / 255
        mean, std = tuple(pixels.mean(0).tolist()), tuple(pixels.std(0).clamp_min(1e-3).tolist())
    return Dataset(name, **tensors, num_classes=num_classes, mean=mean, std=std,
                   classes=tuple(arrays.get("classes", ())))


def numbers(labels):
    """Class numbers as text, the first ten of them."""
    return ", ".join(map(str, sorted(labels)[:10])) + (", ..." if len(labels) > 10 else "")


def check_fit(data, model, path):
    """UserError where the network of `path` cannot be run on the data."""
    if model.cfg["num_classes"] != data.num_classes:
        raise UserError(f"{path} has {model.cfg['num_classes']} classes, {data.name} has {data.num_classes}; "
                        "give the --dataset it was trained on, or train a network on this one")
    reads = models.input_shape(model.arch, model.cfg)
    if data.shape != reads:
        if data.shape[0] != reads[0] or data.shape[1] != data.shape[2] or model.arch in models.ONE_SIZE:
            raise UserError(f"{data.name} has images of {data.shape} (channels, height, width), a {model.arch} reads "
                            f"{reads}; take another --arch, or convert the images")
        model.cfg["image_size"] = data.shape[1]              # what it is counted at from here on
        try:
            with torch.no_grad():
                copy.deepcopy(model).to("meta").eval()(torch.zeros(1, *data.shape, device="meta"))
        except RuntimeError as error:
            raise UserError(f"{data.name} has images of {data.shape[1]} x {data.shape[2]}, too small for a "
                            f"{model.arch}, which usually reads {reads[1]} x {reads[2]}") from error
        print(f"note: from here on {path} is counted for images of {data.shape[1]} x {data.shape[2]}, as {data.name} "
              f"has them, not of {reads[1]} x {reads[2]}")
    names, theirs = (getattr(model, "images", None) or {}).get("classes") or [], list(data.classes)
    if names and theirs and names != theirs:
        raise UserError(f"{path} was trained on the classes {', '.join(names)}; {data.name} has {', '.join(theirs)}; "
                        "rename its folders, or give the --dataset it was trained on")
    if hasattr(model, "images") and bool(names) != bool(theirs):       # of a file, not new
        print(f"note: {path if theirs else data.name} has no class names; its labels are taken as "
              f"{', '.join(f'{i} {name}' for i, name in enumerate((names or theirs)[:20]))}"
              f"{', ...' * (model.cfg['num_classes'] > 20)}")
    model.images = {"classes": theirs or names, "mean": list(data.mean), "std": list(data.std)}


def balanced(labels, count, num_classes, seed=0):
    """Indices of `count` images, the classes as equal in number as they can be."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rank = torch.empty_like(labels)
    for cls in range(num_classes):
        mine = order[labels[order] == cls]
        rank[mine] = torch.arange(len(mine))
    # the first of every class, then the second of every class, ...
    return order[torch.argsort(rank[order], stable=True)][:count]
