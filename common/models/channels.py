"""The widths of networks, and removing channels from a network without changing what it computes.

Each network lists its removable channels in `channels()`, as `Channels` records: which layers make them, which
layers read them, and where their number stands in `cfg`. `narrow` needs nothing else, whatever the network.
"""
import copy
from dataclasses import dataclass
from itertools import islice, pairwise

import torch
import torch.nn.functional as F
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

    def forward(self, x, norm=None):
        """The selected channels of x; with a batch norm those of norm(x), the others not being computed."""
        i = self.indices
        if i.numel() == self.width:
            return x if norm is None else norm(x)
        x = x.movedim(1, -1).index_select(-1, i).movedim(-1, 1)          # keeps the channels-last order
        if norm is None:
            return x
        mean, var = norm.running_mean[i], norm.running_var[i]
        x = F.batch_norm(x, mean, var, norm.weight[i], norm.bias[i], norm.training, norm.momentum, norm.eps)
        if norm.training:
            norm.running_mean[i], norm.running_var[i] = mean, var
            norm.num_batches_tracked += 1
        return x


def read(select, norm, x):
    """What a layer reads of a stream through its batch norm, and through a selection where it has one."""
    return norm(x) if select is None else select(x, norm)


@dataclass
class Reader:
    layer: str              # conv or linear whose inputs the channels are
    norm: str = ""          # batch norm (then ReLU) between the channels and this reader alone
    select: str = ""        # ChannelSelection in front of the reader
    repeat: int = 1         # inputs per channel: positions of a flattened map


@dataclass(eq=False)
class Channels:
    """Channels that go together.

    makers: (conv or linear, its batch norm or ""), several where a residual stream adds them up or where a
    depthwise convolution hands the same channels on; the last is the one the readers see, behind a ReLU.
    Without makers the record is a selection: its reader stops reading, everyone else still may.
    """
    makers: list
    readers: list
    places: list            # [(cfg key, position), ...]: where the count is kept
    unit: int = 1           # channels that can only go together (a group of a grouped convolution)
    stream: bool = False    # the makers add up (residual stream), instead of following each other

    def names(self):
        """Under these `narrow` takes their keep vector."""
        found = [self.readers[0].norm, self.readers[0].select]
        if self.makers:
            found = [name for pair in self.makers for name in pair] + [r.norm for r in self.readers if not r.select]
        return [name for name in found if name]


def residual_channels(model, counts, stem, chain, shortcut, tail, before=(), shortcut_before=(), grouped=False):
    """The records of a residual network: what is inside its blocks, in the order of cfg["widths"], then its streams.

    counts: blocks per stage; one whose `starts_stream` is true adds to another stream than it reads.
    stem: (layer, norm behind it) that begins the first stream. tail: the Reader of the last one.
    chain: the (layer, norm behind it) of a block in their order, the last adds to the stream; grouped: the second of
    three hands on the channels of the first. shortcut: (layer, norm behind it) of a block's projection, if it has one.
    before, shortcut_before: (norm, selection) between the stream and the chain, and the projection.
    """
    modules = dict(model.named_modules())
    blocks = iter([name for name, module in modules.items() if hasattr(module, "starts_stream")])
    stream = Channels([stem], [], [("streams", 0)], stream=True)
    inner, streams = [], [stream]
    for stage, count in enumerate(counts, 1):
        for block in islice(blocks, count):
            *pairs, last, projection, own, other = [[name and f"{block}.{name}" for name in names]
                                                    for names in (*chain, shortcut, before, shortcut_before)]
            reader = Reader(pairs[0][0], *own)
            stream.readers.append(reader)
            if reader.select:
                inner.append(Channels([], [reader], []))
            if grouped:
                inner.append(Channels(pairs, [Reader(last[0])], [], unit=modules[pairs[1][0]].weight.shape[1]))
            else:
                inner += [Channels([pair], [Reader(after[0])], []) for pair, after in pairwise([*pairs, last])]
            if modules[block].starts_stream:
                begin = [projection] if projection[0] in modules else []
                stream.readers += [Reader(layer, *other) for layer, _ in begin]
                stream = Channels(begin, [], [], stream=True)
                streams.append(stream)
            stream.makers.append(last)
        stream.places.append(("streams", stage))
    stream.readers.append(tail)
    if tail.select:
        inner.append(Channels([], [tail], []))
    for i, record in enumerate(inner):
        record.places.append(("widths", i))
    return inner + streams


