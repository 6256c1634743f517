"""Removing channels from a network without changing what it computes.

Each network lists its removable channels in `channels()`, as `Channels` records: which layers make them, which
layers read them, and where their number stands in `cfg`. `narrow` needs nothing else, whatever the network.
"""
import copy
from dataclasses import dataclass

import torch
from torch import nn

from common import UserError


class ChannelSelection(nn.Module):
    """Passes on the channels `indices` (dimension 1) of its input, in this order.

    It lets a layer read only part of a residual or dense stream that others read whole (Liu et al. 2017,
    section 4.3). A buffer, not a parameter: it is not trained and not counted.
    """

    def __init__(self, width, kept=None):
        super().__init__()
        if kept is not None and kept > width:
            raise UserError(f"a selection of {kept} out of {width} channels")
        self.width = width
        self.register_buffer("indices", torch.arange(width if kept is None else kept))

    def forward(self, x):
        return x if self.indices.numel() == self.width else x.index_select(1, self.indices)


@dataclass
class Reader:
    layer: str              # conv or linear whose inputs the channels are
    norm: str = ""          # batch norm (then ReLU) between the channels and this reader alone
    select: str = ""        # ChannelSelection in front of the reader
    repeat: int = 1         # inputs per channel: positions of a flattened map


@dataclass
class Channels:
    """Channels that go together.

    makers: (conv or linear, its batch norm or ""), several where a residual stream adds them up or where a
    depthwise convolution hands the same channels on; the last is the one the readers see.
    Without makers the record is a selection: its reader stops reading, everyone else still may.
    """
    makers: list
    readers: list
    places: list            # [(cfg key, position), ...]: where the count is kept
    relu: bool = True       # ReLU behind the makers
    unit: int = 1           # channels that can only go together (a group of a grouped convolution)
    stream: bool = False    # the makers add up (residual stream), instead of following each other

    def names(self):
        if not self.makers:
            reader = self.readers[0]
            return [name for name in (reader.norm, reader.select) if name]
        own = [name for pair in self.makers for name in pair if name]
        return own + [r.norm for r in self.readers if r.norm and not r.select]


def width_of(layer):
    for attribute in ("out_channels", "out_features", "num_features", "width"):
        if hasattr(layer, attribute):
            return getattr(layer, attribute)
    raise UserError(f"a {type(layer).__name__} has no channels")


def fill(widths, default, what):
    """The widths of a network: the default, or as many numbers as it has."""
    widths = list(default) if widths is None else list(widths)
    if len(widths) != len(default) or any((a == "M") != (b == "M") for a, b in zip(widths, default, strict=True)):
        raise UserError(f"{what} takes {len(default)} widths like {list(default)}; got {widths}")
    if any(w != "M" and (not isinstance(w, int) or w < 1) for w in widths):
        raise UserError(f"{what}: a layer without channels in {widths}")
    return widths


def narrow(model, keep):
    """A new network without the channels that `keep` drops, computing the same from the others.

    keep: {layer name: bool tensor (output channels,)}; in front of a channel selection the batch norm's name, over
    the batch norm's own channels. What is not named stays whole. A dropped channel that is constant (zero weights,
    or zero gamma) leaves its constant in the next bias; one that is not constant is simply dropped.
    ValueError names the layers where a vector has the wrong length, is empty, differs within a residual stream, or
    where a constant cannot be moved because the next convolution pads with zeros.
    """
    modules = dict(model.named_modules())
    records = model.channels()
    owner = {name: record for record in records for name in record.names()}
    chosen = {}                                              # id(record) -> keep vector of that record
    for name, vector in keep.items():
        if name not in modules:
            raise UserError(f"narrow: the network has no layer {name!r}")
        vector = torch.as_tensor(vector, dtype=torch.bool).cpu()
        if vector.numel() != width_of(modules[name]):
            raise UserError(f"narrow: {name} has {width_of(modules[name])} channels, keep has {vector.numel()}")
        if vector.all() and name not in owner:
            continue
        if name not in owner:
            raise UserError(f"narrow: the channels of {name} cannot be removed in a {model.arch}")
        record = owner[name]
        other, first = chosen.get(id(record), (vector, name))
        if not torch.equal(other, vector):
            raise UserError(f"narrow: {first} and {name} share their channels, but their keep vectors differ")
        if not vector.any():
            raise UserError(f"narrow: no channel of {name} is left")
        if not torch.equal(vector, vector.view(-1, record.unit).all(1).repeat_interleave(record.unit)):
            raise UserError(f"narrow: channels of {name} go {record.unit} at a time")
        chosen[id(record)] = vector, name

    # What each layer keeps of its outputs and inputs, and the constants that dropped channels leave behind.
    cfg, out_keep, in_keep, new_indices, constants = copy.deepcopy(model.cfg), {}, {}, {}, []
    norm_behind = {maker: norm for record in records for maker, norm in record.makers if norm}
    arriving = {}                                            # select name -> what is left of the stream it reads
    for record in sorted(records, key=lambda r: not r.makers):
        vector, name = chosen.get(id(record), (None, None))
        if record.makers:
            if vector is None:
                continue
            for pair in record.makers:
                out_keep.update({name: vector for name in pair if name})
            for reader in record.readers:
                wide = vector.repeat_interleave(reader.repeat)
                if reader.norm:
                    out_keep[reader.norm] = vector
                if reader.select:
                    arriving[reader.select] = wide
                else:
                    in_keep[reader.layer] = wide
            constants += constants_of(modules, record, vector)
        else:
            reader = record.readers[0]
            select = modules[reader.select]
            left = arriving.get(reader.select, torch.ones(select.width, dtype=torch.bool))
            if vector is None and left.all():
                continue
            if vector is not None:
                constants += constants_of(modules, record, vector | ~left)       # what left is folded already
            both = left if vector is None else left & vector
            old = select.indices.cpu()
            in_keep[reader.layer] = both[old]
            if not in_keep[reader.layer].any():
                raise UserError(f"narrow: nothing is left for {reader.layer} to read")
            new_indices[reader.select] = (left.cumsum(0) - 1)[old][both[old]]
            vector = in_keep[reader.layer]
        for key, position in record.places:
            cfg[key][position] = int(vector.sum())

    slim = type(model)(**cfg)
    slim.arch = model.arch
    slim.to(next(model.parameters()).dtype).train(model.training)
    state = {}
    for name, tensor in model.state_dict().items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "indices":
            tensor = new_indices.get(layer, tensor)
        elif tensor.dim():
            if tensor.dim() > 1 and layer in in_keep:
                tensor = tensor[:, in_keep[layer].to(tensor.device)]
            if layer in out_keep:
                tensor = tensor[out_keep[layer].to(tensor.device)]
        state[name] = tensor.clone()
    for reader, inputs, values in constants:
        fold(modules, state, reader, inputs, values, norm_behind.get(reader), out_keep)
    slim.load_state_dict(state)
    return slim.to(next(model.parameters()).device)


