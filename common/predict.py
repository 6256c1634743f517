"""What a network says image by image: accuracy class by class, and a CSV of labels for a folder of new images."""
import csv
from pathlib import Path

import torch

from common import UserError, checkpoint, cli, data, models
from common.decoding import SUFFIXES, decode, image_files


def add_flags(parser):
    add = parser.add_argument
    add("--per-class", action="store_true", help="print accuracy and number of images of each class")
    add("--predict", metavar="FOLDER", help="label the images in this folder, in no classes yet, instead of evaluating")
    add("--csv", default="predictions.csv", help="file for the labels (default: predictions.csv)")


def names_of(model, dataset=None):
    """The names of the classes: those of the file, or of the data set, else their numbers."""
    known = (model.images or {}).get("classes") or (dataset.classes if dataset else ())
    return list(known) or [str(i) for i in range(model.cfg["num_classes"])]


@torch.no_grad()
def per_class(model, loader, names, half=False):
    """Text: for each class its accuracy, how many images it has and what they are taken for most often."""
    confusion = torch.zeros(len(names), len(names), dtype=torch.int64)
    model.eval()
    for images, labels in loader:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            guesses = model(images).argmax(1)
        confusion.view(-1).index_add_(0, (labels * len(names) + guesses).cpu(), torch.ones_like(labels.cpu()))
    width = max(5, *map(len, names))
    lines = [f"{'class':{width}} {'images':>7} {'right, %':>9}  most often taken for"]
    for i, name in enumerate(names):
        row, count = confusion[i].clone(), int(confusion[i].sum())
        right, row[i] = int(row[i]), 0
        other = f"{names[int(row.argmax())]} ({int(row.max())})" if row.any() else ""
        lines.append(f"{name:{width}} {count:7} {100 * right / count if count else 0:9.2f}  {other}".rstrip())
    return "\n".join(lines)


@torch.no_grad()
def predict(model, ckpt, args, device):
    """Writes args.csv with a line (file, class, probability) for each image in the folder args.predict, and returns its
    path. UserError, and nothing written, where an image cannot be read."""
    folder, path = Path(args.predict), Path(args.csv)
    if not folder.is_dir():
        raise UserError(f"--predict {folder} is no folder")
    if path.exists():
        raise UserError(f"{path} is there already; give another --csv")
    cli.check_writable(path.parent, "--csv")
    inside = [folder, *sorted(p for p in folder.rglob("*") if p.is_dir() and not any(
        part.startswith(".") for part in p.relative_to(folder).parts))]
    files = [file for place in inside for file in image_files(place)]
    if not files:
        raise UserError(f"--predict {folder} holds no {', '.join(SUFFIXES)}")
    images, channels = model.images, models.input_shape(model.arch, model.cfg)[0]
    if not images:                                           # an older file: the statistics are the data set's
        args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
        data.for_network(model, args, ckpt["path"])
        images = model.images
    side = models.input_shape(model.arch, model.cfg)[1]
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
    print(f"labelled {len(rows)} images of {folder}; wrote {path}")
    return path
