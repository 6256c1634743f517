"""The original's count of operations, and the numbers missing from its README: parameters, storage, operations, score.

    python check_model_operations.py                        the bundled network
    python check_model_operations.py FILE --input-bits 8 --param-bits 8 --adds tree

First the original's table of the unpruned network, the challenge's counter as the original adapted it,

    multiplications   L n + n, n more for a ReLU        L: remaining weights of a filter, n: outputs
    additions         L n                               the bias of the folded batch norm replaces one

with a ReLU after every convolution, no residual connection and no pooling, and one sparsity for all layers
(--sparsity). Then the checkpoint's own table: zeros of each layer, its real ReLUs, residual connections and pooling. A
multiplication counts --input-bits / 32 (or --param-bits, if larger), an addition --accumulator-bits / 32: 16 in the
first table, as published; in the second the file's bits, such as 8 if quantized, else 32. Last the scores, by the
original's arithmetic and by the challenge's rules.

Takes seconds; no data is needed.
"""
import math
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from common import UserError, cli, compute_flops, models, scores
from common.files import checkpoint
from reweighted.networks import network
from reweighted.testers import BUNDLED, LEGACY_LINEAR, totals


class Line(NamedTuple):
    """A line of the table. inputs: height of what the layer reads; params: in bits."""
    name: str
    inputs: int
    kernel: int
    channels: int
    out: int
    params: float
    mults: float
    adds: float


def legacy(model, sparsity=0.0, param_bits=16):
    """[Line, ...] of each convolution and linear layer as the original counts, at one sparsity for all."""
    sizes, lines, left = {row.weight: row.size for row in scores.operations(model)}, [], 1 - sparsity
    for row in compute_flops.count(model).rows:
        if len(row.shape) > 1:
            out, numel, convolution = row.shape[0], math.prod(row.shape), len(row.shape) == 4
            outputs = row.macs // (numel // out) if convolution else 0                   # linear: no ReLU
            bits = numel * param_bits * left + numel * (sparsity > 0) + out * param_bits
            lines.append(Line(row.name, sizes[f"{row.name}.weight"], row.shape[-1] if convolution else 1, row.shape[1],
                              out, bits, row.macs * left + outputs, row.macs * left))
    return lines


def true(model, rows, bits, at):
    """[Line, ...] of the real network: each layer with its zeros, ReLU, residual additions and pooling apart.

    bits: {weight: bits}, at: bits of activations; multiplications in units of 32 bits, by the larger of the two.
    """
    parameters, lines = dict(model.named_parameters()), []
    for row in rows:
        name, sizes, stored, width = f"{row.name}.{row.kind}".removeprefix("."), (0, 0, 0), 0, at
        if row.weight:
            name, w, width = row.name, parameters[row.weight], bits.get(row.weight, 32)
            sizes = w.shape[-1] if w.dim() == 4 else 1, w.shape[1], w.shape[0]
            stored = min(int(w.count_nonzero()) * width + w.numel(), w.numel() * width)
        lines.append(Line(name, row.size, *sizes, stored, row.mults * max(width, at) / 32, row.adds))
    return lines


def blocks(lines):
    """The lines of each block (layers.3.conv1, layers.3.relu, ...) added up to one."""
    parts = {}
    for line in lines:
        words = line.name.split(".")
        name = ".".join(words[:2]) if len(words) > 2 or words[0] == "layers" else line.name
        parts.setdefault(name, []).append(line)
    return [Line(name, block[0].inputs, max(x.kernel for x in block), block[0].channels,
                 next((x.out for x in reversed(block) if x.out), 0), *sums(block)) for name, block in parts.items()]


def sums(lines):
    """(params, mults, adds) of the lines together."""
    return tuple(sum(numbers) for numbers in zip(*(line[-3:] for line in lines), strict=True))


