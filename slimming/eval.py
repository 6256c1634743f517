"""Network slimming: what a checkpoint is worth.

    python eval.py chkpt/slimming-vgg13-cifar10-finetuned.pth.tar

Network, widths and data set come from the file; parameters and MACs are printed before any data is opened. Expect
the accuracy that is printed as the file's own record; bundled files, in half precision, may be a few pictures off.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli
from common.evaluate import evaluate_file
from slimming.networks import network


def main(argv=None):
    evaluate_file(argv, __doc__, network)


if __name__ == "__main__":
    cli.script(main)
