"""The comparison of all methods: its table and its plot, from the rows that results/compare.py measured."""
import csv
import statistics
from pathlib import Path

from common import plots

PATH = Path(__file__).resolve().parent / "comparison.csv"
WORDS = ("file", "method", "stage", "dataset", "network", "seed", "command", "name", "hardware", "torch")
COLOURS = ("magnitude", "reweighted", "Hoyer", "group-HS", "soft mask", "network slimming")    # C0, C1, ...


def read(path=PATH):
    """Rows with numbers as floats."""
    with open(path, newline="") as file:
        return [{name: value if name in WORDS else float(value or 0) for name, value in row.items()}
                for row in csv.DictReader(file)]


def groups(rows):
    """{(name, weights, MACs asked for in percent, 0: none): rows of its seeds}: nothing asked, weights, MACs, both."""
    found = {}
    for row in rows:
        found.setdefault((row["name"], row["weights_asked"], row["macs_asked"]), []).append(row)
    return {key: found[key] for key in sorted(found, key=lambda key: (key[2] > 0, key[1] > 0, -key[2], -key[1]))}


def mean(rows, column):
    return statistics.mean(row[column] for row in rows)


def deviation(rows, column):
    """The standard deviation of the seeds; 0 of one alone."""
    return statistics.stdev(row[column] for row in rows) if len(rows) > 1 else 0.0


def spread(rows, column):
    """'89.10', or with several seeds '89.10 ± 0.21'."""
    return f"{mean(rows, column):.2f}" + (f" ± {deviation(rows, column):.2f}" if len(rows) > 1 else "")


def comparison(rows):
    """(header, cells): what is left and how accurate it is, a row for each method and target."""
    trained_on = {row["seed"]: row["accuracy"] for row in rows if row["name"] == "dense, trained on"}
    cells = []
    for (name, weights, macs), runs in groups(rows).items():
        more = [row["accuracy"] - trained_on[row["seed"]] for row in runs if row["seed"] in trained_on]
        asked = [f"{macs:g} % of the MACs"] * (macs > 0) + [f"{weights:g} % of the weights"] * (weights > 0)
        cells.append([name, ", ".join(asked), spread(runs, "accuracy"),
                      f"{statistics.mean(more):+.2f}" if more and name != "dense, trained on" else "",
                      f"{mean(runs, 'params'):,.0f}", f"{mean(runs, 'nonzeros'):,.0f}",
                      f"{mean(runs, 'sparse_macs') / 1e6:.2f}M", f"{mean(runs, 'kib'):,.0f}",
                      f"{mean(runs, 'ms_1'):.2f} / {mean(runs, 'ms_128'):.1f}",
                      f"{mean(runs, 'score'):.5f} / {mean(runs, 'published_score'):.5f}"])
    return ["method", "asked for", "top-1, %", "to dense trained on", "parameters", "not zero", "MACs, zeros left out",
            "KiB", "ms at batch 1 / 128", "MicroNet score, rules / published"], cells


def coefficients(ledger):
    """(header, cells): what results/choose.py tried, from the rows of its prunings."""
    names = {"slim": "slimming, s", "hs": "Hoyer-Square, decay", "ghs": "group-HS, decay", "rew": "reweighted, lambda",
             "rewf": "reweighted filters, lambda", "soft": "soft masks of channels, wg, tw",
             "nfp": "soft masks of weights, wg, tw"}
    tried = {}
    for row in ledger:
        folder = Path(row["args"].get("save") or "").parts
        if folder[:2] == ("logs", "search15") and folder[-1] == "cut":
            name, _, value = folder[2].partition("-")
            tried.setdefault(name, []).append(f"{value}: {row['accuracy']}")
    return ["coefficient", "left", "value: top-1 on the validation set right after pruning, %"], [
        [names[name], "10 % of the weights" if name in ("hs", "rew", "nfp") else "50 % of the MACs", "; ".join(values)]
        for name, values in tried.items()]


def text(rows):
    """The table for a terminal."""
    header, cells = comparison(rows)
    widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
    return "\n".join("  ".join(word.ljust(width) if i < 2 else word.rjust(width)
                               for i, (word, width) in enumerate(zip(line, widths, strict=True))).rstrip()
                     for line in [header, *cells])


def draw(path, rows):
    """Accuracy against weights left, and against MACs left: a line for each method, random controls dashed."""
    plt = plots.pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained", sharey=True)
    network = f"{rows[0]['network']} on {rows[0]['dataset']}"
    figure.suptitle(f"{network}: five methods from the same dense network, the same number of further epochs")
    found = groups(rows)
    single = {(name, weights): group for (name, weights, macs), group in found.items() if weights and not macs}
    channels = {(name, macs): group for (name, weights, macs), group in found.items() if macs and not weights}
    for axis, panel, column in zip(panels, (single, channels), ("weights_left", "macs_left"), strict=True):
        names = list(dict.fromkeys(name for name, _ in panel))
        random = [name for name in names if name.startswith("random")]
        others = [name for name in names if name not in random and not name.startswith(COLOURS)]
        for name in names:
            runs = [group for (other, _), group in panel.items() if other == name]
            axis.errorbar([mean(group, column) for group in runs], [mean(group, "accuracy") for group in runs],
                          [deviation(group, "accuracy") for group in runs], marker="o", label=name,
                          linestyle="--" if name in random else "-", color=(
                              f"{0.3 + 0.35 * random.index(name) / max(1, len(random) - 1)}" if name in random else
                              f"C{len(COLOURS) + others.index(name)}" if name in others else
                              f"C{next(i for i, word in enumerate(COLOURS) if name.startswith(word))}"))
        for (name, _, _), group in found.items():
            if name.startswith("dense"):
                axis.axhline(mean(group, "accuracy"), color="black", linewidth=0.8, label=name,
                             linestyle=":" if name == "dense" else "-.")
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
