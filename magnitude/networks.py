"""Which network `--arch` and `--depth` mean in this folder.

resnet20 to resnet110 have shortcuts without parameters (853,018 parameters at depth 56), preresnet110 has basic blocks
and preresnet164 bottlenecks, vgg16 has a hidden layer of 512 in its classifier, wrn_28_10 is 28 layers deep and 10
times as wide, densenet grows by 12 channels a layer. Any other name is that network of common/models.
"""
from common import models

OPTIONS = {
    "vgg": ("vgg", {"variant": "head512"}),
    "resnet": ("resnet", {"block": "basic", "shortcut": "pad"}),
    "preresnet": ("preresnet", {}),
    "densenet": ("densenet", {"growth": 12}),
}
DEPTHS = {"vgg": 16, "resnet": 56, "preresnet": 110, "densenet": 40}


def network(arch, depth=None):
    """(arch, cfg) for `models.build` and `checkpoint.load`; depth None: that of the name, or the published one."""
    name, depth = models.split_name(arch, depth)
    if name not in OPTIONS:
        return models.any_network(arch, depth)
    arch, (name, cfg) = name, OPTIONS[name]
    return name, {"depth": DEPTHS[arch] if depth is None else depth, **cfg}
