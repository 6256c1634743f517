"""Measure milliseconds per batch of a network beside the dense one, in torch, ONNX Runtime and OpenVINO.

    python deploy/latency.py FILE

FILE: a checkpoint of any method. Every runtime that is installed is measured, in fp32, int8, and bf16 where the
processor has it, all taking turns, and the accuracy of each is printed. The dense network has random weights.
"""
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from common import cli, keep
from deploy import measure, network
from deploy.to_onnx import deployable


def compare(ckpt, model, train, test):
    """Prints the milliseconds of the network and of the dense one in every runtime that is installed."""
    dense = keep.dense_network(ckpt, model).to(test.device).eval()
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            cells += measure.cells_of("dense", deployable(dense), folder, train)
            cells += measure.cells_of("this", deployable(model), folder, train)
            measure.measure(cells)
            measure.score([cell for cell in cells if cell.network == "this"], test)
        finally:
            measure.close(cells)
    threads = torch.get_num_threads()
    print(f"{threads} thread{'s' * (threads > 1)}, {'processor time' if threads == 1 else 'wall clock'}; the dense "
          f"network has random weights\n{measure.text(*measure.rows(cells))}")
    if not measure.installed("onnxruntime") or not measure.installed("onnx"):
        print("for ONNX Runtime: pip install -r requirements-deploy.txt")


def main(argv=None):
    args = network.parser(__doc__).parse_args(argv)
    ckpt, model = network.load(args)
    _, train, test = network.images(args, ckpt, model)
    compare(ckpt, model, train, test)


if __name__ == "__main__":
    cli.script(main)
