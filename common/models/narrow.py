"""The widths of networks, and removing channels from a network without changing what it computes.

Each network lists its removable channels in `channels()`, as `Channels` records: which layers make them, which
layers read them, and where their number stands in `cfg`. `narrow` needs nothing else, whatever the network.
"""
import copy
from dataclasses import dataclass
from itertools import islice, pairwise

import torch

from common import UserError


@dataclass
class Consumer:
    layer: str              # conv or linear whose inputs the channels are
    norm: str = ""          # batch norm (then ReLU) between the channels and this consumer alone
    select: str = ""        # ChannelSelection before the consumer
    repeat: int = 1         # inputs per channel: positions of a flattened map


@dataclass(eq=False)
class Channels:
    """Channels that go together.

    producers: (conv or linear, its batch norm or ""), several where a residual stream adds them up or where a
    depthwise convolution passes the same channels on; the last is the one the consumers see, after a ReLU.
    Without producers the record is a selection: its consumer stops reading, everyone else still may.
    """
    producers: list
    consumers: list
    places: list            # [(cfg key, position), ...]: where the count is kept
    group_size: int = 1           # channels that can only go together (a group of a grouped convolution)
    stream: bool = False    # the producers add up (residual stream), instead of following each other
    branch: str = ""        # a block they are inside of, which may lose them all and is its shortcut then
    branch_norm: str = ""   # the batch norm that block's branch ends with, if it does

    def names(self):
        """Under these `narrow` takes their keep vector."""
        found = [self.consumers[0].norm, self.consumers[0].select]
        if self.producers:
            found = [name for pair in self.producers for name in pair]
            found += [consumer.norm for consumer in self.consumers if not consumer.select]
        return [name for name in found if name]


def residual_channels(model, counts, stem, chain, shortcut, tail, before=(), shortcut_before=(), grouped=False,
                      removable=False):
    """The records of a residual network: what is inside its blocks, in the order of cfg["widths"], then its streams.

    counts: blocks per stage; one whose `starts_stream` is true adds to another stream than it reads.
    stem: (layer, norm after it) that begins the first stream. tail: the Consumer of the last one.
    chain: the (layer, norm after it) of a block in their order, the last adds to the stream; grouped: the second of
    three passes on the channels of the first. shortcut: (layer, norm after it) of a block's projection, if it has one.
    before, shortcut_before: (norm, selection) between the stream and the chain, and the projection.
    removable: blocks may lose all their inner channels; one that has is without the modules of its chain.
    """
    modules = dict(model.named_modules())
    blocks = iter([name for name, module in modules.items() if hasattr(module, "starts_stream")])
    stream = Channels([stem], [], [("streams", 0)], stream=True)
    inner, streams = [], [stream]
    for stage, count in enumerate(counts, 1):
        for block in islice(blocks, count):
            *pairs, last, projection, own, other = [[name and f"{block}.{name}" for name in names]
                                                    for names in (*chain, shortcut, before, shortcut_before)]
            consumer, whole = Consumer(pairs[0][0], *own), pairs[0][0] in modules
            if whole:
                stream.consumers.append(consumer)
            if consumer.select:
                inner.append(Channels([], [consumer], []))
            if not whole:
                inner += [None] * len(pairs)                 # their places in widths
            elif grouped:
                inner.append(Channels(pairs, [Consumer(last[0])], [], group_size=modules[pairs[1][0]].weight.shape[1]))
            else:
                branch = (block, last[1]) if removable else ("", "")
                inner += [Channels([pair], [Consumer(after[0])], [], 1, False, *branch)
                          for pair, after in pairwise([*pairs, last])]
            if modules[block].starts_stream:
                begin = [projection] if projection[0] in modules else []
                stream.consumers += [Consumer(layer, *other) for layer, _ in begin]
                stream = Channels(begin, [], [], stream=True)
                streams.append(stream)
            if whole:
                stream.producers.append(last)
        stream.places.append(("streams", stage))
    stream.consumers.append(tail)
    if tail.select:
        inner.append(Channels([], [tail], []))
    for i, record in enumerate(inner):
        if record:
            record.places.append(("widths", i))
    return [record for record in inner if record] + streams


@torch.no_grad()
def narrow(model, keep):
    """A new network without the channels that `keep` drops, computing the same from the others.

    keep: {layer name: bool tensor (output channels,)}; before a channel selection the batch norm's name, over
    the batch norm's own channels. What is not named stays whole. A dropped channel that is constant (zero weights,
    or zero gamma) leaves its constant in the next bias; one that is not constant is simply dropped.
    A residual branch that loses all channels of one layer goes as a whole: its block is the shortcut.
    ValueError names the layers where a vector has the wrong length, is empty, differs within a residual stream, or
    where a constant cannot be moved because the next convolution pads with zeros.
    """
    whole = copy.deepcopy(model).cpu().double()              # takes up the constants, and is then cut to size
    modules = dict(whole.named_modules())
    choices = choose(model, modules, keep)
    norm_after = {producer: norm for record, _ in choices for producer, norm in record.producers}
    cfg, outputs, inputs = copy.deepcopy(model.cfg), {}, {}  # layer -> which of its outputs, of its inputs stay
    for record, stays in choices:
        if record.producers:
            fold(modules, norm_after, record, ~stays)
            outputs.update({name: stays for pair in record.producers for name in pair})
            for consumer in record.consumers:
                outputs[consumer.norm] = stays
                inputs[consumer.select or consumer.layer] = stays.repeat_interleave(consumer.repeat)
        else:
            consumer = record.consumers[0]
            select = modules[consumer.select]
            arrives = inputs.pop(consumer.select, torch.ones_like(stays))
            fold(modules, norm_after, record, arrives & ~stays)          # what does not arrive is folded already
            stays = inputs[consumer.layer] = (arrives & stays)[select.indices]
            if not stays.any():
                raise UserError(f"narrow: nothing is left for {consumer.layer} to read")
            select.indices = (arrives.cumsum(0) - 1)[select.indices[stays]]
        for key, position in record.places:
            cfg[key][position] = int(stays.sum())
    check_empty(modules, choices)

    state = whole.state_dict()
    for name, tensor in state.items():
        layer = name.rpartition(".")[0]
        if tensor.dim() > 1 and layer in inputs:
            tensor = tensor[:, inputs[layer]]
        if tensor.dim() > 0 and layer in outputs:
            tensor = tensor[outputs[layer]]
        state[name] = tensor
    size = {key: cfg.pop(key) for key in ("image_size",) if key in cfg}
    slim = type(model)(**cfg).to(next(model.parameters()))   # on its device, in its precision
    slim.cfg.update(size)
    slim.arch, slim.images = model.arch, getattr(model, "images", None)
    slim.load_state_dict({name: state[name] for name in slim.state_dict()})          # without the empty branches
    return slim.train(model.training)


