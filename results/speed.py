"""Measures how much faster the bundled networks are than their dense ones, and writes results/speed.csv.

    python results/speed.py

Milliseconds of fp32 forward passes of 1 and 128 images in torch, eager, channels-last: medians, dense and pruned in
turns, on an otherwise idle machine. The ratios are what can be compared between machines.
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from common import cli, models
from common.device import device_of, facts
from common.files import checkpoint
from deploy.measure import milliseconds
from results import summary
from results.tables import BUNDLED


def main(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument("--device")
    device = device_of(parser.parse_args(argv).device)
    rows = []
    for file in BUNDLED:
        ckpt = checkpoint.load(ROOT / file, quantized=True)
        dense = models.build(ckpt["arch"], **(ckpt["dense"] or ckpt)["cfg"])
        pair = [dense.to(device), checkpoint.to_model(ckpt).to(device)]
        row = {"checkpoint": file, "hardware": facts(device)["hardware"], "torch": torch.__version__}
        for batch in (1, 128):
            was, now = milliseconds(pair, batch)
            row |= {f"dense_{batch}": f"{was:.3f}", f"pruned_{batch}": f"{now:.3f}"}
            print(f"{file}, batch {batch}: {was:.2f} -> {now:.2f} ms, {was / now:.2f}x", flush=True)
        rows.append(row)
    summary.write(ROOT / "results/speed.csv", rows)


if __name__ == "__main__":
    cli.script(main)
