"""Reweighted L1: prune the small weights.

    python prune.py --model logs/cifar100-mobilenetv2_1.3-reweighted-sparse/checkpoint.pth.tar

After the reweighted phase the weights of convolutions are either large or near zero, and one fixed threshold separates
them:

    prune w  <=>  |w| < 1e-4                    (with --keep-weights 0.1: all but the largest tenth, by one threshold)

Without a given fraction, the threshold determines how many weights are pruned. The masks are stored beside the weights,
and finetune.py keeps the zeros. pruned.pth.tar holds one bit per weight and the remaining values, prune.txt the report,
prune.png a histogram.

After filter, column and channel pruning, a channel that no filter makes or nothing reads is removed: the network is
narrower and faster. A channel that a residual connection still needs is kept, with zeros. Takes seconds.
"""
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import nn

from common import UserError, cli, compute_flops, plots, pruning
from common import keep as keeping
from common.evaluate import evaluate
from common.models.narrow import narrow, narrow_masks, prove, silence
from reweighted import penalties
from reweighted.networks import network
from reweighted.testers import describe

RULES = ("keep_weights", "keep_macs", "threshold", "percentile", "ratio", "ratios")      # what chooses weights


def choose(weights, kind="irregular", threshold=1e-4, percentile=None, ratios=None, quiet=False):
    """{name: mask} of the layers to prune: all, or those with a ratio above 0.

    Prunes the smallest `percentile` of all single weights or groups together; without it weights, or groups by their
    root mean square, below the threshold; without either the ratio of each layer.
    """
    chosen = [name for name in weights if ratios is None or ratios.get(name, 0) > 0]
    sizes = {name: penalties.size(weights[name], kind) for name in chosen}
    # |w|, or the root mean square of a group
    scores = {name: s * (s.numel() / weights[name].numel()) ** 0.5 for name, s in sizes.items()}
    if percentile is not None:
        masks = smallest(scores, percentile)
    elif threshold is not None:
        masks = {name: s >= threshold for name, s in scores.items()}
    else:
        masks = {name: smallest({name: s}, ratios[name])[name] for name, s in scores.items()}
    for name, s in scores.items():
        if not masks[name].any():
            if kind != "irregular":
                masks[name].view(-1)[s.argmax()] = True
            if not quiet:
                print(f"{name}: " + ("no weight remains, so its output is constant" if kind == "irregular" else
                                     f"every {kind} is below the threshold; the strongest one is kept"))
        masks[name] = masks[name].expand_as(weights[name]).clone()
    return masks


def smallest(scores, fraction):
    """{name: mask} that prunes this fraction of scores, {name: tensor}, together: the smallest, ties by position."""
    flat = torch.cat([s.flatten() for s in scores.values()])
    mask = torch.ones_like(flat, dtype=torch.bool)
    mask[flat.argsort(stable=True)[:int(len(flat) * fraction)]] = False
    parts = mask.split([s.numel() for s in scores.values()])
    return {name: part.view_as(s) for (name, s), part in zip(scores.items(), parts, strict=True)}


