"""Which network `--arch`, `--depth` and `--width` mean in this folder: any of common/models.

mobilenetv2 is the paper's, with the width multiplier 1.3. It has 17 blocks, so the original's --depth 17 is accepted.
"""
from common import UserError, models


def network(arch, depth=None, width=None):
    """(arch, cfg) for `models.build` and `checkpoint.load`; width: the multiplier of mobilenetv2, 1.3 for None."""
    name, cfg = models.any_network(arch, None if arch.startswith("mobilenetv2") and depth == 17 else depth)
    if width is not None and name != "mobilenetv2":
        raise UserError(f"--width is mobilenetv2's multiplier; a {name} has none")
    if name == "mobilenetv2":
        cfg = {"width_multiplier": cfg.get("width_multiplier", 1.3) if width is None else width}
    return name, cfg
