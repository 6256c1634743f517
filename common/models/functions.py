"""The rules of torch functions for channels: where the result has them and which can only be removed together.

A rule takes the `Labels` and a `Call` and returns [{axis, labels, ...}], one for each tensor of the result or one for
all; {} is a tensor without channels. NotImplemented, as no rule at all, freezes what was read.
"""
from math import prod

import torch
from torch import nn

from common.models.moves import cat, chunk, moved, nothing, pick


def same(known, **origin):
    """The result has the channels of the tensor that it was computed from."""
    return [dict(axis=known.axis, labels=known.labels, before=known, **origin)]


def layer(labels, call, axis, groups=1):
    """A convolution or linear layer: its input axis is what arrives, its output axis is what it makes."""
    x, weight, bias = call.operands[0], call.operands[1], call.get(2, "bias")
    path, _, leaf = labels.names.get(id(weight), "").rpartition(".")
    if leaf != "weight" or not isinstance(labels.modules.get(path), nn.modules.conv._ConvNd | nn.Linear):
        return NotImplemented                                # a weight that is computed, or belongs to no layer
    arrives, makes = labels.along(x, axis), labels.axis(weight, 0)
    if groups > 1:                                           # whole groups are removed
        if arrives is None:
            labels.layers.setdefault(path)
            labels.freeze(makes, "reads a fixed number of channels")
            return [{}]
        arrives, rows = arrives.view(groups, -1), makes.view(groups, -1)
        labels.tie(arrives, arrives[:, :1])
        labels.tie(rows, arrives[:, :1])
    elif arrives is None:
        labels.freeze(labels.axis(weight, 1), "reads a fixed number of channels")
    else:
        labels.tie(arrives, labels.axis(weight, 1))
        labels.reads.append((path, labels.know(x)))
    labels.layers.setdefault(path)
    if bias is not None:
        added = labels.along(bias, 0)
        if added is None and len(makes) > 1:
            labels.freeze(makes, "adds a bias that is computed")
        elif added is not None:
            labels.tie(makes, added)
    return [dict(axis=axis, labels=makes, layer=path)]


def convolution(labels, call):
    if len(call.operands) < 2:
        return NotImplemented
    return layer(labels, call, len(call.shapes[0]) - len(call.shapes[1]) + 1, call.get(6, "groups", 1))


def linear(labels, call):
    return layer(labels, call, -1) if len(call.operands) > 1 else NotImplemented


def norm(labels, call):
    """Batch norm, instance norm, PReLU: vectors over the channels."""
    x, *vectors = call.tensors
    channels = labels.along(x, 1)
    if channels is None:
        return NotImplemented
    path = ""
    for vector in vectors:
        if vector.numel() > 1:
            own = labels.along(vector, 0)
            if own is None:
                return NotImplemented
            labels.tie(channels, own)
            path = path or labels.names.get(id(vector), "").rpartition(".")[0]
    known, path = labels.know(x), path if call.name == "batch_norm" else ""
    if path:
        labels.norms.append((path, known))
    return same(known, norm=path)


def elementwise(labels, call):
    """Positions that meet are tied. One channel that is broadcast over others stays, and what meets a fixed size."""
    dims = max(map(len, call.shapes))
    operands = [(t, labels.know(t), (1,) * (dims - len(shape)) + shape) for t, shape in
                zip(call.tensors, call.shapes, strict=True)]
    with_channels = [(t, known, known.axis + dims - t.dim(), shape) for t, known, shape in operands
                     if known.labels is not None]
    if len({axis for _, _, axis, _ in with_channels}) != 1:
        return NotImplemented
    axis = with_channels[0][2]
    if len(call.outputs) != 1 or call.outputs[0].dim() != dims:
        return NotImplemented
    width = max(shape[axis] for _, _, shape in operands)
    whole = [(t, known, shape) for t, known, _, shape in with_channels if shape[axis] == width]
    if len(whole) < len(with_channels):
        for _, known, _, shape in with_channels:
            if shape[axis] < width:
                labels.freeze(known.labels, "one channel beside many")
    if width > 1 and any(known.labels is None and shape[axis] > 1 for _, known, shape in operands):
        return NotImplemented                                # a fixed size
    if not whole:
        return [{}]
    first = whole[0][1]
    apart = any(not torch.equal(labels.roots(first.labels), labels.roots(known.labels)) for _, known, _ in whole[1:])
    for _, known, _ in whole[1:]:
        labels.tie(first.labels, known.labels)
    computed = [(t, known, shape) for t, known, shape in whole if id(t) not in labels.names]
    if call.name in PRODUCTS:
        largest = max(prod(shape) for _, _, shape in computed or whole)
        labels.gates |= {labels.maker(t) for t, _, shape in computed if prod(shape) < largest}
    elif len(computed) > 1 and apart:
        labels.added.append(first.labels)
    before = computed[0][1] if len(computed) == 1 else None
    return [dict(axis=axis - dims, labels=first.labels, before=before)]


