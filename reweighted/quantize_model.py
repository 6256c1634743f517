"""Reweighted L1: weights and activations as integers, with a number of bits for each tensor.

    python quantize_model.py --model logs/cifar100-mobilenetv2_1.3-reweighted-finetuned/finetuned.pth.tar
    python quantize_model.py --model FILE --bit-list 8 seed 6 4          the accuracy of each list; the last is kept

The weights of convolutions and linear layers become integers with one scale a tensor (quantizers.py), biases and batch
norms remain float32. The inputs of these layers are rounded too, with ranges from --n-sample batches of training
images; evaluation uses the rounded inputs. quantized_model.pth.tar holds the integers at their bits, one bit for each
weight that has a mask, and the scales.

A bit list is one number for all tensors, "seed" or "mixed" (the original's lists for MobileNetV2), or tensors by index
or name, the others at --param-bits: "0=9,-1=6,conv2.weight=4". Expect a minute.
"""
import sys
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from common import UserError, cli, data, pruning, scores
from common.device import facts
from common.evaluate import evaluate
from common.files import checkpoint, packing
from reweighted import quantizers
from reweighted.networks import network


def parse(argv=None):
    parser = cli.parser(__doc__, train=False, arch=cli.RECORDED, writes="quantized_model.pth.tar")
    add = parser.add_argument
    add("--model", metavar="FILE", required=True, help="the network to quantize")
    add("--quant-method", "--quant_method", choices=quantizers.METHODS, default="linear",
        help="linear: scales that are powers of two")
    add("--param-bits", "--param_bits", type=cli.bits, default=8, help="bits of weights that the bit list leaves out")
    add("--bit-list", nargs="+", metavar="LIST", help="bits of the weights (default: --param-bits for all)")
    add("--fwd-bits", "--fwd_bits", type=cli.bits_or_32, default=8, help="bits of activations; 32: not quantized")
    add("--overflow-rate", "--overflow_rate", type=cli.fraction, default=0.0, help="fraction of the "
        "largest weights of each tensor that linear quantization clamps")
    add("--n-sample", "--n_sample", type=cli.positive, default=20, help="batches of training images for the ranges")
    return parser.parse_args(argv)


@torch.no_grad()
def ranges(model, batches):
    """{layer: (lowest, highest)} input of each convolution and linear layer over these batches of images."""
    found, hooks = {}, []
    for name, m in model.named_modules():
        if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)):
            def watch(m, inputs, name=name):
                low, high = found.get(name, (0.0, 0.0))
                found[name] = min(low, float(inputs[0].min())), max(high, float(inputs[0].max()))
            hooks.append(m.register_forward_pre_hook(watch))
    for images in batches:
        model(images)
    for hook in hooks:
        hook.remove()
    return found


def float_bytes(weight, mask=None):
    """Bytes of a float32 tensor in a file: with a mask those of the kept values, and a bit for each weight."""
    return 4 * weight.numel() if mask is None else 4 * int(mask.sum()) + weight.numel() / 8


def quantize(args):
    source = pruning.load(args.model, network, what="reweighted-quantized", holds="quantized_model.pth.tar",
                          **cli.prune_flags(args))
    ckpt, dataset, test, device = source.ckpt, source.dataset, source.test, source.test.device
    model, args.dataset, args.save = source.model.to(device), dataset.name, str(source.folder)
    names = [f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    try:
        lists = {text: quantizers.bit_list(text, names, args.param_bits)
                 for text in args.bit_list or [str(args.param_bits)]}
    except ValueError as error:
        raise UserError(f"--bit-list {error}") from error

    # the ranges of the activations, on training images of all classes, as they are
    train = data.Loader(dataset, "train", args.test_batch_size, device)
    activations = None
    if args.fwd_bits < 32:
        seen = ranges(model, (images for images, _ in islice(train, args.n_sample)))
        grids = {name: quantizers.grid(args.quant_method, args.fwd_bits, *span) for name, span in seen.items()}
        activations = {name: {"bits": args.fwd_bits, "scale": float(s), "zero": int(z)}
                       for name, (s, z) in grids.items()}

    masks = ckpt.get("masks", {})
    rows = scores.operations(model)
    before = evaluate(model, test)["top1"]
    print(f"{len(names)} tensors, activations at {args.fwd_bits} bits, {args.quant_method}\n"
          f"{'bit list':>16} {'accuracy':>9} {'KiB of weights':>14} {'score':>8}\n{'none':>16} {before:9.2f} "
          f"{sum(float_bytes(ckpt['state_dict'][name], masks.get(name)) for name in names) / 1024:14.1f} "
          f"{scores.rules(model, masks, rows=rows).score:8.5f}", flush=True)

    small = checkpoint.to_model({**ckpt, "activations": activations}).to(device)
    for text, bits in lists.items():
        entries = {}
        for name, b in zip(names, bits, strict=True):
            codes, scale, zero = quantizers.quantize(ckpt["state_dict"][name], b, args.quant_method, args.overflow_rate)
            entries[name] = packing.quantized(codes, b, scale=scale, zero=zero, mask=masks.get(name))
            small.get_parameter(name).data.copy_(packing.dequantize(entries[name]))
        top1 = evaluate(small, test)["top1"]
        size = sum(entry["codes"].numel() + entry.get("kept", torch.empty(0)).numel() for entry in entries.values())
        score = scores.of_checkpoint({"masks": masks, "quant": entries, "activations": activations}, small).score
        print(f"{text if len(text) <= 16 else f'{text[:13]}...':>16} {top1:9.2f} {size / 1024:14.1f} {score:8.5f}",
              flush=True)

    source.folder.mkdir(parents=True, exist_ok=True)
    path = checkpoint.save(source.folder / "quantized_model.pth.tar", checkpoint.of(
        small, "reweighted", "quantized", dataset.name, prec1=top1, best_prec1=top1,
        args={**vars(args), "bits": bits}, dense=source.dense,
        masks=ckpt.get("masks"), quant=entries, activations=activations, rule=ckpt.get("rule"), run=facts(device)))
    print(f"wrote {path} ({path.stat().st_size:,} bytes), weights by bit list {text}")
    return path


def main(argv=None):
    return quantize(parse(argv))


if __name__ == "__main__":
    cli.script(main)
