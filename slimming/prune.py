"""Network slimming: remove the channels with the smallest gammas.

    python prune.py --model logs/cifar10-vgg13-slimming-sparse/checkpoint.pth.tar --percent 0.4

One threshold for the whole network (section 3 of the paper): of all T channels that have a gamma of their own (those
of residual and dense streams are kept, see channels.py),

    remove a channel  iff  its |gamma| is one of the k = int(T * percent) smallest   (ties: the earlier channel)

regardless of its layer. No layer loses all its channels: the one with the largest |gamma| is kept, with a note. The
narrow network computes exactly what the full one does with those gammas and betas set to zero. Writes pruned.pth.tar
(the network), prune.txt (the report) and prune.png (channels per layer, histogram of gammas).

mask.py zeroes channels instead of removing them. Pruning takes seconds; evaluating the network before and after takes
up to minutes on a CPU (--subset 1000 is faster). Accuracy may fall to chance before fine-tuning (finetune.py); that is
normal.
"""
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from common import UserError, cli, compute_flops, plots, pruning
from common import keep as keeping
from common.evaluate import evaluate
from common.models.narrow import narrow, narrow_masks, prove
from slimming import streams
from slimming.channels import check_gammas, gammas_of, keep_some, over_all_channels, zero
from slimming.networks import network


def choose(scores, percent, faithful=False):
    """({layer: keep (channels,)}, threshold): all but the k = int(T * percent) channels with the smallest scores.

    Of equal scores the earlier ones are removed first. faithful: keep those above the k-th smallest, counted from 0.
    percent may be {layer: fraction of its own channels}; there is no threshold then.
    """
    if isinstance(percent, dict):
        return {name: choose({name: s}, percent[name])[0][name] for name, s in scores.items()}, None
    ranked, order = torch.cat(list(scores.values())).sort(stable=True)
    k = int(len(ranked) * percent)
    keep = torch.ones(len(ranked), dtype=torch.bool)
    keep[order[:k]] = False
    if faithful:
        keep[order] = ranked > ranked[k]
    return dict(zip(scores, keep.split([len(s) for s in scores.values()]), strict=True)), float(ranked[k])


def prune(args):
    # load
    source = pruning.load(args.model, network, what="slimming-pruned", **cli.prune_flags(args))
    original = source.model.to(source.test.device)
    gammas = gammas_of(original) | (streams.scores(original) if args.streams else {})
    check_gammas(gammas, source.ckpt)

    # choose
    scores = random_scores(gammas, args.seed) if args.criterion == "random" else gammas
    amount = ratios_of(args.ratios, original, scores) if args.ratios else args.percent
    if args.keep_macs:
        amount = amount_for(args, source.ckpt, original, scores, amount)
    keep, threshold = choose(scores, amount, args.faithful)
    keep = streams.follow(keep_some(keep, scores, args.round_to), scores, original, args.round_to)

    # apply: zero the other channels, then build the network without them
    masked = copy.deepcopy(original)
    whole = over_all_channels(keep, masked)
    zero(masked, whole)
    pruning.recalibrate(source, masked, args.recalibrate)
    small = narrow(masked, whole)
    masks = narrow_masks(masked, source.ckpt.get("masks", {}), whole)          # of another method

    # report
    how = f"ratios {args.ratios}" if args.ratios else f"requested {100 * amount:.2f} %, threshold {threshold:.4g}"
    text, top1 = report(source, masked, small, keep, how)

    # save
    figure = draw(gammas, keep, None if args.criterion == "random" else threshold)
    pruning.save(source, small, "slimming", settings=vars(args), top1=top1, report=text, figure=figure,
                 masks=masks or None)


def add_flags(parser):
    """The flags that mask.py has too."""
    cli.add_flags(parser, train=False, arch=cli.RECORDED, writes="pruned.pth.tar")
    parser.add_argument("--model", metavar="FILE", required=True, help="network to prune, preferably trained with -sr")


def add_rule(parser, amount):
    """The flags of the rule; amount: the parser, or its group that has --percent."""
    amount.add_argument("--percent", type=cli.fraction, help="fraction of all channels to remove, in [0, 1) (default: "
                        "0.5)")
    add = parser.add_argument
    pruning.add_recalibrate(parser)
    add("--criterion", choices=("gamma", "random"), default="gamma", help="random: the control, which removes the "
        "same number of channels, chosen at random (default: gamma)")
    add("--seed", type=cli.seed_number, default=1, help="seed for --criterion random (default: 1)")
    add("--faithful", action="store_true", help="remove every |gamma| up to the k-th smallest (counted from 0), as in "
        "the original: one channel more, or several if there are ties")


