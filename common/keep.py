"""Fraction of a network to keep: the flags --keep-weights and --keep-macs, and the threshold for it; the
fractions to remove of single layers, --ratios, which can be scaled to either.

Both are fractions of the dense network: of the weights of its convolutions and linear layers, or of its MACs, counted
after pruned channels are removed.
"""
import math
import re
from pathlib import Path

import torch

from common import UserError, cli
from common.models.counting import count, dense_total


def add_flags(parser, weights=True, macs=True):
    """--keep-weights and --keep-macs, None where they are not given."""
    if weights:
        parser.add_argument("--keep-weights", type=cli.part, metavar="FRACTION", help="prune at the threshold that "
                            "keeps this fraction of the dense network's weights in convolutions and linear layers")
    if macs:
        parser.add_argument("--keep-macs", type=cli.part, metavar="FRACTION", help="prune channels at the threshold "
                            "that keeps this fraction of the dense network's MACs")


def rounded_up(alive, multiple, unit=1, scores=None):
    """bool like alive (units,): those to keep, and the first, or highest scored, others up to a whole multiple.

    unit: channels per entry. If none is alive, none is kept; never more than there are.
    """
    wanted = min(-(-int(alive.sum()) // (step := multiple // math.gcd(multiple, unit))) * step, len(alive))
    scores = torch.zeros(len(alive)) if scores is None else scores.float()
    rank = (alive.float() * (scores.max() - scores.min() + 1) + scores).argsort(descending=True, stable=True)
    return torch.zeros_like(alive).index_fill(0, rank[:wanted].to(alive.device), True)


def shuffled(masks, previous_masks, seed):
    """{name: mask}, the random control: as many of every tensor, at random positions of the previous mask."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, mask in masks.items():
        scores = torch.rand(mask.shape, generator=generator).to(mask.device).masked_fill(~previous_masks[name], -1)
        highest = scores.flatten().topk(int(mask.sum())).indices
        found[name] = torch.zeros_like(mask.flatten()).index_fill(0, highest, True).view_as(mask)
    return found


def bisect(left, wanted, high, steps=40):
    """The smallest threshold in [0, high], to high / 2^steps, that keeps the fraction `wanted` or less.

    left: threshold -> fraction; it must not rise. UserError if even `high` keeps more.
    """
    if left(high) > wanted:
        remedy = "give a larger fraction" if left(high) < left(0.0) else "prune single weights, as --keep-weights does"
        raise UserError(f"pruning everything that can be pruned keeps {left(high):.4f}, more than {wanted:g} of the "
                        f"network; {remedy}")
    low = 0.0
    if left(low) <= wanted:
        return low
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if left(middle) > wanted else (low, middle)
    return high


def percentile(fraction, ckpt, model, weights, otherwise=""):
    """The fraction of `weights`, {name: tensor} of the model, to prune so that --keep-weights `fraction` is kept.

    It is a fraction of the dense network's weights; other layers are not pruned. UserError if they alone have too many;
    otherwise: another remedy to name there.
    """
    dense, size = dense_total(ckpt, model).weights, sum(w.numel() for w in weights.values())
    others = count(model).total.weights - sum(int(w.count_nonzero()) for w in weights.values())
    left = int(fraction * dense) - others
    if left < 1:
        raise UserError(f"--keep-weights {fraction:g}: the layers that are not pruned have {others:,} of the {dense:,} "
                        f"weights; give a larger fraction{otherwise}")
    return max(0, size - left + 0.5) / size                  # + 0.5, so that rounding changes no count


def read_ratios(path, weights, prunable=None):
    """{name: fraction of it to prune, in [0, 1)} from a file of --ratios, for some of `weights`, names of parameters.

    Its lines are "layer,fraction", or "name: fraction" as in the reweighted original; # begins a comment. prunable:
    the names that this method prunes; prints which others the file prunes, and leaves them out. UserError names a line
    that is neither, or a layer that is not there.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--ratios {path}: {getattr(error, 'strerror', None) or error}") from error
    ratios = {}
    for number, line in enumerate(lines, 1):
        line = line.partition("#")[0].strip()
        if line in ("", "layer,fraction", "prune_ratios:"):
            continue
        match = re.fullmatch(r"([\w.]+)\s*[,:\s]\s*([\d.eE+-]+)", line)
        try:
            layer, ratio = match[1].removesuffix(".weight"), float(match[2])
        except (TypeError, ValueError) as error:
            raise UserError(f"--ratios {path}, line {number}: {line!r} is no \"layer,fraction\"") from error
        name = f"{layer}.weight"
        wrong = ""
        if name not in weights:
            there = [other.removesuffix(".weight") for other in weights]
            wrong = f"the network has no layer {layer} to prune; it has {', '.join(there[:3])}, ..."
        elif name in ratios:
            wrong = f"{layer} has a line already"
        elif not 0 <= ratio < 1:
            wrong = f"{ratio:g} is not in [0, 1)"
        if wrong:
            raise UserError(f"--ratios {path}, line {number}: {wrong}")
        ratios[name] = ratio
    if not any(ratios.values()):
        raise UserError(f"--ratios {path} " + ("prunes no layer; give a fraction above 0" if ratios else
                                               "has no line \"layer,fraction\""))
    prunable = ratios if prunable is None else prunable
    if whole := [name.removesuffix(".weight") for name in ratios if ratios[name] and name not in prunable]:
        print(f"note: --ratios: not pruned, since this method cannot prune them: {', '.join(whole)}")
    ratios = {name: ratio for name, ratio in ratios.items() if name in prunable}
    if not any(ratios.values()):
        raise UserError(f"--ratios {path} prunes no layer; these can be pruned: "
                        f"{', '.join(name.removesuffix('.weight') for name in prunable)}")
    return ratios


def channel_ratios(path, model, removable):
    """{layer: fraction of its channels to remove} for `removable`, names of layers, from a file of --ratios.

    A layer has the name that sensitivity.py --channels gives it, the first one that makes these channels; before a
    channel selection it is the batch norm.
    """
    names = [record.producers[0][0] if record.producers else record.names()[0] for record in model.channels()]
    ratios = read_ratios(path, [f"{name}.weight" for name in names], [f"{name}.weight" for name in removable])
    return {name: ratios.get(f"{name}.weight", 0.0) for name in removable}


def scaled(ratios, left, wanted):
    """{name: fraction} times the factor that leaves the fraction `wanted`, or less; left: ratios -> fraction."""
    def times(factor):
        return {name: min(factor * ratio, 1 - 1e-9) for name, ratio in ratios.items()}          # one entry is kept

    factor = bisect(lambda factor: left(times(factor)), wanted, 1 / min(ratio for ratio in ratios.values() if ratio))
    print(f"--ratios times {factor:.4f} leave {left(times(factor)):.4f}")
    return times(factor)
