"""Magnitude pruning: count and evaluate a checkpoint.

    python eval.py logs/cifar10-resnet56-finetuned/finetuned.pth.tar

Network, masks and data set are read from the file; parameters, non-zeros, MACs and sparse MACs are printed before the
data is opened. Expect the accuracy that the file records, which is printed beside it.
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
