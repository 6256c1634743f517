"""The networks of the five papers, built from plain numbers and narrowed exactly.

    model = build("vgg", depth=13, num_classes=10)              # (N, 3, 32, 32) -> logits (N, 10)
    small = narrow(model, {"feature.0": keep})                  # keep: bool, one entry per output channel

`model.arch` and `model.cfg` say how to build the same network again.
"""
import re

import torch
from torch.overrides import TorchFunctionMode

from common import UserError
from common.models.alexnet import AlexNet
from common.models.densenet import DenseNet
from common.models.lenet import LeNet5, LeNet300
from common.models.mobilenetv2 import MobileNetV2
from common.models.narrow import narrow
from common.models.preresnet import PreResNet
from common.models.resnet import ResNet
from common.models.resnext import ResNeXt
from common.models.spread import spread
from common.models.vgg import VGG
from common.models.wideresnet import WideResNet

__all__ = ["ARCHS", "build", "brief", "input_shape", "name", "narrow", "sketch", "split_name", "spread"]

ARCHS = {"lenet300": LeNet300, "lenet5": LeNet5, "alexnet": AlexNet, "vgg": VGG, "resnet": ResNet,
         "preresnet": PreResNet, "densenet": DenseNet, "wideresnet": WideResNet, "resnext": ResNeXt,
         "mobilenetv2": MobileNetV2}
DEEPEST, LARGEST = 2000, 250_000_000                         # beyond them it is a slip, or a file made to harm


def build(arch, **cfg):
    """A freshly initialized network. UserError names an unknown arch, option or depth, and what is too large."""
    sketch(arch, **cfg)
    model = ARCHS[arch](**cfg)
    model.arch = arch
    return model


def sketch(arch, **cfg):
    """The network without its weights: names, shapes and cfg, in no memory. UserError as `build`."""
    if arch not in ARCHS:
        raise UserError(f"unknown arch {arch!r}; there are: {', '.join(ARCHS)}")
    if isinstance(cfg.get("depth"), int) and cfg["depth"] > DEEPEST:
        raise UserError(f"{arch} with depth {cfg['depth']}; the deepest has {DEEPEST:,}")
    try:
        with torch.device("meta"), Undrawn():
            model = ARCHS[arch](**cfg)
    except TypeError as error:
        raise UserError(f"arch {arch}: {error}") from error
    if (size := sum(p.numel() for p in model.parameters())) > LARGEST:
        raise UserError(f"this {arch} has {size:,} parameters; the largest has {LARGEST:,} (1 GB)")
    model.arch = arch
    return model


class Undrawn(TorchFunctionMode):
    """Without memory there is nothing to initialize; torch would first load its compiler for it, a second long."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.normal_ or getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def split_name(arch, depth=None):
    """('resnet56', None) -> ('resnet', 56): a depth written after the name is the same as --depth."""
    match = re.fullmatch(r"([a-z]+?)_?(\d+)", arch)
    if arch in ARCHS or not match:
        return arch, depth
    name, number = match[1], int(match[2])
    if depth not in (None, number):
        raise UserError(f"--arch {arch} and --depth {depth} disagree")
    return name, number


def name(arch, cfg):
    """What tells networks apart in folders and tables: vgg13, resnet56, wrn_28_10, lenet5."""
    if arch == "wideresnet":
        return f"wrn_{cfg['depth']}_{cfg['widen_factor']}"
    if arch == "mobilenetv2" and cfg["width_multiplier"] != 1:
        return f"mobilenetv2_{cfg['width_multiplier']:g}"
    return f"{arch}{cfg.get('depth', '')}"


def brief(cfg):
    """The plain values of a cfg on one line, without its lists of widths."""
    return " ".join(f"{k}={v}" for k, v in cfg.items() if not isinstance(v, list))


def input_shape(arch):
    """(channels, height, width) of one image: the LeNets read 28 x 28 grey, all others 32 x 32 RGB."""
    return (1, 28, 28) if arch.startswith("lenet") else (3, 32, 32)
