"""Pre-activation ResNet for 32 x 32 pictures (He et al. 2016, "Identity Mappings in Deep Residual Networks").

Blocks are BN-ReLU-convolution; a 1 x 1 shortcut reads the raw stream; BN and ReLU come once more at the end.
With `selection` the first BN of each block and the last BN of the network pass on only chosen channels of the stream
(Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming", section 4.3; gamma=0.5).
"""
import torch.nn.functional as F
from torch import nn

from common import UserError
from common.models.channels import Channels, ChannelSelection, Reader, fill
from common.models.resnet import block_kind


class Basic(nn.Module):
    """(N, channels, H, W) -> (N, out, H / stride, W / stride). inner: [inputs of conv1, outputs of conv1]."""

    def __init__(self, channels, inner, out, stride, select, shortcut):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.select = select
        self.conv1 = nn.Conv2d(inner[0], inner[1], 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner[1])
        self.conv2 = nn.Conv2d(inner[1], out, 3, 1, 1, bias=False)
        self.downsample = shortcut

    def forward(self, x):
        out = self.conv1(F.relu(self.select(self.bn1(x))))
        out = self.conv2(F.relu(self.bn2(out)))
        return out + self.downsample(x)


class Bottleneck(nn.Module):
    """As Basic, by 1 x 1, 3 x 3 and 1 x 1 convolutions. inner: [inputs of conv1, outputs of conv1, of conv2]."""

    def __init__(self, channels, inner, out, stride, select, shortcut):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.select = select
        self.conv1 = nn.Conv2d(inner[0], inner[1], 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner[1])
        self.conv2 = nn.Conv2d(inner[1], inner[2], 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(inner[2])
        self.conv3 = nn.Conv2d(inner[2], out, 1, bias=False)
        self.downsample = shortcut

    def forward(self, x):
        out = self.conv1(F.relu(self.select(self.bn1(x))))
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        return out + self.downsample(x)


class PreResNet(nn.Module):
    """Pictures (N, 3, 32, 32) -> logits (N, num_classes).

    widths: channels inside the blocks, 1 per basic block, 2 per bottleneck. With selection each block's list begins
    with how many channels it reads, and the last number is how many fc reads: the `cfg` of the slimming repository.
    streams: channels of the stem and of the three stages.
    """

    def __init__(self, depth=164, num_classes=10, block=None, selection=False, gamma=1.0, widths=None, streams=None):
        super().__init__()
        block, n = block_kind("preresnet", depth, block)
        expansion, mids, kind = (1, 1, Basic) if block == "basic" else (4, 2, Bottleneck)
        streams = fill(streams, [16, 16 * expansion, 32 * expansion, 64 * expansion], f"preresnet{depth} (streams)")
        if block == "basic" and streams[0] != streams[1]:
            raise UserError(f"the stem and the first stage of a basic preresnet are one stream; got {streams}")
        default = []
        for stage, mid in enumerate((16, 32, 64), 1):
            for i in range(n):
                default += [streams[stage if i else stage - 1]] * selection + [mid] * mids
        widths = fill(widths, default + [streams[3]] * selection, f"preresnet{depth}")
        self.cfg = dict(depth=depth, num_classes=num_classes, block=block, selection=selection, gamma=gamma,
                        widths=widths, streams=streams)

        self.conv1 = nn.Conv2d(3, streams[0], 3, 1, 1, bias=False)
        left, channels = iter(widths), streams[0]
        for stage, out in enumerate(streams[1:], 1):
            blocks = []
            for i in range(n):
                stride = 2 if stage > 1 and i == 0 else 1
                reads = next(left) if selection else channels
                select = ChannelSelection(channels, reads) if selection else nn.Identity()
                way = nn.Identity()
                if i == 0 and (stage > 1 or block == "bottleneck"):
                    way = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False))
                blocks.append(kind(channels, [reads] + [next(left) for _ in range(mids)], out, stride, select, way))
                channels = out
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.bn = nn.BatchNorm2d(channels)
        reads = next(left) if selection else channels
        self.select = ChannelSelection(channels, reads) if selection else nn.Identity()
        self.fc = nn.Linear(reads, num_classes)

        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.normal_(m.weight, 0, (2 / (m.kernel_size[0] * m.kernel_size[1] * m.out_channels)) ** 0.5)
            elif isinstance(m, nn.BatchNorm2d):
                nn.init.constant_(m.weight, gamma)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = F.relu(self.select(self.bn(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def channels(self):
        selection, last = self.cfg["selection"], 2 if self.cfg["block"] == "basic" else 3
        stream = Channels([("conv1", "")], [], [("streams", 0)], relu=False, stream=True)
        inner, streams = [], [stream]                        # inner[i] keeps its count in widths[i]
        for stage in (1, 2, 3):
            for i, block in enumerate(getattr(self, f"layer{stage}")):
                name = f"layer{stage}.{i}"
                reader = Reader(f"{name}.conv1", f"{name}.bn1", f"{name}.select" if selection else "")
                stream.readers.append(reader)
                if selection:
                    inner.append(Channels([], [reader], [("widths", len(inner))]))
                for k in range(1, last):
                    inner.append(Channels([(f"{name}.conv{k}", f"{name}.bn{k + 1}")], [Reader(f"{name}.conv{k + 1}")],
                                          [("widths", len(inner))]))
                if isinstance(block.downsample, nn.Sequential):          # a projection: here a new stream begins
                    stream.readers.append(Reader(f"{name}.downsample.0"))
                    stream = Channels([(f"{name}.downsample.0", "")], [], [], relu=False, stream=True)
                    streams.append(stream)
                stream.makers.append((f"{name}.conv{last}", ""))
            stream.places.append(("streams", stage))
        reader = Reader("fc", "bn", "select" if selection else "")
        stream.readers.append(reader)
        if selection:
            inner.append(Channels([], [reader], [("widths", len(inner))]))
        return inner + streams
