"""The original's script that prunes a LeNet with one threshold and fine-tunes it: prune.py --rule T, finetune.py.

    python prun_tune_T.py --model saves/elt_0.0001_3 --sensitivity 0.01       into saves/elt_0.0001_3_T_0.01.pth
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