def choose(model, modules, keep):
    """[(record, its checked keep vector), ...] for all records, a selection after the stream it reads."""
    records = sorted(model.channels(), key=lambda record: not record.producers)
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
        if not vector.any() and not record.branch:
            raise UserError(f"narrow: no channel of {name} is left")
        units = vector.view(-1, record.group_size)
        if not torch.equal(units.any(1), units.all(1)):
            raise UserError(f"narrow: channels of {name} go {record.group_size} at a time")
    for record in records:
        name = record.names()[0]
        chosen.setdefault(record, (torch.ones(width_of(modules[name]), dtype=torch.bool), name))
    empty = {record.branch for record in records if record.branch and not chosen[record][0].any()}
    return [(record, chosen[record][0] & (record.branch not in empty)) for record in records]


def check_empty(modules, choices):
    """UserError where a residual branch that goes still adds a constant to the stream (its last batch norm does)."""
    for record, stays in choices:
        norm = record.branch_norm
        if norm and not stays.any() and after_norm(modules[norm], torch.zeros(1).double()).any():
            raise UserError(f"narrow: {record.branch} is left without channels, but {norm} still adds a constant; zero "
                            "its weight and bias first")


def width_of(layer):
    for attribute in ("out_channels", "out_features", "num_features", "width"):
        if hasattr(layer, attribute):
            return getattr(layer, attribute)
    raise UserError(f"a {type(layer).__name__} has no channels")


def fold(modules, norm_after, record, dropped):
    """Moves what dropped channels always give into the biases after their consumers.

    Where there is a batch norm instead of a bias it goes to the running mean. In the values nan means: it varies.
    """
    varies = torch.full(dropped.shape, torch.nan, dtype=torch.float64)
    value, total, silent = varies, torch.zeros_like(varies), torch.zeros_like(dropped)
    for producer, norm in record.producers:
        layer = modules[producer]
        dead = layer.weight.flatten(1).eq(0).all(1) | silent
        value = torch.where(dead, torch.zeros_like(varies) if layer.bias is None else layer.bias, varies)
        if norm:
            value = after_norm(modules[norm], value)
        total += value.abs()                                 # a stream is read in between: its parts must not cancel
        if not record.stream:                                # after a ReLU: groups that read only zeros
            silent = (value <= 0).view(-1, record.group_size).all(1).repeat_interleave(record.group_size)
    if record.stream:
        value = total
        read = torch.stack([reads(modules, consumer) for consumer in record.consumers]).any(0)
        if (value[dropped & read] > 0).any():
            raise UserError(f"narrow: a dropped channel of {record.producers[0][0]} carries a constant into a residual "
                            "stream; zero the batch norm's bias there first")
    for consumer in record.consumers:
        layer, here = modules[consumer.layer], value.relu()
        if consumer.norm:
            here = after_norm(modules[consumer.norm], here).relu()
        taken = dropped & reads(modules, consumer)           # what is read with zero weights leaves no constant
        here = torch.where(taken, here, 0).nan_to_num(0).repeat_interleave(consumer.repeat)
        if consumer.select:
            here = here[modules[consumer.select].indices]
        if not here.any():
            continue
        if any(getattr(layer, "padding", ())):
            raise UserError(f"narrow: a dropped channel's constant cannot pass {consumer.layer}, which pads with "
                            "zeros; zero the bias of the batch norm before it first")
        shift = layer.weight.reshape(*layer.weight.shape[:2], -1).sum(2) @ here
        if layer.bias is not None:
            layer.bias += shift
        elif norm_after.get(consumer.layer):
            modules[norm_after[consumer.layer]].running_mean -= shift
        else:
            raise UserError(f"narrow: {consumer.layer} has neither bias nor batch norm to take a dropped channel's "
                            "constant")


def reads(modules, consumer):
    """bool (channels,): the channels of its producers that this consumer has a non-zero weight on."""
    read = modules[consumer.layer].weight.detach().ne(0).transpose(0, 1).flatten(1).any(1).cpu()
    if consumer.select:                                      # the consumer sees only the selected ones
        select = modules[consumer.select]
        read = torch.zeros(select.width, dtype=torch.bool).index_copy(0, select.indices.cpu(), read)
    return read.view(-1, consumer.repeat).any(1)


def after_norm(norm, x):
    """What an evaluating batch norm makes of the constants x (C,): after a zero gamma everything is one."""
    weight, bias, mean, var = [part.double().cpu() for part in (norm.weight, norm.bias, norm.running_mean,
                                                                norm.running_var)]
    return torch.where(weight == 0, bias, bias + weight / (var + norm.eps).sqrt() * (x - mean))