@torch.no_grad()
def constants_of(modules, record, keep):
    """[(reader, its inputs (M,), their constant values (M,)), ...] of the dropped channels that are not zero."""
    gone = ~keep
    value, constant = torch.zeros(len(keep), dtype=torch.float64), torch.ones(len(keep), dtype=torch.bool)
    for i, (maker, norm) in enumerate(record.makers):
        layer = modules[maker]
        is_zero = layer.weight.detach().flatten(1).eq(0).all(1).cpu()
        if i and not record.stream:                          # behind a ReLU: a group that reads only zeros
            silent = (constant & (value <= 0)).view(-1, record.unit).all(1)
            is_zero |= silent.repeat_interleave(record.unit)
            value, constant = torch.zeros_like(value), torch.ones_like(constant)
        share = torch.zeros_like(value) if layer.bias is None else layer.bias.double().cpu()
        if norm:
            is_zero |= modules[norm].weight.eq(0).cpu()
            share = after_norm(modules[norm], share)
        # Within a stream readers also see partial sums: shares that cancel are not nothing.
        value, constant = value + (share.abs() if record.stream else share), constant & is_zero
    if record.stream and (value * constant * gone).any():
        raise UserError(f"narrow: a dropped channel of {record.makers[0][0]} carries a constant into a residual "
                        "stream; zero the batch norm's bias there first")
    value = value.relu() if record.relu else value
    found = []
    for reader in record.readers:
        here, fixed = value, constant
        if reader.norm:
            fixed = modules[reader.norm].weight.eq(0).cpu()          # a zero gamma makes anything constant
            if record.makers:
                fixed = fixed | constant
            here = after_norm(modules[reader.norm], here).relu()
        elif not record.makers:
            continue                                         # raw inputs are dropped, they are no constants
        here = torch.where(fixed & gone, here, 0).repeat_interleave(reader.repeat)
        inputs = here.nonzero().flatten()
        if len(inputs):
            found.append((reader.layer, columns(modules, reader, inputs), here[inputs]))
    return found


def columns(modules, reader, channels):
    """Where the reader's weight sees these channels of the stream: behind a selection, their rank in it; -1 unseen."""
    if not reader.select:
        return channels
    select = modules[reader.select]
    rank = torch.full((select.width,), -1)
    rank[select.indices.cpu()] = torch.arange(select.indices.numel())
    return rank[channels]


def after_norm(norm, x):
    """What an evaluating batch norm makes of the constants x (C,)."""
    scale = norm.weight.double().cpu() / (norm.running_var.double().cpu() + norm.eps).sqrt()
    return norm.bias.double().cpu() + scale * (x - norm.running_mean.double().cpu())


@torch.no_grad()
def fold(modules, state, reader, inputs, values, norm, out_keep):
    """Adds W[:, inputs] @ values to the reader's bias, or takes it from the running mean of the norm behind it."""
    layer = modules[reader]
    seen = inputs >= 0
    inputs, values = inputs[seen], values[seen]
    if not len(inputs):
        return
    weight = layer.weight.double().cpu()
    if weight.dim() == 4:
        if any(layer.padding):
            raise UserError(f"narrow: a dropped channel's constant cannot pass {reader}, which pads with zeros; "
                            "zero the bias of the batch norm before it first")
        weight = weight.sum((2, 3))
    shift = weight[:, inputs] @ values
    if reader in out_keep:
        shift = shift[out_keep[reader]]
    if layer.bias is None and norm is None:
        raise UserError(f"narrow: {reader} has neither bias nor batch norm to take a dropped channel's constant")
    target, sign = (f"{reader}.bias", 1) if layer.bias is not None else (f"{norm}.running_mean", -1)
    state[target] += sign * shift.to(state[target])
