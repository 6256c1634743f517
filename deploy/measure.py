"""Milliseconds of networks in torch, ONNX Runtime and OpenVINO, all taking turns, with the accuracy of each.

One cell is a network in one runtime and precision. The cells take turns within a round, so that whatever slows the
machine slows them alike; reported are the median of the rounds and the quartiles. With one thread processor time is
measured, otherwise the wall clock.
"""
import importlib.util
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from common import compute_flops, models
from common.device import has_bf16, in_half
from deploy import to_onnx
from deploy.runtime import NAMES, Failed, Worker, clock_for
from deploy.runtime import milliseconds as mean_milliseconds


@dataclass
class Cell:
    network: str
    runtime: str                                  # such as "ONNX Runtime int8"
    macs: int
    time: object = None                           # (batch, seconds) -> milliseconds
    run: object = None                            # images (numpy) -> logits (numpy)
    times: dict = field(default_factory=dict)     # batch -> milliseconds, one a round
    top1: float = None                            # percent on the test set
    error: str = ""


def installed(package):
    return importlib.util.find_spec(package) is not None


def torch_cell(name, model, macs, precision="fp32"):
    """The network in torch, on the device where it is, channels-last unless its code is not ours; precision: what the
    model computes in."""
    device = next(model.parameters()).device
    model = model.eval().to(memory_format=torch.preserve_format if ":" in model.arch else torch.channels_last)

    @torch.inference_mode()
    def run(images):
        images = torch.as_tensor(images, device=device).contiguous(memory_format=torch.channels_last)
        return model(images).float().cpu().numpy()           # .cpu() waits for an accelerator

    def time_it(batch, seconds):
        images = torch.rand(batch, *models.input_shape(model.arch, model.cfg), device=device)
        clock = clock_for(torch.get_num_threads() if device.type == "cpu" else 0)
        return mean_milliseconds(run, images, seconds, clock)
    return Cell(name, f"torch {precision}", macs, time_it, run)


def file_cells(name, path, macs, precision="fp32"):
    """An ONNX file in every runtime that is installed, each in a process of its own; precision: fp32 or int8."""
    ways = [("onnxruntime", precision), ("openvino", precision)]
    if precision == "fp32" and has_bf16(torch.device("cpu")):
        ways.append(("openvino", "bf16"))                    # what it does with fp32 files unless told otherwise
    cells = []
    for runtime, computes in ways:
        if not installed(runtime):
            continue
        cell = Cell(name, f"{NAMES[runtime]} {computes}", macs)
        try:
            worker = Worker(runtime, path, torch.get_num_threads(), "bf16" if computes == "bf16" else "f32")
            cell.time, cell.run = worker.milliseconds, worker
        except Failed as error:
            cell.error = str(error)
        cells.append(cell)
    return cells


def cells_of(name, model, folder, train):
    """All cells of one network; its ONNX files go to folder, train gives batches (images, labels) for int8's ranges."""
    macs = compute_flops.count(model).total.macs
    cells = [torch_cell(name, model, macs)]
    if has_bf16(next(model.parameters()).device):
        cells.append(torch_cell(name, in_half(model), macs, "bf16"))
    if installed("onnx") and installed("onnxruntime"):
        paths = [Path(folder) / f"{name.replace(' ', '-')}-{kind}.onnx" for kind in ("fp32", "int8")]
        to_onnx.write(model, paths[0])
        to_onnx.quantize(*paths, to_onnx.calibration(train))
        cells += file_cells(name, paths[0], macs) + file_cells(name, paths[1], macs, "int8")
    return cells


def measure(cells, batches=(1, 128), rounds=7, seconds=0.02):
    """Fills in the cells' times; one that fails gets its error instead, and no more turns.

    A turn repeats the pass until `seconds` have gone by, so that short passes are timed as well as long ones.
    """
    for batch in batches:
        for turn in range(rounds + 1):                       # the first one warms up
            for cell in cells:
                if cell.error:
                    continue
                try:
                    taken = cell.time(batch, seconds)
                except Failed as error:
                    cell.error = str(error)
                    continue
                if turn:
                    cell.times.setdefault(batch, []).append(taken)


def milliseconds(networks, batch, rounds=15):
    """Median milliseconds of a forward pass of each network in torch, in fp32."""
    cells = [torch_cell("", model, 0) for model in networks]
    measure(cells, (batch,), rounds)
    return [median(cell, batch) for cell in cells]


def score(cells, test):
    """Fills in the cells' accuracies on the loader of a test set."""
    for cell in cells:
        if not cell.error:
            try:
                cell.top1 = to_onnx.accuracy(cell.run, test)
            except Failed as error:
                cell.error = str(error)


def close(cells):
    for cell in cells:
        if isinstance(cell.run, Worker):
            cell.run.close()


def median(cell, batch):
    return statistics.median(cell.times[batch])


def spread_of(cell, batch):
    """The median and the quartiles as text."""
    low, high = np.percentile(cell.times[batch], (25, 75))
    return f"{median(cell, batch):.3g} ({low:.3g} to {high:.3g})"


def rows(cells):
    """A header and a row of text per cell: milliseconds (quartiles) and times faster than the first cell."""
    batches = list(cells[0].times)
    header = ["network", "runtime", "MACs"]
    for batch in batches:
        header += [f"batch {batch}, ms (quartiles)", "times faster"]
    lines = []
    for cell in cells:
        line = [cell.network, cell.runtime, f"{cell.macs / 1e6:.1f} M"]
        for batch in batches:
            if cell.error:
                line += ["-", "-"]
                continue
            line += [spread_of(cell, batch), f"{median(cells[0], batch) / median(cell, batch):.2f}"]
        top1 = "" if cell.top1 is None else f"{cell.top1:.2f}"
        lines.append([*line, cell.error or top1])
    return [*header, "top-1, %"], lines


def text(header, lines, words=None):
    """The rows in columns, for a terminal: the first `words` columns (None: all) to the left, numbers to the right."""
    widths, words = [max(map(len, column)) for column in zip(header, *lines, strict=True)], words or len(header)
    return "\n".join("  ".join(f"{cell:{'<' if i < words else '>'}{width}}"
                               for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
                     for row in [header, *lines])


def markdown(header, rows):
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [header, ["---"] * len(header), *rows]) + "\n"
