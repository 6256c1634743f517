"""Reweighted L1: evaluate a checkpoint. testers.py also prints the zeros of every layer.

    python eval.py chkpt/cifar100_mobilenetv2.pt

Parameters and MACs are printed before any data is opened. Expect the accuracy that the file records.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from common.evaluate import evaluate_file
from reweighted.networks import network


def main(argv=None):
    return evaluate_file(argv, __doc__, network)


if __name__ == "__main__":
    cli.script(main)
