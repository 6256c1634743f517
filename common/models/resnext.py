"""ResNeXt for 32 x 32 images (Xie et al. 2017, "Aggregated Residual Transformations"), depth 9n+2.

ResNeXt-29, 8 x 64d: cardinality 8. A block's middle convolution works in `cardinality` groups; when it is narrowed
whole groups go.
"""
import torch.nn.functional as F
from torch import nn

from common.models.channels import Consumer, residual_channels
from common.models.layers import fill, initialize, stages


class Block(nn.Module):
    """(N, channels, H, W) -> (N, out, H / stride, W / stride): 1 x 1, grouped 3 x 3 and 1 x 1 convolutions."""

    def __init__(self, channels, out, stride, project, mid, groups):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, mid, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(mid)
        self.conv_conv = nn.Conv2d(mid, mid, 3, stride, 1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(mid)
        self.conv_expand = nn.Conv2d(mid, out, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(out)
        self.starts_stream = project
        self.shortcut = nn.Sequential()
        if project:
            self.shortcut.add_module("shortcut_conv", nn.Conv2d(channels, out, 1, stride, bias=False))
            self.shortcut.add_module("shortcut_bn", nn.BatchNorm2d(out))

    def forward(self, x):
        out = F.relu(self.bn_reduce(self.conv_reduce(x)))
        out = F.relu(self.bn(self.conv_conv(out)))
        return F.relu(self.bn_expand(self.conv_expand(out)) + self.shortcut(x))


class ResNeXt(nn.Module):
    """Images (N, 3, 32, 32) -> logits (N, num_classes). widths: channels of each block's grouped convolution, whole
    groups; streams: of the stem and the three stages."""

    def __init__(self, depth=29, cardinality=8, widen_factor=4, num_classes=10, widths=None, streams=None):
        super().__init__()
        n, rest = divmod(depth - 2, 9)
        assert n >= 1 and not rest, f"resnext has depths 9n+2 (20, 29, 38); got {depth}"
        assert cardinality >= 1 and widen_factor >= 1, (
            f"resnext has cardinality and widen_factor of 1 or more; got {cardinality}, {widen_factor}")
        what = f"resnext-{depth}, {cardinality}x64d"
        streams, plan = stages(streams, 64, widen_factor, [n] * 3, what)
        units = [unit for unit in (64, 128, 256) for _ in range(n)]      # channels of a group, per block
        widths = fill(widths, [cardinality * unit for unit in units], what)
        assert not any(width % unit for width, unit in zip(widths, units, strict=True)), (
            f"{what} has groups of 64, 128, 256 channels in its three stages; got {widths}")
        self.cfg = dict(depth=depth, cardinality=cardinality, widen_factor=widen_factor, num_classes=num_classes,
                        widths=widths, streams=streams)

        self.conv_1_3x3 = nn.Conv2d(3, streams[0], 3, 1, 1, bias=False)
        self.bn_1 = nn.BatchNorm2d(streams[0])
        middle = zip(widths, units, strict=True)
        for stage, shapes in enumerate(plan, 1):
            blocks = nn.Sequential()
            for i, shape in enumerate(shapes):
                mid, unit = next(middle)
                blocks.add_module(f"stage_{stage}_bottleneck_{i}", Block(*shape, mid, mid // unit))
            setattr(self, f"stage_{stage}", blocks)
        self.classifier = nn.Linear(streams[3], num_classes)
        initialize(self)
        nn.init.kaiming_normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x):
        x = F.relu(self.bn_1(self.conv_1_3x3(x)))
        x = self.stage_3(self.stage_2(self.stage_1(x)))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def channels(self):
        chain = [("conv_reduce", "bn_reduce"), ("conv_conv", "bn"), ("conv_expand", "bn_expand")]
        shortcut = ("shortcut.shortcut_conv", "shortcut.shortcut_bn")
        return residual_channels(self, [len(self.stage_1)] * 3, ("conv_1_3x3", "bn_1"), chain, shortcut,
                                 Consumer("classifier"), grouped=True)
