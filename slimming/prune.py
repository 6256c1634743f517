"""Network slimming: removing the channels with the smallest gammas.

    python prune.py --model logs/cifar10-vgg13-sparse/checkpoint.pth.tar --percent 0.4

One threshold for the whole network (section 3 of the paper): of all T channels that have a gamma,

    a channel goes  <=>  its |gamma| is one of the k = int(T * percent) smallest          (ties: the earlier one goes)

wherever it is. No layer loses all its channels: it keeps the one with the largest |gamma|, and the output says so. The
narrow network computes the same as the whole one with those gammas and betas at zero. It is written to pruned.pth.tar,
the report to prune.txt, channels per layer and the histogram of gammas to prune.png.

    --mask              zeroes gammas and betas and keeps the shape; a layer may then lose all its channels
    --compact           turns a network pruned with --mask (and fine-tuned) into the narrow one
    --keep-macs 0.5     instead of --percent: what is to stay of the MACs; the threshold is found and printed
    --criterion random  the control: as many channels, chosen at random
    --round-to 8        channel counts in multiples that hardware likes
    --streams           residual and dense streams too, by the mean of the gammas that read them (streams.py): faster,
                        and below the paper's accuracy at the same percentage

Expect seconds. Accuracy may fall to chance before fine-tuning (finetune.py); that is normal.
"""
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from common import UserError, cli, compute_flops, models, plots, pruning
from common import keep as keeping
from common.compact import difference, narrow_masks
from common.evaluate import evaluate
from common.models.narrow import silence
from slimming import streams
from slimming.networks import network


def parse(argv=None, **defaults):
    parser = cli.parser(__doc__)
    cli.add_flags(parser, train=False)
    add = parser.add_argument
    add("--model", metavar="FILE", required=True, help="the network to prune, after training with -sr")
    add("--percent", type=cli.fraction, help="fraction of all channels to remove, in [0, 1) (default: 0.5)")
    keeping.add_flags(parser, weights=False)
    add("--save", help="folder to write to (default: logs/<dataset>-<network>-pruned)")
    add("--overwrite", action="store_true", help="write over an earlier pruned.pth.tar")
    add("--arch", help="what the file cannot say, for one of another repository")
    add("--depth", type=int)
    add("--criterion", choices=("gamma", "random"), default="gamma")
    add("--seed", type=cli.seed_number, default=1, help="of --criterion random")
    add("--round-to", type=cli.positive, default=1, help="channels per layer in multiples of this")
    add("--streams", action="store_true", help="narrow residual and dense streams too")
    add("--mask", action="store_true", help="zero channels instead of removing them")
    add("--compact", action="store_true", help="remove what --mask zeroed")
    add("--faithful", action="store_true", help="remove every |gamma| up to the k-th smallest (counted from 0), as in "
        "the original: one channel more, and more with ties")
    parser.set_defaults(**defaults)
    args = parser.parse_args(argv)
    if args.mask and args.compact:
        raise UserError("--mask keeps the shape and --compact gives it up; choose one")
    if args.round_to > 1 and (args.mask or args.compact):
        raise UserError("--round-to is for channels that are removed by their gammas; leave out --mask and --compact")
    if args.streams and (args.mask or args.compact or args.faithful):
        raise UserError("--streams removes channels from streams; leave out --mask, --compact and --faithful")
    if args.keep_macs and (args.compact or args.faithful):
        raise UserError("--keep-macs finds the threshold of its own; leave out --compact and --faithful")
    if args.compact and (args.faithful or args.criterion == "random" or args.percent is not None):
        raise UserError("--compact removes exactly what --mask zeroed; leave out --percent, --faithful and --criterion")
    if args.keep_macs and args.percent is not None:
        raise UserError("give one of --percent and --keep-macs")
    args.percent = 0.5 if args.percent is None else args.percent
    return args


def candidates(model):
    """{batch norm: indices of the channels that may be removed}, for each batch norm whose channels can go one by one.

    Not among them: residual streams, and channels that a channel selection has stopped passing on.
    """
    modules, found = dict(model.named_modules()), {}
    for record in model.channels():
        norms = [name for name in record.names() if isinstance(modules[name], nn.BatchNorm2d)]
        if norms and not record.stream:
            select = "" if record.producers else record.consumers[0].select
            found[norms[-1]] = modules[select].indices if select else torch.arange(modules[norms[-1]].num_features)
    return {name: found[name].cpu() for name in modules if name in found}


def gammas_of(model):
    """{batch norm: |gamma| of its candidates}, from input to output."""
    modules = dict(model.named_modules())
    return {name: modules[name].weight.detach().abs().float().cpu()[i] for name, i in candidates(model).items()}


