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

PAPER_ACCURACY = {"lenet300": 98.4, "lenet5": 99.2}


def hoyer_mnist(plt):
    """Accuracy against weights left (element-wise penalties) and MACs of the compacted network left (groups)."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, arch in zip(axes, LENETS, strict=True):
        total, colours = compute_flops.count(models.build(arch)).total, {}
        for penalty, full, rows in hoyer_rows():
            groups = penalty.startswith("group")
            if rows[0]["arch"] != arch or not penalty or full == groups:
                continue
            x = [100 * (structural_macs(r) / total.macs if groups else int(r["weights"]) / total.weights) for r in rows]
            points = axis.plot(x, [float(r["accuracy"]) for r in rows], "s" if groups else "o",
                               label=f"{penalty} (MACs)" if groups else penalty)
            colours[penalty] = points[0].get_color()
            if (arch, penalty) in PAPER:
                left = float(PAPER[arch, penalty].split(", ")[-1].removesuffix(" %"))
                axis.plot(left, 99.0 if (arch, penalty) == ("lenet5", "group-hs") else PAPER_ACCURACY[arch], "*",
                          markersize=12, color=colours[penalty])
        axis.set(title=LENETS[arch], xlabel="weights left; groups: MACs left after compacting (%)",
                 ylabel="test accuracy (%)", xscale="log")
        for penalty, full, rows in hoyer_rows():
            if rows[0]["arch"] == arch and not penalty and full:
                axis.axhline(float(rows[0]["accuracy"]), color="grey", linestyle="--", label="dense")
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    return figure


def main():
    figure = hoyer_mnist(plots.pyplot())
    figure.savefig(ROOT / "results" / "hoyer_mnist.png", dpi=100)
    print("wrote results/hoyer_mnist.png")


if __name__ == "__main__":
    main()
