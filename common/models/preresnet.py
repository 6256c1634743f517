"""Pre-activation ResNet for 32 x 32 pictures (He et al. 2016, "Identity Mappings in Deep Residual Networks").

Blocks are BN-ReLU-convolution; a 1 x 1 shortcut reads the raw stream; BN and ReLU come once more at the end.
With `selection` the first BN of each block and the last BN of the network pass on only chosen channels of the stream
(Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming", section 4.3; gamma=0.5).
"""
import torch.nn.functional as F
from torch import nn

from common.models.channels import ChannelSelection, Reader, fill, initialize, read, residual_channels, three_stages
from common.models.resnet import block_kind


class Block(nn.Module):
    """(N, channels, H, W) -> (N, out, H / stride, W / stride) by two or three convolutions.

    inner: inputs of conv1, outputs of conv1 (and conv2). With selection conv1 reads only some of the channels.
    """

    def __init__(self, channels, out, stride, project, inner, kernels, selection):
        super().__init__()
        widths = [*inner, out]
        for i, kernel in enumerate(kernels):
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(widths[i] if i else channels))
            if i == 0:
                self.select = ChannelSelection(channels, inner[0]) if selection else None
            step = stride if i == kernels.index(3) else 1                # the first 3 x 3 has the stride
            conv = nn.Conv2d(widths[i], widths[i + 1], kernel, step, kernel // 2, bias=False)
            self.add_module(f"conv{i + 1}", conv)
        self.starts_stream = project
        self.downsample = nn.Sequential()
        if project:
            self.downsample.append(nn.Conv2d(channels, out, 1, stride, bias=False))

    def forward(self, x):
        out = self.conv1(F.relu(read(self.select, self.bn1, x)))
        out = self.conv2(F.relu(self.bn2(out)))
        if hasattr(self, "conv3"):
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
        block, kernels, expansion, n = block_kind("preresnet", depth, block)
        streams, plan = three_stages(streams, 16, expansion, n, f"preresnet{depth}")
        default = []
        for mid, shapes in zip((16, 32, 64), plan, strict=True):
            for channels, *_ in shapes:
                default += [channels] * selection + [mid for _ in kernels[1:]]
        widths = fill(widths, default + [streams[3]] * selection, f"preresnet{depth}")
        self.cfg = dict(depth=depth, num_classes=num_classes, block=block, selection=selection, gamma=gamma,
                        widths=widths, streams=streams)

        self.conv1 = nn.Conv2d(3, streams[0], 3, 1, 1, bias=False)
        left = iter(widths)
        for stage, shapes in enumerate(plan, 1):
            layer = nn.Sequential()
            for shape in shapes:
                inner = [next(left) if selection else shape[0]] + [next(left) for _ in kernels[1:]]
                layer.append(Block(*shape, inner, kernels, selection))
            setattr(self, f"layer{stage}", layer)
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
                                 Reader("fc", "bn", select), before=("bn1", select))