def choose(scores, percent, faithful=False):
    """{layer: keep (channels,)} by one threshold over all layers, and that threshold.

    Exactly k = int(T * percent) channels go, ties by position; faithful: all that are not above the k-th smallest,
    counted from 0.
    """
    ranked, order = torch.cat(list(scores.values())).sort(stable=True)
    k = int(len(ranked) * percent)
    keep = torch.ones(len(ranked), dtype=torch.bool)
    keep[order[:k]] = False
    if faithful:
        keep[order] = ranked > ranked[k]
    return dict(zip(scores, keep.split([len(s) for s in scores.values()]), strict=True)), float(ranked[k])


def percent_for(args, ckpt, model, scores):
    """The --percent that leaves --keep-macs of the dense network's MACs."""
    dense = keeping.dense_total(ckpt, model).macs

    def left(percent):
        keep = keep_some(choose(scores, percent)[0], scores, args.round_to, quiet=True)
        keep = follow_streams(keep, scores, model, args.round_to)
        return compute_flops.count(models.narrow(model, over_all_channels(keep, model))).total.macs / dense

    channels = sum(len(s) for s in scores.values())
    found = keeping.bisect(left, args.keep_macs, (channels - 0.5) / channels, channels.bit_length() + 1)
    print(f"--percent {found:.6f} leaves {left(found):.4f} of the MACs")
    return found


