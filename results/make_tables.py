"""Writes the tables in the READMEs from results/ledger.csv.

    python results/make_tables.py            writes them
    python results/make_tables.py --check    exit status 1 where a README and the ledger differ

A table stands between <!-- table NAME --> and <!-- end -->; the function NAME below makes it.
"""
import csv
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import cli, compute_flops, models

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


SEED_VGG13 = {  # of the original README: accuracy, parameters, FLOPs as thop counts them
    "baseline": ("89.82", "9.41M", "0.46G"), "sparsity, s = 0.0001": ("89.71", "9.41M", "0.46G"),
    "pruned 40 %": ("17.60", "2.64M", "0.35G"), "pruned 40 %, fine-tuned": ("90.08", "2.64M", "0.35G")}


def flag(row, name, default=""):
    """What the row's command says behind the flag."""
    found = re.search(rf"{name}[ =](\S+)", row["command"])
    return found[1] if found else default


def slimming_cifar10():
    """VGG-13 on CIFAR-10, our stages beside the original README's; of a stage that was run twice the later one."""
    runs, what = {}, ""
    for r in ledger():
        if (r["method"], r["arch"], r["dataset"]) == ("slimming", "vgg13", "cifar10"):
            if r["stage"] == "pruned":
                what = f"pruned {100 * float(flag(r, '--percent')):g} %"
                what += " at random" * (flag(r, "--criterion") == "random")
            name = {"dense": "baseline", "sparse": f"sparsity, s = {flag(r, '--s', '0.0001')}", "pruned": what,
                    "finetuned": f"{what}, fine-tuned"}[r["stage"]]              # its row follows that of the pruning
            runs[name, r["precision"]] = r
    rows = []
    for (name, _), r in runs.items():
        accuracy, params, flops = (f" ({theirs})" for theirs in SEED_VGG13.get(name, ("-",) * 3))
        widths = [w if w == "M" else int(w) for w in r["widths"].split("-")]
        thop = compute_flops.count(models.build("vgg", depth=13, widths=widths)).total.thop_flops
        rows.append([name, r["accuracy"] + accuracy, f"{int(r['params']) / 1e6:.2f}M{params}",
                     f"{thop / 1e9:.3f}G{flops}", f"{2 * int(r['macs']) / 1e9:.3f}G", recipe(r)])
    return markdown(["stage", "last epoch's accuracy, % (original)", "parameters (original)",
                     "FLOPs as thop counts (original)", "FLOPs = 2 x MACs", "recipe"], rows)


RENDA = {  # accuracy by percent of the weights that are left
    "resnet56": {"dense": {100: 93.46}, "small": {21: 92.94, 10.7: 92.20, 4.4: 90.54},
                 "lr-rewind": {21: 93.50, 10.7: 93.56, 4.4: 92.58}},
    "resnet20": {"dense": {100: 91.71}}}


def spread(values):
    """'93.10 ± 0.21 (3)': mean, standard deviation and number of the seeds."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f} ({len(values)})"
                                              if len(values) > 1 else " (1)")


def one_a_seed(groups, seed_of):
    """groups, {key: runs}; ValueError where two runs of one seed would count as two seeds."""
    for key, runs in groups.items():
        if len({seed_of(run) for run in runs}) < len(runs):
            raise ValueError(f"{key}: one seed has several rows in the ledger; what tells them apart?")
    return groups


def magnitude_groups():
    """{(network, -percent of weights left, rule, training, recipe): [(seed, accuracy), ...]} on all of CIFAR-10."""
    groups = {}
    for r in ledger():
        if (r["method"], r["dataset"]) != ("magnitude", "cifar10") or r["stage"] == "pruned" or flag(r, "--subset"):
            continue
        way = "dense" if r["stage"] == "dense" else flag(r, "--retrain", "small")
        if way == "weight-rewind":
            way += f" to {Path(flag(r, '--rewind-to')).name.removesuffix('.pth.tar')}"
        kept = round(100 * int(r["nonzeros"]) / int(r["params"]), 1)
        key = (r["arch"], -kept, r["setting"], way, recipe(r).rsplit(",", 1)[0])         # without the minutes
        groups.setdefault(key, []).append((r["seed"], float(r["accuracy"])))
    return one_a_seed(groups, lambda run: run[0])


def published(arch, way, kept):
    """Renda et al.'s accuracy at the share of weights nearest to `kept` percent, if they have any."""
    theirs = RENDA.get(arch, {}).get(way, {})
    nearest = min(theirs, key=lambda left: abs(left / kept - 1), default=None)
    return f"{theirs[nearest]:.2f} at {nearest:g} %" if theirs else ""


