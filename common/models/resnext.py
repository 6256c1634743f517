"""ResNeXt for 32 x 32 pictures (Xie et al. 2017, "Aggregated Residual Transformations"), depth 9n+2.

ResNeXt-29, 8 x 64d: cardinality 8. A block's middle convolution works in `cardinality` groups; when it is narrowed
whole groups go.
"""
import torch.nn.functional as F
from torch import nn

from common import UserError
from common.models.channels import Channels, Reader, fill


class Block(nn.Module):
    """(N, channels, H, W) -> (N, out, H / stride, W / stride): 1 x 1, grouped 3 x 3 and 1 x 1 convolutions."""

    def __init__(self, channels, mid, out, stride, groups, project):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, mid, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(mid)
        self.conv_conv = nn.Conv2d(mid, mid, 3, stride, 1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(mid)
        self.conv_expand = nn.Conv2d(mid, out, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if project:
            self.shortcut.add_module("shortcut_conv", nn.Conv2d(channels, out, 1, stride, bias=False))
            self.shortcut.add_module("shortcut_bn", nn.BatchNorm2d(out))

    def forward(self, x):
        out = F.relu(self.bn_reduce(self.conv_reduce(x)))
        out = F.relu(self.bn(self.conv_conv(out)))
        return F.relu(self.bn_expand(self.conv_expand(out)) + self.shortcut(x))


class ResNeXt(nn.Module):
    """Pictures (N, 3, 32, 32) -> logits (N, num_classes).

    widths: channels of each block's grouped convolution, whole groups; streams: of the stem and the three stages.
    """

    def __init__(self, depth=29, cardinality=8, widen_factor=4, num_classes=10, widths=None, streams=None):
        super().__init__()
        n, rest = divmod(depth - 2, 9)
        if n < 1 or rest:
            raise UserError(f"resnext has depths 9n+2 (20, 29, 38); got {depth}")
        if cardinality < 1 or widen_factor < 1:
            raise UserError(f"resnext has cardinality and widen_factor of 1 or more; got {cardinality}, {widen_factor}")
        what = f"resnext-{depth}, {cardinality}x64d"
        default = [64, 64 * widen_factor, 128 * widen_factor, 256 * widen_factor]
        streams = fill(streams, default, f"{what} (streams)")
        if widen_factor == 1 and streams[0] != streams[1]:
            raise UserError(f"the stem and the first stage of {what} are one stream; got {streams}")
        units = [out // widen_factor for out in default[1:]]             # channels of a group: 64, 128, 256
        widths = fill(widths, [cardinality * unit for unit in units for _ in range(n)], what)
        if any(width % units[i // n] for i, width in enumerate(widths)):
            raise UserError(f"{what} has groups of {units} channels in its three stages; got {widths}")
        self.cfg = dict(depth=depth, cardinality=cardinality, widen_factor=widen_factor, num_classes=num_classes,
                        widths=widths, streams=streams)
        self.units = units

        self.conv_1_3x3 = nn.Conv2d(3, streams[0], 3, 1, 1, bias=False)
        self.bn_1 = nn.BatchNorm2d(streams[0])
        left, channels = iter(widths), streams[0]
        for stage, out in enumerate(streams[1:], 1):
            blocks = nn.Sequential()
            for i in range(n):
                mid, stride = next(left), 2 if stage > 1 and i == 0 else 1
                project = i == 0 and (stage > 1 or widen_factor > 1)     # by place: narrowed widths may coincide
                block = Block(channels, mid, out, stride, mid // units[stage - 1], project)
                blocks.add_module(f"stage_{stage}_bottleneck_{i}", block)
                channels = out
            setattr(self, f"stage_{stage}", blocks)
        self.classifier = nn.Linear(channels, num_classes)

        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out")
        nn.init.kaiming_normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x):
        x = F.relu(self.bn_1(self.conv_1_3x3(x)))
        x = self.stage_3(self.stage_2(self.stage_1(x)))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def channels(self):
        stream = Channels([("conv_1_3x3", "bn_1")], [], [("streams", 0)], stream=True)
        inner, streams = [], [stream]
        for stage in (1, 2, 3):
            for name, block in getattr(self, f"stage_{stage}").named_children():
                name = f"stage_{stage}.{name}"
                stream.readers.append(Reader(f"{name}.conv_reduce"))
                inner.append(Channels(
                    [(f"{name}.conv_reduce", f"{name}.bn_reduce"), (f"{name}.conv_conv", f"{name}.bn")],
                    [Reader(f"{name}.conv_expand")], [("widths", len(inner))], unit=self.units[stage - 1]))
                if len(block.shortcut):                                  # here a new stream begins
                    shortcut = f"{name}.shortcut.shortcut"
                    stream.readers.append(Reader(f"{shortcut}_conv"))
                    stream = Channels([(f"{shortcut}_conv", f"{shortcut}_bn")], [], [], stream=True)
                    streams.append(stream)
                stream.makers.append((f"{name}.conv_expand", f"{name}.bn_expand"))
            stream.places.append(("streams", stage))
        stream.readers.append(Reader("classifier"))
        return inner + streams