def fill(widths, default, what):
    """The widths of a network: the default, or as many numbers as it has."""
    widths = list(default) if widths is None else list(widths)
    if len(widths) != len(default) or any((a == "M") != (b == "M") for a, b in zip(widths, default, strict=True)):
        raise UserError(f"{what} takes {len(default)} widths like {list(default)}; got {widths}")
    if any(w != "M" and (not isinstance(w, int) or w < 1) for w in widths):
        raise UserError(f"{what}: a layer without channels in {widths}")
    return widths


def three_stages(streams, stem, factor, n, what):
    """Channels of the stem and the stages; per stage its n blocks: (channels, out, stride, begins with a projection).

    Without a factor the first stage goes on with the stem's stream. Projections go by place, not by number of
    channels: narrowed ones may coincide where the trained network has a projection.
    """
    streams = fill(streams, [stem, stem * factor, 2 * stem * factor, 4 * stem * factor], f"{what} (streams)")
    if factor == 1 and streams[0] != streams[1]:
        raise UserError(f"the stem and the first stage of {what} are one stream; got {streams}")
    plan = []
    for stage, out in enumerate(streams[1:]):
        first = (streams[stage], out, 2 if stage else 1, stage > 0 or factor > 1)
        plan.append([first] + [(out, out, 1, False)] * (n - 1))
    return streams, plan


def initialize(model, gamma=1.0):
    """Convolutions from a normal distribution by their outputs (He et al. 2015), batch norms at gamma."""
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out")
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.constant_(m.weight, gamma)


@torch.no_grad()
def narrow(model, keep):
    """A new network without the channels that `keep` drops, computing the same from the others.

    keep: {layer name: bool tensor (output channels,)}; in front of a channel selection the batch norm's name, over
    the batch norm's own channels. What is not named stays whole. A dropped channel that is constant (zero weights,
    or zero gamma) leaves its constant in the next bias; one that is not constant is simply dropped.
    ValueError names the layers where a vector has the wrong length, is empty, differs within a residual stream, or
    where a constant cannot be moved because the next convolution pads with zeros.
    """
    whole = copy.deepcopy(model).cpu().double()              # takes up the constants, and is then cut to size
    modules = dict(whole.named_modules())
    choices = choose(model, modules, keep)
    norm_behind = {maker: norm for record, _ in choices for maker, norm in record.makers}
    cfg, outputs, inputs = copy.deepcopy(model.cfg), {}, {}  # layer -> which of its outputs, of its inputs stay
    for record, stays in choices:
        if record.makers:
            fold(modules, norm_behind, record, ~stays)
            outputs.update({name: stays for pair in record.makers for name in pair})
            for reader in record.readers:
                outputs[reader.norm] = stays
                inputs[reader.select or reader.layer] = stays.repeat_interleave(reader.repeat)
        else:
            reader = record.readers[0]
            select = modules[reader.select]
            arrives = inputs.pop(reader.select, torch.ones_like(stays))
            fold(modules, norm_behind, record, arrives & ~stays)         # what does not arrive is folded already
            stays = inputs[reader.layer] = (arrives & stays)[select.indices]
            if not stays.any():
                raise UserError(f"narrow: nothing is left for {reader.layer} to read")
            select.indices = (arrives.cumsum(0) - 1)[select.indices[stays]]
        for key, position in record.places:
            cfg[key][position] = int(stays.sum())

    state = whole.state_dict()
    for name, tensor in state.items():
        layer = name.rpartition(".")[0]
        if tensor.dim() > 1 and layer in inputs:
            tensor = tensor[:, inputs[layer]]
        if tensor.dim() > 0 and layer in outputs:
            tensor = tensor[outputs[layer]]
        state[name] = tensor
    slim = type(model)(**cfg).to(next(model.parameters()))   # on its device, in its precision
    slim.arch = model.arch
    slim.load_state_dict(state)
    return slim.train(model.training)


