"""MobileNetV2 for 32 x 32 images (Sandler et al. 2018), with ReLU and with shortcuts in every block of stride 1.

Width multiplier 1.3 and 100 classes is the network of the reweighted-L1 paper: 3,989,668 parameters.
"""
import torch.nn.functional as F
from torch import nn

from common.models.channels import Channels, Consumer, residual_channels
from common.models.layers import fill

# expansion, channels at multiplier 1, blocks, stride of the first: the image stays large longer than at 224 x 224
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class Block(nn.Module):
    """(N, channels, H, W) -> (N, out, H / stride, W / stride): widen, filter each channel alone, project linearly."""

    def __init__(self, channels, mid, out, stride, project):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, mid, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.residual = stride == 1
        self.starts_stream = project or not self.residual
        self.shortcut = nn.Sequential()
        if self.residual and project:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return out + self.shortcut(x) if self.residual else out


class MobileNetV2(nn.Module):
    """Images (N, 3, 32, 32) -> logits (N, num_classes). widths: channels inside the 17 blocks, then of the last
    convolution; streams: of the stem and the seven stages."""

    def __init__(self, num_classes=100, width_multiplier=1.3, widths=None, streams=None):
        super().__init__()
        assert 0 < width_multiplier < float("inf"), (
            f"mobilenetv2 has a positive width multiplier; got {width_multiplier}")

        def scaled(width):                                   # to the nearest multiple of 8
            return max(8, int((width_multiplier * width + 4) // 8) * 8)

        default = [scaled(32)] + [scaled(width) for _, width, _, _ in STAGES]
        streams = fill(streams, default, "mobilenetv2 (streams)")
        # By the default widths: narrowed ones may coincide where the trained network has a projection.
        projects = [a != b for a, b in zip(default, default[1:], strict=False)]
        mids = []
        for i, (expansion, _, count, stride) in enumerate(STAGES):
            assert stride > 1 or projects[i] or streams[i] == streams[i + 1], (
                f"mobilenetv2: streams {i} and {i + 1} are one stream here; got {streams}")
            mids += [expansion * default[i]] + [expansion * default[i + 1]] * (count - 1)
        widths = fill(widths, mids + [max(1280, scaled(1280))], "mobilenetv2")
        self.cfg = dict(num_classes=num_classes, width_multiplier=width_multiplier, widths=widths, streams=streams)

        self.conv1 = nn.Conv2d(3, streams[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(streams[0])
        blocks, channels, left = [], streams[0], iter(widths)
        for (_, _, count, stride), out, project in zip(STAGES, streams[1:], projects, strict=True):
            for i in range(count):
                blocks.append(Block(channels, next(left), out, 1 if i else stride, project and i == 0))
                channels = out
        self.layers = nn.Sequential(*blocks)
        self.conv2 = nn.Conv2d(channels, widths[-1], 1, bias=False)
        self.bn2 = nn.BatchNorm2d(widths[-1])
        self.linear = nn.Linear(widths[-1], num_classes)

    def forward(self, x):
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def channels(self):
        chain = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")]
        records = residual_channels(self, [count for _, _, count, _ in STAGES], ("conv1", "bn1"), chain,
                                    ("shortcut.0", "shortcut.1"), Consumer("conv2"), grouped=True)
        last = len(self.layers)
        records.insert(last, Channels([("conv2", "bn2")], [Consumer("linear")], [("widths", last)]))
        return records
