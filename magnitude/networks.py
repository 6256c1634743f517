"""Which network `--arch` and `--depth` mean in this folder.

resnet20 to resnet110 have shortcuts without parameters (853,018 parameters at depth 56), preresnet110 has basic blocks
and preresnet164 bottlenecks, vgg16 has a hidden layer of 512 in its classifier, wrn_28_10 is 28 layers deep and 10
times as wide, densenet grows by 12 channels a layer. Any other name is that network of common/models.
"""
from common import models

OPTIONS = {"vgg": {"variant": "head512"}, "resnet": {"block": "basic", "shortcut": "pad"}, "densenet": {"growth": 12}}


def network(arch, depth=None):
    """(arch, cfg) for `models.build` and `checkpoint.load`; depth None: that of the name, or the published one."""
    name, cfg = models.any_network(arch, depth)
    return name, {**cfg, **OPTIONS.get(models.split_name(arch, depth)[0], {})}
