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
           "random masks": "0.3", "random channels": "0.3", "random channels, half fine-tuning": "0.6"}
MORE = "dense, same extra training"                          # the network that the others are compared with
DENSE = {"dense": ":", MORE: "-."}                           # the lines of dense networks
# rows of the digest on the front page: (name, percent of weights, of MACs to keep)
DIGEST = ((MORE, 0, 0), ("magnitude", 10, 0), ("reweighted L1", 10, 0), ("random masks", 10, 0),
          ("network slimming", 0, 50), ("random channels", 0, 50))
# the front page's first table: (folder, name, percent of weights, of MACs to keep)
FRONT = (("slimming", "network slimming", 0, 50), ("softmask", "soft mask of channels", 0, 50),
         ("magnitude", "magnitude", 10, 0), ("hoyer", "Hoyer-Square", 10, 0), ("reweighted", "reweighted L1", 10, 0))


def read(path):
    """Rows with numbers as floats."""
    with open(path, newline="") as file:
        return [{name: value if name in WORDS else float(value or 0) for name, value in row.items()}
                for row in csv.DictReader(file)]


def groups(rows):
    """{(name, percent of weights to keep, of MACs (0: no target), peak learning rate): rows of its seeds}, sorted: no
    target, weights, MACs, both."""
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
    """'1, 2: bf16, AMD EPYC': seeds and the hardware they were trained on."""
    found = {}
    for row in rows:
        if row["seed"]:
            found.setdefault(row["trained_on"], []).append(row["seed"])
    return "; ".join(f"{', '.join(map(str, numbers))}: {place}" for place, numbers in found.items())


def table(rows):
    """(header, cells): size and accuracy, a row for each method and target."""
    references = {row["seed"]: row["accuracy"] for row in rows if row["name"] == MORE}
    cells = []
    for (name, weights, macs, peak), runs in groups(rows).items():
        more = [row["accuracy"] - references.get(row["seed"], statistics.mean(references.values())) for row in runs
                if references]
        recipe = runs[0]["start"] if name == "dense" else f"{runs[0]['further_epochs']:g}" + f", {peak:g}" * (peak > 0)
        timed = [row for row in runs if row["ms_1"]]         # in one run with the others
        asked = [f"{macs:g} % of the MACs"] * (macs > 0) + [f"{weights:g} % of the weights"] * (weights > 0)
        cells.append([name, ", ".join(asked),
                      f"{mean(runs, 'accuracy'):.2f}" + f" ± {deviation(runs, 'accuracy'):.2f}" * (len(runs) > 1),
                      f"{statistics.mean(more):+.2f}" if more and name != MORE else "",
                      f"{mean(runs, 'params'):,.0f}", f"{mean(runs, 'nonzeros'):,.0f}",
                      f"{mean(runs, 'sparse_macs') / 1e6:.2f}M", f"{mean(runs, 'kib'):,.0f}",
                      f"{mean(timed, 'ms_1'):.2f} / {mean(timed, 'ms_128'):.1f}",
                      f"{mean(runs, 'score'):.5f} / {mean(runs, 'published_score'):.5f}", recipe, seeds(runs)])
    return ["method", "kept", "top-1, %", f"vs. {MORE}", "parameters", "non-zero", "MACs without zeros",
            "KiB", "ms at batch 1 / 128", "MicroNet score, rules / published", "further epochs, peak learning rate",
            "seeds, trained on"], cells


def comparison(ledger):
    """All methods on one network; `ledger` has the same runs, command by command."""
    return table(read(PATH))


def short(ledger):
    """All methods from dense networks of 20 epochs."""
    return table(read(SHORT))


