"""DeepHoyer under the original's name: pruning a LeNet, one threshold for all tensors, and fine-tuning it.

    python prun_tune_T.py --model saves/elt_0.0001_3 --sensitivity 0.01       into saves/elt_0.0001_3_T_0.01.pth

This is prune.py --rule T and then finetune.py; times and accuracies are there.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from hoyer import launchers


def main(argv=None):
    parser = launchers.pruning_flags(__doc__, sensitivity=0.001)
    parser.set_defaults(rule="T")
    launchers.prune_and_finetune_lenet(parser.parse_args(argv))


if __name__ == "__main__":
    cli.script(main)
