"""Draws the plots in the READMEs from results/ledger.csv: results/hoyer_mnist.png.

    python results/make_plots.py

Circles and squares are our runs, one a seed; stars are published figures, as in the tables beside the plot.
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "results")]

from make_tables import LENETS, PAPER, hoyer_rows, structural_macs

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
            decayed = "weight decay" in rows[0]["setting"]
            axis.plot([100 * x for x in left], accuracies, "s" if groups else "v" if decayed else "o",
                      color=colours[penalty],
                      label=f"{penalty}{' (MACs)' * groups}{' with weight decay' * decayed}")
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


def main():
    figure = hoyer_mnist(plots.pyplot())
    figure.savefig(ROOT / "results" / "hoyer_mnist.png", dpi=100)
    print("wrote results/hoyer_mnist.png")


if __name__ == "__main__":
    main()