def random_scores(scores, seed):
    """The control: for every channel a random number in the place of its |gamma|; those that are zero go first."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(len(s), generator=generator) * s.ne(0) for name, s in scores.items()}


def by_masks(ckpt, model):
    """{layer: keep (candidates,)} as an earlier --mask chose. UserError where the file holds no masks."""
    masks = ckpt.get("masks", {})
    if not all(f"{name}.weight" in masks for name in candidates(model)):
        raise UserError(f"{ckpt['path']} holds no masks; --compact takes a network pruned with --mask")
    return {name: masks[f"{name}.weight"][i] for name, i in candidates(model).items()}


def keep_some(keep, scores, round_to=1, quiet=False):
    """Every layer with at least one channel, in multiples of round_to (the nearest, up to the layer's width).

    quiet: a layer that would lose all is not printed.
    """
    kept = {}
    for name, mask in keep.items():
        alive = int(mask.sum())
        wanted = max(round(alive / round_to), 1) * round_to
        wanted = min(wanted, len(mask))
        if not alive and not quiet:
            print(f"{name}: all {len(mask)} channels are below the threshold; it keeps its strongest {wanted}")
        if wanted == alive:
            kept[name] = mask
            continue
        strongest = torch.where(mask, scores[name] + scores[name].max() + 1, scores[name]).topk(wanted).indices
        kept[name] = torch.zeros_like(mask).index_fill(0, strongest, True)
    return kept


def follow_streams(keep, scores, model, round_to=1):
    """The choice without what no longer arrives where streams lose channels; still at least one channel a layer."""
    keep = {name: mask.clone() for name, mask in keep.items()}
    for name, arrives in streams.follow(model, keep, candidates(model)).items():
        part = keep_some({name: keep[name][arrives]}, {name: scores[name][arrives]}, round_to, quiet=True)
        keep[name] = torch.zeros_like(arrives).masked_scatter(arrives, part[name])
    return keep


def over_all_channels(keep, model):
    """The same choice over all channels of each batch norm; those that a selection had dropped before stay dropped."""
    modules, own = dict(model.named_modules()), candidates(model)
    return {name: torch.zeros(modules[name].num_features, dtype=torch.bool).index_put((own[name],), mask)
            if name in own else mask for name, mask in keep.items()}


@torch.no_grad()
def zero(model, keep):
    """gamma = beta = 0 for every channel that goes: from here on it contributes nothing. Returns their masks."""
    modules, masks = dict(model.named_modules()), {}
    silence(model, keep)                                     # stream channels
    for name, mask in keep.items():
        if not isinstance(modules[name], nn.BatchNorm2d):    # of a stream
            continue
        for parameter in ("weight", "bias"):
            getattr(modules[name], parameter).mul_(mask.to(modules[name].weight))
            masks[f"{name}.{parameter}"] = mask.clone()
    return masks


def report(args, keep, threshold, before, after):
    """Parameters and channels per layer, then parameters, MACs and FLOPs of the network before and after."""
    total, left = sum(len(mask) for mask in keep.values()), sum(int(mask.sum()) for mask in keep.values())
    lines = [compute_flops.table(after, before), "", f"{'layer':30} {'channels':>9} {'left':>6}"]
    lines += [f"{name:30} {len(mask):9d} {int(mask.sum()):6d}" for name, mask in keep.items()]
    wanted = "as the masks say" if args.compact else f"requested {100 * args.percent:.2f} %, threshold {threshold:.4g}"
    lines += [f"dropped {total - left} of {total} channels: {100 * (1 - left / total):.2f} % ({wanted})", "",
              f"{'':38} {'before':>14} {'after':>14} {'left':>8}"]
    a, b = before.total, after.total
    # the original counted the 0/1 vector of every channel selection as parameters
    figures = [("parameters", a.params, b.params),
               ("parameters with selection indexes", a.params + before.selections, b.params + after.selections),
               ("MACs", a.macs, b.macs), ("FLOPs (2 x MACs)", 2 * a.macs, 2 * b.macs),
               ("FLOPs as thop counts (2 x (MACs + 2 BN))", a.thop_flops, b.thop_flops)]
    lines += [f"{name:40} {x:14,} {y:14,} {100 * y / x:6.1f} %" for name, x, y in figures]
    return "\n".join(lines)


def accuracies(source, original, masked, small):
    """A line with the accuracy before and after and how far the narrow network's logits are off, and the last top-1."""
    images, _ = next(iter(source.test))
    top1 = [evaluate(model, source.test)["top1"] for model in (original, masked, small)]
    return (f"accuracy on {source.dataset.name}: {top1[0]:.2f} % before, {top1[1]:.2f} % masked, {top1[2]:.2f} % "
            f"narrowed; their logits differ by {difference(masked, small, images):.1e} of the largest"), top1[2]


def draw(gammas, keep, threshold):
    """Left: the channels of every layer, had and kept. Right: the histogram of gammas, with the threshold."""
    plt = plots.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    plots.layer_bars(left, keep)
    right.hist(torch.cat(list(gammas.values())).numpy(), bins=80, color="tab:blue")
    right.set(xlabel="|gamma|", ylabel="channels", yscale="log", title="gammas before pruning")
    if threshold is not None:
        right.axvline(threshold, color="tab:red", label=f"threshold {threshold:.3g}")
        right.legend()
    return figure


def main(argv=None):
    prune(parse(argv))


def prune(args):
    # load
    source = pruning.load(args.model, network, args.arch, args.depth, save=args.save, overwrite=args.overwrite,
                          device=args.device, batch_size=args.test_batch_size, **cli.data_flags(args))
    ckpt, original = source.ckpt, source.model.to(source.test.device)
    gammas = gammas_of(original) | (streams.scores(original) if args.streams else {})
    if not gammas:
        raise UserError(f"{args.model} has no batch norm whose channels could be removed; slimming needs one")
    if ckpt["stage"] == "dense" and ckpt["method"] != "original" and not args.compact:
        print("note: this network was trained without -sr, so its gammas are not sparse")

    # choose which channels stay
    scores = random_scores(gammas, args.seed) if args.criterion == "random" else gammas
    if args.keep_macs:
        args.percent = percent_for(args, ckpt, original, scores)
    if args.compact:
        keep, threshold = by_masks(ckpt, original), None
    else:
        keep, threshold = choose(scores, args.percent, args.faithful)
    if not args.mask:
        keep = follow_streams(keep_some(keep, scores, args.round_to), scores, original, args.round_to)

    # apply: zero the others, then build the network without them
    masked, previous_masks = copy.deepcopy(original), ckpt.get("masks", {})
    whole = over_all_channels(keep, masked)
    masks = zero(masked, whole)
    if args.compact:                                         # what they masked is gone
        previous_masks = {name: m for name, m in previous_masks.items() if name.rpartition(".")[0] not in whole}
    if args.mask:                                            # what was pruned before stays so
        masks = {**previous_masks, **{name: mask & previous_masks.get(name, mask) for name, mask in masks.items()}}
        small, keep = masked, by_masks({"masks": masks}, masked)
    else:
        small, masks = models.narrow(masked, whole), narrow_masks(masked, previous_masks, whole)

    # report
    for name, mask in keep.items():
        if not mask.any():
            print(f"{name}: all channels are zero (--mask), the layer passes nothing on")
    after = compute_flops.count(small)
    text = report(args, keep, threshold, compute_flops.count(original), after)
    print(text)
    accuracy, top1 = accuracies(source, original, masked, small)
    print(accuracy)

    # save
    stage = "finetuned" if args.compact and ckpt["stage"] == "finetuned" else "pruned"
    pruning.save(source, small, "slimming", settings=vars(args), top1=top1, stage=stage, masks=masks or None,
                 figure=draw(gammas, keep, None if args.criterion == "random" else threshold), report=
                 f"Configuration:\n{small.cfg.get('widths')}\nNumber of parameters:\n{after.total.params}\n"
                 f"Test accuracy:\n{top1 / 100:.4f}\n\n{accuracy}\n{text}")


if __name__ == "__main__":
    cli.script(main)
