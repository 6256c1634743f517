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
READMES = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))]
MARKED = re.compile(r"(<!-- table (\w+) -->\n)(.*?)(<!-- end -->)", re.S)


def ledger():
    with open(ROOT / "results" / "ledger.csv", newline="") as file:
        return list(csv.DictReader(file))


def markdown(header, rows):
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [header, ["---"] * len(header), *rows]) + "\n"


def recipe(row):
    epochs = f"{row['epochs']} epochs, " if row["epochs"] != "0" else ""
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


def magnitude_cifar10():
    """Weight pruning on CIFAR-10: seeds together, and the two ways to fine-tune compared seed by seed."""
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


def hoyer_mnist():
    """The LeNets on MNIST: what each penalty leaves, and at which accuracy."""
    names = {"lenet300": ("LeNet-300-100", 266_610), "lenet5": ("LeNet-5", 431_080)}
    rows = []
    for r in ledger():
        if (r["method"], r["dataset"]) != ("hoyer", "mnist") or r["stage"] not in ("dense", "finetuned"):
            continue
        name, dense = names[r["arch"]]
        penalty = re.search(r"group-\w+|tl1|l1|hs|(?<=/)hoyer(?=-)", r["command"].split(".py", 1)[1])
        left = int(r["nonzeros"])
        rows.append([name, r["stage"], penalty[0] if penalty else "", r["accuracy"],
                     f"{left:,} ({100 * left / dense:.2f} %)", f"{int(r['macs']):,}", r["seed"], recipe(r)])
    return markdown(["network", "stage", "penalty", "last epoch's accuracy, %", "non-zero parameters",
                     "MACs with non-zero weights", "seed", "recipe"], rows)


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
