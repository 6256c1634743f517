"""The original's script that prunes a CIFAR network and fine-tunes it, into finetune_<sensitivity> beside the model.

    python cifar_prun_tune.py --model checkpoints/resnet-20-group-hs/checkpoint --sensitivity 0.0001 --lr 0.01

It calls prune.py --rule T, then finetune.py.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from hoyer import launchers


def main(argv=None):
    parser = launchers.pruning_flags(__doc__, rule="T", sensitivity=1e-4)
    launchers.cifar_flags(parser)
    args = parser.parse_args(argv)
    args.save = args.save or str(Path(args.model).parent / f"finetune_{launchers.pruned_name(args)}")
    launchers.prune_and_finetune(args)


if __name__ == "__main__":
    cli.script(main)
