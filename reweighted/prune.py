"""Reweighted L1: cutting between the small weights and the large ones.

    python prune.py --model logs/cifar100-mobilenetv2_1.3-sparse/checkpoint.pth.tar

The reweighted phase leaves the weights of convolutions either large or near zero, so one fixed threshold parts them:

    w stays  <=>  |w| >= 1e-4

How many go is an outcome, not a setting. The masks are stored beside the weights, and finetune.py keeps the zeros.
pruned.pth.tar holds one bit per weight and the surviving values, prune.txt the report, prune.png their histogram.

    --threshold 1e-3      another threshold
    --percentile 0.77     the threshold that takes this fraction of all these weights (the control: magnitude pruning)
    --keep-weights 0.1    the threshold that leaves this fraction of all weights of convolutions and linear layers
    --keep-macs 0.5       with --sparsity-type filter: the threshold that leaves this fraction of the MACs, of filters
                          inside blocks alone: the others only add up with what a residual connection brings
    --ratio 0.7           this fraction of every layer, the smallest
    --ratios FILE         a fraction for each layer, lines "layers.0.conv1,0.7" or, as in the original's file,
                          "layers.0.conv1.weight: 0.7"; a layer with 0, or without a line, is not pruned. With
                          --threshold the file only says which layers are pruned, as in the original.

    --round-to 8          channel counts in multiples that hardware likes, rounded up (filter, column, channel)
    --sparsity-type filter, column, kernel, channel
                          groups of weights instead of single ones, by their root mean square

After filter, column and channel pruning, a channel that no filter makes or nothing reads is taken out: the network is
narrower and faster. Where a residual connection still needs a channel, it stays, with zeros. Expect seconds.
"""
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import nn

from common import UserError, cli, compute_flops, data, models, plots
from common import keep as keeping
from common.compact import difference, narrow_masks
from common.device import device_of, facts
from common.evaluate import against_record, evaluate, heading
from common.files import checkpoint
from common.models.narrow import reads, silence
from reweighted import penalties
from reweighted.networks import network
from reweighted.testers import describe


def flags():
    parser = cli.parser(__doc__)
    cli.add_flags(parser, train=False)
    add = parser.add_argument
    add("--model", metavar="FILE", help="the network to prune, after main.py --rew")
    add("--sparsity-type", choices=tuple(penalties.GROUPS), help="default: that of the reweighted phase, or irregular")
    add("--threshold", type=cli.nonnegative, help="|w|, or root mean square of a group, below which it goes "
        "(default: 1e-4)")
    add("--percentile", type=cli.fraction, help="fraction of the weights of all convolutions together")
    keeping.add_flags(parser)
    add("--round-to", type=cli.positive, default=1, help="channels per layer in multiples of this, rounded up")
    add("--ratio", type=cli.fraction, help="fraction of each convolution")
    add("--ratios", metavar="FILE", help="fractions of each convolution")
    add("--save", help="folder to write to (default: logs/<dataset>-<network>-pruned)")
    add("--overwrite", action="store_true", help="write over an earlier pruned.pth.tar")
    add("--arch", help="what the file cannot say, for one of another repository")
    add("--depth", type=int)
    return parser


def parse(argv=None):
    return flags().parse_args(argv)


def smallest(scores, count):
    """bool like scores (a flat tensor), False for the `count` smallest, ties by position."""
    keep = torch.ones_like(scores, dtype=torch.bool)
    keep[scores.argsort(stable=True)[:count]] = False
    return keep


def choose(weights, kind="irregular", threshold=1e-4, percentile=None, ratios=None, by_threshold=True, quiet=False):
    """{name: bool like the weight, True: stays}, of the layers that are touched.

    by_threshold: |w|, or the root mean square of the group, below the threshold goes, in layers whose ratio is not 0;
    otherwise the `percentile` of all single weights or groups together, or the ratio of each layer.
    """
    touched = [name for name in weights if ratios is None or ratios.get(name, 0) > 0]
    if not touched:
        return {}
    sizes = dict(zip(touched, penalties.sizes([weights[name] for name in touched], kind), strict=True))
    scores = {name: s * (s.numel() / weights[name].numel()) ** 0.5 for name, s in sizes.items()}
    keep = {}
    if percentile is not None:
        flat = smallest(torch.cat([s.flatten() for s in scores.values()]),
                        int(sum(s.numel() for s in scores.values()) * percentile))
        parts = flat.split([s.numel() for s in scores.values()])
        keep = {name: part.view_as(s) for (name, s), part in zip(scores.items(), parts, strict=True)}
    for name, s in scores.items():
        if percentile is None:
            keep[name] = s >= threshold if by_threshold else smallest(
                s.flatten(), int(s.numel() * ratios[name])).view_as(s)
        empty = not keep[name].any()
        if empty and kind != "irregular":
            keep[name].view(-1)[s.argmax()] = True
        if empty and not quiet:
            print(f"{name}: " + ("no weight is left, the layer passes nothing on" if kind == "irregular" else
                                 f"every {kind} is below the threshold; it keeps its strongest"))
        keep[name] = keep[name].expand_as(weights[name]).clone()
    return keep