def choose(model, modules, keep):
    """[(record, its checked keep vector), ...] for all records, a selection behind the stream it reads."""
    records = sorted(model.channels(), key=lambda record: not record.makers)
    owner = {name: record for record in records for name in record.names()}
    chosen = {}                                              # record -> (its vector, the name that this came under)
    for name, vector in keep.items():
        if name not in modules:
            raise UserError(f"narrow: the network has no layer {name!r}")
        vector, record = torch.as_tensor(vector, dtype=torch.bool).cpu(), owner.get(name)
        if vector.numel() != width_of(modules[name]):
            raise UserError(f"narrow: {name} has {width_of(modules[name])} channels, keep has {vector.numel()}")
        if record is None and vector.all():
            continue
        if record is None:
            raise UserError(f"narrow: the channels of {name} cannot be removed in a {model.arch}")
        other, first = chosen.setdefault(record, (vector, name))
        if not torch.equal(other, vector):
            raise UserError(f"narrow: {first} and {name} share their channels, but their keep vectors differ")
        if not vector.any():
            raise UserError(f"narrow: no channel of {name} is left")
        units = vector.view(-1, record.unit)
        if not torch.equal(units.any(1), units.all(1)):
            raise UserError(f"narrow: channels of {name} go {record.unit} at a time")
    for record in records:
        name = record.names()[0]
        chosen.setdefault(record, (torch.ones(width_of(modules[name]), dtype=torch.bool), name))
    return [(record, chosen[record][0]) for record in records]


def width_of(layer):
    for attribute in ("out_channels", "out_features", "num_features", "width"):
        if hasattr(layer, attribute):
            return getattr(layer, attribute)
    raise UserError(f"a {type(layer).__name__} has no channels")


def fold(modules, norm_behind, record, gone):
    """Moves what dropped channels always give into the biases behind their readers.

    Where there is a batch norm instead of a bias it goes to the running mean. In the values nan means: it varies.
    """
    varies = torch.full(gone.shape, torch.nan, dtype=torch.float64)
    value, total, silent = varies, torch.zeros_like(varies), torch.zeros_like(gone)
    for maker, norm in record.makers:
        layer = modules[maker]
        dead = layer.weight.flatten(1).eq(0).all(1) | silent
        value = torch.where(dead, torch.zeros_like(varies) if layer.bias is None else layer.bias, varies)
        if norm:
            value = after_norm(modules[norm], value)
        total += value.abs()                                 # a stream is read in between: its shares must not cancel
        if not record.stream:                                # behind a ReLU: groups that read only zeros
            silent = (value <= 0).view(-1, record.unit).all(1).repeat_interleave(record.unit)
    if record.stream:
        value = total
        if (value[gone] > 0).any():
            raise UserError(f"narrow: a dropped channel of {record.makers[0][0]} carries a constant into a residual "
                            "stream; zero the batch norm's bias there first")
    for reader in record.readers:
        layer, here = modules[reader.layer], value.relu()
        if reader.norm:
            here = after_norm(modules[reader.norm], here).relu()
        here = torch.where(gone, here, 0).nan_to_num(0).repeat_interleave(reader.repeat)
        if reader.select:
            here = here[modules[reader.select].indices]
        if not here.any():
            continue
        if any(getattr(layer, "padding", ())):
            raise UserError(f"narrow: a dropped channel's constant cannot pass {reader.layer}, which pads with zeros; "
                            "zero the bias of the batch norm before it first")
        shift = layer.weight.reshape(*layer.weight.shape[:2], -1).sum(2) @ here
        if layer.bias is not None:
            layer.bias += shift
        elif norm_behind.get(reader.layer):
            modules[norm_behind[reader.layer]].running_mean -= shift
        else:
            raise UserError(f"narrow: {reader.layer} has neither bias nor batch norm to take a dropped channel's "
                            "constant")


def after_norm(norm, x):
    """What an evaluating batch norm makes of the constants x (C,): behind a zero gamma everything is one."""
    weight, bias, mean, var = [part.double().cpu() for part in (norm.weight, norm.bias, norm.running_mean,
                                                                norm.running_var)]
    return torch.where(weight == 0, bias, bias + weight / (var + norm.eps).sqrt() * (x - mean))
