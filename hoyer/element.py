"""The original's script that trains a LeNet with a penalty on single weights: main.py without weight decay.

    python element.py --reg 0 --decay 0.0                            dense, into saves/elt_0.0_0.pth
    python element.py --reg 3 --decay 0.0001 --pretrained            from that, into saves/elt_0.0001_3.pth
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from hoyer import launchers

PENALTIES = ("none", "l1", "hoyer", "hs", "tl1")             # --reg 0 to 4


def main(argv=None):
    launchers.train_lenet(__doc__, argv, "elt", PENALTIES, weight_decay=0.0)


if __name__ == "__main__":
    cli.script(main)
