"""The original repository's name for prune.py and then finetune.py: one threshold for a whole LeNet."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from hoyer.finetune import main

if __name__ == "__main__":
    cli.script(lambda: main(script="prun_tune_T"))
