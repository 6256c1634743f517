"""A data set in memory, made of arrays: an .npz, a synthetic set or torchvision's download, kept as an .npz."""
import math
import os
import zipfile
from dataclasses import dataclass, replace

import numpy as np
import torch

from common import UserError, say

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
SYNTHETIC = ("shapes10", "shapes100")
DOWNLOADS = {"mnist": "MNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}


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


def read_npz(path, keys=("x_train", "y_train", "x_test", "y_test")):
    try:
        check_sizes(path, keys)
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in keys}
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]}; needed are {', '.join(keys)}") from error
    except Exception as error:                               # numpy and zipfile raise many kinds of errors
        raise UserError(f"{path} is not a readable .npz of plain arrays ({error}); make or copy it again") from error


def check_sizes(path, keys):
    """ValueError where an array of an .npz has another size than its header says, or the file unpacks to far more than
    images do; KeyError where one is missing."""
    with zipfile.ZipFile(path) as records:
        found = [records.getinfo(f"{key}.npy") for key in keys]
        unpacked, size = sum(record.file_size for record in found), os.path.getsize(path)
        if unpacked > 2 ** 28 + 20 * size:
            raise ValueError(f"{size:,} bytes that unpack to {unpacked:,}, as a zip bomb does")
        for key, record in zip(keys, found, strict=True):
            with records.open(record) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
                left = record.file_size - file.tell()
                if not dtype.hasobject and math.prod(shape) * dtype.itemsize != left:
                    raise ValueError(f"{key} is to be {dtype} {shape}, but has {left:,} bytes")


def save_npz(path, arrays):
    """Keeps the arrays for the next run if the folder is writable; renamed when complete, so never half a file."""
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(partial, **arrays)
        partial.replace(path)
    except OSError as error:
        say(f"note: cannot keep {path} for the next run ({error.strerror})")
    finally:
        if partial.exists():
            partial.unlink()


def generated(name, grey, path):
    if path.is_file():
        return read_npz(path)
    from common.data.synthetic import generate
    arrays = generate(name, grey)
    save_npz(path, arrays)
    return arrays


def download(name, folder):
    try:
        import torchvision
    except ImportError as error:
        raise UserError(f"no {folder / name}.npz, and the download of {name} needs torchvision; install that, put "
                        "the file there, or use --dataset shapes10") from error
    kind = getattr(torchvision.datasets, DOWNLOADS[name])
    arrays = {}
    try:
        for split, train in (("train", True), ("test", False)):
            part = kind(folder / "downloads", train=train, download=True)
            arrays[f"x_{split}"], arrays[f"y_{split}"] = np.asarray(part.data), np.asarray(part.targets)
    except (OSError, RuntimeError) as error:
        raise UserError(f"no {folder / name}.npz, and the download of {name} failed ({error}); put the file there, "
                        "give the --data-dir that has it, or use --dataset shapes10") from error
    save_npz(folder / f"{name}.npz", arrays)
    return arrays


def checked(arrays, key, name):
    """A Dataset from raw arrays: shapes, types and labels are checked, statistics added."""
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
        say(f"note: {name} has no images of class {numbers(missing)}; labels count from 0, so a network for it has "
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


def balanced(labels, count, num_classes):
    """Indices of `count` images, the classes as equal in number as they can be."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    rank = torch.empty_like(labels)
    for cls in range(num_classes):
        mine = order[labels[order] == cls]
        rank[mine] = torch.arange(len(mine))
    # the first of every class, then the second of every class, ...
    return order[torch.argsort(rank[order], stable=True)][:count]


def hold_out(data, count):
    """The Dataset with its last `count` training images as a validation set in the place of the test set."""
    x, y = data.x_train, data.y_train
    if not 0 < count < len(y):
        raise UserError(f"--holdout {count}: there are {len(y)} training images")
    if len(y[:-count].unique()) < len(y.unique()) or len(y[-count:].unique()) == 1:
        raise UserError(f"--holdout {count} would take whole classes, or one only: {data.name} seems to be in the "
                        "order of its classes; shuffle it")
    return replace(data, x_train=x[:-count], y_train=y[:-count], x_test=x[-count:], y_test=y[-count:])
