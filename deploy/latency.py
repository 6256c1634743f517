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
from torch import nn
from torch.sparse import to_sparse_semi_structured

from common import cli, compute_flops
from deploy import measure, network
from deploy.to_onnx import deployable


def compare(ckpt, model, train, test):
    """Prints the milliseconds of the network and of the dense one in every runtime that is installed."""
    dense = compute_flops.dense_network(ckpt, model).to(test.device).eval()
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


def two_of_four(model):
    """{layer: its weights as a matrix (outputs, inputs)}, of layers with two or fewer of each four input channels."""
    matrices = {name: m.weight.detach().movedim(1, -1).flatten(1) for name, m in model.named_modules()
                if isinstance(m, nn.Conv2d | nn.Linear) and m.weight.shape[1] % 4 == 0 and getattr(m, "groups", 1) == 1}
    return {name: matrix for name, matrix in matrices.items()
            if matrix.unflatten(1, (-1, 4)).count_nonzero(2).max() <= 2}


def has_kernels(device):
    """Whether torch multiplies 2:4 matrices faster than dense ones there."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@torch.inference_mode()
def measure_two_of_four(model, batch=128):
    """Prints the milliseconds of such layers as products of matrices in fp16, dense and by the device's 2:4 kernels."""
    layers, device = two_of_four(model), next(model.parameters()).device
    if not layers:
        return
    if not has_kernels(device):
        print(f"{len(layers)} layers have 2:4 weights; there are no kernels for them on {device}, so they save bytes, "
              "not time")
        return
    from torch.utils.benchmark import Timer  # it warns where there is no CUDA
    macs = {row.name: row.macs for row in compute_flops.count(model).rows}
    for name, matrix in layers.items():
        matrix = matrix.half()
        inputs = torch.rand(matrix.shape[1], batch * macs[name] // matrix.numel(), device=device, dtype=matrix.dtype)
        try:
            dense, sparse = (Timer("weights @ inputs", globals={"weights": weights, "inputs": inputs})
                             .blocked_autorange().median for weights in (matrix, to_sparse_semi_structured(matrix)))
        except RuntimeError as error:                        # matrices that are too small, or of other sizes
            print(f"{name}: {str(error).partition(chr(10))[0]}")
            continue
        print(f"{name}, {batch} images as a product of matrices in fp16: {1000 * dense:.3g} ms dense, "
              f"{1000 * sparse:.3g} ms by 2:4 kernels")


def main(argv=None):
    args = network.parser(__doc__).parse_args(argv)
    ckpt, model = network.load(args)
    _, train, test = network.images(args, ckpt, model)
    compare(ckpt, model, train, test)
    if "2:4" in (ckpt.get("rule") or ""):
        measure_two_of_four(model)


if __name__ == "__main__":
    cli.script(main)
