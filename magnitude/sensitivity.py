"""Sensitivity: how much accuracy is lost when one layer alone is pruned (Han et al. 2015, figure 6; Li et al. 2017,
"Pruning Filters for Efficient ConvNets", figure 2).

    python sensitivity.py logs/cifar10-resnet56-magnitude-dense/checkpoint.pth.tar

For each layer l and each fraction p = 0.1, 0.2, ..., 0.9, prune the smallest |w| of l as prune.py does, leave all other
layers whole, and evaluate without fine-tuning:

    cost(l, p) = accuracy of the whole network - accuracy without int(p * size) weights of l
    ratio(l)   = the largest p with cost(l, p) <= --floor, else 0

Accuracy is measured on the last --holdout training images, never on test images, which remain unused for choosing
ratios. A network trained with the same --holdout has not seen them. Otherwise the accuracies may be too high, but
layers can still be compared.

    --channels    remove channels instead, those with the smallest sum of |w| in the filters that make them. Layers
                  whose channels can only be removed together, such as those of a residual stream, share one
                  line, named after the first layer; (+ 9) means that nine others belong to it

Writes sensitivity.csv (accuracies), sensitivity.png (the ten most sensitive layers are named) and ratios.csv, which
magnitude/prune.py --ratios reads, with --channels also that of slimming and hoyer. Pruning several layers usually costs
more than the sum: fine-tune afterwards.

Each layer takes nine evaluations. Expect four minutes for ResNet-20 on one CPU core, half an hour for ResNet-56. The
script prints an estimate after the first evaluation.
"""
import copy
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from common import cli, plots, pruning
from common.evaluate import evaluate
from common.models.narrow import silence
from magnitude.budget import prunable
from magnitude.networks import network
from magnitude.prune import choose, score

FRACTIONS = [k / 10 for k in range(1, 10)]


class Group(NamedTuple):
    """Weights of a layer, or channels that are removed together; remove: fraction -> the network without them."""
    size: int
    pruned: int             # weights that a mask has removed already
    others: list            # further layers that make the same channels
    remove: Callable


@torch.no_grad()
def without_weights(model, name, previous_mask, fraction):
    """A copy of the network without the smallest weights of the parameter `name`, as prune.py chooses them."""
    pruned = copy.deepcopy(model)
    weight = pruned.get_parameter(name)
    masks, _ = choose({name: score(weight, previous_mask)}, fraction)
    weight.mul_(masks[name].to(weight.device))
    return pruned


@torch.no_grad()
def without_channels(model, record, fraction):
    """A copy of the network that computes the same as one without the smallest channels of a record of
    `model.channels()`."""
    pruned = copy.deepcopy(model)
    sizes = sum(record.by_unit(name, pruned.get_submodule(name).weight.abs().flatten(1).sum(1)).sum(1)
                for name, _ in record.producers).cpu()
    keep = torch.ones_like(sizes, dtype=torch.bool)
    keep[sizes.argsort(stable=True)[:int(len(sizes) * fraction)]] = False
    silence(pruned, {record.producers[0][0]: record.over_channels(keep)})
    return pruned


def groups_of(model, masks, channels=False):
    """{layer: Group}, from input to output; with channels a group is named after the first layer that makes it."""
    groups = {}
    if channels:
        for record in model.channels():
            if record.producers:                             # the others choose which channels a layer reads
                first, *others = [name for name, _ in record.producers]
                groups[first] = Group(len(model.get_submodule(first).weight), 0, others,
                                      partial(without_channels, model, record))
        return {name: groups[name] for name, _ in model.named_modules() if name in groups}
    for name, weight in prunable(model, "conv+linear").items():
        mask = masks.get(name, torch.ones_like(weight, dtype=torch.bool, device="cpu"))
        groups[name.removesuffix(".weight")] = Group(weight.numel(), int((~mask).sum()), [],
                                                     partial(without_weights, model, name, mask))
    return groups


def ratio(group, whole, accuracies, floor):
    """The largest fraction that costs at most `floor` points, or 0 if that prunes nothing more."""
    cheap = [f for f, top1 in zip(FRACTIONS, accuracies, strict=True)
             if whole - top1 <= floor + 1e-9 and int(f * group.size) > group.pruned]
    return max(cheap, default=0.0)


