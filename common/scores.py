"""Multiplications and additions of one image, and the MicroNet score, counted separately.

    counted = rules(model, masks=masks, bits={"conv1.weight": 8}, activation_bits=8, accumulator_bits=32)
    counted.storage, counted.mults, counted.adds, counted.score

`rules` follows the challenge (https://micronet-challenge.github.io): storage and operations in units of 32 bits, as
fractions of what WideResNet-28-10 needs on CIFAR-100; a smaller sum is better. `published` divides what the original
READMEs counted, as they do.
"""
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from common import UserError, models
from common.models.layers import twin

PARAMETERS, OPERATIONS = 36.5e6, 10.49e9                     # of WideResNet-28-10
# they move numbers without computing; rounding to the bits of the next operation is part of that operation
FREE = {"view", "_unsafe_view", "reshape", "t", "transpose", "permute", "clone", "cat", "index_select", "select",
        "slice", "index", "constant_pad_nd", "zeros", "empty", "detach", "alias", "expand", "unsqueeze", "squeeze",
        "_to_copy", "contiguous", "_reshape_alias", "as_strided", "as_strided_", "copy_",
        "fake_quantize_per_tensor_affine_cachemask"}


@dataclass
class Operations:
    """One step of the forward pass of one image. weight: the parameter it multiplies with, or ""."""
    name: str               # of the module
    kind: str               # conv, linear, norm, relu, add or pool
    mults: int
    adds: int
    weight: str = ""
    size: int = 1           # height of its input, which is square


class Counter(TorchDispatchMode):
    """Records the operations that run under it; `inside` holds the names of the modules that are running."""

    def __init__(self, names):
        super().__init__()
        self.names, self.inside, self.rows = names, [], []
        # by the identity of a convolution's output: (output, additions of a folded norm), readers, norm after it
        self.made, self.uses, self.norms = {}, {}, {}

    def __torch_dispatch__(self, op, types, operands=(), options=None):
        out = op(*operands, **(options or {}))
        tensors = [x for x in tree_flatten(operands)[0] if isinstance(x, torch.Tensor)]
        for x in tensors:
            self.uses[id(x)] = self.uses.get(id(x), 0) + 1
        self.record(op._schema.name.removeprefix("aten::"), operands, tensors, out)
        return out

    def record(self, op, operands, tensors, out):
        name, x = self.inside[-1] if self.inside else "", tensors[0] if tensors else out
        if op in ("addmm", "mm") or op == "convolution" and not operands[6]:                 # not transposed
            weight = tensors[2 if op == "addmm" else 1]
            bias = operands[2] if op == "convolution" else tensors[0] if op == "addmm" else None
            rows = weight.flatten(1) if op == "convolution" else weight.t()
            left = rows.count_nonzero(1)                     # a weight that is zero needs no operation
            alive = left > 0
            positions = out[0, 0].numel() if op == "convolution" else len(out)
            mults = positions * int(left.sum())
            adds = positions * int((left - alive.long()).sum()) + (bias is not None) * positions * int(alive.sum())
            row = Operations(name, "conv" if op == "convolution" else "linear", mults, adds,
                             self.names.get(weight.data_ptr(), ""), x.shape[-1] if op == "convolution" else 1)
            # The output is kept, so that no later tensor has its identity; an earlier one may have had it.
            self.made[id(out)], self.uses[id(out)] = (out, positions * int(alive.sum()) * (bias is None)), 0
            self.norms.pop(id(out), None)
        elif "batch_norm" in op:
            row = Operations(name, "norm", x[0].numel(), x[0].numel(), size=x.shape[-1])
            self.norms[id(x)] = row
        elif op in ("relu", "relu_"):
            row = Operations(name, "relu", x[0].numel(), 0, size=x.shape[-1])
        elif op in ("add", "add_") and len(tensors) == 2:
            row = Operations(name, "add", 0, out[0].numel(), size=x.shape[-1])
        elif op in ("mean", "avg_pool2d", "_adaptive_avg_pool2d"):      # windows that do not overlap
            row = Operations(name, "pool", out[0].numel(), x[0].numel() - out[0].numel(), size=x.shape[-1])
        elif op.startswith("max_pool2d"):                               # a comparison is counted as an addition
            kernel = operands[1][0] * operands[1][-1]
            row = Operations(name, "pool", 0, out[0][0].numel() * (kernel - 1), size=x.shape[-1])
        elif op in FREE:
            return
        else:
            raise UserError(f"operations: {name or 'the network'} runs {op}, which common/scores.py cannot count")
        self.rows.append(row)

    def fold(self):
        """A batch norm that alone reads a convolution costs additions only: its scale is merged into the weights."""
        for source, (_, adds) in self.made.items():
            if source in self.norms and self.uses[source] == 1:
                row = self.norms[source]
                row.mults, row.adds = 0, adds


