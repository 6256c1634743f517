"""DeepHoyer under the original's name: pruning a LeNet, thresholds by each tensor's std, and fine-tuning it.

    python prun_tune_V.py --model saves/elt_0.0001_3 --sensitivity 0.25       into saves/elt_0.0001_3_V_0.25.pth

This is prune.py --rule V and then finetune.py; times and accuracies are there.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from hoyer import launchers


def main(argv=None):
    parser = launchers.pruning_flags(__doc__, sensitivity=0.25)
    parser.set_defaults(rule="V")
    launchers.prune_and_finetune_lenet(parser.parse_args(argv))


if __name__ == "__main__":
    cli.script(main)
