"""Magnitude pruning: count and evaluate a checkpoint.

    python eval.py logs/cifar10-resnet56-magnitude-finetuned-small/finetuned.pth.tar

Parameters, non-zeros and MACs are printed before any data is opened. Expect the accuracy that the file records.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from common.evaluate import evaluate_file
from magnitude.networks import network


def main(argv=None):
    evaluate_file(argv, __doc__, network)


if __name__ == "__main__":
    cli.script(main)