def draw(curves, whole, unit):
    """The figure: accuracy by fraction, one line a layer; the ten that lose most are named at the ends of their lines.

    curves: {layer: accuracy at each of FRACTIONS}; whole: accuracy of the whole network.
    """
    figure, axis = plots.pyplot().subplots(figsize=(10, 5.5), layout="constrained")
    sensitive = sorted(curves, key=lambda name: sum(curves[name]))[:10]
    from_below = sorted(sensitive, key=lambda name: curves[name][-1])
    colours = {name: f"C{i}" for i, name in enumerate(from_below)}
    for name, accuracies in curves.items():
        axis.plot([0, *(100 * f for f in FRACTIONS)], [whole, *accuracies], color=colours.get(name, "lightgrey"),
                  zorder=3 if name in colours else 1)
    low, high = axis.get_ylim()
    for i, name in enumerate(from_below):                    # names at even distances, with a thin line to their own
        height = low + (i + 0.5) / len(from_below) * (high - low)
        axis.annotate(name, (90, curves[name][-1]), (94, height), fontsize=8, va="center", color=colours[name],
                      arrowprops={"arrowstyle": "-", "color": colours[name], "lw": 0.5, "relpos": (0, 0.5)},
                      annotation_clip=False)
    axis.set(xlabel=f"{unit} of one layer removed (%)", ylabel="accuracy on training images (%)", xlim=(0, 90),
             title="each layer pruned alone, without fine-tuning")
    return figure


def main(argv=None):
    parser = cli.parser(__doc__, train=False, arch=cli.RECORDED, writes="sensitivity.csv")
    cli.add_file(parser)
    add = parser.add_argument
    add("--channels", action="store_true", help="remove channels instead of single weights")
    add("--floor", type=cli.nonnegative, default=1.0, metavar="POINTS", help="largest loss of accuracy, in points, "
        "that the fraction of a layer in ratios.csv may cause (default: 1)")
    add("--holdout", type=cli.positive, metavar="N", help="evaluate on the last N training images (default: 1000, "
        "at most half of --subset)")
    sensitivity(parser.parse_args(argv))


def sensitivity(args):
    # load
    holdout = args.holdout or max(1, min(1000, (args.subset or 2000) // 2))
    source = pruning.load(args.file, network, what="sensitivity", holds="sensitivity.csv", holdout=holdout,
                          **cli.prune_flags(args))
    model, images, folder = source.model.to(source.test.device), source.test, source.folder  # training images: holdout

    # evaluate the whole network, then without 10 to 90 % of each layer
    groups = groups_of(model, source.ckpt.get("masks", {}), args.channels)
    unit = "channels" if args.channels else "weights"
    start = time.time()
    whole = evaluate(model, images)["top1"]
    minutes = (time.time() - start) / 60 * len(groups) * len(FRACTIONS)
    print(f"the whole network has {whole:.2f} % on the last {holdout} training images; {len(groups)} layers at "
          f"{len(FRACTIONS)} fractions will take about {minutes:.1f} minutes\n\n"
          f"{'layer':34} {unit:>9}" + "".join(f"{100 * f:5.0f} %" for f in FRACTIONS) + f"{'ratio':>7}", flush=True)
    curves, rows, ratios = {}, [], []
    for name, group in groups.items():
        label = f"{name} (+ {len(group.others)})" if group.others else name
        curves[label] = [evaluate(group.remove(fraction), images)["top1"] for fraction in FRACTIONS]
        ratios.append({"layer": name, "fraction": ratio(group, whole, curves[label], args.floor)})
        rows.append({"layer": name, "others": " ".join(group.others), unit: group.size, "0": f"{whole:.2f}"}
                    | {f"{f:g}": f"{top1:.2f}" for f, top1 in zip(FRACTIONS, curves[label], strict=True)})
        print(f"{label:34} {group.size:9,}" + "".join(f"{top1:7.2f}" for top1 in curves[label])
              + f"{ratios[-1]['fraction']:7.1f}", flush=True)

    # save
    folder.mkdir(parents=True, exist_ok=True)
    plots.write_csv(folder / "ratios.csv", ratios)
    figure = draw(curves, whole, unit)
    figure.savefig(folder / "sensitivity.png", dpi=100)
    plots.pyplot().close(figure)
    plots.write_csv(folder / "sensitivity.csv", rows)
    print(f"wrote {folder / 'sensitivity.csv'}, sensitivity.png and ratios.csv in {(time.time() - start) / 60:.1f} "
          "minutes")
    return folder


if __name__ == "__main__":
    cli.script(main)
