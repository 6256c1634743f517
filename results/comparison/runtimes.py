"""Measure the networks of the front page in fp32, one image, one thread: torch, ONNX Runtime and C.

    python results/comparison/runtimes.py        after compare.py; writes runtimes.csv, a row for each network

All cells take turns; processor time, medians. int8 and bf16 are left out, because they change the accuracy.
"""
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import torch

from common import cli
from common.device import device_of, hardware
from common.files import checkpoint
from deploy import benchmark, measure, sparse, to_onnx
from results import summary
from results.comparison import tables
from results.comparison.compare import ARCH, network


def main(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument("--rounds", type=cli.positive, default=15)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows, cells = tables.read(tables.PATH), {}
    dense, = (row["file"] for row in rows if row["name"] == "dense")
    files = {"dense": dense} | {name: tables.chosen(rows, name, weights, macs)[0]["file"]
                                for _, name, weights, macs in tables.FRONT}
    with tempfile.TemporaryDirectory() as folder:
        for name, file in files.items():
            model = checkpoint.to_model(checkpoint.load(ROOT / file, network, ARCH))
            path = Path(folder) / f"{name.replace(' ', '-')}.onnx"
            to_onnx.write(to_onnx.deployable(model), path)
            onnx, = (cell for cell in measure.file_cells(name, path, 0) if cell.runtime == "ONNX Runtime fp32")
            cells[name] = {"torch": measure.torch_cell(name, model, 0), "ONNX Runtime": onnx,
                           "C": sparse.c_cell(name, model, folder)}
        every = [cell for some in cells.values() for cell in some.values()]
        measure.measure(every, (1,), args.rounds)
        measure.close(every)
    place = hardware(device_of("cpu")) + f" ({benchmark.processor()})"
    summary.write(tables.PATH.with_name("runtimes.csv"), [
        {"name": name} | {runtime: f"{measure.median(cell, 1):.4f}" for runtime, cell in some.items()}
        | {"hardware": place} for name, some in cells.items()])


if __name__ == "__main__":
    cli.script(main)
