"""Wide residual networks for 32 x 32 images (Zagoruyko & Komodakis 2016), pre-activation, depth 6n+4.

variant     stride       1 x 1 shortcut reads     dropout
usual       conv1        relu(bn1(x))             between ReLU and conv2
softmask    conv2        x                        between conv1 and bn2

"softmask" is the network of the soft-binary mask (WRN-34-9): its first two layers of a stage see the larger image.
"""
from collections import OrderedDict

import torch.nn.functional as F
from torch import nn

from common.models.channels import Consumer, residual_channels
from common.models.layers import fill, initialize, stages


class Block(nn.Module):
    """(N, channels, H, W) -> (N, out, H / stride, W / stride) through `mid` channels; mid 0: the shortcut alone."""

    def __init__(self, channels, out, stride, project, mid, dropout, variant):
        super().__init__()
        self.usual, self.mid = variant == "usual", mid
        self.starts_stream = project
        self.activates_shortcut = self.usual and project
        if mid or self.activates_shortcut:
            self.bn1 = nn.BatchNorm2d(channels)
        if mid:
            self.conv1 = nn.Conv2d(channels, mid, 3, stride if self.usual else 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(mid)
            self.conv2 = nn.Conv2d(mid, out, 3, 1 if self.usual else stride, 1, bias=False)
            self.dropout = nn.Dropout(dropout)
        self.convShortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if project else nn.Identity()

    def forward(self, x):
        active = F.relu(self.bn1(x)) if self.mid or self.activates_shortcut else x
        shortcut = self.convShortcut(active if self.activates_shortcut else x)
        if not self.mid:
            return shortcut
        out = self.conv1(active)
        if self.usual:
            out = self.dropout(F.relu(self.bn2(out)))
        else:
            out = F.relu(self.bn2(self.dropout(out)))
        return self.conv2(out) + shortcut


class WideResNet(nn.Module):
    """Images (N, 3, 32, 32) -> logits (N, num_classes). widths: channels between the two convolutions of each block
    (0: the block is its shortcut); streams: of the stem and the three stages."""

    def __init__(self, depth=28, widen_factor=10, num_classes=10, dropout=0.0, variant="usual", widths=None,
                 streams=None):
        super().__init__()
        n, rest = divmod(depth - 4, 6)
        assert n >= 1 and not rest, f"wideresnet has depths 6n+4 (16, 22, 28, 34, 40); got {depth}"
        assert variant in ("usual", "softmask"), f"wideresnet has variants usual, softmask; got {variant!r}"
        assert widen_factor >= 1 and 0 <= dropout < 1, (
            f"wideresnet has widen_factor >= 1 and dropout in [0, 1); got {widen_factor}, {dropout}")
        what = f"wrn-{depth}-{widen_factor}"
        streams, plan = stages(streams, 16, widen_factor, [n] * 3, what)
        widths = fill(widths, [w * widen_factor for w in (16, 32, 64) for _ in range(n)], what, least=0)
        self.cfg = dict(depth=depth, widen_factor=widen_factor, num_classes=num_classes, dropout=dropout,
                        variant=variant, widths=widths, streams=streams)

        self.conv1 = nn.Conv2d(3, streams[0], 3, 1, 1, bias=False)
        mids = iter(widths)
        for stage, shapes in enumerate(plan, 1):
            blocks = [Block(*shape, next(mids), dropout, variant) for shape in shapes]
            setattr(self, f"block{stage}", nn.Sequential(OrderedDict(layer=nn.Sequential(*blocks))))
        self.bn1 = nn.BatchNorm2d(streams[3])
        self.fc = nn.Linear(streams[3], num_classes)
        initialize(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = F.relu(self.bn1(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def channels(self):
        active = ["bn1"] if self.cfg["variant"] == "usual" else []
        return residual_channels(self, [len(self.block1.layer)] * 3, ("conv1", ""), [("conv1", "bn2"), ("conv2", "")],
                                 ("convShortcut", ""), Consumer("fc", "bn1"), before=["bn1"], shortcut_before=active,
                                 removable=True)
