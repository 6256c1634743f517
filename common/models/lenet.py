"""The two LeNets for 28 x 28 grey images (LeCun et al. 1998; sizes as in Caffe and the pruning papers).

A channel selection before fc1 lets whole inputs go: pixels of LeNet-300-100, positions of LeNet-5's last map.
Papers write the narrowed sizes as 353-45-11 (inputs-hidden-hidden) and 5-12-139-13: these are our `widths`.
"""
import torch.nn.functional as F
from torch import nn

from common.models.channels import Channels, Consumer
from common.models.layers import ChannelSelection, fill


class LeNet300(nn.Module):
    """LeNet-300-100: images (N, 1, 28, 28) -> logits (N, num_classes). widths: [inputs, fc1, fc2]."""

    def __init__(self, num_classes=10, widths=None):
        super().__init__()
        widths = fill(widths, [784, 300, 100], "lenet300")
        self.cfg = dict(num_classes=num_classes, widths=widths)
        self.select = ChannelSelection(784, widths[0])
        self.fc1 = nn.Linear(widths[0], widths[1])
        self.fc2 = nn.Linear(widths[1], widths[2])
        self.fc3 = nn.Linear(widths[2], num_classes)

    def forward(self, x):
        x = F.relu(self.fc1(self.select(x.flatten(1))))
        return self.fc3(F.relu(self.fc2(x)))

    def channels(self):
        return [Channels([], [Consumer("fc1", select="select")], [("widths", 0)]),
                Channels([("fc1", "")], [Consumer("fc2")], [("widths", 1)]),
                Channels([("fc2", "")], [Consumer("fc3")], [("widths", 2)])]


class LeNet5(nn.Module):
    """LeNet-5: images (N, 1, 28, 28) -> logits (N, num_classes). widths: [conv1, conv2, inputs of fc1, fc1]."""

    def __init__(self, num_classes=10, widths=None):
        super().__init__()
        widths = fill(widths, [20, 50, 800, 500], "lenet5")
        self.cfg = dict(num_classes=num_classes, widths=widths)
        self.conv1 = nn.Conv2d(1, widths[0], 5)
        self.conv2 = nn.Conv2d(widths[0], widths[1], 5)
        self.select = ChannelSelection(16 * widths[1], widths[2])        # conv2's map is 4 x 4 after the pool
        self.fc1 = nn.Linear(widths[2], widths[3])
        self.fc2 = nn.Linear(widths[3], num_classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(self.select(x.flatten(1))))
        return self.fc2(x)

    def channels(self):
        return [Channels([("conv1", "")], [Consumer("conv2")], [("widths", 0)]),
                Channels([("conv2", "")], [Consumer("fc1", select="select", repeat=16)], [("widths", 1)]),
                Channels([], [Consumer("fc1", select="select")], [("widths", 2)]),
                Channels([("fc1", "")], [Consumer("fc2")], [("widths", 3)])]
