"""Draws the plots in the READMEs from results/ledger.csv: results/hoyer_mnist.png and magnitude_cifar10.png.

    python results/make_plots.py

Circles, squares and triangles are our runs, one a seed; stars are published figures, as in the tables beside the plot.
Hollow: trained without the held-out pictures.
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "results")]

from make_tables import LENETS, PAPER, RENDA, hoyer_rows, magnitude_groups, structural_macs

from common import compute_flops, models, plots
from hoyer import regularizers


def paper_accuracy(arch, penalty):
    return 98.4 if arch == "lenet300" else 99.0 if penalty == "group-hs" else 99.2


def hoyer_mnist(plt):
    """Accuracy against weights left (element-wise penalties) and MACs of the compacted network left (groups)."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    colours = {name: f"C{i}" for i, name in enumerate((*regularizers.ELEMENT, *regularizers.GROUP))}
    for axis, arch in zip(axes, LENETS, strict=True):
        total = compute_flops.count(models.build(arch)).total
        for penalty, rows in hoyer_rows():
            groups, accuracies = penalty.startswith("group"), [float(r["accuracy"]) for r in rows]
            if rows[0]["arch"] != arch:
                continue
            if not penalty:
                axis.axhline(accuracies[0], color="grey", linestyle="--", label="dense")
                continue
            left = [structural_macs(r) / total.macs if groups else int(r["weights"]) / total.weights for r in rows]
            decayed = not groups and "weight decay" in rows[0]["setting"]
            refit = "refit" in rows[0]["setting"]
            axis.plot([100 * x for x in left], accuracies, "s" if groups else "v" if decayed else "o",
                      color=colours[penalty], fillstyle="full" if refit else "none",
                      label=f"{penalty}{' (MACs)' * groups}{' with weight decay' * decayed}{', refit' * refit}")
        for (name, penalty), published in PAPER.items():
            if name == arch:
                axis.plot(float(published.split(", ")[-1].removesuffix(" %")), paper_accuracy(arch, penalty), "*",
                          markersize=12, color=colours[penalty], label="paper" if penalty == "hs" else None)
        axis.set(title=LENETS[arch], xlabel="weights left; groups: MACs left after compacting (%)",
                 ylabel="test accuracy (%)", xscale="log", xlim=(0.4, 30))
        axis.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    drawn = {}
    for axis in axes:                                        # each label once
        drawn |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=6)
    return figure


def magnitude_cifar10(plt):
    """Accuracy against the weights that are left, a panel for each network, for each way to train what is left."""
    groups = magnitude_groups()
    networks = sorted({arch for arch, *_ in groups})
    ways = ["dense", *sorted({way for _, _, _, way, _ in groups} - {"dense"})]
    figure, axes = plt.subplots(1, len(networks), figsize=(5.5 * len(networks), 4.4), layout="constrained",
                                squeeze=False)
    for axis, network in zip(axes[0], networks, strict=True):
        for (arch, kept, rule, way, _), runs in groups.items():
            if arch == network:
                random = "random" in rule
                axis.plot([-kept] * len(runs), [accuracy for _, accuracy in runs], "v" if random else "o",
                          color=f"C{ways.index(way)}", label=f"{way}{', random masks' * random}")
        for way, published in RENDA.get(network, {}).items():
            if way in ways:
                axis.plot(published.keys(), published.values(), "*", markersize=12, color=f"C{ways.index(way)}",
                          label=f"{way}, published")
        axis.set(title=f"{network}, CIFAR-10", xlabel="weights left (%)", ylabel="last epoch's test accuracy (%)",
                 xscale="log")
        axis.set_xticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
        handles, labels = axis.get_legend_handles_labels()
        drawn = dict(zip(labels, handles, strict=True))      # each label once
        axis.legend(drawn.values(), drawn)
    return figure


def main():
    plt = plots.pyplot()
    for draw in (hoyer_mnist, magnitude_cifar10):
        draw(plt).savefig(ROOT / "results" / f"{draw.__name__}.png", dpi=100)
        print(f"wrote results/{draw.__name__}.png")


if __name__ == "__main__":
    main()
