"""The original repository's name for: python prune.py --arch densenet."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from slimming.prune import main

if __name__ == "__main__":
    cli.script(lambda: main(["--arch", "densenet", *sys.argv[1:]]))
