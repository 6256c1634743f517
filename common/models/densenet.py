"""DenseNet for 32 x 32 images (Huang et al. 2017, "Densely Connected Convolutional Networks").

block        a layer                                                      layers per stage
basic        BN - ReLU - 3 x 3 convolution to `growth` channels           (depth - 4) / 3
bottleneck   the same after BN - ReLU - 1 x 1 convolution to 4 growth    (depth - 4) / 6      (DenseNet-BC)

Each layer's output is joined to its input; a transition divides the channels by `compression` and halves the image.
With `selection` each BN of a basic DenseNet passes on only chosen channels of the joined stream (Liu et al. 2017,
"Network Slimming", section 4.3; gamma=0.5); there the stream itself, `growth` channels a layer, stays whole. `streams`
narrows it.
"""
import torch
import torch.nn.functional as F
from torch import nn

from common.models.channels import Channels, Consumer
from common.models.layers import ChannelSelection, fill, initialize, read


class Layer(nn.Module):
    """(N, channels, H, W) -> (N, channels + growth, H, W), reading `reads` of the channels.

    basic without `mid`; else bottleneck, through mid channels.
    """

    def __init__(self, channels, reads, growth, selection, mid=0):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.select = ChannelSelection(channels, reads) if selection else None
        self.mid = mid
        if mid:
            self.conv1 = nn.Conv2d(reads, mid, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(mid)
            self.conv2 = nn.Conv2d(mid, growth, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(reads, growth, 3, padding=1, bias=False)

    def forward(self, x):
        out = self.conv1(F.relu(read(self.select, self.bn1, x)))
        if self.mid:
            out = self.conv2(F.relu(self.bn2(out)))
        return torch.cat((x, out), 1)


class Transition(nn.Module):
    """(N, channels, H, W) -> (N, out, H / 2, W / 2), reading `reads` of the channels."""

    def __init__(self, channels, reads, out, selection):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.select = ChannelSelection(channels, reads) if selection else None
        self.conv1 = nn.Conv2d(reads, out, 1, bias=False)

    def forward(self, x):
        return F.avg_pool2d(self.conv1(F.relu(read(self.select, self.bn1, x))), 2)


class DenseNet(nn.Module):
    """Images (N, 3, 32, 32) -> logits (N, num_classes). widths: with bottlenecks the outputs of each 1 x 1
    convolution; with selection how many channels each layer, each transition and at last fc reads, in the order of the
    network; otherwise []. streams: for each stage how many channels it begins with, then how many each layer adds."""

    def __init__(self, depth=40, num_classes=10, growth=12, block="basic", compression=1, selection=False, gamma=1.0,
                 widths=None, streams=None):
        super().__init__()
        assert block in ("basic", "bottleneck"), f"densenet has blocks basic, bottleneck; got {block!r}"
        assert block == "basic" or not selection, "densenet has channel selection with basic blocks only"
        assert growth >= 1 and compression >= 1, (
            f"densenet has growth and compression of 1 or more; got {growth} and {compression}")
        step = 3 if block == "basic" else 6
        n, rest = divmod(depth - 4, step)
        assert n >= 1 and not rest, f"densenet with {block} blocks has depths {step}n+4 (40, 100, 190); got {depth}"

        default, channels = [], 2 * growth
        for _ in range(3):
            default += [channels] + [growth] * n
            channels = (channels + n * growth) // compression
        assert all(default), f"densenet{depth}: a compression of {compression} leaves no channel"
        streams = fill(streams, default, f"densenet{depth} (streams)")
        stages = [streams[i:i + n + 1] for i in range(0, len(streams), n + 1)]
        arriving = [sum(stage[:i + 1]) for stage in stages for i in range(n + 1)]      # before each batch norm
        default = arriving if selection else [4 * growth] * (3 * n) if block == "bottleneck" else []
        widths = fill(widths, default, f"densenet{depth}")
        self.cfg = dict(depth=depth, num_classes=num_classes, growth=growth, block=block, compression=compression,
                        selection=selection, gamma=gamma, widths=widths, streams=streams)

        places = iter(zip(arriving, widths if selection else arriving, strict=True))
        mids = iter(widths if block == "bottleneck" else [0] * (3 * n))
        self.conv1 = nn.Conv2d(3, streams[0], 3, padding=1, bias=False)
        for number, stage in enumerate(stages, 1):
            layers = [Layer(*next(places), adds, selection, next(mids)) for adds in stage[1:]]
            setattr(self, f"dense{number}", nn.Sequential(*layers))
            if number < 3:
                setattr(self, f"trans{number}", Transition(*next(places), stages[number][0], selection))
        channels, reads = next(places)
        self.bn = nn.BatchNorm2d(channels)
        self.select = ChannelSelection(channels, reads) if selection else None
        self.fc = nn.Linear(reads, num_classes)
        initialize(self, gamma)

    def forward(self, x):
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.trans2(self.dense2(x))
        x = F.relu(read(self.select, self.bn, self.dense3(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def channels(self):
        selection, deep = self.cfg["selection"], self.cfg["block"] == "bottleneck"
        layers = [name for name, m in self.named_modules() if isinstance(m, Layer)]
        readers = [(f"{name}.conv1", f"{name}.bn1", f"{name}.select" if selection else "")
                   for name, m in self.named_modules() if isinstance(m, Layer | Transition)]
        readers.append(("fc", "bn", "select" if selection else ""))
        inner = [Channels([], [Consumer(*reader)], []) for reader in readers] if selection else []
        if deep:
            inner = [Channels([(f"{name}.conv1", f"{name}.bn2")], [Consumer(f"{name}.conv2")], []) for name in layers]
        for i, record in enumerate(inner):
            record.places.append(("widths", i))

        streams, n = [], len(layers) // 3
        for i, adds in enumerate(self.cfg["streams"]):
            stage, place = divmod(i, n + 1)
            begin = sum(self.cfg["streams"][i - place:i])    # where its channels are among those joined so far
            maker = (f"{layers[stage * n + place - 1]}.{'conv2' if deep else 'conv1'}" if place else
                     f"trans{stage}.conv1" if stage else "conv1")
            consumers = [Consumer(*reader, part=slice(begin, begin + adds))
                         for reader in readers[i:(stage + 1) * (n + 1)]]
            streams.append(Channels([(maker, "")], consumers, [("streams", i)], stream=True))
        return inner + streams
