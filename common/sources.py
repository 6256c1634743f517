"""Where a data set is: in a file or folder, built in, or to be downloaded."""
import os
from pathlib import Path

import numpy as np

from common import UserError
from common.image_folder import has_images, read_npz, save_npz

DOWNLOADS = {"mnist": "MNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}
SYNTHETIC = ("shapes10", "shapes100")


def data_dir(given=None):
    return Path(given or os.environ.get("DATA_DIR") or Path(__file__).resolve().parent.parent / "data")


def find(name, folder):
    """(file or folder that holds the data set, or None to download it; the name its statistics go by)."""
    name = str(Path(name))                                   # without a last slash
    for kept, images in ((folder / f"{name}.npz", folder / name), (Path(f"{name}.npz"), Path(name))):
        for path in (kept, images):
            if path.is_file() and path.suffix == ".npz":
                return path, path.stem
        if images.is_dir() and (name not in DOWNLOADS or has_images(images)):
            return images, images.stem
        if images.exists() and name not in DOWNLOADS:
            raise UserError(f"{images} is neither an .npz nor a folder; unpack an archive and give its folder, or make "
                            "an .npz with x_train, y_train, x_test, y_test")
        if name in DOWNLOADS:
            return None, name
    raise UserError(f"no data set {name!r}: it is none of {', '.join([*DOWNLOADS, *SYNTHETIC])}, and there is no "
                    f"{folder / name}.npz, no folder {folder / name} and no such path")


def synthetic(name, folder, grey):
    from common.synthetic import generate
    path = folder / f"{name}{'-grey' if grey else ''}.npz"
    if path.is_file():
        return read_npz(path)
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
                        "or use --dataset shapes10") from error
    save_npz(folder / f"{name}.npz", arrays)
    return arrays
