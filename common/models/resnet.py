"""ResNet with ReLU after the addition, for 32 x 32 images (He et al. 2016, "Deep Residual Learning", section 4.2).

shortcut   where a stage changes the shape
conv       1 x 1 convolution + batch norm (option B): streams can be narrowed
pad        2 x 2 average pool, new channels zero (option A, no parameters): the streams' widths are fixed
slice      every second pixel, zeros for new channels on both sides of the old ones (option A as akamaster has it)
"""
from itertools import islice

import torch.nn.functional as F
from torch import nn

from common.models.channels import Consumer, residual_channels
from common.models.layers import fill, initialize, stages

# convolutions in a block, how much wider than its middle it ends, examples of depths 3 convolutions n + 2
BLOCKS = {"basic": (2, 1, "20, 32, 44, 56, 110"), "bottleneck": (3, 4, "20, 29, 56, 110, 164")}


def block_kind(arch, depth, block):
    """('basic' or 'bottleneck', its convolutions, its expansion, blocks per stage).

    Without a choice the depth decides. Where both fit, basic up to 110 and bottleneck beyond: who says ResNet-164
    means bottlenecks, who says ResNet-56 or 110 does not.
    """
    assert block in (None, *BLOCKS), f"{arch} has blocks {', '.join(BLOCKS)}; got {block!r}"
    rules = []
    for kind in [block] if block else sorted(BLOCKS, reverse=depth > 110):
        convolutions, expansion, examples = BLOCKS[kind]
        n, rest = divmod(depth - 2, 3 * convolutions)
        if n > 0 and not rest:
            return kind, convolutions, expansion, n
        rules.append(f"{arch} with {kind} blocks has depths {3 * convolutions}n+2 ({examples})")
    raise AssertionError(f"{' and '.join(rules)}; got {depth}")


class Slice(nn.Module):
    """(N, channels, H, W) -> (N, channels + new, H / 2, W / 2): every second pixel, zeros for the new channels."""

    def __init__(self, new):
        super().__init__()
        self.new = new

    def forward(self, x):
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new // 2, self.new // 2))


def downsample(channels, out, stride, project, shortcut):
    """The residual connection of a block: the identity, or what brings x to the block's output shape."""
    if not project:
        return nn.Identity()
    if shortcut == "conv":
        return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    if shortcut == "slice":
        return Slice(out - channels)
    # pads the third dimension from the end, the channels
    return nn.Sequential(nn.AvgPool2d(2), nn.ConstantPad3d((0, 0, 0, 0, 0, out - channels), 0))


class BasicBlock(nn.Module):
    """(N, channels, H, W) -> (N, out, H / stride, W / stride): 3 x 3, 3 x 3; mid 0: the shortcut alone."""

    def __init__(self, channels, out, stride, project, mid, shortcut="conv"):
        super().__init__()
        self.mid = mid
        if mid:
            self.conv1 = nn.Conv2d(channels, mid, 3, stride, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(mid)
            self.conv2 = nn.Conv2d(mid, out, 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(out)
        self.downsample = downsample(channels, out, stride, project, shortcut)
        self.starts_stream = project

    def forward(self, x):
        if not self.mid:
            return F.relu(self.downsample(x))
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(x))


class Bottleneck(nn.Module):
    """(N, channels, H, W) -> (N, out, H / stride, W / stride): 1 x 1, 3 x 3, 1 x 1; a mid 0: the shortcut alone."""

    def __init__(self, channels, out, stride, project, mid1, mid2, shortcut="conv"):
        super().__init__()
        self.mid = min(mid1, mid2)
        if self.mid:
            self.conv1 = nn.Conv2d(channels, mid1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(mid1)
            self.conv2 = nn.Conv2d(mid1, mid2, 3, stride, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(mid2)
            self.conv3 = nn.Conv2d(mid2, out, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(out)
        self.downsample = downsample(channels, out, stride, project, shortcut)
        self.starts_stream = project

    def forward(self, x):
        if not self.mid:
            return F.relu(self.downsample(x))
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.downsample(x))


class ResNet(nn.Module):
    """Images (N, 3, 32, 32) -> logits (N, num_classes). widths: channels inside the blocks, 1 per basic block, 2 per
    bottleneck (0: the block is its shortcut); streams: of the stem and the three stages."""

    def __init__(self, depth=56, num_classes=10, block=None, shortcut="conv", widths=None, streams=None):
        super().__init__()
        block, convolutions, expansion, n = block_kind("resnet", depth, block)
        assert shortcut in ("conv", "pad", "slice"), f"resnet has shortcuts conv, pad, slice; got {shortcut!r}"
        assert shortcut == "conv" or block == "basic", "resnet with padded shortcuts has basic blocks"
        streams, plan = stages(streams, 16, expansion, [n] * 3, f"resnet{depth}")
        assert shortcut == "conv" or streams == [16, 16, 32, 64], (
            f"resnet with padded shortcuts has streams [16, 16, 32, 64]; got {streams}")
        widths = fill(widths, [mid for mid in (16, 32, 64) for _ in range(n * (convolutions - 1))], f"resnet{depth}",
                      least=0)
        self.cfg = dict(depth=depth, num_classes=num_classes, block=block, shortcut=shortcut, widths=widths,
                        streams=streams)

        self.conv1 = nn.Conv2d(3, streams[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(streams[0])
        left, make = iter(widths), BasicBlock if block == "basic" else Bottleneck
        for stage, shapes in enumerate(plan, 1):
            blocks = [make(*shape, *islice(left, convolutions - 1), shortcut) for shape in shapes]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(streams[3], num_classes)
        initialize(self)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def channels(self):
        chain = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")][:BLOCKS[self.cfg["block"]][0]]
        records = residual_channels(self, [len(self.layer1)] * 3, ("conv1", "bn1"), chain,
                                    ("downsample.0", "downsample.1"), Consumer("fc"), removable=True)
        return [record for record in records if not record.stream or self.cfg["shortcut"] == "conv"]
