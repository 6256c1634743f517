"""Writes the tables in the READMEs from results/ledger.csv.

    python results/make_tables.py            writes them
    python results/make_tables.py --check    exit status 1 where a README and the ledger differ

A table stands between <!-- table NAME --> and <!-- end -->; the function NAME below makes it.
"""
import argparse
import csv
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import compute_flops, models

READMES = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))]
MARKED = re.compile(r"(<!-- table (\w+) -->\n)(.*?)(<!-- end -->)", re.S)


def ledger():
    with open(ROOT / "results" / "ledger.csv", newline="") as file:
        return list(csv.DictReader(file))


def markdown(header, rows):
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [header, ["---"] * len(header), *rows]) + "\n"


def recipe(row):
    epochs = f"{row['epochs']} epochs, " if row["epochs"] != "0" else ""
    subset = re.search(r"--subset (\d+)", row["command"])
    epochs = f"{epochs[:-2]} of {int(subset[1]):,} pictures, " if epochs and subset else epochs
    return f"{epochs}{row['precision']}, {row['hardware']}" + (f", {float(row['minutes']):.0f} min" if epochs else "")


SEED_VGG13 = {"dense": ("89.82", "9.41M", "0.46G"), "sparse": ("89.71", "9.41M", "0.46G"),
              "pruned": ("17.60", "2.64M", "0.35G"), "finetuned": ("90.08", "2.64M", "0.35G")}
STAGES = {"dense": "baseline", "sparse": "sparsity, s = 1e-4", "pruned": "pruned 40 %", "finetuned": "fine-tuned"}


def slimming_cifar10():
    """VGG-13 on CIFAR-10, our stages beside the original README's."""
    rows = []
    for stage, name in STAGES.items():
        for r in ledger():
            if (r["method"], r["stage"], r["arch"], r["dataset"]) == ("slimming", stage, "vgg13", "cifar10"):
                theirs = SEED_VGG13[stage]
                rows.append([name, f"{r['accuracy']} ({theirs[0]})", f"{int(r['params']) / 1e6:.2f}M ({theirs[1]})",
                             f"{2 * int(r['macs']) / 1e9:.2f}G ({theirs[2]})", recipe(r)])
    return markdown(["stage", "last epoch's accuracy, % (original)", "parameters (original)",
                     "FLOPs = 2 x MACs (original)", "recipe"], rows)


RENDA = {"resnet56": {"dense": "93.46 ± 0.21", "small": "92.94 at 21 %, 92.20 at 10.7 %, 90.54 at 4.4 %",
                      "lr-rewind": "93.50 at 21 %, 93.56 at 10.7 %, 92.58 at 4.4 %"},
         "resnet20": {"dense": "91.71 ± 0.23"}}


def spread(values):
    """'93.10 ± 0.21 (3)': mean, standard deviation and number of the seeds."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f} ({len(values)})"
                                              if len(values) > 1 else " (1)")


def magnitude_groups():
    """{(network, -percent of weights left, rule, training, recipe): {seed: accuracy}} on CIFAR-10."""
    groups = {}
    for r in ledger():
        if (r["method"], r["dataset"]) != ("magnitude", "cifar10") or r["stage"] == "pruned":
            continue
        way = re.search(r"--retrain (\S+)", r["command"])
        way = "dense" if r["stage"] == "dense" else way[1] if way else "small"
        rule = "random" if "random" in r["command"] else "magnitude" if way != "dense" else ""
        kept = round(100 * int(r["nonzeros"]) / int(r["params"]), 1)
        key = (r["arch"], -kept, rule, way, recipe(r).rsplit(",", 1)[0])     # without the minutes
        groups.setdefault(key, {})[r["seed"]] = float(r["accuracy"])
    return groups


def magnitude_cifar10():
    """Weight pruning on CIFAR-10: seeds together, and the two ways to fine-tune compared seed by seed."""
    groups = magnitude_groups()
    rows = [[arch, f"{-kept:.1f} %", rule, way, spread(list(seeds.values())),
             RENDA.get(arch, {}).get(way, "") if rule != "random" else "", how]
            for (arch, kept, rule, way, how), seeds in sorted(groups.items())]
    for (arch, kept, rule, way, how), seeds in sorted(groups.items()):
        small = groups.get((arch, kept, rule, "small", how), {})
        both = sorted(seeds.keys() & small.keys())
        if way == "lr-rewind" and both:
            rows.append([arch, f"{-kept:.1f} %", rule, "lr-rewind minus small",
                         spread([seeds[s] - small[s] for s in both]), "", how])
    return markdown(["network", "weights left", "rule", "training", "last epoch's accuracy, % (seeds)",
                     "published (Renda et al.)", "recipe"], rows)


LENETS = {"lenet300": "LeNet-300-100", "lenet5": "LeNet-5"}
PAPER = {  # weights of LeNet-300-100 at 98.4 % and of LeNet-5 at 99.2 %; widths and MACs of the group penalty
    ("lenet300", "hoyer"): "6.0k, 2.27 %", ("lenet300", "hs"): "4.6k, 1.74 %", ("lenet300", "tl1"): "6.4k, 2.40 %",
    ("lenet5", "hoyer"): "4.0k, 0.94 %", ("lenet5", "hs"): "3.5k, 0.81 %", ("lenet5", "tl1"): "5.4k, 1.3 %",
    ("lenet300", "group-hs"): "353-45-11, 16.5k, 6.19 %", ("lenet5", "group-hs"): "5-12-139-13, 169.9k, 7.41 %"}


def hoyer_rows():
    """[(penalty, whether the network has its full widths, rows of all seeds)] of the LeNets on MNIST."""
    groups = {}
    for r in ledger():
        if (r["method"], r["dataset"]) == ("hoyer", "mnist"):
            full = r["widths"] == "-".join(map(str, models.build(r["arch"]).cfg["widths"]))
            how = r["setting"].partition(", threshold")[0]   # the threshold is chosen for each seed
            groups.setdefault((r["arch"], how, full), []).append(r)
    return [(how.split(",")[0], full, rows) for (_, how, full), rows in sorted(groups.items())]


def structural_macs(row):
    """What the LeNet of the row's widths computes, zeros or not."""
    return compute_flops.count(models.build(row["arch"], widths=[int(w) for w in row["widths"].split("-")])).total.macs


