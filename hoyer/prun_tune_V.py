"""The original's script that prunes a LeNet by each tensor's std and fine-tunes it: prune.py --rule V, finetune.py.

    python prun_tune_V.py --model saves/elt_0.0001_3 --sensitivity 0.25       into saves/elt_0.0001_3_V_0.25.pth
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from hoyer import launchers


def main(argv=None):
    launchers.prune_and_finetune_lenet(__doc__, argv, rule="V", sensitivity=0.25)


if __name__ == "__main__":
    cli.script(main)
