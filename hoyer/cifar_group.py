"""The original's script that trains on CIFAR with a penalty on filters and channels: main.py.

    python cifar_group.py -a resnet --depth 20 --reg 3 --decay 0.001 --model checkpoints/resnet-20/checkpoint
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from hoyer import launchers

PENALTIES = ("none", "group-lasso", "group-hoyer", "group-hs")           # --reg 0 to 3, or by name


def main(argv=None):
    launchers.train_cifar(__doc__, argv, PENALTIES)


if __name__ == "__main__":
    cli.script(main)