def parse(argv=None):
    parser = cli.parser(__doc__)
    add_flags(parser)
    amount = parser.add_mutually_exclusive_group()
    keeping.add_flags(amount, weights=False)
    add_rule(parser, amount)
    add = parser.add_argument
    add("--round-to", type=cli.positive, default=1, metavar="N", help="round channels per layer to the nearest "
        "multiple of N; multiples of 8 run faster")
    add("--streams", action="store_true", help="prune residual and dense streams too, ranked by the mean gamma of the "
        "batch norms that read them (streams.py): faster, but less accurate than the paper at the same percentage")
    add("--ratios", metavar="FILE", help="CSV file with the fraction of each layer to remove, columns layer,fraction, "
        "such as ratios.csv of magnitude/sensitivity.py --channels; --keep-macs multiplies all of them by one factor")
    args = parser.parse_args(argv)
    if args.ratios and (args.percent is not None or args.faithful):
        raise UserError("--ratios says how many channels of each layer to remove; leave out "
                        f"--{'faithful' if args.faithful else 'percent'}")
    if args.streams and args.criterion == "random" and not args.keep_macs:
        raise UserError("--streams removes more channels if they are chosen at random; give --keep-macs")
    if args.percent is None and not args.ratios:
        args.percent = 0.5
    return args


def random_scores(gammas, seed):
    """Scores channels at random; zero gammas are removed first."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(len(gamma), generator=generator) * gamma.ne(0) for name, gamma in gammas.items()}


def ratios_of(path, model, scores):
    """{name of scores: fraction of its channels to remove} from a file of --ratios."""
    first = {name: record.producers[0][0] for record in model.channels() if record.producers for name in record.names()}
    ratios = keeping.channel_ratios(path, model, [first.get(name, name) for name in scores])
    return dict(zip(scores, ratios.values(), strict=True))


def amount_for(args, ckpt, model, scores, ratios):
    """The --percent, or the ratios times a factor, that keeps --keep-macs of the dense network's MACs."""
    dense, model = compute_flops.dense_total(ckpt, model).macs, copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.fill_(1)                              # only counted: no channel is a constant that needs folding

    def left(amount):
        keep = keep_some(choose(scores, amount, args.faithful)[0], scores, args.round_to, quiet=True)
        keep = streams.follow(keep, scores, model, args.round_to)
        return compute_flops.count(narrow(model, over_all_channels(keep, model))).total.macs / dense

    if args.ratios:
        return keeping.scaled(ratios, left, args.keep_macs)
    channels = sum(len(s) for s in scores.values())
    found = keeping.bisect(left, args.keep_macs, (channels - 0.5) / channels, channels.bit_length() + 1)
    print(f"--percent {found:.6f} keeps {left(found):.4f} of the MACs")
    args.percent = found
    return found


def report(source, masked, small, keep, how):
    """(prune.txt, top-1 in percent) of the small network, which it prints: parameters and channels per layer, then
    parameters, MACs, FLOPs and accuracy before and after. how: the rule that chose the channels."""
    before, after = compute_flops.count(source.model), compute_flops.count(small)
    total, left = sum(len(kept) for kept in keep.values()), sum(int(kept.sum()) for kept in keep.values())
    lines = [pruning.table(keep, before, after),
             f"dropped {total - left} of {total} channels: {100 * (1 - left / total):.2f} % ({how})", "",
             f"{'':38} {'before':>14} {'after':>14} {'left':>8}"]
    a, b = before.total, after.total
    # the original counted the 0/1 vector of every channel selection as parameters
    figures = [("parameters", a.params, b.params),
               ("parameters with selection indexes", a.params + before.selections, b.params + after.selections),
               ("MACs", a.macs, b.macs), ("FLOPs (2 x MACs)", 2 * a.macs, 2 * b.macs),
               ("FLOPs as thop counts (2 x (MACs + 2 BN))", a.thop_flops, b.thop_flops)]
    lines += [f"{name:40} {x:14,} {y:14,} {100 * y / x:6.1f} %" for name, x, y in figures]
    print(*lines, sep="\n", flush=True)
    was, zeroed, top1 = (evaluate(model, source.test)["top1"] for model in (source.model, masked, small))
    accuracy = (f"accuracy on {source.dataset.name}: {was:.2f} % before, {zeroed:.2f} % masked, {top1:.2f} % narrowed; "
                f"their logits differ by {prove(masked, small):.1e} of the largest")
    print(accuracy)
    return "\n".join([f"Configuration:\n{small.cfg.get('widths')}\nNumber of parameters:\n{b.params}",
                      f"Test accuracy:\n{top1 / 100:.4f}\n", accuracy, *lines]), top1


def draw(gammas, keep, threshold):
    """Left: the channels of every layer, before and kept. Right: the histogram of gammas, with the threshold."""
    figure, right = plots.pruned(keep)
    kept = torch.cat([gamma[keep[name]] for name, gamma in gammas.items()])
    plots.before_and_kept(right, torch.cat(list(gammas.values())).numpy(), kept.numpy(), 80)
    right.set(xlabel="|gamma|", ylabel="channels", yscale="log", title="gammas before pruning")
    if threshold is not None:
        right.axvline(threshold, color="tab:red", label=f"threshold {threshold:.3g}")
    right.legend()
    return figure


def main(argv=None):
    prune(parse(argv))


if __name__ == "__main__":
    cli.script(main)
