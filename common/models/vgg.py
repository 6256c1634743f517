"""VGG (Simonyan & Zisserman 2015) for 32 x 32 images, as the pruning papers use it, and for ImageNet.

variant      convolutions   batch norm   pooling                       classifier
slimming     no bias        gamma 0.5    4 max pools, 2 x 2 average    Linear(last, classes)
bearpaw      bias           none         5 max pools                   Linear(last, classes)
bearpaw_bn   bias           gamma 1      5 max pools                   Linear(last, classes)
head512      no bias        gamma 0.5    4 max pools, 2 x 2 average    Linear(last, 512), BN, ReLU, Linear(512, classes)

`head`, the widths of two hidden layers, gives a bearpaw variant the classifier of the ImageNet networks: twice Linear,
ReLU and dropout, then Linear. [512, 512] is chenyaofo's vgg16_bn; [4096, 4096] with pool=7, which passes the last map
on as 7 x 7, is torchvision's. Whatever is left of a larger image is averaged.
"""
from itertools import pairwise

import torch.nn.functional as F
from torch import nn

from common.models.channels import Channels, Consumer
from common.models.layers import fill, initialize

CONVS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """Images (N, 3, H, W) -> logits (N, num_classes). widths: channels per convolution, 'M' for a max pool."""

    def __init__(self, depth=19, num_classes=10, widths=None, variant="slimming", head=None, pool=1):
        super().__init__()
        assert depth in CONVS, f"vgg has depths {', '.join(map(str, CONVS))}; got {depth}"
        assert variant in ("slimming", "bearpaw", "bearpaw_bn", "head512"), (
            f"vgg has variants slimming, bearpaw, bearpaw_bn, head512; got {variant!r}")
        assert head is None or variant != "slimming", (
            f"vgg has a head only in the variants head512 and bearpaw; got {variant} and {head}")
        assert pool in (1, 7) and (pool == 1 or head and variant != "head512"), (
            f"vgg has pool 1, or 7 with the two hidden layers of a bearpaw variant; got {pool}")
        default = []
        for width, count in zip((64, 128, 256, 512, 512), CONVS[depth], strict=True):
            default += [width] * count + ["M"]
        bearpaw = variant.startswith("bearpaw")
        widths = fill(widths, default if bearpaw else default[:-1], f"vgg{depth}")
        self.cfg = dict(depth=depth, num_classes=num_classes, widths=widths, variant=variant)

        layers, channels = [], 3
        for width in widths:
            if width == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=bearpaw))
            if variant != "bearpaw":
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU(inplace=True))
            channels = width
        self.feature = nn.Sequential(*layers)
        self.pool = pool
        if pool > 1:
            self.cfg["pool"] = pool
        if bearpaw and head is not None:
            first, second = self.cfg["head"] = fill(head, [4096, 4096], "the head of an ImageNet vgg")
            self.classifier = nn.Sequential(
                nn.Linear(channels * pool * pool, first), nn.ReLU(inplace=True), nn.Dropout(),
                nn.Linear(first, second), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(second, num_classes))
        elif variant == "head512":
            self.cfg["head"] = fill(head, [512], "the head of head512")
            hidden = self.cfg["head"][0]
            self.classifier = nn.Sequential(nn.Linear(channels, hidden), nn.BatchNorm1d(hidden),
                                            nn.ReLU(inplace=True), nn.Linear(hidden, num_classes))
        else:
            self.classifier = nn.Linear(channels, num_classes)

        initialize(self, gamma=1.0 if bearpaw else 0.5)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, 0, 0.01)
            if isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None:
                nn.init.zeros_(m.bias)

    def forward(self, x):
        x = self.feature(x)
        if self.pool > 1 and x.shape[2:] != (self.pool, self.pool):
            x = F.adaptive_avg_pool2d(x, self.pool)
        elif self.pool == 1 and x.shape[2:] != (1, 1):
            x = F.avg_pool2d(x, tuple(x.shape[2:]))
        return self.classifier(x.flatten(1))

    def channels(self):
        convs = [n for n, m in self.named_modules() if isinstance(m, nn.Conv2d)]
        norms = [n for n, m in self.named_modules() if isinstance(m, nn.BatchNorm2d)] or [""] * len(convs)
        head = [("classifier.0", ""), ("classifier.3", ""), ("classifier.6", "")] if "head" in self.cfg else []
        if self.cfg["variant"] == "head512":
            head = [("classifier.0", "classifier.1"), ("classifier.3", "")]
        consumers = convs[1:] + [head[0][0] if head else "classifier"]
        places = [i for i, width in enumerate(self.cfg["widths"]) if width != "M"]
        records = [Channels([(conv, norm)], [Consumer(consumer)], [("widths", i)])
                   for conv, norm, consumer, i in zip(convs, norms, consumers, places, strict=True)]
        records[-1].consumers[0].repeat = self.pool * self.pool
        return records + [Channels([pair], [Consumer(after)], [("head", i)])
                          for i, (pair, (after, _)) in enumerate(pairwise(head))]
