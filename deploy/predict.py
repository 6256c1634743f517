"""Label the images of a folder.

    python deploy/predict.py FILE FOLDER

FILE: a checkpoint of any method. FOLDER: new images, not sorted into classes. Writes predictions.csv: file, class,
probability.
"""
import csv
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from common import UserError, cli, models
from common.data.images import SUFFIXES, decode, image_files, passed_over
from common.evaluate import names_of
from deploy import network


@torch.no_grad()
def predict(args):
    """Writes args.csv with a line (file, class, probability) for each image in args.folder. UserError, and nothing
    written, if an image cannot be read."""
    ckpt, model = network.load(args)
    folder, path = Path(args.folder), Path(args.csv)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    if path.exists():
        raise UserError(f"{path} is there already; give another --csv")
    cli.check_writable(path.parent, "--csv")
    passed = Counter()
    files = image_files(folder, passed)
    if not files:
        raise UserError(f"{folder} holds no images{passed_over(passed)}; read are {', '.join(SUFFIXES)}")
    images, channels = model.images, models.input_shape(model.arch, model.cfg)[0]
    if not images:                                           # an older file: the statistics are the data set's
        network.images(args, ckpt, model)
        images = model.images
    images = {**images, **{key: getattr(args, key) for key in ("mean", "std") if getattr(args, key)}}
    if {len(images["mean"]), len(images["std"])} != {channels} or min(images["std"]) == 0:
        raise UserError(f"the network reads images of {channels} channels; --mean and --std have a number for each, "
                        "--std above 0")
    side = models.input_shape(model.arch, model.cfg)[1]
    device = next(model.parameters()).device
    mean, std = (torch.tensor(images[key], device=device).view(1, -1, 1, 1) for key in ("mean", "std"))
    names, rows = names_of(model), []
    for start in range(0, len(files), args.test_batch_size):
        some = files[start:start + args.test_batch_size]
        pixels = torch.stack([torch.from_numpy(decode(file, side, channels)) for file in some]).to(device)
        probabilities = model((pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std).softmax(1)
        for file, (probability, label) in zip(some, zip(*(v.tolist() for v in probabilities.max(1)), strict=True),
                                              strict=True):
            rows.append((str(file.relative_to(folder)), names[label], f"{probability:.4f}"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            csv.writer(file).writerows([("file", "class", "probability"), *rows])
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); give another --csv") from error
    numbers = "" if images["classes"] else " (classes are numbers: the checkpoint has no names)"
    print(f"labelled {len(rows)} images of {folder}{passed_over(passed)}; wrote {path}{numbers}")


def main(argv=None):
    parser = network.parser(__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="folder of images; its subfolders are read too")
    parser.add_argument("--csv", default="predictions.csv", help="file for the labels (default: predictions.csv)")
    predict(parser.parse_args(argv))


if __name__ == "__main__":
    cli.script(main)
