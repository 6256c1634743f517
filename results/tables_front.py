"""The tables of the top README: a row for each method, and the comparison."""
import csv
from pathlib import Path

from results import tables_compare
from results.ledger import left

SPEED = Path(__file__).resolve().parent / "speed.csv"

# file in chkpt/: (method, the paper's or the original README's figure for its own, larger network, the command)
BUNDLED = {
    "chkpt/slimming-vgg13-cifar10-finetuned.pth.tar": (
        "slimming", "VGG-13: 89.82 -> 90.08, 9.41M -> 2.64M parameters",
        "python slimming/prune.py --percent 0.4 --model FILE"),
    "chkpt/hoyer-lenet300-mnist-hs.pth.tar": (
        "hoyer", "98.4 with 1.74 % of the weights (from memory)",
        "python hoyer/prune.py --sensitivity 0.01 --model FILE"),
    "chkpt/magnitude-resnet20-cifar10-90.pth.tar": (
        "magnitude", "ResNet-56: 93.46 -> 93.56 with 10.7 % of the weights (Renda et al.)",
        "python magnitude/prune.py --percent 0.9 --model FILE"),
    "chkpt/pruned_model.pth.tar": (
        "softmask", "WRN-34-9: 80.46 with 23.18M of 37.45M parameters", "python softmask/main.py --target 0.4"),
    "chkpt/cifar100_mobilenetv2.pt": (
        "reweighted", "width 1.3: 81.92 -> 80.12 with 23 % of the weights",
        "python reweighted/main.py --rew --pretrained FILE")}


def dense_of(row, ledger):
    """The ledger's row of the dense network that the bundled one comes from: of several the nearest in seed, precision
    and epochs."""
    same = [other for other in ledger if other["stage"] == "dense" and not other["args"].get("subset")
            and all(other[name] == row[name] for name in ("method", "arch", "dataset"))]
    return min(same, key=lambda other: (other["seed"] != row["seed"], other["precision"] != row["precision"],
                                        abs(int(other["epochs"]) - int(row["epochs"]))))


def methods(ledger):
    """A row for each method: its bundled network, measured here, beside the published figure."""
    with open(SPEED, newline="") as file:
        speed = {row["checkpoint"]: row for row in csv.DictReader(file)}
    cells = []
    for file, (method, published, command) in BUNDLED.items():
        row, = (row for row in ledger if row["checkpoint"] == file)
        dense, times = dense_of(row, ledger), speed[file]
        ratios = [float(times[f"dense_{batch}"]) / float(times[f"pruned_{batch}"]) for batch in (1, 128)]
        cells.append([f"[{method}]({method}/README.md)", f"{row['arch']}, {row['dataset']}",
                      f"{dense['accuracy']} -> {row['accuracy']}", left(row, dense, "nonzeros"),
                      left(row, dense, "macs"), f"{int(row['bytes']) // 1024:,}",
                      " / ".join(f"{ratio:.1f}x" for ratio in ratios), published, f"`{command}`"])
    return ["method", "network", "top-1, %, dense -> pruned", "parameters not zero (left)", "MACs (left)",
            "KiB on disk", "faster at batch 1 / 128", "published", "prune with"], cells


def comparison(ledger):
    """All methods on one network; `ledger` has the same runs, command by command."""
    return tables_compare.comparison(tables_compare.read())


def coefficients(ledger):
    """What the coefficients of the comparison were chosen from."""
    return tables_compare.coefficients(ledger)
