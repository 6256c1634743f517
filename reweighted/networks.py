"""Which network `--arch`, `--depth` and `--width` mean in this folder: any of common/models.

mobilenetv2 is the paper's, with the width multiplier 1.3. It has 17 blocks, so the original's --depth 17 is accepted.
"""
import re

from common import UserError, models

DEPTHS = {"vgg": 16, "resnet": 56, "preresnet": 110, "densenet": 40, "wideresnet": 28, "resnext": 29}


def network(arch, depth=None, width=None):
    """(arch, cfg) for `models.build` and `originals.load`; width: the multiplier of mobilenetv2, 1.3 for None."""
    wide = re.fullmatch(r"mobilenetv2_([\d.]+)", arch)
    if wide:
        arch, width = "mobilenetv2", float(wide[1]) if width is None else width
    arch, depth = models.split_name(arch, depth)
    if arch not in models.ARCHS:
        raise UserError(f"reweighted has --arch {', '.join(models.ARCHS)}; got {arch!r}")
    if width is not None and arch != "mobilenetv2":
        raise UserError(f"--width is mobilenetv2's multiplier; a {arch} has none")
    if arch in DEPTHS:
        return arch, {"depth": DEPTHS[arch] if depth is None else depth}
    if depth is not None and not (arch == "mobilenetv2" and depth == 17):
        raise UserError(f"--arch {arch} has no --depth to choose")
    return arch, {"width_multiplier": 1.3 if width is None else width} if arch == "mobilenetv2" else {}
