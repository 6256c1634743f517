"""Soft-binary mask: weights as b-bit integers, for any method's network.

    python quantize_model.py --pruned log-w1/pruned_model.pth.tar --wbit 8 --save log-w1

Every weight with more than one dimension (convolutions and the classifier) is quantized; batch norms and biases remain
float32. The layers' inputs are rounded to --abit bits as well, with ranges from training images, since the score counts
a multiplication by its wider operand. quantized_model.pth.tar holds the integers and their scales: at 8 bits it is a
quarter of the float32 file. --rule gives single layers another quantizer or other bits:

    python quantize_model.py --pruned log-w1/pruned_model.pth.tar --wbit 4 --method kmeans --rule "conv1|fc" linear 8

Expect seconds, and at 8 bits an accuracy within a few tenths of a point.
"""
import argparse
import re
import sys
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch import nn

from common import UserError, cli, data, models, pruning
from common.device import facts
from common.evaluate import evaluate
from common.files import checkpoint, packing
from softmask.networks import network
from softmask.quantizers import METHODS, calibrate, quantize


def parse(argv=None):
    parser = cli.parser(__doc__, train=False, arch=cli.RECORDED)
    add = parser.add_argument
    add("--pruned", "--model", dest="pruned", metavar="FILE", required=True, help="the network to quantize")
    add("--wbit", type=cli.bits_or_32, default=8, help="bits of a weight, 2 to 16; 32: not quantized")
    add("--method", choices=tuple(METHODS), default="linear", help="quantizer of the weights (default: linear)")
    add("--clip", type=cli.fraction, default=0.0, help="fraction of weights that --method linear clips at either "
        "end of each tensor; the original has 0.001")
    add("--per-channel", action="store_true", help="a scale or a codebook for each output channel")
    add("--rule", nargs=3, action="append", default=[], metavar=("REGEX", "METHOD", "BITS"), help="for the layers "
        "whose whole name matches; the first rule that matches counts")
    add("--abit", type=cli.bits_or_32, default=8, help="bits of a layer's inputs, 2 to 16; 32: not quantized")
    add("--calibrate", type=cli.positive, default=1000, help="training images to find the ranges of --abit with")
    add("--save", help="folder to write to (default: that of the file)")
    add("--overwrite", action="store_true", help="write over an earlier quantized_model.pth.tar")
    return parser.parse_args(argv)


def plan(args, layers):
    """{layer: (method, bits)}: the first --rule that matches the layer's name, else --method and --wbit."""
    rules = []
    for regex, method, bits in args.rule:
        if method not in METHODS:
            raise UserError(f"--rule {regex} {method}: there are {', '.join(METHODS)}")
        try:
            rules.append((regex, method, cli.bits_or_32(bits)))
            matches = any(re.fullmatch(regex, layer) for layer in layers)
        except (argparse.ArgumentTypeError, re.error) as problem:
            raise UserError(f"--rule {regex} {method} {bits}: {problem}") from problem
        if not matches:
            raise UserError(f"--rule {regex} matches no layer; they are called {layers[0]}, ..., {layers[-1]}")
    rules.append((".*", args.method, args.wbit))
    return {layer: next(rule[1:] for rule in rules if re.fullmatch(rule[0], layer)) for layer in layers}


def main(argv=None):
    args = parse(argv)
    args.save = args.save or str(Path(args.pruned).parent)
    source = pruning.load(args.pruned, network, what="softmask-quantized", holds="quantized_model.pth.tar",
                          **cli.prune_flags(args))
    ckpt, dataset, test, device = source.ckpt, source.dataset, source.test, source.test.device
    model, args.dataset = source.model.to(device), dataset.name
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    chosen = plan(args, layers)
    before = evaluate(model, test)

    # weights
    parameters, masks, quant = dict(model.named_parameters()), ckpt.get("masks", {}), {}
    print(f"{'layer':34} {'quantizer':>12} {'bits':>5} {'levels':>7} {'bytes':>10} {'mean error':>11}")
    for layer, (method, bits) in chosen.items():
        name = f"{layer}.weight"
        if bits == 32:
            continue
        quant[name] = quantize(parameters[name], method, bits, args.per_channel, masks.get(name), args.clip)
        value = packing.dequantize(quant[name]).to(device)
        weight = parameters[name].detach()
        error = float((value - weight).abs().mean() / weight.abs().mean().clamp(min=1e-30))
        stored = sum(part.nbytes for part in quant[name].values() if hasattr(part, "nbytes"))
        print(f"{layer:34} {method:>12} {bits:5d} {len(value.unique()):7,} {stored:10,} {100 * error:9.2f} %")
        parameters[name].data.copy_(value)

    # inputs of layers
    activations = None
    if args.abit != 32:
        train = data.Loader(dataset, "train", min(args.calibrate, 100), device)
        activations = calibrate(model, islice(train.epoch(0), -(-args.calibrate // 100)), layers, args.abit)
        packing.quantize_inputs(model, activations, args.pruned)
    after = evaluate(model, test)

    path = checkpoint.save(source.folder / "quantized_model.pth.tar", checkpoint.of(
        model, "softmask", "quantized", dataset.name, epoch=ckpt["epoch"], prec1=after["top1"],
        best_prec1=after["top1"], args=vars(args), dense=ckpt["dense"], masks=masks or None, quant=quant or None,
        activations=activations, run=facts(device)))
    print(f"{models.name(ckpt['arch'], ckpt['cfg'])} on {dataset.name}: {before['top1']:.2f} % before, "
          f"{after['top1']:.2f} % at {args.wbit} bits (activations: {args.abit})\n"
          f"wrote {path}, {path.stat().st_size:,} bytes; {args.pruned} has {Path(ckpt['path']).stat().st_size:,}")


if __name__ == "__main__":
    cli.script(main)
