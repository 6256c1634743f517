"""Soft-binary mask: taking out the channels whose mask is 0.

    python prune.py --model logs/cifar100-wrn_34_9-sparse/checkpoint.pth.tar

    a channel stays  <=>  M > 0                or above another threshold, see below

    --keep-macs 0.5       M > t for the t that leaves this fraction of the MACs; it is found and printed
    --keep-weights 0.1    with single-weight masks (--nfp): of the weights
                          where masks of 1 have to go, too, those with the smallest weights go first
    --round-to 8          channel counts in multiples that hardware likes, rounded up

What stays keeps its mask between 0 and 1 inside its weights. The network that is left computes what the masked one
does; a residual branch that has lost all channels of a layer goes, and its block is the shortcut. main.py ends with
this. pruned_model.pth.tar is the narrow network, prune.txt the report, prune.png the channels of each layer and the
histogram of the mask values. With single-weight masks (--nfp) the shape stays, and the zeros are stored as masks.

Expect seconds, and the accuracy of the masked network.
"""
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from common import UserError, cli, compute_flops, data, models, plots
from common import keep as keeping
from common.compact import difference
from common.device import device_of, facts
from common.evaluate import against_record, evaluate, heading
from common.files import checkpoint
from common.models.narrow import silence
from softmask.networks import network


def parse(argv=None):
    parser = cli.parser(__doc__)
    cli.add_flags(parser, train=False)
    add = parser.add_argument
    add("--model", metavar="FILE", required=True, help="checkpoint.pth.tar of main.py with --target")
    keeping.add_flags(parser)
    add("--round-to", type=cli.positive, default=1, help="channels per layer in multiples of this, rounded up")
    add("--save", help="folder to write to (default: the one the file is in)")
    add("--overwrite", action="store_true", help="write over an earlier pruned_model.pth.tar")
    return parser.parse_args(argv)


@torch.no_grad()
def scores(model, soft_masks):
    """{name: the order in which masks close, in [0, 2]}, shaped as the masks: M, and for M = 1, which no threshold
    tells apart, 1 + |w| / max |w|; of a channel |w| is the 2-norm of its weights in the first layer that makes it."""
    parameters = dict(model.named_parameters())
    size = {name: (parameters[name].abs() if name in parameters else
                   parameters[f"{name}.weight"].reshape(len(mask), -1).norm(dim=1)).cpu()
            for name, mask in soft_masks.items()}
    largest = max(float(s.max()) for s in size.values())
    return {name: torch.where(mask == 1, 1 + size[name] / largest, mask) for name, mask in soft_masks.items()}


def choose(model, soft_masks, t=0.0, quiet=False, round_to=1):
    """{layer: keep (channels,)} for `models.narrow`: the channels whose mask, or score, is above t, and the next ones
    up to a multiple of round_to.

    A layer whose channels are all closed keeps one of them (its weights are zero) where nothing can stand in for it;
    inside a residual branch it keeps none.
    """
    keep = {}
    for record in model.channels():
        name = record.producers[0][0] if record.producers else None
        if name not in soft_masks:
            continue
        alive = soft_masks[name] > t
        if not alive.any() and not quiet:
            what = f"{record.branch} becomes its shortcut" if record.branch else "it keeps one channel"
            print(f"{name}: {f'no mask is above {t:.4g}' if t else 'all its masks are 0'}; {what}")
        if not alive.any() and not record.branch:
            alive[soft_masks[name].argmax()] = True
        alive = keeping.rounded_up(alive, round_to, record.group_size, soft_masks[name])
        keep[name] = alive.repeat_interleave(record.group_size)
    return keep


def threshold_for(args, ckpt, model, order):
    """The t that leaves --keep-macs, or --keep-weights of single-weight masks; 0 without either. order: `scores`."""
    single = ckpt["args"]["nfp"]
    if args.keep_macs and single or args.keep_weights and not single:
        raise UserError("--keep-weights is for masks of single weights (--nfp), --keep-macs for those of channels")
    if not (args.keep_macs or args.keep_weights):
        return 0.0
    dense = keeping.dense_total(ckpt, model)
    others = compute_flops.count(model).total.weights - sum(int(score.count_nonzero()) for score in order.values())

    def left(t):
        if single:
            return (others + sum(int((score > t).sum()) for score in order.values())) / dense.weights
        closed, keep = copy.deepcopy(model), choose(model, order, t, True, args.round_to)
        silence(closed, keep)
        return compute_flops.count(models.narrow(closed, keep)).total.macs / dense.macs

    found = keeping.bisect(left, args.keep_macs or args.keep_weights, 2.0)
    above = f"above {found:.6g}" if found < 1 else f"of 1 with weights above {found - 1:.4g} of the largest"
    print(f"masks {above} leave {left(found):.4f} of the {'weights' if single else 'MACs'}")
    return found


