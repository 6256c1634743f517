"""ResNet with ReLU behind the addition, for 32 x 32 pictures (He et al. 2016, "Deep Residual Learning", section 4.2).

shortcut   where a stage changes the shape
conv       1 x 1 convolution + batch norm (option B): streams can be narrowed
pad        2 x 2 average pool, new channels zero (option A, no parameters): the streams' widths are fixed
"""
import torch.nn.functional as F
from torch import nn

from common import UserError
from common.models.channels import Channels, Reader, fill

LAYERS = {"basic": 6, "bottleneck": 9}                       # a network of depth LAYERS * n + 2 has n blocks a stage
EXAMPLES = {"basic": "20, 32, 44, 56, 110", "bottleneck": "20, 29, 56, 110, 164"}


def block_kind(arch, depth, block):
    """('basic' or 'bottleneck', blocks per stage).

    Without a choice the depth decides. Where both fit, basic up to 110 and bottleneck beyond: who says ResNet-164
    means bottlenecks, who says ResNet-56 or 110 does not.
    """
    if block not in (None, *LAYERS):
        raise UserError(f"{arch} has blocks {', '.join(LAYERS)}; got {block!r}")
    kinds = [block] if block else sorted(LAYERS, reverse=depth > 110)
    for kind in kinds:
        n, rest = divmod(depth - 2, LAYERS[kind])
        if n > 0 and not rest:
            return kind, n
    rules = " and ".join(f"{arch} with {kind} blocks has depths {LAYERS[kind]}n+2 ({EXAMPLES[kind]})" for kind in kinds)
    raise UserError(f"{rules}; got {depth}")


class Basic(nn.Module):
    """(N, channels, H, W) -> (N, out, H / stride, W / stride) by two 3 x 3 convolutions."""

    def __init__(self, channels, mids, out, stride, shortcut):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, mids[0], 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mids[0])
        self.conv2 = nn.Conv2d(mids[0], out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = shortcut

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class Bottleneck(nn.Module):
    """(N, channels, H, W) -> (N, out, H / stride, W / stride) by 1 x 1, 3 x 3 and 1 x 1 convolutions."""

    def __init__(self, channels, mids, out, stride, shortcut):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, mids[0], 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mids[0])
        self.conv2 = nn.Conv2d(mids[0], mids[1], 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(mids[1])
        self.conv3 = nn.Conv2d(mids[1], out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = shortcut

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class PadShortcut(nn.Module):
    """(N, C, H, W) -> (N, C + extra, H / 2, W / 2), differentiable."""

    def __init__(self, extra):
        super().__init__()
        self.extra = extra

    def forward(self, x):
        return F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, 0, self.extra))


class ResNet(nn.Module):
    """Pictures (N, 3, 32, 32) -> logits (N, num_classes).

    widths: channels inside the blocks, 1 per basic block, 2 per bottleneck; streams: of the stem and the three stages.
    """

    def __init__(self, depth=56, num_classes=10, block=None, shortcut="conv", widths=None, streams=None):
        super().__init__()
        block, n = block_kind("resnet", depth, block)
        if shortcut not in ("conv", "pad"):
            raise UserError(f"resnet has shortcuts conv, pad; got {shortcut!r}")
        if shortcut == "pad" and block == "bottleneck":
            raise UserError("resnet with padded shortcuts has basic blocks")
        expansion, mids = (1, 1) if block == "basic" else (4, 2)
        default = [16, 16 * expansion, 32 * expansion, 64 * expansion]
        streams = fill(streams, default, f"resnet{depth} (streams)")
        if shortcut == "pad" and streams != default:
            raise UserError(f"resnet with padded shortcuts has streams {default}; got {streams}")
        if block == "basic" and streams[0] != streams[1]:
            raise UserError(f"the stem and the first stage of a basic resnet are one stream; got {streams}")
        widths = fill(widths, [w for w in (16, 32, 64) for _ in range(n * mids)], f"resnet{depth}")
        self.cfg = dict(depth=depth, num_classes=num_classes, block=block, shortcut=shortcut, widths=widths,
                        streams=streams)

        self.conv1 = nn.Conv2d(3, streams[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(streams[0])
        left, channels = iter(widths), streams[0]
        for stage, out in enumerate(streams[1:], 1):
            blocks = []
            for i in range(n):
                stride = 2 if stage > 1 and i == 0 else 1
                if i or (stage == 1 and block == "basic"):
                    way = nn.Identity()
                elif shortcut == "pad":
                    way = PadShortcut(out - channels)
                else:
                    way = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
                kind = Basic if block == "basic" else Bottleneck
                blocks.append(kind(channels, [next(left) for _ in range(mids)], out, stride, way))
                channels = out
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, num_classes)

        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.normal_(m.weight, 0, (2 / (m.kernel_size[0] * m.kernel_size[1] * m.out_channels)) ** 0.5)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def channels(self):
        last = 2 if self.cfg["block"] == "basic" else 3
        stream = Channels([("conv1", "bn1")], [], [("streams", 0)], stream=True)
        inner, streams = [], [stream]
        for stage in (1, 2, 3):
            for i, block in enumerate(getattr(self, f"layer{stage}")):
                name = f"layer{stage}.{i}"
                stream.readers.append(Reader(f"{name}.conv1"))
                if isinstance(block.downsample, nn.Sequential):          # a projection: here a new stream begins
                    stream.readers.append(Reader(f"{name}.downsample.0"))
                    stream = Channels([(f"{name}.downsample.0", f"{name}.downsample.1")], [], [], stream=True)
                    streams.append(stream)
                for k in range(1, last):
                    inner.append(Channels([(f"{name}.conv{k}", f"{name}.bn{k}")], [Reader(f"{name}.conv{k + 1}")],
                                          [("widths", len(inner))]))
                stream.makers.append((f"{name}.conv{last}", f"{name}.bn{last}"))
            stream.places.append(("streams", stage))
        stream.readers.append(Reader("fc"))
        return inner if self.cfg["shortcut"] == "pad" else inner + streams
