"""Reading results/ledger.csv, and what several tables share.

A row is a dictionary with the columns below; `args` is decoded, all others are strings. A table is a function of the
rows that returns (header, rows of cells).
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


def recipe(row, minutes=True):
    """'20 epochs of 10,000 images, bf16, NVIDIA H200, 12 min'; without epochs and minutes where nothing was trained."""
    made = f"{row['precision']}, {row['hardware']}"
    if row["epochs"] == "0":
        return made
    subset = f" of {row['args']['subset']:,} images" if row["args"].get("subset") else ""
    return f"{row['epochs']} epochs{subset}, {made}" + f", {float(row['minutes']):.0f} min" * minutes


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