def threshold_for(args, kind, ckpt, model, weights):
    """Sets --threshold (irregular kind: --percentile, which cuts between equal weights) to what leaves --keep-weights
    or --keep-macs; returns the layers that are touched, as the ratios of `choose`."""
    if args.keep_weights and kind != "irregular" or args.keep_macs and kind != "filter":
        raise UserError("--keep-weights is for --sparsity-type irregular, --keep-macs for filter")
    if args.keep_weights:
        args.percentile = keeping.percentile(args.keep_weights, ckpt, model, weights)
        ranked = torch.cat([w.detach().abs().flatten() for w in weights.values()]).sort().values
        print(f"--keep-weights {args.keep_weights:g}: --percentile {args.percentile:.6f}, threshold "
              f"{ranked[int(len(ranked) * args.percentile)]:.4g}")
        return None
    dense = keeping.dense_total(ckpt, model)
    inside = {f"{name}.weight": 1.0 for record in model.channels() if not record.stream
              for name, _ in record.producers}

    def left(threshold):
        pruned = copy.deepcopy(model)
        with torch.no_grad():
            for name, mask in choose(weights, kind, threshold, ratios=inside, quiet=True).items():
                pruned.get_parameter(name).mul_(mask)
        return compute_flops.count(narrowed(pruned, {}, True, args.round_to)[0]).total.macs / dense.macs

    largest = max(float(w.detach().abs().max()) for w in weights.values())
    args.threshold = keeping.bisect(left, args.keep_macs, 1.01 * largest)
    print(f"--threshold {args.threshold:.6g} leaves {left(args.threshold):.4f} of the MACs")
    return inside


def removable(model, quiet=False, round_to=1):
    """{layer: bool (channels,)} for `models.narrow`: without the channels that nothing makes or that nothing reads, but
    for those that make their number a multiple of round_to."""
    modules, keep = dict(model.named_modules()), {}
    for record in model.channels():
        if not record.producers:
            continue
        filters = [modules[name].weight.detach().flatten(1) for name, _ in record.producers]
        made = torch.stack([f.count_nonzero(1) > 0 for f in filters])
        made = (made.any(0) if record.stream else made.all(0)).cpu()      # parts of a sum, or links of a chain
        read = torch.stack([reads(modules, consumer) for consumer in record.consumers]).any(0)
        alive = (made & read).view(-1, record.group_size).any(1)
        empty = not alive.any()
        if empty:
            alive[0] = True
        alive = keeping.rounded_up(alive, round_to, record.group_size).repeat_interleave(record.group_size)
        if empty and not quiet:
            print(f"{record.producers[0][0]}: no channel is left; it keeps {int(alive.sum())}")
        if not alive.all():
            keep[record.producers[0][0]] = alive
    return keep


@torch.no_grad()
def narrowed(model, masks, quiet=False, round_to=1):
    """(the network without the channels that are gone, its masks). In `model` they are set to zero first, so that it
    computes the same."""
    keep = removable(model, quiet, round_to)
    silence(model, keep)
    return models.narrow(model, keep), narrow_masks(model, masks, keep)


def main(argv=None):
    prune(parse(argv))


