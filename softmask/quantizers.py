"""Three quantizers of a weight tensor, and one of a layer's inputs. Each gives integers and the numbers to decode them.

    linear        value = (code - zero) scale,  scale = (hi - lo) / (2^b - 1)    lo, hi: without `clip` at either end
    kmeans        value = codebook[code]        2^b - 1 centroids of the weights that are not zero, and 0
    fixed_point   value = code 2^(i - b + 1),   code = floor(x 2^(b - 1 - i)) in [-2^(b-1), 2^(b-1) - 1]

A weight of zero stays zero. Quantizing twice changes nothing more. per_channel: a scale or a codebook for each output
channel. The entries are those of common/files/packing.py, so that a file holds b bits a weight.
"""
import math
from contextlib import contextmanager

import torch

from common.files import packing


def ends(rows, tail):
    """(lo, hi) of each row (n, 1) after clipping the smallest and largest `tail` of it, with 0 between them."""
    k = max(math.ceil(tail * rows.shape[1]), 1)
    ordered = rows.sort(1).values
    return ordered[:, k - 1:k].clamp(max=0), ordered[:, -k:][:, :1].clamp(min=0)


def grid(lo, hi, bits):
    """(scale, zero point) of 2^bits levels from lo to hi, one of which is 0."""
    scale = (hi - lo) / (2 ** bits - 1)
    scale = torch.where(scale > 0, scale, 1.0)
    return scale, (-lo / scale).round()


def linear(rows, bits, clip=0.0):
    scale, zero = grid(*ends(rows, clip), bits)
    codes = ((rows / scale).round() + zero).clamp(0, 2 ** bits - 1)
    return codes, {"scale": scale, "zero": zero}


def fixed_point(rows, bits):
    """The integer bits i are the fewest that hold the row's largest value; negative for small weights."""
    low, high = (-rows.amin(1, keepdim=True)).clamp(min=1e-30), rows.amax(1, keepdim=True).clamp(min=1e-30)
    i = torch.maximum(low.log2().ceil(), high.log2().floor() + 1)        # -2^i may be reached, 2^i may not
    scale, half = torch.exp2(i - bits + 1), 2 ** (bits - 1)
    codes = (rows / scale).floor().clamp(-half, half - 1) + half
    return codes, {"scale": scale, "zero": torch.full_like(scale, half)}


def kmeans(rows, bits):
    codebook = torch.stack([centroids(row, 2 ** bits) for row in rows])
    edges = (codebook[:, 1:] + codebook[:, :-1]) / 2
    codes = torch.searchsorted(edges.contiguous(), rows.contiguous())
    return codes, {"codebook": codebook}


def centroids(values, count):
    """`count` sorted centroids of the values (n,), one of them 0: Lloyd's algorithm from equal distances.

    In one dimension the values of a centroid lie between two edges of the sorted values, so a step costs no distances.
    """
    values = values[values != 0].sort().values.double()
    found = values.unique()
    if len(found) >= count:
        found = torch.linspace(float(values[0]), float(values[-1]), count - 1, dtype=torch.float64).to(values.device)
        sums = torch.cat([values.new_zeros(1), values.cumsum(0)])
        for _ in range(100):
            inner = torch.searchsorted(values, (found[1:] + found[:-1]) / 2)
            bounds = torch.cat([inner.new_zeros(1), inner, inner.new_tensor([len(values)])])
            number, total = bounds.diff(), sums[bounds].diff()
            moved = torch.where(number > 0, total / number.clamp(min=1), found)
            if torch.equal(moved, found):
                break
            found = moved
    found = torch.cat([found, found.new_zeros(1)]).sort().values.float()
    return torch.cat([found, found[-1:].expand(count - len(found))])     # fewer values than centroids


METHODS = {"linear": linear, "kmeans": kmeans, "fixed_point": fixed_point}


@torch.no_grad()
def encode(weight, method, bits, per_channel=False, clip=0.0):
    """(codes, {"scale", "zero"} or {"codebook"}) of a weight (float tensor), as packing.quantized takes them."""
    weight = weight.detach().float()
    rows = weight.flatten(1) if per_channel else weight.reshape(1, -1)
    codes, parts = linear(rows, bits, clip) if method == "linear" else METHODS[method](rows, bits)
    shape = (-1, *[1] * (weight.dim() - 1)) if per_channel else ()
    if "codebook" in parts:
        parts = {"codebook": parts["codebook"] if per_channel else parts["codebook"][0]}
    else:
        parts = {name: part.reshape(shape) for name, part in parts.items()}
    return codes.long().reshape(weight.shape), parts


def quantize(weight, method, bits, per_channel=False, mask=None, clip=0.0):
    """The packing entry of a weight (float tensor) at 1 to 16 bits; kmeans and fixed_point need 2.

    mask: bool, True where kept; the others are stored as one bit each. clip: for linear, the fraction of weights at
    either end that are set to the value of the next one.
    """
    codes, parts = encode(weight.cpu(), method, bits, per_channel, clip)
    return packing.quantized(codes, bits, mask=mask, **parts)


@contextmanager
def rounded(weights, method, bits, per_channel):
    """In this context the weights (list of parameters) hold their quantized values q(w), after it w again.

    A gradient computed inside is taken at q(w) and applied to w by the optimizer outside: the straight-through
    estimator (Bengio et al. 2013), whose forward pass is w + (q(w) - w).detach().
    """
    before = [w.detach().clone() for w in weights]
    for w in weights:
        codes, parts = encode(w, method, bits, per_channel)
        w.data.copy_(packing.decode(codes, **parts))
    yield
    for w, value in zip(weights, before, strict=True):
        w.data.copy_(value)


# Inputs of layers


@torch.no_grad()
def calibrate(model, batches, layers, bits):
    """{layer: {"bits", "scale", "zero"}} for the inputs of these layers, from batches of training images.

    The range is the mean over the batches after clipping 0.01 % at either end.
    """
    seen = {name: [] for name in layers}

    def look(name):
        def hook(layer, inputs):
            flat = inputs[0].flatten()
            flat = flat[::max(len(flat) // 200_000, 1)]
            seen[name].append(torch.cat(ends(flat[None].float(), tail=1e-4), 1)[0])
        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(look(name)) for name in layers]
    model.eval()
    for images, _ in batches:
        model(images)
    for hook in hooks:
        hook.remove()
    found = {}
    for name, ranges in seen.items():
        if not ranges:                                       # it runs in training only
            continue
        lo, hi = torch.stack(ranges).mean(0)
        scale, zero = grid(lo, hi, bits)
        found[name] = {"bits": bits, "scale": float(scale), "zero": int(zero)}
    return found
