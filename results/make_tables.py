"""Writes the tables in the READMEs from results/ledger.csv.

    python results/make_tables.py            writes them
    python results/make_tables.py --check    exit status 1 where a README and the ledger differ

A table stands between <!-- table NAME --> and <!-- end -->; the function NAME below makes it.
"""
import argparse
import csv
import re
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
