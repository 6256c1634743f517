"""log.csv and curve.png of a training run, bars of pruned layers, and matplotlib without a screen."""
import csv

import numpy as np


def write_csv(path, rows):
    """Writes under a temporary name first, so that a full disk leaves the old log or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "w", newline="") as file:
            columns = dict.fromkeys(name for row in reversed(rows) for name in row)
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def draw_curve(path, rows, title):
    """Losses (left axis) and test accuracy (right axis) by epoch; rows: those of log.csv."""
    plt = pyplot()
    figure, left = plt.subplots(figsize=(7, 4), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) <= 30 else ""                  # one epoch makes no line
    for name, colour in (("train_loss", "tab:blue"), ("test_loss", "tab:cyan")):
        if name in rows[-1]:
            left.plot(epochs, [row[name] for row in rows], marker=marker, markersize=4, color=colour,
                      label=name.replace("_", " "))
    left.set(xlabel="epoch", ylabel="loss", title=title)
    left.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    left.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    right = left.twinx()
    right.plot(epochs, [row["top1"] for row in rows], marker=marker, markersize=4, color="tab:orange",
               label="test top-1")
    right.set_ylabel("test accuracy (%)")
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def pruned(keep, unit="channels", percent=False):
    """(figure, right axis) of a prune.png. The left axis has bars of each layer before pruning (grey) and kept (blue);
    keep: {layer name: bool, True: kept}, from input to output.

    percent: bars in percent of the layer, for layers of very different sizes. Only some of many names are written.
    """
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    positions, width = range(len(keep)), 0.8 if len(keep) <= 40 else 1
    before, kept = [mask.numel() for mask in keep.values()], [int(mask.sum()) for mask in keep.values()]
    sizes = [max(size, 1) / 100 if percent else 1 for size in before]
    for counts, colour, label in ((before, "lightgrey", "before"), (kept, "tab:blue", "kept")):
        heights = [count / size for count, size in zip(counts, sizes, strict=True)]
        left.bar(positions, heights, width, color=colour, label=label)
    name_layers(left, [name.removesuffix(".weight") for name in keep])
    left.set_ylabel(f"{unit} (%)" if percent else unit)
    legend_beside_title(left, f"{unit} of each layer")
    return figure, right


def legend_beside_title(axis, title):
    """Above the plot: the title on the left, the labelled artists in one row on the right."""
    axis.set_title(title, loc="left")
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8, frameon=False)


def before_and_kept(axis, before, kept, bins):
    """Histograms of all values (grey) and of those kept (blue), numpy arrays; bins as numpy takes them."""
    counts, edges = np.histogram(before, bins)
    axis.stairs(counts, edges, fill=True, color="lightgrey", label="before")
    axis.stairs(np.histogram(kept, edges)[0], edges, fill=True, color="tab:blue", label="kept")


def name_layers(axis, names):
    """Layer names below bars at 0, 1, 2, ...; of more than 20, every second, third, ... one."""
    step = -(-len(names) // 20)
    shown = range(0, len(names), step)
    axis.set_xticks(shown, [names[i] for i in shown], rotation=90 if len(names) > 5 else 0, fontsize=8)
    axis.set_xlabel("layer, from input to output")


def pyplot():
    """matplotlib.pyplot, writing to files only; imported late, since it takes a second."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    return plt
