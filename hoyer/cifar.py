"""The original repository's name for main.py on CIFAR: the trainer of bearpaw/pytorch-classification."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from hoyer.main import main

if __name__ == "__main__":
    cli.script(lambda: main(script="cifar"))