def table(lines, mult_bits, add_bits):
    """The original's columns as text. mult_bits, add_bits: of all operations; 32 changes nothing."""
    shown = [f"{'op_name':24} {'inp_size':>8} {'kernel_size':>11} {'in channels':>11} {'out channels':>12} "
             f"{'params(MBytes)':>14} {'mults(M)':>11} {'adds(M)':>11} {'MFLOPS':>11}"]
    for x in [*blocks(lines), Line("total", 0, 0, 0, 0, *sums(lines))]:
        sizes = [n or "" for n in (x.inputs, x.kernel, x.channels, x.out)]
        mults, adds = x.mults * (mult_bits / 32), x.adds * (add_bits / 32)
        shown.append(f"{x.name:24} {sizes[0]:>8} {sizes[1]:>11} {sizes[2]:>11} {sizes[3]:>12} {x.params / 8e6:14.6f} "
                     f"{mults / 1e6:11.6f} {adds / 1e6:11.6f} {(mults + adds) / 1e6:11.6f}")
    return "\n".join(shown)


def tree_bits(bits):
    """Bits of an addition on average in a binary tree of products: half at 2 bits, a quarter at one more, ... the rest
    at 32."""
    return sum(0.5 ** (level + 1) * min(2 * bits + level, 32) for level in range(5)) + 0.5 ** 5 * 32


def thop(model, batch=2):
    """Operations as pytorch-opcounter of 2019 gives them for a batch: convolutions one for each multiplication and
    addition together, linear layers one for each of the two, batch norms 4 for each element."""
    rows = compute_flops.count(model).rows
    return batch * sum(row.macs + (row.macs - row.shape[0] if len(row.shape) == 2 else 4 * row.norm_elements)
                       for row in rows)


def quantized_storage(model, bits, legacy=False):
    """Words of 32 bits of a quantized network as the original counts them: non-zero weights, and the batch norm after
    them, at the bits of their layer."""
    words, at = totals(model, legacy).weights / 32, 32
    for name, m in model.named_modules():
        if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear)):
            at = bits.get(f"{name}.weight", 32)
            left = LEGACY_LINEAR if legacy and isinstance(m, torch.nn.Linear) else int(m.weight.count_nonzero())
            words += left * at / 32
        elif isinstance(m, torch.nn.BatchNorm2d):
            words += 4 * m.num_features * at / 32
    return words


