"""DeepHoyer under the original's name: prune a LeNet, one threshold for all tensors, and fine-tune it.

    python prun_tune_T.py --model saves/elt_0.0001_3 --sensitivity 0.01       into saves/elt_0.0001_3_T_0.01.pth

Runs prune.py --rule T, then finetune.py; see there for times and accuracies.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from hoyer import launchers


def main(argv=None):
    launchers.prune_and_finetune_lenet(__doc__, argv, rule="T", sensitivity=0.001)


if __name__ == "__main__":
    cli.script(main)
