"""The comparison of all methods: its tables and its plot, from the rows that compare.py measured.

comparison.csv starts from a public dense network, short.csv from dense networks of 20 epochs.
"""
import csv
import statistics
from pathlib import Path

from common import plots

PATH = Path(__file__).with_name("comparison.csv")
SHORT = Path(__file__).with_name("short.csv")
WORDS = ("file", "method", "stage", "way", "dataset", "network", "seed", "trained_on", "command", "name", "start",
         "hardware", "torch")
COLOURS = {"magnitude": "C0", "reweighted L1": "C1", "reweighted L1 of filters": "C1", "Hoyer-Square": "C2",
           "group-HS": "C3", "soft mask": "C4", "soft mask of channels": "C4", "network slimming": "C5",
           "random masks": "0.3", "random channels": "0.3", "random channels, half fine-tuning": "0.65"}
DENSE = {"dense": ":", "dense, trained on": "-."}            # the lines of dense networks
# of the digest on the front page: (name, weights, MACs asked for in percent)
DIGEST = (("dense, trained on", 0, 0), ("magnitude", 10, 0), ("reweighted L1", 10, 0), ("random masks", 10, 0),
          ("network slimming", 0, 50), ("random channels", 0, 50))
# of the front page's first table: (folder, name, weights, MACs asked for in percent, more flags of prune.py)
FRONT = (("slimming", "network slimming", 0, 50, ""), ("hoyer", "group-HS", 0, 50, "--granularity channel "),
         ("magnitude", "magnitude", 10, 0, ""), ("softmask", "soft mask of channels", 0, 50, ""),
         ("reweighted", "reweighted L1", 10, 0, ""))


def read(path):
    """Rows with numbers as floats."""
    with open(path, newline="") as file:
        return [{name: value if name in WORDS else float(value or 0) for name, value in row.items()}
                for row in csv.DictReader(file)]


def groups(rows):
    """{(name, weights, MACs asked for in percent, 0: none, peak learning rate): rows of its seeds}: nothing asked,
    weights, MACs, both."""
    found = {}
    for row in rows:
        found.setdefault((row["name"], row["weights_asked"], row["macs_asked"], row["peak_lr"]), []).append(row)
    return {key: found[key] for key in sorted(found, key=lambda key: (key[2] > 0, key[1] > 0, -key[2], -key[1]))}


def mean(rows, column):
    return statistics.mean(row[column] for row in rows)


def deviation(rows, column):
    """The standard deviation of the seeds; 0 of one alone."""
    return statistics.stdev(row[column] for row in rows) if len(rows) > 1 else 0.0


def seeds(rows):
    """'1, 2: bf16, AMD EPYC': seeds, and what they were trained on."""
    found = {}
    for row in rows:
        if row["seed"]:
            found.setdefault(row["trained_on"], []).append(row["seed"])
    return "; ".join(f"{', '.join(map(str, numbers))}: {place}" for place, numbers in found.items())


def table(rows):
    """(header, cells): what is left and how accurate it is, a row for each method and target."""
    references = {row["seed"]: row["accuracy"] for row in rows if row["name"] == "dense, trained on"}
    cells = []
    for (name, weights, macs, peak), runs in groups(rows).items():
        more = [row["accuracy"] - references.get(row["seed"], statistics.mean(references.values())) for row in runs
                if row["seed"] in references or references and not row["seed"]]
        recipe = runs[0]["start"] if name == "dense" else f"{runs[0]['further_epochs']:g}" + f", {peak:g}" * (peak > 0)
        asked = [f"{macs:g} % of the MACs"] * (macs > 0) + [f"{weights:g} % of the weights"] * (weights > 0)
        cells.append([name, ", ".join(asked),
                      f"{mean(runs, 'accuracy'):.2f}" + f" ± {deviation(runs, 'accuracy'):.2f}" * (len(runs) > 1),
                      f"{statistics.mean(more):+.2f}" if more and name != "dense, trained on" else "",
                      f"{mean(runs, 'params'):,.0f}", f"{mean(runs, 'nonzeros'):,.0f}",
                      f"{mean(runs, 'sparse_macs') / 1e6:.2f}M", f"{mean(runs, 'kib'):,.0f}",
                      f"{mean(runs, 'ms_1'):.2f} / {mean(runs, 'ms_128'):.1f}",
                      f"{mean(runs, 'score'):.5f} / {mean(runs, 'published_score'):.5f}", recipe, seeds(runs)])
    return ["method", "asked for", "top-1, %", "to dense trained on", "parameters", "not zero", "MACs, zeros left out",
            "KiB", "ms at batch 1 / 128", "MicroNet score, rules / published", "further epochs, peak learning rate",
            "seeds, trained on"], cells