def magnitude_cifar10():
    """Weight pruning on CIFAR-10: seeds together, and the two ways to fine-tune compared seed by seed."""
    groups = magnitude_groups()
    rows = [[arch, f"{-kept:.1f} %", rule, way, spread([accuracy for _, accuracy in runs]),
             "" if "random" in rule else published(arch, way, -kept), how]
            for (arch, kept, rule, way, how), runs in sorted(groups.items())]
    for (arch, kept, rule, way, how), runs in sorted(groups.items()):
        rewound, small = dict(runs), dict(groups.get((arch, kept, rule, "small", how), []))
        both = sorted(rewound.keys() & small.keys())
        if way == "lr-rewind" and both:
            rows.append([arch, f"{-kept:.1f} %", rule, "lr-rewind minus small, points",
                         f"+{spread([rewound[s] - small[s] for s in both])}".replace("+-", "-"), "", how])
    return markdown(["network", "weights left", "rule", "training", "last epoch's accuracy, % (seeds)",
                     "published (Renda et al.)", "recipe"], rows)


def magnitude_precision():
    """The same trial run in each precision."""
    return markdown(["network", "last epoch's accuracy, %", "recipe"], [
        [r["arch"], r["accuracy"], recipe(r)] for r in ledger()
        if (r["method"], r["dataset"]) == ("magnitude", "cifar10") and flag(r, "--subset")])


LENETS = {"lenet300": "LeNet-300-100", "lenet5": "LeNet-5"}
PAPER = {  # weights of LeNet-300-100 at 98.4 % and of LeNet-5 at 99.2 %; widths and MACs of the group penalty
    ("lenet300", "hoyer"): "6.0k, 2.27 %", ("lenet300", "hs"): "4.6k, 1.74 %", ("lenet300", "tl1"): "6.4k, 2.40 %",
    ("lenet5", "hoyer"): "4.0k, 0.94 %", ("lenet5", "hs"): "3.5k, 0.81 %", ("lenet5", "tl1"): "5.4k, 1.3 %",
    ("lenet300", "group-hs"): "353-45-11, 16.5k, 6.19 %", ("lenet5", "group-hs"): "5-12-139-13, 169.9k, 7.41 %"}


def hoyer_rows():
    """[(penalty, rows of all seeds)] of the LeNets on MNIST: dense ones ("") and those that sweep.py chose, of each
    penalty those with the strictest condition first."""
    groups = {}
    for r in ledger():
        if (r["method"], r["dataset"]) == ("hoyer", "mnist") and (r["setting"] or r["stage"] == "dense"):
            how = r["setting"].partition(", threshold")[0]   # the threshold is chosen for each seed
            if how.startswith("group") and r["widths"] == "-".join(map(str, models.build(r["arch"]).cfg["widths"])):
                raise ValueError(f"{r['command']}: of groups the ledger takes the compacted network")
            training = flag(r, "--tune-epochs", "100") if how else (int(r["epochs"]), r["command"])
            groups.setdefault((r["arch"], how, training, r["precision"]), []).append(r)
    one_a_seed(groups, lambda row: row["seed"])
    rows_of = [(key[1].split(",")[0], groups[key]) for key in sorted(groups)]
    return sorted(rows_of, key=lambda pair: (pair[1][0]["arch"], pair[0], -condition(pair[1][0])))


def condition(row):
    """The accuracy on the held-out pictures by which sweep.py chose, in percent; 0 for a dense network."""
    found = re.search(r"([\d.]+) % held out", row["setting"])
    return float(found[1]) if found else 0.0


def structural_macs(row):
    """What the LeNet of the row's widths computes, zeros or not."""
    return compute_flops.count(models.build(row["arch"], widths=[int(w) for w in row["widths"].split("-")])).total.macs


def left_of(rows):
    """What each row's network has left, and what the dense one has: weights, with a group penalty MACs."""
    whole = compute_flops.count(models.build(rows[0]["arch"])).total
    if rows[0]["setting"].startswith("group"):
        return [structural_macs(r) for r in rows], whole.macs
    return [int(r["weights"]) for r in rows], whole.weights


