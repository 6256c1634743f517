"""AlexNet cut down to 32 x 32 images (Krizhevsky et al. 2012): five convolutions with biases, no batch norm.

It wants a small learning rate (0.01).
"""
from torch import nn

from common.models.channels import Channels, Consumer
from common.models.layers import fill


class AlexNet(nn.Module):
    """Images (N, 3, 32, 32) -> logits (N, num_classes). widths: channels per convolution."""

    def __init__(self, num_classes=10, widths=None):
        super().__init__()
        a, b, c, d, e = widths = fill(widths, [64, 192, 384, 256, 256], "alexnet")
        self.cfg = dict(num_classes=num_classes, widths=widths)
        self.features = nn.Sequential(
            nn.Conv2d(3, a, 11, stride=4, padding=5), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(a, b, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(b, c, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(c, d, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(d, e, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.classifier = nn.Linear(e, num_classes)          # the last map is 1 x 1

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))

    def channels(self):
        convs = [n for n, m in self.named_modules() if isinstance(m, nn.Conv2d)]
        consumers = convs[1:] + ["classifier"]
        return [Channels([(conv, "")], [Consumer(consumer)], [("widths", i)])
                for i, (conv, consumer) in enumerate(zip(convs, consumers, strict=True))]
