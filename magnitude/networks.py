"""Which network `--arch` and `--depth` mean in this folder.

resnet20 to resnet110 have shortcuts without parameters (853,018 parameters at depth 56), preresnet110 has basic blocks
and preresnet164 bottlenecks, vgg16 has a hidden layer of 512 in its classifier, wrn_28_10 is 28 layers deep and 10
times as wide, densenet grows by 12 channels a layer.
"""
import re

from common import UserError, models

OPTIONS = {
    "vgg": ("vgg", {"variant": "head512"}),
    "resnet": ("resnet", {"shortcut": "pad"}),
    "preresnet": ("preresnet", {}),
    "densenet": ("densenet", {"growth": 12}),
}
DEPTHS = {"vgg": 16, "resnet": 56, "preresnet": 110, "densenet": 40}


def network(arch, depth=None):
    """(arch, cfg) for `models.build` and `checkpoint.load`; depth None: that of the name, or the published one."""
    wide = re.fullmatch(r"wrn_(\d+)_(\d+)", arch)
    if wide:
        if depth not in (None, int(wide[1])):
            raise UserError(f"--arch {arch} and --depth {depth} disagree")
        return "wideresnet", {"depth": int(wide[1]), "widen_factor": int(wide[2])}
    arch, depth = models.split_name(arch, depth)
    if arch not in OPTIONS:
        raise UserError(f"magnitude has --arch {', '.join(OPTIONS)}, each with its depth (resnet56), and wrn_28_10; "
                        f"got {arch!r}")
    name, cfg = OPTIONS[arch]
    return name, {"depth": DEPTHS[arch] if depth is None else depth, **cfg}
