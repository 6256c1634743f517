"""Tables of DeepHoyer: the LeNets on MNIST."""
import statistics
from pathlib import Path

from common import compute_flops, models
from results.ledger import one_a_seed, recipe, spread

LENETS = {"lenet300": "LeNet-300-100", "lenet5": "LeNet-5"}
PAPER = {  # of LeNet-300-100 at 98.4 %, of LeNet-5 at 99.2 % (groups: 99.0 %): what is left, and in percent
    ("lenet300", "hoyer"): ("6.0k", "2.27"), ("lenet5", "hoyer"): ("4.0k", "0.94"),
    ("lenet300", "hs"): ("4.6k", "1.74"), ("lenet5", "hs"): ("3.5k", "0.81"),
    ("lenet300", "tl1"): ("6.4k", "2.40"), ("lenet5", "tl1"): ("5.4k", "1.3"),
    ("lenet300", "group-hs"): ("353-45-11, 16.5k", "6.19"), ("lenet5", "group-hs"): ("5-12-139-13, 169.9k", "7.41")}


def is_group(penalty):
    return penalty.startswith("group-")


def groups(ledger):
    """[(penalty, rows of all seeds)] of the LeNets on MNIST: dense ones ("") and those that sweep.py chose, of each
    penalty those with the strictest condition first."""
    found = {}
    for row in ledger:
        args, whole = row["args"], models.build(row["arch"]).cfg["widths"] if row["arch"] in LENETS else []
        if (row["method"], row["dataset"]) != ("hoyer", "mnist") or not (row["stage"] == "dense" or args.get("target")):
            continue
        if row["stage"] == "dense":
            key = ("", 0, int(row["epochs"]), args["save"], args["holdout"], row["precision"])
        else:
            if is_group(args["reg"]) and row["widths"] == "-".join(map(str, whole)):
                raise ValueError(f"{row['command']}: of groups the ledger takes the compacted network")
            key = (args["reg"], -args["target"], not args["refit"], args["decay"], args["wd"], args["granularity"],
                   -args["tune_epochs"], row["precision"])
        found.setdefault((row["arch"], *key), []).append(row)
    return [(key[1], rows) for key, rows in sorted(one_a_seed(found).items())]


def structural_macs(row):
    """What the LeNet of the row's widths computes, zeros or not."""
    return compute_flops.count(models.build(row["arch"], widths=[int(w) for w in row["widths"].split("-")])).total.macs


def left_of(penalty, rows):
    """What each row's network has left, and what the dense one has: weights, with a group penalty MACs."""
    whole = compute_flops.count(models.build(rows[0]["arch"])).total
    if is_group(penalty):
        return [structural_macs(row) for row in rows], whole.macs
    return [int(row["weights"]) for row in rows], whole.weights


def fraction(counts, whole):
    """'4,632 ± 120 (1.74 %)'"""
    mean, std = statistics.mean(counts), f" ± {statistics.stdev(counts):,.0f}" if len(counts) > 1 else ""
    return f"{mean:,.0f}{std} ({100 * mean / whole:.2f} %)"


def settings(rows):
    """'98.4 % on the validation set, lambda 0.0001, fine-tuning 20 epochs, thresholds 0.07, 0.1', one for each seed."""
    args = rows[0]["args"]
    if rows[0]["stage"] == "dense":
        return f"without the {args['holdout']:,} validation images" if args["holdout"] else "all training images"
    thresholds = ", ".join(f"{row['args']['sensitivity']:g}" for row in rows)
    words = [f"{args['target']:g} % on the validation set", "refit" if args["refit"] else "",
             f"lambda {args['decay']:g}", f"weight decay {args['wd']:g}" if args["wd"] else "",
             "whole groups" if args["granularity"] == "group" else "", f"fine-tuning {args['tune_epochs']} epochs",
             f"threshold{'s' * (len(rows) > 1)} {thresholds}"]
    return ", ".join(word for word in words if word)


def epochs_of(rows):
    """The recipe of several seeds: the range of their epochs."""
    counts = sorted({int(row["epochs"]) for row in rows})
    return recipe(rows[0], epochs=" to ".join(map(str, dict.fromkeys([counts[0], counts[-1]]))))


def paper(arch, penalty):
    """'4.6k, 1.74 %', or nothing where the paper has no figure."""
    return "{}, {} %".format(*PAPER[arch, penalty]) if (arch, penalty) in PAPER else ""


def line(penalty, rows, *columns):
    """The row of one penalty; columns: further ones after its name."""
    arch = rows[0]["arch"]
    return [LENETS[arch], penalty or "none: dense", *columns, fraction(*left_of(penalty, rows)), paper(arch, penalty),
            accuracy(rows), settings(rows), epochs_of(rows)]


def accuracy(rows):
    return spread([float(row["accuracy"]) for row in rows])


def hoyer_mnist(ledger):
    """The LeNets on MNIST: the weights that each penalty leaves, and at which accuracy."""
    return ["network", "penalty", "weights left", "paper, at 98.4 % (LeNet-5: 99.2 %)", "test accuracy, % (seeds)",
            "setting", "recipe"], [line(penalty, rows) for penalty, rows in groups(ledger) if not is_group(penalty)]


def hoyer_mnist_groups(ledger):
    """The LeNets on MNIST, compacted: widths and MACs that each group penalty leaves."""
    return ["network", "penalty", "widths", "MACs left", "paper, at 98.4 % (LeNet-5: 99.0 %)",
            "test accuracy, % (seeds)", "setting", "recipe"], [
                line(penalty, rows, ", ".join(row["widths"] for row in rows)) for penalty, rows in groups(ledger)
                if is_group(penalty)]


def hoyer_mnist_short(ledger):
    """One network of each penalty of the paper: with the strictest condition on the validation set, of several the
    smallest, then the one trained for longer; beside it the dense network that it began with, of several under its name
    the shortest training's."""
    dense, best = {}, {}
    for penalty, rows in groups(ledger):
        arch, precision, args = rows[0]["arch"], rows[0]["precision"], rows[0]["args"]
        if not penalty:
            dense.setdefault((arch, precision, args["save"]), rows[0]["accuracy"])
        if penalty not in ("hoyer", "hs", "group-hs"):
            continue
        counts, whole = left_of(penalty, rows)
        cells = [LENETS[arch], penalty, f"{fraction(counts, whole)}{' of the MACs' * is_group(penalty)}",
                 paper(arch, penalty), accuracy(rows),
                 dense[arch, precision, str(Path(args["pretrained"]).parent)], epochs_of(rows)]
        rank = (-args["target"], statistics.mean(counts), -int(rows[0]["epochs"]), cells)
        best[arch, penalty] = min(rank, best.get((arch, penalty), rank))
    return ["network", "penalty", "weights left", "paper", "test accuracy, % (seeds)", "dense, %", "recipe"], [
        cells for *_, cells in best.values()]
