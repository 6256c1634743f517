"""The original repository's name for main.py with a group penalty on a LeNet: --reg 0 to 2, files in saves/."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from hoyer.main import main

if __name__ == "__main__":
    cli.script(lambda: main(script="structure"))
