"""Draws the plots in the READMEs from results/ledger.csv: results/hoyer_mnist.png and results/magnitude_cifar10.png.

    python results/make_plots.py

Circles are our runs, one a seed; stars are published figures, as in the tables beside the plots.
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "results")]

from make_tables import LENETS, PAPER, hoyer_rows, magnitude_groups, structural_macs

from common import compute_flops, models, plots

PAPER_ACCURACY = {"lenet300": 98.4, "lenet5": 99.2}
RENDA = {  # ResNet-56: weights left in percent, accuracy; Renda et al. 2020
    "small": [(21, 92.94), (10.7, 92.20), (4.4, 90.54)], "lr-rewind": [(21, 93.50), (10.7, 93.56), (4.4, 92.58)]}


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


def magnitude_cifar10(plt):
    """Accuracy against weights left, for every network, rule and way to fine-tune."""
    groups = magnitude_groups()
    archs = list(dict.fromkeys(arch for arch, *_ in groups))
    figure, axes = plt.subplots(1, len(archs), figsize=(5.5 * len(archs), 4.2), layout="constrained", squeeze=False)
    for axis, arch in zip(axes[0], archs, strict=True):
        lines = {}
        for (name, kept, rule, way, _), seeds in groups.items():
            if name == arch and way == "dense":
                axis.axhline(sum(seeds.values()) / len(seeds), color="grey", linestyle="--", label="dense")
            elif name == arch:
                lines.setdefault(f"{way}, {rule}", []).extend((-kept, accuracy) for accuracy in seeds.values())
        for label, points in sorted(lines.items()):
            drawn = axis.plot(*zip(*points, strict=True), "o", label=label)
            way = label.split(",")[0]
            if arch == "resnet56" and way in RENDA and "random" not in label:
                axis.plot(*zip(*RENDA[way], strict=True), "*", markersize=12, color=drawn[0].get_color())
        axis.set(title=re.sub(r"resnet(\d+)", r"ResNet-\1", arch), xlabel="weights left (%)",
                 ylabel="test accuracy (%)", xscale="log")
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    return figure


def main():
    plt = plots.pyplot()
    for draw in (hoyer_mnist, magnitude_cifar10):
        figure = draw(plt)
        figure.savefig(ROOT / "results" / f"{draw.__name__}.png", dpi=100)
        print(f"wrote results/{draw.__name__}.png")


if __name__ == "__main__":
    main()
