"""Network slimming by masks: zero the gammas and betas of channels instead of removing them.

    python mask.py --model logs/cifar10-vgg13-slimming-sparse/checkpoint.pth.tar --percent 0.7

The channels are those that prune.py removes, but a layer may lose all of them, since the network keeps its shape:

    gamma <- mask * gamma,    beta <- mask * beta

This saves neither time nor bytes. The masks are stored with the network in pruned.pth.tar, finetune.py keeps the zeros,
and compact.py then removes these channels. Channels that were masked before stay masked. Takes seconds.
"""
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli, pruning
from slimming import prune
from slimming.channels import check_gammas, gammas_of, masked, masks_of, over_all_channels, zero
from slimming.networks import network


def mask(args):
    # load
    source = pruning.load(args.model, network, what="slimming-masked", **cli.prune_flags(args))
    original, previous_masks = source.model.to(source.test.device), source.ckpt.get("masks", {})
    gammas = gammas_of(original)
    check_gammas(gammas, source.ckpt)

    # choose
    scores = prune.random_scores(gammas, args.seed) if args.criterion == "random" else gammas
    keep, threshold = prune.choose(scores, args.percent, args.faithful)
    whole = over_all_channels(keep, original)
    masks = {name: mask & previous_masks.get(name, mask) for name, mask in masks_of(whole, original).items()}
    masks = {**previous_masks, **masks}

    # apply
    model = copy.deepcopy(original)
    zero(model, whole)
    pruning.recalibrate(source, model, args.recalibrate)

    # report
    keep = masked({"masks": masks}, model)
    for name, kept in keep.items():
        if not kept.any():
            print(f"{name}: all channels are zero, the layer passes nothing on")
    how = f"requested {100 * args.percent:.2f} %, threshold {threshold:.4g}"
    text, top1 = prune.report(source, model, model, keep, how)

    # save
    figure = prune.draw(gammas, keep, None if args.criterion == "random" else threshold)
    pruning.save(source, model, "slimming", settings=vars(args), top1=top1, report=text, figure=figure, masks=masks)


def main(argv=None):
    parser = cli.parser(__doc__)
    prune.add_flags(parser)
    prune.add_rule(parser, parser)
    parser.set_defaults(percent=0.5)
    mask(parser.parse_args(argv))


if __name__ == "__main__":
    cli.script(main)
