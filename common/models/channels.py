"""Which channels of a network can be removed: the records of its `channels()`.

They say which layers make the channels, which layers read them, and where their number stands in `cfg`. The pruning
scripts and `narrow` need nothing else, whatever the network.
"""
from dataclasses import dataclass, field
from itertools import islice, pairwise


@dataclass
class Consumer:
    layer: str              # conv or linear whose inputs the channels are
    norm: str = ""          # batch norm (then ReLU) between the channels and this consumer alone
    select: str = ""        # ChannelSelection before the consumer
    repeat: int = 1         # inputs per channel: positions of a flattened map
    part: slice = field(default_factory=lambda: slice(None))   # which of its inputs, where others are joined to them


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

    @property
    def joined(self):
        """Whether the consumers read other channels beside these (a dense stream)."""
        return any(consumer.part != slice(None) for consumer in self.consumers)

    def names(self):
        """Under these `narrow` takes their keep vector."""
        found = [self.consumers[0].norm, self.consumers[0].select]
        if self.producers:
            found = [name for pair in self.producers for name in pair]
            found += [consumer.norm for consumer in self.consumers if not consumer.select and not self.joined]
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