def published_resnet20(ledger):
    """Published results of ResNet-20 on CIFAR-10."""
    with open(PATH.with_name("published.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    return ["method", "FLOPs left, %", "dense, %", "pruned, %", "epochs", "source"], [[*row.values()] for row in rows]


def chosen(rows, name, weights, macs):
    """The rows of a method and target, with the large learning rate."""
    found = [row for row in rows if (row["name"], row["weights_asked"], row["macs_asked"]) == (name, weights, macs)]
    return [row for row in found if row["peak_lr"] == max(row["peak_lr"] for row in found)]


def front(ledger):
    """The front page's first table: a row for each method."""
    rows, cells = read(PATH), []
    with open(PATH.with_name("runtimes.csv"), newline="") as file:
        ms = {row["name"]: row for row in csv.DictReader(file)}
    dense = chosen(rows, MORE, 0, 0)
    for folder, name, weights, macs in FRONT:
        runs, (what, percent) = chosen(rows, name, weights, macs), ("weights", weights) if weights else ("macs", macs)
        best = min(("ONNX Runtime", "C"), key=lambda runtime: float(ms[name][runtime]))
        cells.append([f"[{name}]({folder}/README.md)", f"{mean(dense, 'accuracy'):.2f} -> {mean(runs, 'accuracy'):.2f}",
                      f"{percent} % of the {'weights' if weights else 'MACs'}, {mean(runs, 'kib'):,.0f} KiB",
                      f"{float(ms['dense'][best]):.2f} -> {float(ms[name][best]):.2f} in {best} "
                      f"({float(ms['dense']['torch']):.2f})",
                      f"`python {folder}/prune.py --keep-{what} {percent / 100:g} --model FILE`"])
    return ["method", "top-1, %, dense -> pruned", "kept", "ms per image, dense -> pruned (dense in torch)",
            "prune with"], cells


def digest(ledger):
    """Six rows of the comparison, for the front page."""
    rows = read(PATH)
    header, cells = table([row for key in DIGEST for row in chosen(rows, *key)])
    header, *cells = [[*line[:4], *line[7:9]] for line in [header, *cells]]      # up to the difference; KiB and ms
    return header, cells


def draw(path, rows, larger=()):
    """Plots accuracy against remaining weights and MACs: a line for each method, named at its end, random controls
    dashed. Rows of the small learning rate are only in the table. larger: [("weights" or "MACs", percent left,
    accuracy, name in COLOURS, network)] of another network, hollow."""
    plt = plots.pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained", sharey=True)
    found = groups(rows)
    top = max((peak for _, weights, macs, peak in found if weights or macs), default=0)
    others = sorted({name for name, *_ in found if name not in COLOURS})
    colours = COLOURS | {name: f"C{number}" for number, name in enumerate(others, 6)}
    for axis, column, what, title in zip(panels, ("weights_left", "macs_left"), ("weights", "MACs"),
                                         ("Single weights", "Channels inside the blocks"), strict=True):
        lines = {}
        for (name, weights, macs, peak), group in found.items():
            if (weights and not macs if what == "weights" else macs and not weights) and peak == top:
                lines.setdefault(name, []).append(group)
        ends = []
        for name, runs in lines.items():
            colour = colours[name]
            left = [mean(group, column) for group in runs]
            axis.errorbar(left, [mean(group, "accuracy") for group in runs],
                          [deviation(group, "accuracy") for group in runs], marker="o", label=name, color=colour,
                          linestyle="-" if colour.startswith("C") else "--")
            ends.append((mean(runs[0], "accuracy"), left[0], name, colour))
        for panel, left, accuracy, name, network in larger:
            if panel == what:
                axis.plot(left, accuracy, "o", fillstyle="none", color=colours[name])
                ends.append((accuracy, left, f"{name}, {network}", colours[name]))
        for (name, *_), group in found.items():
            if name in DENSE:
                axis.axhline(mean(group, "accuracy"), color="black", linewidth=0.8, linestyle=DENSE[name])
                ends.append((mean(group, "accuracy"), None, name, "black"))
        axis.set_xscale("log")
        ticks = sorted({group[0][f"{what.lower()}_asked"] for runs in lines.values() for group in runs})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_xticks([], minor=True)
        if ticks:
            axis.set_xlim(0.8 * min(ticks), 1.2 * max(ticks))
        axis.set(xlabel=f"{what} left (%)", title=title)
        axis.grid(alpha=0.3)
        axis.tick_params(labelleft=True)
        label(axis, ends)
    panels[0].set_ylabel("test accuracy (%)")
    epochs = max(row["further_epochs"] for row in rows if row["name"] in DENSE)
    figure.suptitle(f"{rows[0]['network']} on {rows[0]['dataset']}: five methods from the same dense network, "
                    f"{epochs:g} further epochs{f' (hollow: {larger[0][-1]}, fewer epochs)' if larger else ''}")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def label(axis, ends):
    """Writes the names at the right of the axis, without overlaps; ends: (accuracy, x or None, name, colour)."""
    low, high = axis.get_ylim()
    least, above = (high - low) / 17, None                   # a line of text
    for accuracy, x, name, colour in sorted(ends, key=lambda end: -end[0]):
        y = accuracy if above is None else min(accuracy, above - least)
        axis.annotate(name, (x or axis.get_xlim()[1], accuracy), (1.03, y), va="center", fontsize=10, color=colour,
                      textcoords=axis.get_yaxis_transform(), annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.5})
        above = y
