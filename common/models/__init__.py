"""The networks of the five papers, built from plain numbers. narrow.py removes channels of them.

    model = build("vgg", depth=13, num_classes=10)              # (N, 3, 32, 32) -> logits (N, 10)

`model.arch` and `model.cfg` say how to build the same network again.
"""
import importlib
import inspect
import re
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from common import UserError
from common.models import own
from common.models.layers import input_shape

__all__ = ["ARCHS", "any_network", "brief", "build", "input_shape", "name", "sketch", "split_name"]

ARCHS = {"lenet300": "lenet.LeNet300", "lenet5": "lenet.LeNet5", "alexnet": "alexnet.AlexNet", "vgg": "vgg.VGG",
         "resnet": "resnet.ResNet", "preresnet": "preresnet.PreResNet", "densenet": "densenet.DenseNet",
         "wideresnet": "wideresnet.WideResNet", "resnext": "resnext.ResNeXt",
         "mobilenetv2": "mobilenetv2.MobileNetV2", "resnet_imagenet": "resnet_imagenet.ResNetImageNet"}
DEPTHS = {"vgg": 16, "resnet": 56, "preresnet": 110, "densenet": 40, "wideresnet": 28, "resnext": 29,
          "resnet_imagenet": 18, "preresnet_imagenet": 18}
ONE_SIZE = ("lenet300", "lenet5", "alexnet")                 # all others end with a global pooling
DEEPEST, LARGEST = 2000, 250_000_000                         # limits against typos and malicious files


def family(arch):
    """The class of an arch; its file is imported here, when a network needs it."""
    file, _, cls = ARCHS[arch].partition(".")
    return getattr(importlib.import_module(f"common.models.{file}"), cls)


def build(arch, image_size=None, **cfg):
    """A freshly initialized network. image_size: of the images it is counted for, where that is another than usual.

    UserError names an unknown arch, option or depth, what is too large, and a network that has but one image size.
    """
    if ":" in arch:
        return own.build(arch, image_size=image_size, **cfg)
    size = sketch(arch, image_size, **cfg).cfg.get("image_size")
    model = family(arch)(**cfg)
    model.arch = arch
    if size:
        model.cfg["image_size"] = size
    return model


def sketch(arch, image_size=None, **cfg):
    """The network without its weights: names, shapes and cfg, in no memory. UserError as `build`."""
    if ":" in arch:
        with Undrawn():
            return own.build(arch, image_size=image_size, **cfg)
    if arch not in ARCHS:
        raise UserError(f"unknown arch {arch!r}; there are: {', '.join(ARCHS)}")
    if isinstance(cfg.get("depth"), int) and cfg["depth"] > DEEPEST:
        raise UserError(f"{arch} with depth {cfg['depth']}; the deepest has {DEEPEST:,}")
    try:
        with torch.device("meta"), Undrawn():
            model = family(arch)(**cfg)
    except (AssertionError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        what = str(error).partition("\n")[0]                 # torch adds its call stack
        raise UserError(what if isinstance(error, AssertionError) else f"arch {arch}: {what}") from error
    if (size := sum(p.numel() for p in model.parameters())) > LARGEST:
        raise UserError(f"this {arch} has {size:,} parameters; the largest has {LARGEST:,} (1 GB)")
    usual = input_shape(arch, cfg)[1]
    if image_size not in (None, usual):
        if arch in ONE_SIZE or not isinstance(image_size, int) or not 1 <= image_size <= 4096:
            raise UserError(f"a {arch} reads images of {usual} x {usual}, not {image_size}")
        model.cfg["image_size"] = image_size
    model.arch = arch
    return model


class Undrawn(TorchFunctionMode):
    """Without memory there is nothing to initialize; torch would first load its compiler for it, a second long."""

    def __torch_function__(self, function, types, operands=(), options=None):
        if function is torch.Tensor.normal_ or getattr(function, "__module__", "") == "torch.nn.init":
            return operands[0] if operands else options["tensor"]
        return function(*operands, **(options or {}))


def split_name(arch, depth=None):
    """('resnet56', None) -> ('resnet', 56): a depth written after the name is the same as --depth.

    18 and 34 layers say that the network is the one with four stages, resnet_imagenet.
    """
    match, name = re.fullmatch(r"([a-z]+?)_?(\d+)", arch), arch
    if arch not in ARCHS and match:
        name, depth = match[1], one_depth(arch, depth, int(match[2]))
    if name in ("resnet", "preresnet") and depth in (18, 34):
        name += "_imagenet"
    return name, depth


def one_depth(arch, depth, named):
    """The depth in the name of an arch. UserError where --depth is another."""
    if depth not in (None, named):
        raise UserError(f"--arch {arch} and --depth {depth} disagree")
    return named


def any_network(arch, depth=None):
    """(arch, cfg) of any network here by its usual name: vgg13, vgg16_bn, resnet18, wrn_28_10, mobilenetv2_1.4.

    vgg11_0.25 is a VGG-11 with a quarter of the channels, for CPUs.
    """
    name, cfg = arch, {}
    if wide := re.fullmatch(r"(?:wrn|wideresnet)_(\d+)_(\d+)", arch):
        name, depth = "wideresnet", one_depth(arch, depth, int(wide[1]))
        cfg["widen_factor"] = int(wide[2])
    elif multiplier := re.fullmatch(r"mobilenetv2_(\d*\.?\d+)", arch):
        name, cfg["width_multiplier"] = "mobilenetv2", float(multiplier[1])
    elif part := re.fullmatch(r"(vgg\d+)_(\d*\.\d+)", arch):
        name, depth = split_name(part[1], depth)
        cfg["widths"] = [w if w == "M" else max(1, round(w * float(part[2])))
                         for w in sketch("vgg", depth=depth).cfg["widths"]]
    elif ":" not in arch:                                    # a --network is none of ours
        if re.fullmatch(r"vgg\d*_bn", arch):
            name, cfg["variant"] = arch.removesuffix("_bn"), "bearpaw_bn"
        name, depth = split_name(name, depth)
        if name not in DEPTHS and name not in ARCHS:
            raise UserError(f"there is no --arch {arch}; there are {', '.join(ARCHS)}")
    if name in DEPTHS:
        cfg["depth"] = DEPTHS[name] if depth is None else depth
    elif depth is not None:
        raise UserError(f"{'--network' if ':' in arch else '--arch'} {arch} has no --depth to choose")
    if name == "preresnet_imagenet":
        name, cfg["preact"] = "resnet_imagenet", True
    return name, cfg


def name(arch, cfg):
    """What tells networks apart in folders and tables: vgg13, resnet56, wrn_28_10, lenet5, torchvision-resnet18."""
    if ":" in arch:
        where, _, what = arch.rpartition(":")
        return f"{Path(where).stem}-{what}"
    cfg = {key: option.default for key, option in inspect.signature(family(arch)).parameters.items()} | cfg
    if arch == "wideresnet":
        return f"wrn_{cfg['depth']}_{cfg['widen_factor']}"
    if arch == "resnet_imagenet":
        return f"{'pre' * cfg['preact']}resnet{cfg['depth']}"
    if arch == "mobilenetv2" and cfg["width_multiplier"] != 1:
        return f"mobilenetv2_{cfg['width_multiplier']:g}"
    return f"{arch}{cfg.get('depth', '')}"


def brief(cfg):
    """The plain values of a cfg on one line, without its lists of widths."""
    return " ".join(f"{k}={v}" for k, v in cfg.items() if not isinstance(v, list | dict))
