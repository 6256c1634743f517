"""ResNet with ReLU behind the addition, for 32 x 32 pictures (He et al. 2016, "Deep Residual Learning", section 4.2).

shortcut   where a stage changes the shape
conv       1 x 1 convolution + batch norm (option B): streams can be narrowed
pad        2 x 2 average pool, new channels zero (option A, no parameters): the streams' widths are fixed
"""
import torch.nn.functional as F
from torch import nn

from common import UserError
from common.models.channels import Reader, fill, initialize, residual_channels, three_stages

# kernel sizes in a block, how much wider than its middle it ends, examples of depths 3 len(kernels) n + 2
BLOCKS = {"basic": ((3, 3), 1, "20, 32, 44, 56, 110"), "bottleneck": ((1, 3, 1), 4, "20, 29, 56, 110, 164")}


def block_kind(arch, depth, block):
    """('basic' or 'bottleneck', its kernel sizes, its expansion, blocks per stage).

    Without a choice the depth decides. Where both fit, basic up to 110 and bottleneck beyond: who says ResNet-164
    means bottlenecks, who says ResNet-56 or 110 does not.
    """
    if block not in (None, *BLOCKS):
        raise UserError(f"{arch} has blocks {', '.join(BLOCKS)}; got {block!r}")
    rules = []
    for kind in [block] if block else sorted(BLOCKS, reverse=depth > 110):
        kernels, expansion, examples = BLOCKS[kind]
        n, rest = divmod(depth - 2, 3 * len(kernels))
        if n > 0 and not rest:
            return kind, kernels, expansion, n
        rules.append(f"{arch} with {kind} blocks has depths {3 * len(kernels)}n+2 ({examples})")
    raise UserError(f"{' and '.join(rules)}; got {depth}")


class Block(nn.Module):
    """(N, channels, H, W) -> (N, out, H / stride, W / stride) by two or three convolutions, `mids` channels between."""

    def __init__(self, channels, out, stride, project, mids, kernels, shortcut):
        super().__init__()
        widths = [channels, *mids, out]
        for i, kernel in enumerate(kernels):
            step = stride if i == kernels.index(3) else 1                # the first 3 x 3 has the stride
            conv = nn.Conv2d(widths[i], widths[i + 1], kernel, step, kernel // 2, bias=False)
            self.add_module(f"conv{i + 1}", conv)
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
        self.starts_stream = project
        self.downsample = nn.Identity()
        if project and shortcut == "conv":
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        elif project:                                        # pads the third dimension from the end, the channels
            self.downsample = nn.Sequential(nn.AvgPool2d(2), nn.ConstantPad3d((0, 0, 0, 0, 0, out - channels), 0))

    def forward(self, x):
        out = self.bn1(self.conv1(x))
        out = self.bn2(self.conv2(F.relu(out)))
        if hasattr(self, "conv3"):
            out = self.bn3(self.conv3(F.relu(out)))
        return F.relu(out + self.downsample(x))


class ResNet(nn.Module):
    """Pictures (N, 3, 32, 32) -> logits (N, num_classes). widths: channels inside the blocks, 1 per basic block, 2 per
    bottleneck; streams: of the stem and the three stages."""

    def __init__(self, depth=56, num_classes=10, block=None, shortcut="conv", widths=None, streams=None):
        super().__init__()
        block, kernels, expansion, n = block_kind("resnet", depth, block)
        if shortcut not in ("conv", "pad"):
            raise UserError(f"resnet has shortcuts conv, pad; got {shortcut!r}")
        if shortcut == "pad" and block == "bottleneck":
            raise UserError("resnet with padded shortcuts has basic blocks")
        streams, plan = three_stages(streams, 16, expansion, n, f"resnet{depth}")
        if shortcut == "pad" and streams != [16, 16, 32, 64]:
            raise UserError(f"resnet with padded shortcuts has streams [16, 16, 32, 64]; got {streams}")
        widths = fill(widths, [mid for mid in (16, 32, 64) for _ in range(n) for _ in kernels[1:]], f"resnet{depth}")
        self.cfg = dict(depth=depth, num_classes=num_classes, block=block, shortcut=shortcut, widths=widths,
                        streams=streams)

        self.conv1 = nn.Conv2d(3, streams[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(streams[0])
        left = iter(widths)
        for stage, shapes in enumerate(plan, 1):
            blocks = [Block(*shape, [next(left) for _ in kernels[1:]], kernels, shortcut) for shape in shapes]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(streams[3], num_classes)
        initialize(self)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def channels(self):
        chain = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")][:len(BLOCKS[self.cfg["block"]][0])]
        records = residual_channels(self, [len(self.layer1)] * 3, ("conv1", "bn1"), chain,
                                    ("downsample.0", "downsample.1"), Reader("fc"))
        return [record for record in records if not record.stream or self.cfg["shortcut"] == "conv"]
