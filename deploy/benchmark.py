"""Measure how much faster pruned networks run on this CPU: torch, ONNX Runtime, OpenVINO and C, fp32, bf16 and int8.

    python deploy/benchmark.py                               # half, odd and trained, to results/deploy.md
    python deploy/benchmark.py sparse                        # to results/deploy-sparse.md
    python deploy/benchmark.py half --networks vgg13 resnet164 --rounds 3 --save part.md

One thread and processor time, all cells of a network taking turns; medians. Parts:

    half        seven networks, also with half their channels by this repository and by torch-pruning
    odd         channel counts of 8n - 1 and 8n: what does a multiplication cost?
    trained     bundled networks: accuracy on CIFAR-10 in each form (needs the data set)
    sparse      scattered zeros, random and trained: the C file beside the other runtimes

Weights are random, except in bundled networks: they do not change the time. torch-pruning and OpenVINO are measured if
installed. Compare numbers within one run only, or ratios.
"""
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from common import UserError, cli, compute_flops, data, models
from common.device import command, device_of, hardware
from common.files import checkpoint
from common.models.narrow import narrow, width_of
from deploy import measure, sparse, to_onnx

NETWORKS = {
    "vgg13": ("vgg", {"depth": 13}), "resnet20": ("resnet", {"depth": 20}),
    "resnet164": ("preresnet", {"depth": 164, "selection": True, "gamma": 0.5}),
    "densenet40": ("densenet", {"depth": 40, "selection": True, "gamma": 0.5}),
    "densenet40_k32": ("densenet", {"depth": 40, "growth": 32, "gamma": 0.5}),      # halved it still fills AVX-512
    "wrn_16_4": ("wideresnet", {"depth": 16, "widen_factor": 4}),
    "mobilenetv2": ("mobilenetv2", {"width_multiplier": 1, "num_classes": 10}),
}
BATCHES = (1, 128)
TRAINED = {"VGG-13, dense": "slimming-vgg13-cifar10-sparse", "VGG-13, slimmed 40 %": "slimming-vgg13-cifar10-finetuned",
           "ResNet-20, dense": "magnitude-resnet20-cifar10-dense",
           "ResNet-20, 90 % zeros": "magnitude-resnet20-cifar10-90"}
PARTS = ("half", "odd", "trained", "sparse")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "amx_int8", "asimd")          # of processors, which decide what is faster


def built(name, selection=True):
    arch, cfg = NETWORKS[name]
    torch.manual_seed(0)
    if not selection:
        cfg = {name: value for name, value in cfg.items() if name != "selection"}
    return models.build(arch, **cfg).eval()


@torch.no_grad()
def narrowed(model, streams=True, count=lambda width: width // 2):
    """The network with count(channels) of the channels of each layer; streams: of residual and dense streams too."""
    modules, keep = dict(model.named_modules()), {}
    for module in modules.values():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.zero_()                              # nothing dropped is a constant
    for record in model.channels():
        name = record.producers[0][0] if record.producers else record.consumers[0].norm
        if streams or not record.stream:
            width = width_of(modules[name]) // record.group_size
            # of a halved stream its readers take all that is left, of a whole one each makes a choice of its own
            every_second = torch.cat([torch.arange(0, width, 2), torch.arange(1, width, 2)])
            order = every_second if streams else torch.randperm(width)
            kept = torch.zeros(width, dtype=torch.bool).index_fill(0, order[:max(1, count(width))], True)
            keep[name] = kept.repeat_interleave(record.group_size)
    return narrow(model, keep).eval()


def of_torch_pruning(name):
    """torch-pruning's network of half the channels, by batch-norm scale, without selections."""
    import torch_pruning
    model = built(name, selection=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 1.0)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    images = torch.rand(1, *models.input_shape(model.arch, model.cfg))
    torch_pruning.pruner.BNScalePruner(model, images, torch_pruning.importance.BNScaleImportance(), pruning_ratio=0.5,
                                       ignored_layers=[linear]).step()
    return model.eval()


def noise():
    """Batches for the ranges of int8: the networks here are not trained."""
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(32, 3, 32, 32, generator=generator), None)]


def measured(networks, folder, rounds):
    """The cells of {name: network}, measured in turns."""
    cells = []
    try:
        for name, model in networks.items():
            cells += measure.cells_of(name, model, folder, noise())
        measure.measure(cells, BATCHES, rounds)
    finally:
        measure.close(cells)
    return cells


def half(name, folder, rounds):
    """A table: milliseconds, times faster than dense torch fp32, and the gain over dense in the same runtime per MACs
    saved."""
    dense = built(name)
    forms = {"dense": dense, "half": narrowed(built(name))}
    if name in ("resnet164", "densenet40"):
        forms["half, streams whole"] = narrowed(built(name), streams=False)
    macs = {form: compute_flops.count(model).total.macs for form, model in forms.items()}
    networks = {form: to_onnx.deployable(model) for form, model in forms.items()}
    if measure.installed("torch_pruning"):
        networks["torch-pruning"] = of_torch_pruning(name)
        macs["torch-pruning"] = compute_flops.count(networks["torch-pruning"]).total.macs
    cells = measured(networks, folder, rounds)
    baseline = {cell.runtime: cell for cell in cells if cell.network == "dense"}
    lines = []
    for cell in cells:
        executed = f" ({cell.macs / 1e6:.1f} run)" if cell.macs != macs[cell.network] else ""
        line = [cell.network, cell.runtime, f"{macs[cell.network] / 1e6:.1f}{executed}"]
        other, saved = baseline[cell.runtime], macs["dense"] / macs[cell.network]
        for batch in BATCHES if not cell.error else ():
            now = measure.median(cell, batch)
            line += [measure.spread_of(cell, batch), f"{measure.median(cells[0], batch) / now:.2f}",
                     "-" if other.error else f"{measure.median(other, batch) / now / saved:.2f}"]
        lines.append(line if not cell.error else [*line, cell.error, *[""] * (3 * len(BATCHES) - 1)])
    header = ["network", "runtime", "M MACs"]
    for batch in BATCHES:
        header += [f"batch {batch}: ms (quartiles)", "x dense torch fp32", "gain / MAC ratio"]
    return header, lines


