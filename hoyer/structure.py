"""The original's script that trains a LeNet with a penalty on filters and channels: main.py with weight decay 1e-4.

    python structure.py --reg 2 --decay 0.0005 --pretrained          into saves/str_0.0005_2.pth
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from hoyer import launchers

PENALTIES = ("none", "group-lasso", "group-hs")              # --reg 0 to 2


def main(argv=None):
    launchers.train_lenet(__doc__, argv, "str", PENALTIES, weight_decay=1e-4)


if __name__ == "__main__":
    cli.script(main)
