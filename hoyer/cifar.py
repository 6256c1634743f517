"""The original's script that trains on CIFAR, as bearpaw/pytorch-classification does: main.py without a penalty.

    python cifar.py -a resnet --depth 20 --epochs 164 --schedule 81 122 --wd 1e-4 --checkpoint checkpoints/resnet-20
    python cifar.py -a resnet --depth 20 -e --resume checkpoints/resnet-20/model_best.pth.tar
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from hoyer import launchers


def main(argv=None):
    launchers.train_cifar(__doc__, argv, ("none",))


if __name__ == "__main__":
    cli.script(main)
