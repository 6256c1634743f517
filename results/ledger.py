"""Reading results/ledger.csv, and what several tables share.

A row is a dictionary with the columns below; `args` is decoded, all others are strings. `accuracy` is the last epoch's
in percent, of a bundled file that file's own; `macs` leave out weights that are zero; `args` are the run's settings,
with `rule` of how weights were chosen, and on CIFAR-100 `score` by the MicroNet challenge's rules, where what is not
quantized has 32 bits. `bytes` are those of the kept file, else of a file with the network alone; in rows of before 26
November 2026 whose files are gone, 4 a parameter. A table is a function of the rows that returns (header, rows of
cells).
"""
import csv
import json
import statistics
from pathlib import Path

PATH = Path(__file__).resolve().parent / "ledger.csv"
COLUMNS = ("date,command,method,stage,arch,dataset,epochs,seed,precision,hardware,minutes,accuracy,best_accuracy,"
           "params,nonzeros,macs,bytes,checkpoint,sha256,weights,widths,args").split(",")


def read(path=PATH):
    with open(path, newline="") as file:
        return [row | {"args": json.loads(row["args"])} for row in csv.DictReader(file)]


def recipe(row, minutes=True, epochs=None):
    """'20 epochs of 10,000 images, bf16, NVIDIA H200, 12 min', only the hardware if nothing was trained; epochs: of
    several rows."""
    made = f"{row['precision']}, {row['hardware']}"
    if row["epochs"] == "0":
        return made
    subset = f" of {row['args']['subset']:,} images" if row["args"].get("subset") else ""
    return f"{epochs or row['epochs']} epochs{subset}, {made}" + f", {float(row['minutes']):.0f} min" * minutes


def compared(row):
    """Whether the run belongs to the tables in results/comparison/ alone."""
    folder = Path(row["args"].get("save") or "").parts[:2]
    return folder in (("logs", "compare"), ("logs", "resnet56")) or by_cost(row)


def by_cost(row):
    """Whether the run is in the table cost_exponent."""
    return any(part.startswith("cost") for part in Path(row["args"].get("save") or "").parts)


def left(row, dense, column):
    """'1,234 (56.7 %)': the count, and what it is of the dense network's row; only the count where there is none."""
    count = int(row[column])
    return f"{count:,}" + (f" ({100 * count / int(dense[column]):.1f} %)" if dense and dense is not row else "")


def spread(values):
    """'93.10 ± 0.21 (3)': mean, standard deviation and number of the seeds."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f} ({len(values)})"
                                              if len(values) > 1 else " (1)")


def one_a_seed(groups):
    """groups, {key: rows}; ValueError where two rows of one seed would count as two seeds."""
    for key, rows in groups.items():
        if len({row["seed"] for row in rows}) < len(rows):
            raise ValueError(f"{key}: one seed has several rows in the ledger; what tells them apart?")
    return groups
