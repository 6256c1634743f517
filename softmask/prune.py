"""Soft-binary mask: remove the channels whose mask is 0.

    python prune.py --model logs/cifar100-wrn_34_9-softmask-sparse/checkpoint.pth.tar

    keep a channel  iff  M > 0                 (with --keep-macs or --keep-weights M > t, for a computed t)

Masks between 0 and 1 remain in the batch norms of their channels, or in the filters if none follows (`unscaled`). The
narrow network computes the same as the masked one. A residual branch that loses all channels of a layer is removed, and
its block becomes the shortcut. main.py ends with this. pruned_model.pth.tar is the narrow network, prune.txt the
report, prune.png the channels of each layer and the histogram of the mask values. With single-weight masks (--nfp) the
network keeps its shape, and the zeros are stored as masks.

Expect seconds, and the accuracy of the masked network.
"""
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from common import UserError, cli, compute_flops, plots, pruning
from common import keep as keeping
from common.evaluate import evaluate
from common.models.narrow import narrow, prove, silence
from softmask.networks import network


def choose(model, order, t=0.0, quiet=False, round_to=1):
    """{layer: keep (channels,)} for `narrow`: the channels whose value in `order` is above t, and the next ones up to
    a multiple of round_to. order: {layer: as `scores` gives it}, which is M, or above 1 where M is 1.

    A layer whose masks are all closed keeps one channel, whose weights are zero, unless the block has a shortcut.
    """
    keep = {}
    for record in model.channels():
        name = record.producers[0][0] if record.producers else None
        if name not in order:
            continue
        alive = order[name] > t                              # M > t
        if not alive.any() and not quiet:
            what = f"{record.branch} becomes its shortcut" if record.branch else "it keeps one channel"
            print(f"{name}: {f'no mask is above {t:.4g}' if t else 'all its masks are 0'}; {what}")
        if not alive.any() and not record.branch:
            alive[order[name].argmax()] = True
        alive = keeping.rounded_up(alive, round_to, record.group_size, order[name])
        keep[name] = record.over_channels(alive)
    return {name: keep[name] for name, _ in model.named_modules() if name in keep}           # from input to output


def prune(args):
    # load
    beside = None if args.keep_macs or args.keep_weights else str(Path(args.model).parent)
    source = pruning.load(args.model, network, what="softmask-pruned", holds=NAME,
                          **cli.prune_flags(args) | {"save": args.save or beside})
    model, ckpt = source.model.to(source.test.device), source.ckpt                # the masks are inside its weights
    soft_masks, trained = ckpt.get("soft_masks"), ckpt["args"]
    if not soft_masks:
        raise UserError(f"{args.model} has no soft masks; softmask/main.py --target 0.4 --pretrained {args.model} "
                        "trains some")
    if args.round_to > 1 and trained["nfp"]:
        raise UserError("--round-to is for masks of channels; these (--nfp) are masks of single weights")

    # choose
    before, order = compute_flops.count(model), scores(model, soft_masks)
    t = threshold_for(args, ckpt, model, order)
    if trained["nfp"]:
        keep = masks = {name: score > t for name, score in order.items()}
    else:
        keep, masks = choose(model, order, t, round_to=args.round_to), None

    # apply
    if masks:
        with torch.no_grad():
            for name, mask in masks.items():
                model.get_parameter(name).mul_(mask.to(source.test.device))
    else:
        silence(model, keep)
    pruning.recalibrate(source, model, args.recalibrate)
    small = model if masks else narrow(unscaled(model, soft_masks), keep)

    # report
    after = compute_flops.count(small)
    target = None if args.keep_macs or args.keep_weights else trained.get("target")
    text = report(keep, before, after, after.total.nonzeros if masks else after.total.params, target,
                  trained.get("pflops"))
    print(text)
    masked, top1 = (evaluate(m, source.test)["top1"] for m in (model, small))
    accuracy = (f"accuracy on {source.dataset.name}: {masked:.2f} % masked, {top1:.2f} % pruned; "
                f"their logits differ by {prove(model, small):.1e} of the largest")
    print(accuracy)

    # save
    pruning.save(source, small, "softmask", holds=NAME, settings={**trained, **vars(args)}, top1=top1, masks=masks,
                 report=f"{accuracy}\n{text}", figure=draw(keep, soft_masks, "weights" if masks else "channels", t),
                 epoch=ckpt["epoch"])


NAME = "pruned_model.pth.tar"                                # the original's name


def flags():
    parser = cli.parser(__doc__, train=False, arch=cli.RECORDED)
    add = parser.add_argument
    add("--model", metavar="FILE", required=True, help="checkpoint.pth.tar of main.py with --target")
    keeping.add_flags(parser.add_mutually_exclusive_group())
    pruning.add_recalibrate(parser)
    add("--round-to", type=cli.positive, default=1, metavar="N", help="round channels per layer up to a multiple of N; "
        "multiples of 8 run faster (without --keep-macs the added ones are zero, and stay so)")
    add("--save", help="folder to write to (default: that of the file; with --keep-macs or --keep-weights, "
        "logs/DATASET-NETWORK-softmask-pruned)")
    add("--overwrite", action="store_true", help=f"write over an earlier {NAME}")
    return parser


