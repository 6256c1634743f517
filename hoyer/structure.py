"""DeepHoyer under the original's name: training a LeNet with a penalty on filters and channels.

    python structure.py --reg 2 --decay 0.0005 --pretrained          into saves/str_0.0005_2.pth

--reg is a number of the original's or a name; --pretrained begins with the network of element.py --reg 0 --decay 0.0.
The training is main.py's, with a weight decay of 1e-4 whatever the penalty; times and accuracies are there.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from hoyer import launchers

PENALTIES = ("none", "group-lasso", "group-hs")              # --reg 0 to 2


def main(argv=None):
    parser = launchers.training_flags(__doc__, PENALTIES)
    parser.set_defaults(weight_decay=1e-4)
    args = parser.parse_args(argv)
    launchers.train_lenet(args, "str", PENALTIES.index(args.reg))


if __name__ == "__main__":
    cli.script(main)
