"""Networks with scattered zeros, random and trained: the C file beside the other runtimes, for benchmark.py."""
import re
import shutil
import subprocess
from pathlib import Path

import torch
from torch import nn

from common import UserError, compute_flops, models, plots
from common.files import checkpoint
from deploy import measure, to_c, to_onnx

SPARSITIES = (0.0, 0.5, 0.75, 0.9, 0.95)
TRAINED = {  # bundled, with scattered zeros
    "ResNet-20": ("magnitude-resnet20-cifar10-90.pth.tar", "magnitude-resnet20-cifar10-macs10.pth.tar",
                  "hoyer-resnet20-cifar10-95.pth.tar"),
    "ResNet-56": ("magnitude-resnet56-cifar10-90.pth.tar",), "MobileNetV2": ("cifar100_mobilenetv2.pt",)}


@torch.no_grad()
def zeroed(ckpt, sparsity):
    """A network like the checkpoint's, with random weights and this fraction of its convolutions' at zero."""
    torch.manual_seed(0)
    model = models.build(ckpt["arch"], **ckpt["cfg"]).eval()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.mul_(torch.rand_like(module.weight) >= sparsity)
    return model


def c_cell(name, model, folder):
    """The network as a compiled C file."""
    program = Path(folder) / re.sub(r"\W", "-", name)
    program.with_suffix(".c").write_text(to_c.source(model))
    subprocess.run(["cc", "-O3", "-march=native", "-o", program, program.with_suffix(".c"), "-lm"], check=True)
    image = torch.rand(models.input_shape(model.arch, model.cfg)).numpy().tobytes()

    def milliseconds(batch, seconds):
        return float(subprocess.run([program, "50"], input=image, capture_output=True, check=True).stdout)
    return measure.Cell(name, "C", compute_flops.count(model).total.sparse_macs, milliseconds)


def table(folder, rounds, images, plot):
    """A table: milliseconds at batch 1 of networks with zeros, in C and in the runtimes, which multiply by them."""
    if not shutil.which("cc"):
        raise UserError("the part `sparse` needs a C compiler, cc")
    lines, drawn = [], []
    for name, files in TRAINED.items():
        ckpts = {f"{name}, trained, {file.partition('.')[0]}": checkpoint.load(f"chkpt/{file}") for file in files}
        pruned = {title: checkpoint.to_model(ckpt).eval() for title, ckpt in ckpts.items()}
        first = next(iter(ckpts.values()))
        if name == "ResNet-20":
            pruned |= {f"{name}, {100 * s:.0f} % random zeros": zeroed(first, s) for s in SPARSITIES}
        cells = measure.cells_of(f"{name}, dense", to_onnx.deployable(zeroed(first, 0)), folder, images)
        compiled = [c_cell(title, model, folder) for title, model in pruned.items()]
        try:
            measure.measure(cells + compiled, (1,), rounds)
        finally:
            measure.close(cells)
        cells = [cell for cell in cells if not cell.error]
        others = {cell.runtime: measure.median(cell, 1) for cell in cells}
        for cell in cells + compiled:
            now = measure.median(cell, 1)
            top1 = f"{ckpts[cell.network]['prec1']:.2f}" if cell.network in ckpts else "-"
            lines.append([cell.network, cell.runtime, f"{cell.macs / 1e6:.1f}", top1, measure.spread_of(cell, 1),
                          *(f"{others[runtime] / now:.2f}" if runtime in others else "-" for runtime in
                            ("ONNX Runtime fp32", "ONNX Runtime int8"))])
        if name == "ResNet-20":
            drawn = cells, compiled[len(files):], compiled[:len(files)]
    draw(plot, *drawn)
    return ["network", "runtime", "M MACs", "top-1, %", "ms (quartiles)", "x ONNX Runtime fp32", "x int8"], lines


def draw(path, cells, random, trained):
    """Milliseconds of ResNet-20 against the MACs that its zeros leave: in C (a line with random zeros, crosses for
    trained networks) and in the other runtimes."""
    plt = plots.pyplot()
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for marks, label, some in (("o-", "C, random zeros", random), ("X", "C, trained", trained)):
        axis.plot([c.macs / 1e6 for c in some], [measure.median(c, 1) for c in some], marks, label=label)
    for i, cell in enumerate(c for c in cells if "fp32" in c.runtime or "int8" in c.runtime):
        axis.axhline(measure.median(cell, 1), color=f"C{i + 2}", linestyle="--", label=cell.runtime)
    axis.set(xlabel="MACs with non-zero weights (millions)", ylabel="ms per image", yscale="log",
             title="ResNet-20, one thread")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)