def odd(folder, rounds):
    """A table: milliseconds per MAC of widths 8n - 1, over those of widths 8n, per runtime."""
    lines = []
    for name in ("vgg13", "mobilenetv2"):
        networks = {"8n": narrowed(built(name)), "8n - 1": narrowed(built(name), count=lambda w: w // 2 - 1)}
        cells = measured(networks, folder, rounds)
        runtimes = {cell.runtime: [c for c in cells if c.runtime == cell.runtime] for cell in cells}
        for runtime, (even, uneven) in runtimes.items():
            failed = even.error or uneven.error
            lines.append([name, runtime, *([failed, ""] if failed else [
                f"{measure.median(uneven, b) / uneven.macs / (measure.median(even, b) / even.macs):.2f}"
                for b in BATCHES])])
    return ["network", "runtime", *[f"batch {batch}: time per MAC, odd / even" for batch in BATCHES]], lines


def trained(folder, data_dir, subset):
    """A table: top-1 of bundled networks on CIFAR-10 in every runtime."""
    lines, runtimes = [], []
    for name, file in TRAINED.items():
        model = checkpoint.to_model(checkpoint.load(f"chkpt/{file}.pth.tar", quantized=True))
        dataset = data.for_network(model, file, "cifar10", data_dir, subset=subset)
        train, test = (data.Loader(dataset, split, 256, shuffle=False) for split in ("train", "test"))
        cells = measure.cells_of(name, to_onnx.deployable(model), folder, train)
        try:
            measure.score(cells, test)
        finally:
            measure.close(cells)
        runtimes = [cell.runtime for cell in cells]
        lines.append([name, *[cell.error or f"{cell.top1:.2f}" for cell in cells]])
    return ["network", *[f"{runtime}, %" for runtime in runtimes]], lines


def processor():
    """The instruction sets that matter here, as Linux names them."""
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.exists() else set()
    return ", ".join(flag for flag in FLAGS if flag in words) or "instruction sets unknown"


def versions():
    from importlib.metadata import version
    return ", ".join(f"{name} {version(name)}" for name in ("torch", "onnx", "onnxruntime", "openvino", "torch-pruning")
                     if measure.installed(name.replace("-", "_")))


def main(argv=None):
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all but sparse)")
    add("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="networks of the part `half`")
    add("--rounds", type=cli.positive, default=5, help="turns of each cell")
    add("--save", metavar="FILE", help="(default: results/deploy.md, or results/deploy-<part>.md of the parts given)")
    add("--data-dir", help="folder of cifar10, for the trained networks")
    add("--subset", type=cli.positive, help="images of cifar10 that are used")
    args = parser.parse_args(argv)
    if unknown := [part for part in args.parts if part not in PARTS]:
        raise UserError(f"there is no part {unknown[0]}; choose from {', '.join(PARTS)}")
    to_onnx.packages()
    torch.set_num_threads(1)
    default = f"{'-'.join(['deploy', *args.parts])}.md"
    out = Path(args.save or Path(__file__).resolve().parent.parent / "results" / default)
    if not out.parent.is_dir():
        raise UserError(f"--save {out}: there is no folder {out.parent}")
    made_by = re.sub(r" --(save|data-dir)[ =]\S+", "", command())
    parts = [f"# Deployed\n\nMade by `{made_by}` on {time.strftime('%Y-%m-%d')}: {hardware(device_of('cpu'))} "
             f"({processor()}), processor time, medians of {args.rounds} rounds (in brackets the quartiles), all cells "
             f"of a network taking turns; {versions()}.\n"]
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        for part in args.parts or PARTS[:-1]:
            jobs = {"half": [(f"{name}, half its channels", lambda name=name: half(name, folder, args.rounds))
                             for name in args.networks],
                    "odd": [("Odd channel counts", lambda: odd(folder, args.rounds))],
                    "sparse": [("Scattered zeros", lambda: sparse.table(folder, args.rounds, noise(),
                                                                        out.with_suffix(".png")))],
                    "trained": [("Top-1 on CIFAR-10", lambda: trained(folder, args.data_dir, args.subset))]}[part]
            for title, job in jobs:
                header, lines = job()
                print(f"\n{title} ({(time.time() - start) / 60:.1f} min)\n{measure.text(header, lines)}", flush=True)
                plot = f"![ms against sparsity]({out.with_suffix('.png').name})\n\n" if part == "sparse" else ""
                parts.append(f"## {title}\n\n{plot}{measure.markdown(header, lines)}")
                out.write_text("\n".join(parts))
    print(f"wrote {out}")


if __name__ == "__main__":
    cli.script(main)