def prune(args):
    check(args)

    # load
    ckpt = checkpoint.load(args.model, network, args.arch, args.depth, args.image_size)
    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    args.save = args.save or cli.default_folder(args.dataset, models.name(ckpt["arch"], ckpt["cfg"]), "pruned")
    folder = cli.output_folder(args.save, args.overwrite, holds="pruned.pth.tar")
    device = device_of(args.device)
    original = checkpoint.to_model(ckpt)
    print(heading(ckpt, original), flush=True)
    dataset = data.for_network(original, args.model, **cli.data_flags(args))
    against_record(ckpt, data.Loader(dataset, "test", args.test_batch_size, device))
    model = copy.deepcopy(original)
    weights = {f"{name}.weight": m.weight for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    if not weights:
        raise UserError(f"{args.model}: a {ckpt['arch']} has no convolution to prune")
    phase = ckpt["args"].get("sparsity_type") if ckpt["method"] == "reweighted" else None
    kind = args.sparsity_type = args.sparsity_type or phase or "irregular"

    # choose which weights stay
    ratios = keeping.read_ratios(args.ratios, weights) if args.ratios else None
    if args.ratio is not None:
        ratios = dict.fromkeys(weights, args.ratio)
    if args.keep_weights or args.keep_macs:
        ratios = threshold_for(args, kind, ckpt, model, weights)
    by_threshold = args.threshold is not None
    chosen = choose(weights, kind, args.threshold, args.percentile, ratios, by_threshold)
    if not chosen:
        raise UserError(f"{args.ratios or '--ratio 0'} leaves every layer untouched")
    previous_masks = ckpt.get("masks", {})
    masks = {**previous_masks, **{name: mask & previous_masks.get(name, mask) for name, mask in chosen.items()}}

    # apply: zeros, and for whole filters, columns or channels a narrower network
    with torch.no_grad():
        for name, mask in chosen.items():
            weights[name].mul_(mask)
    small = model
    if kind in ("filter", "column", "channel"):
        small, masks = narrowed(model, masks, round_to=args.round_to)
    elif args.round_to > 1:
        raise UserError(f"--round-to is for channels that are taken out; --sparsity-type {kind} takes out none")

    # report
    counted = compute_flops.count(small).total
    report = f"{describe(small, masks)}\n{counted.macs:,} MACs, {counted.sparse_macs:,} with weights that are not zero"
    print(report)
    lines, top1 = accuracies(args, dataset, original, model, small, device)
    print(*lines, sep="\n")

    # save
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prune.txt").write_text("\n".join([*lines, "", report, ""]), encoding="utf-8")
    had = {name: original.get_parameter(name).detach() for name in weights}
    threshold = args.threshold if args.percentile is None else min(      # the smallest that stays
        float(had[name].abs()[mask].min()) for name, mask in chosen.items() if mask.any())
    draw(folder / "prune.png", had, chosen, threshold if kind == "irregular" else None)
    path = checkpoint.save(folder / "pruned.pth.tar", checkpoint.of(
        small, "reweighted", "pruned", dataset.name, prec1=top1, best_prec1=top1, args=vars(args),
        dense=ckpt["dense"] or compute_flops.summary(original), masks=masks, run=facts(device),
        rule=rule_of(args)))
    print(f"wrote {path} ({path.stat().st_size:,} bytes), prune.txt and prune.png")
    return path


def check(args):
    """UserError where the flags choose the weights in two ways; without any, the threshold is the original's 1e-4."""
    if not args.model:
        raise UserError("--model FILE is needed: the network to prune")
    rules = [name for name in ("percentile", "keep_weights", "keep_macs", "ratio", "ratios")
             if getattr(args, name) is not None]
    if len(rules) > 1 or rules and rules != ["ratios"] and args.threshold is not None:
        first, second = [name.replace("_", "-") for name in [*rules, "threshold"][:2]]
        raise UserError(f"--{first} and --{second} choose weights in two ways; give one")
    if not rules and args.threshold is None:
        args.threshold = 1e-4


def accuracies(args, dataset, original, masked, small, device):
    """(lines with the accuracy before and after and how far the narrow network's logits are off, the last top-1)."""
    test = data.Loader(dataset, "test", args.test_batch_size, device)
    before, after = (evaluate(model.to(device), test)["top1"] for model in (original, small))
    lines = [f"accuracy on {dataset.name}: {before:.2f} % before, {after:.2f} % pruned"]
    if small is not masked:                                  # the narrow network computes what the masked one does
        images, _ = next(iter(test))
        lines.append(f"channels taken out: {compute_flops.count(small).total.macs:,} of "
                     f"{compute_flops.count(masked).total.macs:,} MACs are left; the logits differ by "
                     f"{difference(masked.to(device), small, images):.1e} of the largest from those of the masked "
                     "network")
    return lines, after


def rule_of(args):
    """How the weights were chosen, for the ledger: what was asked for, such as 'irregular, threshold 0.0001'."""
    name = next(name for name in ("keep_weights", "keep_macs", "threshold", "percentile", "ratio", "ratios")
                if getattr(args, name) is not None)
    value = getattr(args, name)
    return f"{args.sparsity_type}, {name} {value:g}" if name == "threshold" else f"{args.sparsity_type}, {name} {value}"


def draw(path, weights, keep, threshold):
    """Left: the weights of every layer, had and kept. Right: the histogram of log10 |w|, which shows the two groups."""
    plt = plots.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    plots.layer_bars(left, {name.removesuffix(".weight"): mask for name, mask in keep.items()}, "weights", percent=True)
    had = torch.cat([w.abs().flatten().cpu() for w in weights.values()]).clamp_min(1e-8)
    kept = torch.cat([w.abs()[keep[name]] for name, w in weights.items() if name in keep]).cpu().clamp_min(1e-8)
    edges = np.linspace(-8, max(0.0, float(had.max().log10())), 121)
    for values, colour, label in ((had, "lightgrey", "had"), (kept, "tab:blue", "keeps")):
        right.stairs(np.histogram(values.log10().numpy(), edges)[0], edges, fill=True, color=colour, label=label)
    right.set(xlabel="log10 |w|, below -8 as -8", ylabel="weights")
    if threshold:
        right.axvline(np.log10(threshold), color="tab:red", label=f"threshold {threshold:.3g}")
    right.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    cli.script(main)