@torch.no_grad()
def operations(model):
    """[Operations, ...] of one image, in the order they run; the model is left as it was.

    Convolution and linear layer: one multiplication for each weight that is not zero, at each position, and one
    addition fewer per output; ReLU: one multiplication for each element; residual connections and pooling: their
    additions. UserError names an unknown operation.
    """
    weight = next(model.parameters())
    model = twin(model, weight.device).eval()                # with hooks that the given one should not have
    counter = Counter({p.data_ptr(): name for name, p in model.named_parameters()})
    for name, m in model.named_modules():
        m.register_forward_pre_hook(lambda m, _, name=name: counter.inside.append(name))
        m.register_forward_hook(lambda *_: counter.inside.pop() and None)
    image = torch.zeros(1, *models.input_shape(model.arch, model.cfg), device=weight.device, dtype=weight.dtype)
    with counter:
        model(image)
    counter.fold()
    return counter.rows


@dataclass
class Score:
    """What the rules count. storage: in words of 32 bits; mults, adds: by their bits, one of 32 bits is 1."""
    storage: float
    mults: float
    adds: float

    @property
    def operations(self):
        return self.mults + self.adds

    @property
    def score(self):
        return self.storage / PARAMETERS + self.operations / OPERATIONS


def words(model, masks=None, bits=None, default=32):
    """32-bit words of everything that inference reads: parameters and statistics of batch norms at their bits.

    A tensor with a mask (bool, True: kept) costs its kept values and one bit per element, or all its values if that is
    less. bits: {tensor name: bits}, `default` for the others; indices have 32.
    """
    masks, bits, total = masks or {}, bits or {}, 0
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        width = bits.get(name, default) if tensor.is_floating_point() else 32
        cost = tensor.numel() * width
        if name in masks:
            cost = min(cost, int(masks[name].sum()) * width + tensor.numel())
        total += cost
    return total / 32


def rules(model, masks=None, bits=None, activation_bits=32, accumulator_bits=32, freebie=False, scales=0, rows=None):
    """The Score of a network by the challenge's rules.

    bits: {tensor name: bits}, 32 for the others; a multiplication has the bits of the larger of its two operands, an
    addition those of the accumulator (a fraction where they differ). freebie: parameters and multiplications count as
    16 bits if nothing in the network has fewer; additions do not. scales: 32-bit words of scales, zero points and
    codebooks. rows: the result of `operations`, if already computed.
    UserError if freebie is set for a quantized network, or bits names an unknown tensor.
    """
    bits = bits or {}
    unknown = [name for name in bits if name not in model.state_dict()]
    if unknown:
        raise UserError(f"rules: the network has no tensor {unknown[0]!r}")
    if freebie and min([activation_bits, *bits.values()]) < 16:
        raise UserError("rules: the 16-bit freebie is for networks with nothing below 16 bits")
    default = 16 if freebie else 32
    at = min(activation_bits, default)
    storage = words(model, masks, {name: min(b, default) for name, b in bits.items()}, default) + scales
    mults = adds = 0
    for row in rows if rows is not None else operations(model):
        width = max(min(bits.get(row.weight, 32), default), at) if row.weight else at
        mults += row.mults * width / 32
        adds += row.adds * accumulator_bits / 32
    return Score(storage, mults, adds)


def of_checkpoint(ckpt, model, rows=None, accumulator_bits=32, freebie=False):
    """The Score by `rules` of a checkpoint's network, at the bits of its quantized weights and activations."""
    quant, activations = ckpt.get("quant") or {}, ckpt.get("activations") or {}
    tables = [entry[key] for entry in quant.values() for key in ("scale", "zero", "codebook") if key in entry]
    at = (min if freebie else max)((entry["bits"] for entry in activations.values()), default=32)
    return rules(model, ckpt.get("masks"), {name: entry["bits"] for name, entry in quant.items()}, at,
                 accumulator_bits, freebie, sum(table.numel() for table in tables) + 2 * len(activations), rows)


def published(params, operations):
    """(a, b, a + b): parameters and operations as fractions of WideResNet-28-10's, as the original READMEs divide."""
    a, b = params / PARAMETERS, operations / OPERATIONS
    return a, b, a + b