def main(argv=None):
    prune(parse(argv))


def prune(args):
    """args: those of `parse`."""
    ckpt = checkpoint.load(args.model, network, image_size=args.image_size)
    soft_masks = ckpt.get("soft_masks")
    if not soft_masks:
        raise UserError(f"{args.model} has no soft masks; train with main.py --target 0.4")
    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    if args.round_to > 1 and ckpt["args"]["nfp"]:
        raise UserError("--round-to is for masks of channels; these (--nfp) are masks of single weights")
    folder = cli.output_folder(args.save or str(Path(args.model).parent), args.overwrite, holds="pruned_model.pth.tar")
    device = device_of(args.device)
    model = checkpoint.to_model(ckpt).to(device)             # under its masks: they are inside the weights
    print(heading(ckpt, model), flush=True)
    dataset = data.for_network(model, args.model, **cli.data_flags(args))
    against_record(ckpt, data.Loader(dataset, "test", args.test_batch_size, device))

    # the same network without the others
    before, order = compute_flops.count(model), scores(model, soft_masks)
    t = threshold_for(args, ckpt, model, order)
    if ckpt["args"]["nfp"]:
        keep = masks = {name: score > t for name, score in order.items()}
        small = model
        with torch.no_grad():
            for name, mask in masks.items():
                model.get_parameter(name).mul_(mask.to(device))
    else:
        chosen, masks = choose(model, order, t, round_to=args.round_to), None
        keep = {name: chosen[name] for name, _ in model.named_modules() if name in chosen}       # from input to output
        silence(model, keep)
        small = models.narrow(model, keep)
    after = compute_flops.count(small)
    dense = ckpt["dense"] or compute_flops.summary(model)    # of a file of the original, whose masks are here
    asked = None if args.keep_macs or args.keep_weights or "target" not in ckpt["args"] else ckpt["args"]
    report = describe(keep, before, after, asked, after.total.nonzeros if masks else after.total.params)
    print(report)

    # what that does to the accuracy
    test = data.Loader(dataset, "test", args.test_batch_size, device)
    images, _ = next(iter(test))
    masked, pruned = (evaluate(m, test)["top1"] for m in (model, small))
    accuracy = (f"accuracy on {dataset.name}: {masked:.2f} % masked, {pruned:.2f} % pruned; "
                f"their logits differ by {difference(model, small, images):.1e} of the largest")
    print(accuracy)

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prune.txt").write_text(f"{accuracy}\n{report}\n", encoding="utf-8")
    draw(folder / "prune.png", keep, soft_masks, "weights" if masks else "channels", t)
    settings = {**ckpt["args"], **vars(args)}
    path = checkpoint.save(folder / "pruned_model.pth.tar", checkpoint.of(
        small, "softmask", "pruned", dataset.name, epoch=ckpt["epoch"], prec1=pruned, best_prec1=pruned, args=settings,
        dense=dense, masks=masks, run=facts(device)))
    print(f"wrote {path}, prune.txt and prune.png")


def describe(keep, before, after, settings, left):
    """The report: every layer, the channels that stay, parameters and FLOPs before and after, and the target in the
    settings of the training, None where another fraction was asked for."""
    lines = [compute_flops.table(after, before), "", f"{'layer':34} {'had':>9} {'keeps':>9}"]
    lines += [f"{name:34} {mask.numel():9,} {int(mask.sum()):9,}" for name, mask in keep.items()]
    was, now = before.total, after.total
    lines += [f"{what:34} {a:15,} {b:15,} {100 * (1 - b / a):8.2f} % gone" for what, a, b in (
        ("parameters", was.params, left), ("MACs", was.macs, now.sparse_macs),
        ("FLOPs (2 x MACs)", 2 * was.macs, 2 * now.sparse_macs))]
    if settings:
        what = "FLOPs" if settings["pflops"] else "parameters"
        lines.append(f"the target was {100 * settings['target']:.2f} % of the {what}")
    return "\n".join(lines)


def draw(path, keep, soft_masks, unit, t):
    """Left: the channels of every layer, had and kept. Right: the histogram of the mask values, with the threshold t
    (of 1 or more: among masks of 1)."""
    plt = plots.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    plots.layer_bars(left, keep, unit, percent=unit == "weights")
    values = torch.cat([mask.flatten() for mask in soft_masks.values()])
    right.hist(values.numpy(), bins=50, range=(0, 1), color="tab:blue")
    right.set(xlabel="mask value", ylabel=unit, yscale="log", title=f"masks: {int((values == 0).sum()):,} at 0, "
              f"{int((values == 1).sum()):,} at 1, of {len(values):,}")
    if t:
        right.axvline(min(t, 1), color="tab:red", label=f"threshold {t:.3g}" if t < 1 else "masks of 1 go, too")
        right.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    cli.script(main)
