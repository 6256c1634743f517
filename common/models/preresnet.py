"""Pre-activation ResNet for 32 x 32 images (He et al. 2016, "Identity Mappings in Deep Residual Networks").

Blocks are BN-ReLU-convolution; a 1 x 1 shortcut reads the raw stream; BN and ReLU come once more at the end.
With `selection` the first BN of each block and the last BN of the network pass on only chosen channels of the stream
(Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming", section 4.3; gamma=0.5).
"""
from itertools import islice

import torch.nn.functional as F
from torch import nn

from common.models.channels import Consumer, residual_channels
from common.models.layers import ChannelSelection, fill, initialize, read, stages
from common.models.resnet import block_kind


def downsample(channels, out, stride, project):
    """The residual connection of a block: empty, or a 1 x 1 convolution to the block's output shape."""
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False)) if project else nn.Sequential()


class BasicBlock(nn.Module):
    """(N, channels, H, W) -> (N, out, H / stride, W / stride): 3 x 3, 3 x 3, the first reading `reads` channels;
    mid 0: the shortcut alone."""

    def __init__(self, channels, out, stride, project, selection, reads, mid):
        super().__init__()
        self.mid = mid
        if mid:
            self.bn1 = nn.BatchNorm2d(channels)
            self.select = ChannelSelection(channels, reads) if selection else None
            self.conv1 = nn.Conv2d(reads, mid, 3, stride, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(mid)
            self.conv2 = nn.Conv2d(mid, out, 3, padding=1, bias=False)
        self.downsample = downsample(channels, out, stride, project)
        self.starts_stream = project

    def forward(self, x):
        if not self.mid:
            return self.downsample(x)
        out = self.conv1(F.relu(read(self.select, self.bn1, x)))
        out = self.conv2(F.relu(self.bn2(out)))
        return out + self.downsample(x)


class Bottleneck(nn.Module):
    """(N, channels, H, W) -> (N, out, H / stride, W / stride): 1 x 1, 3 x 3, 1 x 1, the first reading `reads`;
    a mid 0: the shortcut alone."""

    def __init__(self, channels, out, stride, project, selection, reads, mid1, mid2):
        super().__init__()
        self.mid = min(mid1, mid2)
        if self.mid:
            self.bn1 = nn.BatchNorm2d(channels)
            self.select = ChannelSelection(channels, reads) if selection else None
            self.conv1 = nn.Conv2d(reads, mid1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(mid1)
            self.conv2 = nn.Conv2d(mid1, mid2, 3, stride, padding=1, bias=False)
            self.bn3 = nn.BatchNorm2d(mid2)
            self.conv3 = nn.Conv2d(mid2, out, 1, bias=False)
        self.downsample = downsample(channels, out, stride, project)
        self.starts_stream = project

    def forward(self, x):
        if not self.mid:
            return self.downsample(x)
        out = self.conv1(F.relu(read(self.select, self.bn1, x)))
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.conv3(F.relu(self.bn3(out)))
        return out + self.downsample(x)


class PreResNet(nn.Module):
    """Images (N, 3, 32, 32) -> logits (N, num_classes).

    widths: channels inside the blocks, 1 per basic block, 2 per bottleneck (0: the block is its shortcut). With
    selection each block's list begins with how many channels it reads, and the last number is how many fc reads: the
    `cfg` of the slimming repository. streams: channels of the stem and of the three stages.
    """

    def __init__(self, depth=164, num_classes=10, block=None, selection=False, gamma=1.0, widths=None, streams=None):
        super().__init__()
        block, convolutions, expansion, n = block_kind("preresnet", depth, block)
        streams, plan = stages(streams, 16, expansion, [n] * 3, f"preresnet{depth}")
        default = []
        for mid, shapes in zip((16, 32, 64), plan, strict=True):
            for channels, *_ in shapes:
                default += [channels] * selection + [mid] * (convolutions - 1)
        widths = fill(widths, default + [streams[3]] * selection, f"preresnet{depth}", least=1 if selection else 0)
        self.cfg = dict(depth=depth, num_classes=num_classes, block=block, selection=selection, gamma=gamma,
                        widths=widths, streams=streams)

        self.conv1 = nn.Conv2d(3, streams[0], 3, 1, 1, bias=False)
        left, make = iter(widths), BasicBlock if block == "basic" else Bottleneck
        for stage, shapes in enumerate(plan, 1):
            blocks = [make(*shape, selection, next(left) if selection else shape[0], *islice(left, convolutions - 1))
                      for shape in shapes]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.bn = nn.BatchNorm2d(streams[3])
        reads = widths[-1] if selection else streams[3]
        self.select = ChannelSelection(streams[3], reads) if selection else None
        self.fc = nn.Linear(reads, num_classes)
        initialize(self, gamma)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = F.relu(read(self.select, self.bn, x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def channels(self):
        chain = [("conv1", "bn2"), ("conv2", "")]
        if self.cfg["block"] == "bottleneck":
            chain = [("conv1", "bn2"), ("conv2", "bn3"), ("conv3", "")]
        select = "select" if self.cfg["selection"] else ""
        return residual_channels(self, [len(self.layer1)] * 3, ("conv1", ""), chain, ("downsample.0", ""),
                                 Consumer("fc", "bn", select), before=("bn1", select), removable=not select)