def first(labels, call):
    """A tensor in the type, or on the device, of another."""
    return same(labels.know(call.tensors[0]))


def spatial(labels, call):
    """Pooling and resizing: channels come before one to three axes of space."""
    known, shape = labels.know(call.tensors[0]), call.shapes[0]
    space = next((int(c) for c in call.name if c in "123"), len(shape) - 2)
    if known.axis != len(shape) - space - 1:
        return NotImplemented
    return same(known)


def reduce(labels, call):
    """Sums and means over other axes than that of the channels."""
    known, shape = labels.know(call.tensors[0]), call.shapes[0]
    given = call.get(2, "dim") if call.name == "norm" else call.get(1, "dim")
    if given is None or isinstance(given, bool | torch.Tensor) or len(call.tensors) > 1:
        return NotImplemented
    dims = {d % len(shape) for d in ([given] if isinstance(given, int) else given)}
    if known.axis in dims or not dims:
        return NotImplemented
    gone = 0 if call.outputs[0].dim() == len(shape) else sum(d < known.axis for d in dims)
    return [dict(axis=known.axis - gone, labels=known.labels, before=known)]


def along(labels, call):
    """Softmax and the like along other axes than that of the channels."""
    known, dim = labels.know(call.tensors[0]), call.get(1, "dim")
    if dim is None or known.axis == dim % len(call.shapes[0]):
        return NotImplemented
    return same(known)


def pad(labels, call):
    known, pads, dims = labels.know(call.tensors[0]), call.get(1, "pad"), len(call.shapes[0])
    i = 2 * (dims - 1 - known.axis)
    return NotImplemented if any(pads[i:i + 2]) else same(known)


PRODUCTS = set("mul div imul truediv itruediv rmul rdiv multiply".split())
RULES = {name: rule for rule, names in {
    convolution: "conv1d conv2d conv3d",
    linear: "linear",
    norm: "batch_norm instance_norm prelu",
    elementwise: """relu relu6 silu hardswish hardsigmoid sigmoid gelu tanh hardtanh leaky_relu elu selu celu mish
        softplus logsigmoid softsign hardshrink softshrink tanhshrink threshold rrelu dropout dropout1d dropout2d
        dropout3d feature_dropout alpha_dropout clamp clamp_min clamp_max contiguous float double half bfloat16
        clone detach abs square sqrt rsqrt exp log log1p expm1 neg pow sign sin cos erf reciprocal floor ceil round
        zeros_like ones_like rand_like randn_like empty_like bernoulli requires_grad identity add sub mul div truediv
        iadd isub imul itruediv radd rsub rmul rdiv multiply maximum minimum where addcmul lerp masked_fill expand_as
        gt lt ge le eq ne""",
    first: "to type_as",
    spatial: """max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
        adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d lp_pool1d
        lp_pool2d max_pool1d_with_indices max_pool2d_with_indices interpolate upsample""",
    reduce: "mean sum amax amin norm std var max min logsumexp prod",
    along: "softmax log_softmax cumsum",
    pad: "pad",
    cat: "cat concat concatenate stack",
    moved: """flatten view reshape permute transpose unsqueeze squeeze expand movedim moveaxis swapaxes unflatten flip
        repeat tile repeat_interleave t""",
    pick: "getitem select narrow unbind roll",
    chunk: "chunk split tensor_split",
    nothing: "new_empty new_zeros new_ones new_full new_tensor",
}.items() for name in names.split()}