def settings(rows):
    """'strength 0.0001, thresholds 0.07, 0.1, 0.07': one threshold a seed."""
    shared, _, _ = rows[0]["setting"].partition(", threshold")
    thresholds = [r["setting"].rpartition(" ")[2] for r in rows]
    return f"{shared.partition(', ')[2]}, threshold{'s' * (len(rows) > 1)} {', '.join(thresholds)}" if shared else ""


def epochs_of(rows):
    """The recipe of several seeds: the range of their epochs."""
    counts = sorted(int(r["epochs"]) for r in rows)
    text = recipe(rows[0])
    return text if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}{text[text.index(' '):]}"


def share(counts, whole):
    """'4,632 ± 120 (1.74 %)'"""
    mean, deviation = statistics.mean(counts), f" ± {statistics.stdev(counts):,.0f}" if len(counts) > 1 else ""
    return f"{mean:,.0f}{deviation} ({100 * mean / whole:.2f} %)"


def hoyer_mnist():
    """The LeNets on MNIST: the weights that each penalty leaves, and at which accuracy."""
    table = []
    for penalty, full, rows in hoyer_rows():
        if full and not penalty.startswith("group"):
            arch, whole = rows[0]["arch"], compute_flops.count(models.build(rows[0]["arch"])).total.weights
            table.append([LENETS[arch], penalty or "none: dense", share([int(r["weights"]) for r in rows], whole),
                          PAPER.get((arch, penalty), ""), spread([float(r["accuracy"]) for r in rows]),
                          settings(rows), epochs_of(rows)])
    return markdown(["network", "penalty", "weights left", "paper", "test accuracy, % (seeds)", "setting", "recipe"],
                    table)


def hoyer_mnist_groups():
    """The LeNets on MNIST, compacted: widths and MACs that each group penalty leaves."""
    table = []
    for penalty, full, rows in hoyer_rows():
        if not full and penalty.startswith("group"):
            arch, whole = rows[0]["arch"], compute_flops.count(models.build(rows[0]["arch"])).total.macs
            table.append([LENETS[arch], penalty, ", ".join(r["widths"] for r in rows),
                          share([structural_macs(r) for r in rows], whole),
                          PAPER.get((arch, penalty), ""), spread([float(r["accuracy"]) for r in rows]),
                          settings(rows), epochs_of(rows)])
    return markdown(["network", "penalty", "widths", "MACs left", "paper", "test accuracy, % (seeds)", "setting",
                     "recipe"], table)


def hoyer_cifar10():
    """ResNets on CIFAR-10 with sparse filters."""
    return markdown(["network", "stage", "last epoch's accuracy, %", "weights left", "parameters", "MACs", "recipe"],
                    [[r["arch"], r["setting"] or r["stage"], r["accuracy"], f"{int(r['weights']):,}",
                      f"{int(r['params']):,}", f"{int(r['macs']):,}", recipe(r)]
                     for r in ledger() if (r["method"], r["dataset"]) == ("hoyer", "cifar10")])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args(argv)
    drifted = []
    for path in READMES:
        text = path.read_text()
        made = MARKED.sub(lambda m: m[1] + globals()[m[2]]() + m[4], text)
        if made != text:
            drifted.append(str(path.relative_to(ROOT)))
            if not args.check:
                path.write_text(made)
    if drifted:
        print(f"{'differ from' if args.check else 'written from'} the ledger: {', '.join(drifted)}")
    return bool(drifted) and args.check


if __name__ == "__main__":
    sys.exit(main())
