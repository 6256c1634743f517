"""Draws the plots in the READMEs: hoyer_mnist.png and magnitude_cifar10.png from results/ledger.csv, and those in
results/comparison/ from the tables there.

    python results/make_plots.py

In the first two a mark is one of our runs, of one seed; stars are published figures, as in the tables beside the plot.
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import cli, plots
from results import ledger, tables, tables_hoyer
from results.comparison import public
from results.comparison import tables as comparison
from results.tables_hoyer import LENETS, PAPER, is_group, left_of

MARKS = {"l1": ("^", "tab:blue"), "hoyer": ("s", "tab:orange"), "hs": ("o", "tab:green"), "tl1": ("D", "tab:red"),
         "group-lasso": ("s", "tab:purple"), "group-hoyer": ("^", "tab:olive"), "group-hs": ("o", "tab:pink")}
DASHES = ("--", ":", "-.", (0, (1, 3)))


def hoyer_mnist(plt, rows):
    """Accuracy against what is left, a row for each network: weights with element-wise penalties, MACs with groups."""
    figure, panels = plt.subplots(2, 2, figsize=(12, 8.4), layout="constrained", sharey="row")
    figure.suptitle("DeepHoyer: LeNets on MNIST, a mark for each network, stars from the paper")
    for (weights, macs), arch in zip(panels, LENETS, strict=True):
        mine = [(penalty, runs) for penalty, runs in tables_hoyer.groups(rows) if runs[0]["arch"] == arch]
        for (_, runs), dashes in zip([pair for pair in mine if not pair[0]], DASHES, strict=False):
            images = "" if runs[0]["args"]["holdout"] else ", all images"
            label = (f"dense, {runs[0]['epochs']} epochs, {runs[0]['precision']}{images}: "
                     f"{float(runs[0]['accuracy']):.2f} %")
            for axis in (weights, macs):
                axis.axhline(float(runs[0]["accuracy"]), color="dimgrey", linewidth=1, linestyle=dashes, label=label)
        for penalty, runs in mine:
            if not penalty:
                continue
            counts, whole = left_of(penalty, runs)
            args, (marker, colour) = runs[0]["args"], MARKS[penalty]
            decayed = args["wd"] > 0 and not is_group(penalty)
            (macs if is_group(penalty) else weights).plot(
                [100 * count / whole for count in counts], [float(run["accuracy"]) for run in runs], linestyle="",
                marker="v" if decayed else marker, color=colour, fillstyle="full" if args["refit"] else "none",
                markersize=7, markeredgewidth=1.5,
                label=f"{penalty}{', with weight decay' * decayed}{', refit' * bool(args['refit'])}")
        for (name, penalty), (_, percent) in PAPER.items():
            if name == arch:
                accuracy = 98.4 if arch == "lenet300" else 99.0 if is_group(penalty) else 99.2
                (macs if is_group(penalty) else weights).plot(
                    float(percent), accuracy, linestyle="", marker="*", markersize=14, alpha=0.6,
                    color=MARKS[penalty][1], label=f"{penalty}, paper")
        weights.set(title=f"{LENETS[arch]}: element-wise penalties", xlabel="weights left (%)",
                    ylabel="test accuracy (%)")
        macs.set(title=f"{LENETS[arch]}: group penalties, compacted", xlabel="MACs left (%)")
        for axis in (weights, macs):
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(plt.FixedLocator([0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20]))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.set_xticks([], minor=True)
            axis.grid(alpha=0.3)
        labels = labels_once(weights, macs)
        macs.legend(labels.values(), labels, loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=9)
    return figure


def labels_once(*axes):
    """{label: handle} of everything in the plot, each label once."""
    labels = {}
    for axis in axes:
        labels |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    return labels


def magnitude_cifar10(plt, rows):
    """Accuracy against the weights that are left, a panel for each network; seeds side by side."""
    found = tables.magnitude_groups(rows)
    networks = sorted({arch for arch, *_ in found})
    ways = ["dense", *sorted({way for _, _, _, way, _ in found} - {"dense"})]
    figure, axes = plt.subplots(1, len(networks), figsize=(5.5 * len(networks), 5.4), layout="constrained",
                                squeeze=False)
    figure.suptitle("Magnitude pruning on CIFAR-10, a mark for each run, seeds side by side")
    for axis, network in zip(axes[0], networks, strict=True):
        for (arch, kept, rule, way, _), runs in found.items():
            if arch != network:
                continue
            accuracies, colour = [float(run["accuracy"]) for run in runs], f"C{ways.index(way)}"
            if way == "dense":
                axis.axhline(sum(accuracies) / len(accuracies), color=colour, linestyle="--", linewidth=1,
                             label=f"dense, mean of {len(runs)}" if len(runs) > 1 else "dense, one seed")
            beside = [-kept * 1.05 ** (i - (len(runs) - 1) / 2) for i in range(len(runs))]
            axis.plot(beside, accuracies, linestyle="", marker="v" if rule == "random" else "o", fillstyle="none",
                      markersize=7, markeredgewidth=1.5, color=colour,
                      label=way if rule in ("", "magnitude") else f"{way}, {rule}")
        for way, published in tables.RENDA.get(network, {}).items():
            if way in ways:
                axis.plot(published.keys(), published.values(), linestyle="", marker="*", markersize=13, alpha=0.6,
                          color=f"C{ways.index(way)}", label=f"{way}, published")
        epochs = sorted({int(run["epochs"]) for (arch, *_), runs in found.items() if arch == network for run in runs})
        axis.set(title=f"ResNet-{network.removeprefix('resnet')}, {' or '.join(map(str, epochs))} epochs",
                 xlabel="weights left (%)", ylabel="last epoch's test accuracy (%)", xscale="log")
        axis.set_xticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
        labels = labels_once(axis)
        axis.legend(labels.values(), labels, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=9)
    return figure


def main(argv=None):
    cli.parser(__doc__).parse_args(argv)
    plt, rows = plots.pyplot(), ledger.read()
    for draw in (hoyer_mnist, magnitude_cifar10):
        draw(plt, rows).savefig(ROOT / "results" / f"{draw.__name__}.png", dpi=100)
        print(f"wrote results/{draw.__name__}.png")
    for path, larger in ((comparison.PATH, public.points_of_resnet56(rows)), (comparison.SHORT, ())):
        comparison.draw(path.with_suffix(".png"), comparison.read(path), larger)
        print(f"wrote {path.relative_to(ROOT).with_suffix('.png')}")


if __name__ == "__main__":
    cli.script(main)
