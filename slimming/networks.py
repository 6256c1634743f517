"""Which network `--arch` and `--depth` mean in this folder.

All start with gamma = 0.5, as in the original: nearer to zero for the penalty. ResNet and DenseNet have a channel
selection after the batch norms whose input other layers read too, so that one consumer can stop reading a channel.
"""
from common import UserError, models

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
        raise UserError(f"slimming has --arch {', '.join(OPTIONS)}; got {arch!r}")
    name, cfg = OPTIONS[arch]
    return name, {"depth": DEPTHS[arch] if depth is None else depth, **cfg}