def comparison(ledger):
    """All methods on one network; `ledger` has the same runs, command by command."""
    return table(read(PATH))


def short(ledger):
    """The same from dense networks of 20 epochs."""
    return table(read(SHORT))


def published_resnet20(ledger):
    """What others published for ResNet-20 on CIFAR-10."""
    with open(PATH.with_name("published.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    return ["method", "FLOPs left, %", "dense, %", "pruned, %", "epochs", "source"], [[*row.values()] for row in rows]


def front(ledger):
    """The front page's first table: a row for each method."""
    rows, cells = read(SHORT), []
    dense = [row for row in rows if row["name"] == "dense, trained on"]
    for folder, name, weights, macs, flags in FRONT:
        runs = [row for row in rows if (row["name"], row["weights_asked"], row["macs_asked"]) == (name, weights, macs)]
        what, percent = ("weights", weights) if weights else ("macs", macs)
        cells.append([f"[{name}]({folder}/README.md)", f"{mean(dense, 'accuracy'):.2f} -> {mean(runs, 'accuracy'):.2f}",
                      f"{percent} % of the {'weights' if weights else 'MACs'}, {mean(runs, 'kib'):,.0f} KiB",
                      f"{mean(dense, 'ms_128'):.1f} -> {mean(runs, 'ms_128'):.1f}",
                      f"`python {folder}/prune.py --keep-{what} {percent / 100:g} {flags}--model FILE`"])
    return ["method", "top-1, %, dense -> pruned", "left", "ms for 128 images, dense -> pruned", "prune with"], cells


def digest(ledger):
    """Six rows of it for the front page."""
    chosen = [row for row in read(SHORT) if (row["name"], row["weights_asked"], row["macs_asked"]) in DIGEST]
    header, cells = table(chosen)
    header, *cells = [[*line[:4], *line[7:9]] for line in [header, *cells]]      # up to the difference; KiB and ms
    return header, cells


def draw(path, rows):
    """Accuracy against weights left, and against MACs left: a line for each method, random controls dashed. Rows of the
    small learning rate are only in the table."""
    plt = plots.pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained", sharey=True)
    network = f"{rows[0]['network']} on {rows[0]['dataset']}"
    figure.suptitle(f"{network}: five methods from the same dense network, the same number of further epochs")
    found = groups(rows)
    asked = {key: group for key, group in found.items() if key[1] or key[2]}
    top = max((peak for *_, peak in asked), default=0)
    single = {(name, weights): group for (name, weights, macs, peak), group in asked.items()
              if not macs and peak == top}
    channels = {(name, macs): group for (name, weights, macs, peak), group in asked.items()
                if not weights and peak == top}
    others = {name for name, _ in [*single, *channels] if name not in COLOURS}
    colours = COLOURS | {name: f"C{number}" for number, name in enumerate(sorted(others), 6)}
    for axis, panel, column in zip(panels, (single, channels), ("weights_left", "macs_left"), strict=True):
        for name in dict.fromkeys(name for name, _ in panel):
            runs = [group for (other, _), group in panel.items() if other == name]
            axis.errorbar([mean(group, column) for group in runs], [mean(group, "accuracy") for group in runs],
                          [deviation(group, "accuracy") for group in runs], marker="o", label=name,
                          linestyle="-" if colours[name].startswith("C") else "--", color=colours[name])
        for (name, *_), group in found.items():
            if name in DENSE:
                axis.axhline(mean(group, "accuracy"), color="black", linewidth=0.8, label=name, linestyle=DENSE[name])
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower right")
        targets = [target for _, target in panel]
        if targets:
            axis.set_xlim(0.6 * min(targets), 1.4 * max(targets))
    panels[0].set(xlabel="weights left (%)", ylabel="test accuracy (%)", title="single weights", xscale="log")
    ticks = sorted({weights for _, weights in single})
    panels[0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panels[0].set_xticks([], minor=True)
    panels[1].set(xlabel="MACs left (%)", title="channels inside the blocks")
    figure.savefig(path, dpi=100)
    plt.close(figure)
