"""Network slimming by masks: remove the channels that mask.py zeroed.

    python compact.py --model logs/cifar10-vgg13-slimming-finetuned/finetuned.pth.tar

The narrow network computes the same. A layer that has lost all channels keeps one channel of zeros. It is written to
pruned.pth.tar, the report to prune.txt, channels per layer and the histogram of gammas to prune.png. Takes seconds.
"""
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli, pruning
from common.models.narrow import narrow, narrow_masks
from slimming import prune
from slimming.channels import check_gammas, gammas_of, keep_some, masked, over_all_channels, zero
from slimming.networks import network


def compact(args):
    # load
    source = pruning.load(args.model, network, what="slimming-compact", **cli.prune_flags(args))
    original, ckpt = source.model.to(source.test.device), source.ckpt
    gammas = gammas_of(original)
    check_gammas(gammas, ckpt)

    # choose
    keep = keep_some(masked(ckpt, original), gammas)

    # apply: also to the masks of another method; those of these channels are not needed any more
    zeroed, whole = copy.deepcopy(original), over_all_channels(keep, original)
    zero(zeroed, whole)
    small = narrow(zeroed, whole)
    others = {name: mask for name, mask in ckpt["masks"].items() if name.rpartition(".")[0] not in whole}
    masks = narrow_masks(zeroed, others, whole)

    # report and save
    text, top1 = prune.report(source, zeroed, small, keep, "as the masks say")
    pruning.save(source, small, "slimming", settings=vars(args), top1=top1, report=text, masks=masks or None,
                 figure=prune.draw(gammas, keep, None), stage="finetuned" if ckpt["stage"] == "finetuned" else "pruned")


def main(argv=None):
    parser = cli.parser(__doc__)
    prune.add_flags(parser)
    compact(parser.parse_args(argv))


if __name__ == "__main__":
    cli.script(main)
