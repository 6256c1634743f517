"""DenseNet for 32 x 32 pictures (Huang et al. 2017, "Densely Connected Convolutional Networks").

block        a layer                                                      layers per stage
basic        BN - ReLU - 3 x 3 convolution to `growth` channels           (depth - 4) / 3
bottleneck   the same behind BN - ReLU - 1 x 1 convolution to 4 growth    (depth - 4) / 6      (DenseNet-BC)

Each layer's output is joined to its input; a transition divides the channels by `compression` and halves the picture.
With `selection` each BN of a basic DenseNet passes on only chosen channels of the joined stream (Liu et al. 2017,
"Network Slimming", section 4.3; gamma=0.5). The stream itself, `growth` channels a layer, always stays whole.
"""
import torch
import torch.nn.functional as F
from torch import nn

from common import UserError
from common.models.channels import Channels, ChannelSelection, Reader, fill


class Basic(nn.Module):
    """(N, channels, H, W) -> (N, channels + growth, H, W), reading `reads` of the channels."""

    def __init__(self, channels, reads, growth, select):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.select = select
        self.conv1 = nn.Conv2d(reads, growth, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.cat((x, self.conv1(F.relu(self.select(self.bn1(x))))), 1)


class Bottleneck(nn.Module):
    """(N, channels, H, W) -> (N, channels + growth, H, W) through `mid` channels."""

    def __init__(self, channels, mid, growth):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, mid, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, growth, 3, padding=1, bias=False)

    def forward(self, x):
        out = self.conv1(F.relu(self.bn1(x)))
        return torch.cat((x, self.conv2(F.relu(self.bn2(out)))), 1)


class Transition(nn.Module):
    """(N, channels, H, W) -> (N, out, H / 2, W / 2), reading `reads` of the channels."""

    def __init__(self, channels, reads, out, select):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.select = select
        self.conv1 = nn.Conv2d(reads, out, 1, bias=False)

    def forward(self, x):
        return F.avg_pool2d(self.conv1(F.relu(self.select(self.bn1(x)))), 2)


class DenseNet(nn.Module):
    """Pictures (N, 3, 32, 32) -> logits (N, num_classes).

    widths: with bottlenecks the outputs of each 1 x 1 convolution; with selection how many channels each layer,
    each transition and at last fc reads, in the order of the network; otherwise nothing can be narrowed: [].
    """

    def __init__(self, depth=40, num_classes=10, growth=12, block="basic", compression=1, selection=False, gamma=1.0,
                 widths=None):
        super().__init__()
        if block not in ("basic", "bottleneck"):
            raise UserError(f"densenet has blocks basic, bottleneck; got {block!r}")
        if selection and block != "basic":
            raise UserError("densenet has channel selection with basic blocks only")
        if growth < 1 or compression < 1:
            raise UserError(f"densenet has growth and compression of 1 or more; got {growth} and {compression}")
        step = 3 if block == "basic" else 6
        n, rest = divmod(depth - 4, step)
        if n < 1 or rest:
            raise UserError(f"densenet with {block} blocks has depths {step}n+4 (40, 100, 190); got {depth}")

        arriving, channels = [], 2 * growth                  # the stream's width in front of each batch norm
        for stage in (1, 2, 3):
            arriving += [channels + growth * i for i in range(n + 1)]
            channels = arriving[-1] // (compression if stage < 3 else 1)
        default = arriving if selection else [4 * growth] * (3 * n) if block == "bottleneck" else []
        widths = fill(widths, default, f"densenet{depth}")
        self.cfg = dict(depth=depth, num_classes=num_classes, growth=growth, block=block, compression=compression,
                        selection=selection, gamma=gamma, widths=widths)

        reads = widths if selection else arriving
        selects = [ChannelSelection(wide, few) if selection else nn.Identity()
                   for wide, few in zip(arriving, reads, strict=True)]
        self.conv1 = nn.Conv2d(3, arriving[0], 3, padding=1, bias=False)
        for stage in (1, 2, 3):
            first = (stage - 1) * (n + 1)
            if block == "basic":
                layers = [Basic(arriving[i], reads[i], growth, selects[i]) for i in range(first, first + n)]
            else:
                layers = [Bottleneck(arriving[first + i], widths[(stage - 1) * n + i], growth) for i in range(n)]
            setattr(self, f"dense{stage}", nn.Sequential(*layers))
            if stage < 3:
                i = first + n
                setattr(self, f"trans{stage}", Transition(arriving[i], reads[i], arriving[i + 1], selects[i]))
        self.bn = nn.BatchNorm2d(arriving[-1])
        self.select = selects[-1]
        self.fc = nn.Linear(reads[-1], num_classes)

        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.normal_(m.weight, 0, (2 / (m.kernel_size[0] * m.kernel_size[1] * m.out_channels)) ** 0.5)
            elif isinstance(m, nn.BatchNorm2d):
                nn.init.constant_(m.weight, gamma)

    def forward(self, x):
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.trans2(self.dense2(x))
        x = F.relu(self.select(self.bn(self.dense3(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def channels(self):
        if self.cfg["block"] == "bottleneck":
            names = [n for n, m in self.named_modules() if isinstance(m, Bottleneck)]
            return [Channels([(f"{n}.conv1", f"{n}.bn2")], [Reader(f"{n}.conv2")], [("widths", i)])
                    for i, n in enumerate(names)]
        if not self.cfg["selection"]:
            return []
        names = [n for stage in (1, 2, 3)
                 for n in [f"dense{stage}.{i}" for i in range(len(getattr(self, f"dense{stage}")))] + [f"trans{stage}"]]
        readers = [Reader(f"{n}.conv1", f"{n}.bn1", f"{n}.select") for n in names[:-1]] + [Reader("fc", "bn", "select")]
        return [Channels([], [reader], [("widths", i)]) for i, reader in enumerate(readers)]
