"""Which network `--arch` and `--depth` mean in this folder.

All start with gamma = 0.5, as in the original, so that the penalty has less distance to cover. ResNet and DenseNet have
a channel selection after the batch norms whose input other layers read too, so that one consumer can stop reading a
channel. Any other name is that network of common/models, unchanged.
"""
from common import models

OPTIONS = {
    "vgg": ("vgg", {"variant": "slimming"}),
    "resnet": ("preresnet", {"block": "bottleneck", "selection": True, "gamma": 0.5}),
    "densenet": ("densenet", {"growth": 12, "selection": True, "gamma": 0.5}),
}
DEPTHS = {"vgg": 19, "resnet": 164, "densenet": 40}


def network(arch, depth=None):
    """(arch, cfg) for `models.build` and `checkpoint.load`; depth None: the paper's."""
    arch, depth = models.split_name(arch, depth)
    if arch not in OPTIONS:
        return models.any_network(arch, depth)
    name, cfg = OPTIONS[arch]
    return name, {"depth": DEPTHS[arch] if depth is None else depth, **cfg}