def main(argv=None):
    parser = cli.parser(__doc__)
    cli.add_file(parser, default=BUNDLED)
    cli.add_network(parser, cli.RECORDED)
    add = parser.add_argument
    add("--input-bits", type=cli.positive, help="bits of activations and multiplications (default: 16 as published, 32 "
        "by the rules; a quantized file has its own)")
    add("--param-bits", type=cli.positive, help="bits of stored values, with the same defaults")
    add("--accumulator-bits", type=cli.positive, help="bits of additions (default: 32)")
    add("--adds", choices=("flat", "tree"), default="flat", help="tree: in the binary tree of the "
        "original README, half of them at twice the bits of the activations, a quarter at one more, ...")
    add("--sparsity", type=cli.fraction, default=0.0, help="sparsity of the first table, for all layers")
    add("--thop", action="store_true", help="also print pytorch-opcounter's figure, the original's 325.4M")
    add("--legacy-count", action="store_true", help="128,000 weights in the linear layer, as the original counts")
    args = parser.parse_args(argv)
    mult_bits, param_bits = args.input_bits or 16, args.param_bits or 16                 # as published
    if args.accumulator_bits and args.adds == "tree":
        raise UserError("--adds tree says how many bits additions have; leave out --accumulator-bits")
    if max(mult_bits, param_bits, args.accumulator_bits or 0) > 32:
        raise UserError("at most 32 bits")
    ckpt = checkpoint.load(args.file, network, args.arch, args.depth, quantized=True)
    model = checkpoint.to_model(ckpt)
    dense = models.build(ckpt["arch"], **(ckpt["dense"] or ckpt)["cfg"])
    with torch.no_grad():
        for weight in dense.parameters():
            weight.fill_(1)

    def bits_of_adds(inputs):
        return tree_bits(inputs) if args.adds == "tree" else args.accumulator_bits or 32
    add_bits = bits_of_adds(mult_bits)

    # the original's table
    lines = legacy(dense, args.sparsity, param_bits)
    print(f"unpruned {models.name(dense.arch, dense.cfg)}, as the original counts: sparsity {args.sparsity:g}, "
          f"multiplications at {mult_bits} bits, additions at {add_bits:g}")
    print(table(lines, mult_bits, add_bits))
    _, mults, adds = sums(lines)
    operations = (mults * mult_bits + adds * add_bits) / 32
    print(f"in 32 bits: {mults / 1e6:.6f}M multiplications, {adds / 1e6:.6f}M additions; "
          f"{mults * mult_bits / 32e6:.6f}M + {adds * add_bits / 32e6:.6f}M = {operations / 1e6:.6f}M operations")
    if args.thop:
        print(f"thop of 2019: {thop(dense) / 1e6:.5f}M for a batch of 2 images (convolutions by multiply-accumulates, "
              f"linear layers by both operations, 4 for each batch-norm element): not the count of one image; "
              f"that it is near {(mults + adds) / 1e6:.2f}M is chance")

    # the network of the file
    quant, masks, rows = ckpt.get("quant") or {}, ckpt.get("masks"), scores.operations(model)
    floats = [name for name, tensor in model.state_dict().items() if tensor.is_floating_point()]
    bits = {name: entry["bits"] for name, entry in quant.items()} or dict.fromkeys(floats, args.param_bits or 32)
    inputs = [entry["bits"] for entry in (ckpt.get("activations") or {}).values()]
    at = max(inputs, default=32 if quant else args.input_bits or 32)
    add_bits = bits_of_adds(at)
    print(f"\n{ckpt['path']}, {ckpt['stage']}: the zeros of each layer, activations at {at} bits")
    print(table(true(model, rows, bits, at), 32, add_bits))
    t = totals(model, args.legacy_count)
    storage = quantized_storage(model, bits, args.legacy_count) if quant else t.storage(param_bits)
    counted = (scores.of_checkpoint(ckpt, model, rows, add_bits) if quant else
               scores.rules(model, masks, bits, at, add_bits, rows=rows))
    print(f"\nThe total number of parameters is {t.weights + t.norms:,}. Among them, there are "
          f"{t.weights - t.nonzeros:,} zero parameters and {t.nonzeros + t.norms:,} non-zero parameters.")
    a, b, score = scores.published(storage, operations)
    print(f"as published (storage and bitmask of the file, operations of the first table): {storage:,.1f}/36.5M + "
          f"{operations / 1e6:.2f}M/10.49B = {a:.5f} + {b:.5f} = {score:.4f}")
    print(f"by the rules (everything stored, operations of the second table): {counted.storage:,.1f}/36.5M + "
          f"({counted.mults / 1e6:.2f}M + {counted.adds / 1e6:.2f}M)/10.49B = "
          f"{counted.storage / scores.PARAMETERS:.5f} + {counted.operations / scores.OPERATIONS:.5f} = "
          f"{counted.score:.4f}")
    if min(at, *bits.values()) >= 16:
        free = scores.rules(model, masks, accumulator_bits=32, freebie=True, rows=rows)
        print(f"by the rules with the 16-bit freebie: {free.score:.4f}")
    own = (900_109 + 91_072) * 16 / 32 + 3_905_632 / 32
    a, b, score = scores.published(own, 231_253_376)
    print(f"the original README's own blanks, from its counts at 16 bits: (900,109 + 91,072)/2 + 3,905,632/32 = "
          f"{own:,.1f}; {own:,.1f}/36.5M + 231.25M/10.49B = {score:.4f}")
    return counted


if __name__ == "__main__":
    cli.script(main)