def prune(args):
    fill_in(args)

    # load
    source = pruning.load(args.model, network, what="reweighted-pruned", **cli.prune_flags(args))
    ckpt, original, model = source.ckpt, source.model, copy.deepcopy(source.model)
    weights = {f"{name}.weight": m.weight for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    if not weights:
        raise UserError(f"{args.model}: a {ckpt['arch']} has no convolution to prune")
    phase = ckpt["args"].get("sparsity_type") if ckpt["method"] == "reweighted" else None
    kind = args.sparsity_type = args.sparsity_type or phase or "irregular"

    # choose the weights to keep
    layers = [f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    ratios = keeping.read_ratios(args.ratios, layers, weights) if args.ratios else None
    if args.ratio is not None:
        ratios = dict.fromkeys(weights, args.ratio)
    if args.keep_weights or args.keep_macs:
        ratios = threshold_for(args, kind, ckpt, model, weights, ratios)
    chosen = choose(weights, kind, args.threshold, args.percentile, ratios)
    if not chosen:
        raise UserError(f"{'--ratios times 0' if args.ratios else '--ratio 0'} prunes no layer")
    masks = ckpt.get("masks", {})
    if masks and not any((~mask & weights[name].ne(0)).any() for name, mask in chosen.items()):
        print(f"note: {args.model} is pruned as far already; nothing more is pruned")
    masks = {**masks, **{name: mask & masks.get(name, mask) for name, mask in chosen.items()}}

    # apply: zeros, and for whole filters, columns or channels a narrower network
    with torch.no_grad():
        for name, mask in chosen.items():
            weights[name].mul_(mask)
    small = model
    if kind in ("filter", "column", "channel"):
        small, masks = narrowed(model, masks, round_to=args.round_to)
        off = prove(model, small)                            # the narrow network computes what the masked one does
    elif args.round_to > 1:
        raise UserError(f"--round-to is for channels that are removed; --sparsity-type {kind} removes none")
    pruning.recalibrate(source, small, args.recalibrate)

    # report
    total = compute_flops.count(small).total
    report = f"{describe(small, masks)}\n{total.macs:,} MACs, {total.sparse_macs:,} with non-zero weights"
    print(report)
    device = source.test.device
    before, top1 = (evaluate(m.to(device), source.test)["top1"] for m in (original, small))
    lines = [f"accuracy on {source.dataset.name}: {before:.2f} % before, {top1:.2f} % pruned"]
    if small is not model:
        lines.append(f"channels removed: {total.macs:,} of {compute_flops.count(model).total.macs:,} MACs remain; the "
                     f"logits differ by {off:.1e} of the largest from those of the masked network")
    print(*lines, sep="\n")

    # save
    had = {name: original.get_parameter(name).detach().cpu() for name in weights}
    threshold = args.threshold if args.percentile is None else min(      # the smallest weight that is kept
        float(had[name].abs()[mask].min()) for name, mask in chosen.items() if mask.any())
    return pruning.save(source, small, "reweighted", settings=vars(args), top1=top1, masks=masks, rule=rule_of(args),
                        report="\n".join([*lines, "", report]),
                        figure=draw(had, chosen, threshold if kind == "irregular" else None))


def fill_in(args):
    """Sets the original's threshold if no flag chooses weights; UserError if two do."""
    given = [name for name in RULES if getattr(args, name) is not None]
    if "ratios" in given and given[0] in ("ratio", "percentile"):
        raise UserError(f"--ratios is not allowed with --{given[0]}: it says how much of each layer is pruned")
    if not given:
        args.threshold = 1e-4


def threshold_for(args, kind, ckpt, model, weights, ratios=None):
    """Sets --threshold (irregular kind: --percentile, which cuts between equal weights) so that --keep-weights or
    --keep-macs is kept; returns the layers to prune, as the ratios of `choose`: the given ones times a factor."""
    if args.keep_weights and kind != "irregular" or args.keep_macs and kind != "filter":
        raise UserError("--keep-weights is for --sparsity-type irregular, --keep-macs for filter")
    if args.keep_weights and not ratios:
        args.percentile = keeping.percentile(args.keep_weights, ckpt, model, weights)
        ranked = torch.cat([w.detach().abs().flatten() for w in weights.values()]).sort().values
        print(f"--keep-weights {args.keep_weights:g}: --percentile {args.percentile:.6f}, threshold "
              f"{ranked[int(len(ranked) * args.percentile)]:.4g}")
        return None
    dense = compute_flops.dense_total(ckpt, model)
    inside = {f"{name}.weight": 1.0 for record in model.channels() if not record.stream
              for name, _ in record.producers}

    def left(threshold, ratios=inside):
        pruned = copy.deepcopy(model)
        with torch.no_grad():
            for name, mask in choose(weights, kind, threshold, None, ratios, True).items():
                pruned.get_parameter(name).mul_(mask)
        if args.keep_weights:
            return compute_flops.count(pruned).total.weights / dense.weights
        return compute_flops.count(narrowed(pruned, {}, True, args.round_to)[0]).total.macs / dense.macs

    if ratios:
        return keeping.scaled(ratios, lambda ratios: left(None, ratios), args.keep_weights or args.keep_macs)
    largest = max(float(w.detach().abs().max()) for w in weights.values())
    args.threshold = keeping.bisect(left, args.keep_macs, 1.01 * largest)
    print(f"--threshold {args.threshold:.6g} keeps {left(args.threshold):.4f} of the MACs")
    return inside


def removable(model, quiet=False, round_to=1):
    """{layer: keep (channels,)} for `narrow`: without the channels that nothing makes or nothing reads, except
    those that make their number a multiple of round_to."""
    modules, keep = dict(model.named_modules()), {}
    for record in model.channels():
        if not record.producers:
            continue
        filters = {name: modules[name].weight.detach().flatten(1).any(1).cpu() for name, _ in record.producers}
        made = torch.stack([record.by_unit(name, filled).any(1) for name, filled in filters.items()])
        made = made.any(0) if record.stream else made.all(0)              # parts of a sum, or links of a chain
        alive = made & record.used(modules)
        empty = not alive.any()
        if empty:
            alive[0] = True
        alive = record.over_channels(keeping.rounded_up(alive, round_to, record.group_size))
        if empty and not quiet:
            print(f"{record.producers[0][0]}: no channel remains; {int(alive.sum())} kept")
        if not alive.all():
            keep[record.producers[0][0]] = alive
    return keep


@torch.no_grad()
def narrowed(model, masks, quiet=False, round_to=1):
    """(the network without the removable channels, its masks). In `model` they are set to zero first, so that it
    computes the same."""
    keep = removable(model, quiet, round_to)
    silence(model, keep)
    return narrow(model, keep), narrow_masks(model, masks, keep)


def rule_of(args):
    """How the weights were chosen, for the ledger: what was asked for, such as 'irregular, threshold 0.0001'."""
    name = next(name for name in RULES if getattr(args, name) is not None)
    value = getattr(args, name)
    value = f"{value}, ratios" if args.ratios and name.startswith("keep") else value
    return f"{args.sparsity_type}, {name} {value:g}" if name == "threshold" else f"{args.sparsity_type}, {name} {value}"


def flags():
    parser = cli.parser(__doc__, train=False, arch=cli.RECORDED, writes="pruned.pth.tar")
    add = parser.add_argument
    add("--model", metavar="FILE", required=True, help="network to prune, after main.py --rew")
    add("--sparsity-type", choices=tuple(penalties.GROUPS), help="irregular: single weights; else groups, by their "
        "root mean square (default: that of the reweighted phase, or irregular)")
    rules = parser.add_mutually_exclusive_group()
    rules.add_argument("--threshold", type=cli.nonnegative, help="|w|, or root mean square of a group, below which "
                       "weights are pruned (default: 1e-4)")
    rules.add_argument("--percentile", type=cli.fraction, help="fraction to prune of the weights of all convolutions: "
                       "with a dense network the control, magnitude pruning")
    keeping.add_flags(rules)
    rules.add_argument("--ratio", type=cli.fraction, help="fraction to prune of each convolution")
    add("--ratios", metavar="FILE", help="fractions to prune of each convolution, in lines such as "
        "\"layers.0.conv1,0.7\" or, as in the original's file, \"layers.0.conv1.weight: 0.7\"; a layer with 0, or "
        "without a line, is not pruned. With --threshold the file only says which layers are pruned, as in the "
        "original; --keep-weights or --keep-macs multiplies all of them by one factor")
    pruning.add_recalibrate(parser)
    add("--round-to", type=cli.positive, default=1, metavar="N", help="round channels per layer up to a multiple of N; "
        "multiples of 8 run faster (filter, column, channel)")
    return parser


def draw(weights, masks, threshold):
    """The figure. Left: weights of every layer, before and after. Right: the histogram of log10 |w|, in two groups."""
    figure, right = plots.pruned(masks, "weights", percent=True)
    had = torch.cat([w.abs().flatten() for w in weights.values()]).clamp_min(1e-8)
    kept = torch.cat([w.abs()[masks[name]] for name, w in weights.items() if name in masks]).clamp_min(1e-8)
    edges = np.linspace(-8, max(0.0, float(had.max().log10())), 121)
    plots.before_and_kept(right, had.log10().numpy(), kept.log10().numpy(), edges)
    right.set(xlabel="log10 |w|, below -8 as -8", ylabel="weights")
    if threshold:
        right.axvline(np.log10(threshold), color="tab:red", label=f"threshold {threshold:.3g}")
    right.legend()
    return figure


def main(argv=None):
    return prune(flags().parse_args(argv))


if __name__ == "__main__":
    cli.script(main)
