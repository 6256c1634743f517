"""Which network `--arch`, `--depth` and `--wf` mean in this folder.

wideresnet has the stride in a block's second convolution and a shortcut that reads the block's raw input. All others
are the plain networks of `common.models`.
"""
from common import UserError, models

DEPTHS = {"wideresnet": 34, "vgg": 13, "resnet": 20, "preresnet": 20, "densenet": 40, "resnext": 29}
OPTIONS = {"densenet": {"block": "bottleneck", "compression": 2}, "mobilenetv2": {"width_multiplier": 1.3}}


def network(arch, depth=None, wf=None, dropout=0.0):
    """(arch, cfg) for `models.build` and `originals.load`; depth and wf None: the paper's, 34 and 9."""
    arch, depth = models.split_name(arch, depth)
    if arch not in models.ARCHS:
        raise UserError(f"softmask has --arch {', '.join(models.ARCHS)}; got {arch!r}")
    if arch != "wideresnet" and (wf or dropout):
        raise UserError(f"--wf and --d are for --arch wideresnet; a {arch} has neither")
    if arch not in DEPTHS and depth:
        raise UserError(f"a {arch} has no --depth")
    cfg = dict(OPTIONS.get(arch, {}))
    if arch in DEPTHS:
        cfg["depth"] = DEPTHS[arch] if depth is None else depth
    if arch == "wideresnet":
        cfg |= {"widen_factor": 9 if wf is None else wf, "dropout": dropout, "variant": "softmask"}
    return arch, cfg
