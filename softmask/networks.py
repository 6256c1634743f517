"""Which network `--arch`, `--depth` and `--wf` mean in this folder.

wideresnet has the stride in a block's second convolution and a shortcut that reads the block's raw input. All others
are the plain networks of `common.models`.
"""
from common import UserError, models

DEPTHS = {"wideresnet": 34, "vgg": 13, "resnet": 20, "preresnet": 20, "densenet": 40, "resnext": 29}
OPTIONS = {"densenet": {"block": "bottleneck", "compression": 2}, "mobilenetv2": {"width_multiplier": 1.3}}


def network(arch, depth=None, wf=None, dropout=0.0):
    """(arch, cfg) for `models.build` and `checkpoint.load`; depth and wf None: the paper's, 34 and 9."""
    name, depth = models.split_name(arch, depth)
    if name == "wideresnet":
        cfg = {"depth": DEPTHS[name] if depth is None else depth}
    else:
        name, cfg = models.any_network(arch, DEPTHS.get(name) if depth is None else depth)
        cfg = {**OPTIONS.get(name, {}), **cfg}
    if name == "wideresnet":
        if wf is not None and cfg.get("widen_factor", wf) != wf:
            raise UserError(f"--arch {arch} and --wf {wf} disagree")
        cfg = {"widen_factor": 9, **cfg, "dropout": dropout, "variant": "softmask"}
        return name, cfg if wf is None else {**cfg, "widen_factor": wf}
    if wf or dropout:
        raise UserError(f"--wf and --d are for --arch wideresnet; a {name} has neither")
    return name, cfg