@torch.no_grad()
def unscaled(model, soft_masks):
    """A copy without the masks between 0 and 1 in filters that a batch norm follows, which computes the same of either.

    A filter of 0.3 times its size would move 1 / 0.3^2 times as fast in fine-tuning, relative to itself. Traced
    networks are left as they are, since an activation may stand between filter and batch norm.
    """
    model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    for record in model.channels():
        mask = soft_masks.get(record.producers[0][0]) if record.producers and not record.index else None
        for layer, norm in record.producers if mask is not None else ():
            if norm:
                layer, norm = modules[layer], modules[norm]
                m = record.over_channels(torch.where(mask == 0, 1, mask)).to(layer.weight)
                layer.weight.div_(m.view(-1, *[1] * (layer.weight.dim() - 1)))
                if layer.bias is not None:
                    layer.bias.div_(m)
                norm.running_mean.div_(m)
                norm.running_var.add_(norm.eps).div_(m ** 2).sub_(norm.eps)
    return model


@torch.no_grad()
def scores(model, soft_masks):
    """{name: order in which masks are closed, in [0, 2]}, shaped as the masks: M, and for M = 1, which no threshold
    tells apart, 1 + |w| / max |w|; of a channel |w| is the 2-norm of its weights in the first layer that makes it."""
    parameters = dict(model.named_parameters())
    size = {name: (parameters[name].abs() if name in parameters else
                   parameters[f"{name}.weight"].reshape(len(mask), -1).norm(dim=1)).cpu()
            for name, mask in soft_masks.items()}
    largest = max(float(s.max()) for s in size.values())
    return {name: torch.where(mask == 1, 1 + size[name] / largest, mask) for name, mask in soft_masks.items()}


def threshold_for(args, ckpt, model, order):
    """The t that keeps --keep-macs, or --keep-weights of single-weight masks; 0 without either. order: `scores`."""
    single = ckpt["args"]["nfp"]
    if args.keep_macs and single or args.keep_weights and not single:
        raise UserError("--keep-weights is for masks of single weights (--nfp), --keep-macs for those of channels")
    if not (args.keep_macs or args.keep_weights):
        return 0.0
    dense = compute_flops.dense_total(ckpt, model)
    others = compute_flops.count(model).total.weights - sum(int(score.count_nonzero()) for score in order.values())

    def left(t):
        if single:
            return (others + sum(int((score > t).sum()) for score in order.values())) / dense.weights
        closed, keep = copy.deepcopy(model), choose(model, order, t, True, args.round_to)
        silence(closed, keep)
        return compute_flops.count(narrow(closed, keep)).total.macs / dense.macs

    found = keeping.bisect(left, args.keep_macs or args.keep_weights, 2.0)
    above = f"above {found:.6g}" if found < 1 else f"of 1 with weights above {found - 1:.4g} of the largest"
    print(f"masks {above} keep {left(found):.4f} of the {'weights' if single else 'MACs'}")
    return found


def report(keep, before, after, left, target=None, flops=False):
    """Text: parameters and channels per layer, then parameters, MACs and FLOPs before and after.

    left: parameters that are not zero; target: the fraction that the training was to remove, of the FLOPs or not.
    """
    was, now = before.total, after.total
    lines = [pruning.table(keep, before, after)]
    lines += [f"{what:34} {a:15,} {b:15,} {100 * (1 - b / a):8.2f} % removed" for what, a, b in (
        ("parameters", was.params, left), ("MACs", was.macs, now.sparse_macs),
        ("FLOPs (2 x MACs)", 2 * was.macs, 2 * now.sparse_macs))]
    if target is not None:
        lines.append(f"the target was {100 * target:.2f} % of the {'FLOPs' if flops else 'parameters'}")
    return "\n".join(lines)


def draw(keep, soft_masks, unit, t):
    """Left: the channels of every layer, before and kept. Right: the histogram of the mask values, with the threshold t
    (of 1 or more: among masks of 1)."""
    figure, right = plots.pruned(keep, unit, percent=unit == "weights")
    values = torch.cat([mask.flatten() for mask in soft_masks.values()])
    right.hist(values.numpy(), bins=50, range=(0, 1), color="tab:blue")
    right.set(xlabel="mask value", ylabel=unit, yscale="log", title=f"masks: {int((values == 0).sum()):,} at 0, "
              f"{int((values == 1).sum()):,} at 1, of {len(values):,}")
    if t:
        right.axvline(min(t, 1), color="tab:red", label=f"threshold {t:.3g}" if t < 1 else "some masks of 1, too")
        right.legend()
    return figure


def main(argv=None):
    prune(flags().parse_args(argv))


if __name__ == "__main__":
    cli.script(main)