def settings(rows):
    """'strength 0.0001, fine-tuning 100 epochs, thresholds 0.07, 0.1, 0.07': one threshold a seed."""
    if not rows[0]["setting"]:
        held = int(flag(rows[0], "--holdout", "0"))
        return f"without {held:,} held out" if held else "all training pictures"
    shared, _, _ = rows[0]["setting"].partition(", threshold")
    thresholds = [r["setting"].rpartition(" ")[2] for r in rows]
    return (f"{shared.partition(', ')[2]}, fine-tuning {flag(rows[0], '--tune-epochs', '100')} epochs, "
            f"threshold{'s' * (len(rows) > 1)} {', '.join(thresholds)}")


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
    for penalty, rows in hoyer_rows():
        if not penalty.startswith("group"):
            arch = rows[0]["arch"]
            table.append([LENETS[arch], penalty or "none: dense", share(*left_of(rows)), PAPER.get((arch, penalty), ""),
                          spread([float(r["accuracy"]) for r in rows]), settings(rows), epochs_of(rows)])
    return markdown(["network", "penalty", "weights left", "paper, at 98.4 % (LeNet-5: 99.2 %)",
                     "test accuracy, % (seeds)", "setting", "recipe"], table)


def hoyer_mnist_groups():
    """The LeNets on MNIST, compacted: widths and MACs that each group penalty leaves."""
    table = []
    for penalty, rows in hoyer_rows():
        if penalty.startswith("group"):
            arch = rows[0]["arch"]
            table.append([LENETS[arch], penalty, ", ".join(r["widths"] for r in rows), share(*left_of(rows)),
                          PAPER.get((arch, penalty), ""), spread([float(r["accuracy"]) for r in rows]),
                          settings(rows), epochs_of(rows)])
    return markdown(["network", "penalty", "widths", "MACs left", "paper, at 98.4 % (LeNet-5: 99.0 %)",
                     "test accuracy, % (seeds)", "setting", "recipe"], table)


def hoyer_mnist_short():
    """One network of each penalty: with the strictest condition on the held-out pictures, of several the smallest, then
    the one trained for longer; beside it the dense network that it began with, of several under its name the shortest
    training's."""
    dense, best = {}, {}
    for penalty, rows in hoyer_rows():
        arch = rows[0]["arch"]
        if not penalty:
            dense.setdefault((arch, rows[0]["precision"], flag(rows[0], "--save")), rows[0]["accuracy"])
            continue
        counts, whole = left_of(rows)
        line = [LENETS[arch], penalty, f"{share(counts, whole)}{' of the MACs' * penalty.startswith('group')}",
                PAPER.get((arch, penalty), ""), spread([float(r["accuracy"]) for r in rows]),
                dense[arch, rows[0]["precision"], str(Path(flag(rows[0], "--pretrained")).parent)], epochs_of(rows)]
        rank = (-condition(rows[0]), statistics.mean(counts), -int(rows[0]["epochs"]), line)
        best[arch, penalty] = min(rank, best.get((arch, penalty), rank))
    return markdown(["network", "penalty", "weights left", "paper", "test accuracy, % (seeds)", "dense, %", "recipe"],
                    [line for *_, line in best.values()])


def hoyer_cifar10():
    """ResNets on CIFAR-10 with sparse filters, stage by stage."""
    rows, whole = [], 0
    for r in ledger():
        if (r["method"], r["dataset"]) == ("hoyer", "cifar10"):
            whole = int(r["params"]) if r["stage"] == "dense" else whole
            what = {"dense": "dense", "sparse": f"sparse, strength {flag(r, '--decay')}",
                    "finetuned": f"threshold {flag(r, '--sensitivity')}, fine-tuned"}[r["stage"]]
            what += ", compacted" * (int(r["params"]) < whole)
            rows.append([r["arch"], what, r["accuracy"], f"{int(r['weights']):,}", f"{int(r['params']):,}",
                         f"{int(r['macs']):,}", recipe(r)])
    return markdown(["network", "stage", "last epoch's accuracy, %", "weights left", "parameters",
                     "MACs with non-zero weights", "recipe"], rows)


def main(argv=None):
    parser = cli.parser(__doc__)
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
