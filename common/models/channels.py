"""Which channels of a network can be removed: the records of its `channels()`.

They say which layers make the channels, which layers read them, and where their number stands in `cfg`. The pruning
scripts and `narrow` need nothing else, whatever the network.

trace.py finds the records of any network, these too (tests/test_trace.py compares them). Our families still describe
their own: tracing a VGG-16 takes 1.4 s each time a file is read, and it finds neither places in `cfg` nor channel
selections nor blocks that can lose all their channels.
"""
from dataclasses import dataclass, field
from itertools import islice, pairwise

import torch


@dataclass
class Consumer:
    layer: str              # conv or linear whose inputs the channels are
    norm: str = ""          # batch norm (then ReLU) between the channels and this consumer alone
    select: str = ""        # ChannelSelection before the consumer
    repeat: int = 1         # inputs per channel: positions of a flattened map
    part: slice = field(default_factory=lambda: slice(None))   # which of its inputs, where others are joined to them;
                                                               # of a traced network also their positions, unit by unit


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
    stream: bool = False    # part of a stream that several layers add or are joined to, instead of following each other
    branch: str = ""        # a block they are inside of, which may lose them all and is its shortcut then
    branch_norm: str = ""   # the batch norm that block's branch ends with, if it does
    index: dict = field(default_factory=dict)    # of a traced network: {(tensor, axis): unit of each position, or -1}

    @property
    def joined(self):
        """Whether the consumers read other channels beside these (a dense stream)."""
        return any(not isinstance(consumer.part, slice) or consumer.part != slice(None) for consumer in self.consumers)

    @property
    def plain(self):
        """Whether each of its layers has these channels and no others, unit by unit."""
        return not self.joined and all(
            torch.equal(units, torch.arange(len(units)) // max(len(units) // (int(units.max()) + 1), 1))
            for units in self.index.values())

    def by_unit(self, layer, values):
        """values (outputs of a producer or its norm, ...) -> (units, outputs per unit, ...)."""
        if not self.index:
            return values.unflatten(0, (-1, self.group_size))
        return arranged(self.index[f"{layer}.weight", 0], values)

    def used(self, modules):
        """bool (units,): those that any consumer has a non-zero weight on."""
        found = []
        for consumer in self.consumers:
            read = modules[consumer.layer].weight.detach().ne(0).transpose(0, 1).flatten(1).any(1).cpu()
            if consumer.select:                              # the consumer sees only the selected ones
                select = modules[consumer.select]
                read = torch.zeros(select.width, dtype=torch.bool).index_copy(0, select.indices.cpu(), read)
            found.append(arranged(self.index[f"{consumer.layer}.weight", 1], read) if self.index else
                         read[consumer.part].unflatten(0, (-1, consumer.repeat * self.group_size)))
        return torch.stack([read.any(1) for read in found]).any(0)

    def over_channels(self, alive):
        """bool (units,) -> (channels,) of the first producer."""
        if not self.index:
            return alive.repeat_interleave(self.group_size)
        return alive[self.index[f"{self.producers[0][0]}.weight", 0]]

    def tensors(self, modules):
        """{(tensor, axis): the unit of each position, or -1}: all that is cut where units are removed. A selection
        stands there under its own name, with the channels that arrive at it."""
        if self.index:
            return self.index
        found = {}

        def put(layer, units, leaves=("weight", "bias", "running_mean", "running_var")):
            found.update({(f"{layer}.{leaf}", 0): units for leaf in leaves
                          if layer and getattr(modules[layer], leaf, None) is not None})

        for producer, norm in self.producers:
            count = len(modules[producer].weight)
            units = torch.arange(count) // self.group_size
            put(producer, units)
            put(norm, units)
        for consumer in self.consumers:
            select = modules[consumer.select] if consumer.select else None
            units = torch.full((modules[consumer.layer].weight.shape[1] if select is None else select.width,), -1)
            units[consumer.part] = torch.arange(count).repeat_interleave(consumer.repeat) // self.group_size
            found[(f"{consumer.layer}.weight", 1) if select is None else (consumer.select, 0)] = units
            put(consumer.norm, units)
        return found

    def names(self):
        """Under these `narrow` takes their keep vector."""
        found = [self.consumers[0].norm, self.consumers[0].select]
        if self.producers:
            found = [name for pair in self.producers for name in pair]
            found += [consumer.norm for consumer in self.consumers if not consumer.select and not self.joined]
        if self.index:                                       # of a traced network only layers that have all units
            whole = [tensor for (tensor, axis), units in self.index.items() if axis == 0 and units.min() >= 0]
            found = [name for name in found if f"{name}.weight" in whole]
        return [name for name in found if name]


def arranged(units, values):
    """values (positions, ...) -> (units, positions per unit, ...), by the unit of each position, -1 for none."""
    order = units.argsort(stable=True)[(units < 0).sum():]
    return values[order.to(values.device)].unflatten(0, (int(units.max()) + 1, -1))


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
