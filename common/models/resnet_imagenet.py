"""ResNets with four stages of 64 to 512 channels, as on ImageNet (He et al. 2016), and as people train them on CIFAR.

stem        first layers                                        for images of
small       3 x 3 convolution                                   32 x 32       (kuangliu, weiaicunzai)
imagenet    7 x 7 convolution, stride 2; 3 x 3 max pool         224 x 224     (torchvision)

With `preact` the blocks are those of a wide residual network, and nothing comes between the last one and the pooling
(kuangliu's PreActResNet).
"""
from functools import partial
from itertools import islice

import torch.nn.functional as F
from torch import nn

from common.models.channels import Consumer, residual_channels
from common.models.layers import fill, initialize, stages
from common.models.resnet import BLOCKS, BasicBlock, Bottleneck
from common.models.wideresnet import Block

DEPTHS = {18: ("basic", (2, 2, 2, 2)), 34: ("basic", (3, 4, 6, 3)), 50: ("bottleneck", (3, 4, 6, 3)),
          101: ("bottleneck", (3, 4, 23, 3)), 152: ("bottleneck", (3, 8, 36, 3))}


class ResNetImageNet(nn.Module):
    """Images (N, 3, H, W) -> logits (N, num_classes). widths: channels inside the blocks, 1 per basic block, 2 per
    bottleneck (0: the block is its shortcut); streams: of the stem and the four stages."""

    def __init__(self, depth=18, num_classes=10, stem="small", preact=False, widths=None, streams=None):
        super().__init__()
        assert depth in DEPTHS, f"resnet_imagenet has depths {', '.join(map(str, DEPTHS))}; got {depth}"
        assert stem in ("small", "imagenet"), f"resnet_imagenet has stems small, imagenet; got {stem!r}"
        self.block, counts = DEPTHS[depth]
        assert self.block == "basic" or not preact, "resnet_imagenet with preact has depths 18, 34"
        convolutions, expansion, _ = BLOCKS[self.block]
        what = f"resnet_imagenet{depth}"
        streams, plan = stages(streams, 64, expansion, counts, what)
        default = [mid for mid, count in zip((64, 128, 256, 512), counts, strict=True)
                   for _ in range(count * (convolutions - 1))]
        widths = fill(widths, default, what, least=0)
        self.cfg = dict(depth=depth, num_classes=num_classes, stem=stem, preact=preact, widths=widths, streams=streams)

        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(3, streams[0], kernel, stride, kernel // 2, bias=False)
        if not preact:
            self.bn1 = nn.BatchNorm2d(streams[0])
        left, make = iter(widths), BasicBlock if self.block == "basic" else Bottleneck
        if preact:
            make = partial(Block, dropout=0.0, variant="usual")
        for stage, shapes in enumerate(plan, 1):
            blocks = [make(*shape, *islice(left, convolutions - 1)) for shape in shapes]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(streams[4], num_classes)
        initialize(self)

    def forward(self, x):
        x = self.conv1(x)
        if not self.cfg["preact"]:
            x = F.relu(self.bn1(x))
        if self.cfg["stem"] == "imagenet":
            x = F.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def channels(self):
        counts, fc = DEPTHS[self.cfg["depth"]][1], Consumer("fc")
        if self.cfg["preact"]:
            return residual_channels(self, counts, ("conv1", ""), [("conv1", "bn2"), ("conv2", "")],
                                     ("convShortcut", ""), fc, before=["bn1"], shortcut_before=["bn1"], removable=True)
        chain = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")][:BLOCKS[self.block][0]]
        return residual_channels(self, counts, ("conv1", "bn1"), chain, ("downsample.0", "downsample.1"), fc,
                                 removable=True)
