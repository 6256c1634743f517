"""Compare a checkpoint dictionary with what it should hold; UserError names the first difference.

    fields(ckpt, path)                       types and ranges, before anything is unpacked
    tensors(ckpt, path), images(ckpt, path)  weights and masks, after it; what images the network reads
    compare(model, state, path)              a state_dict and a network
    agree(path, ckpt, network, arch, depth)  the file's network and the one that flags name
"""
import re

import torch

from common import UserError
from common.files.archive import AGAIN
from common.models import own
from common.models.layers import ChannelSelection

FORMAT = 1
STAGES = ("dense", "sparse", "pruned", "finetuned", "quantized")
PERCENT = ((int, float, type(None)), "a percentage", lambda v: v is None or 0 <= v <= 100)
COUNT = ((int,), "a number from 0 up", lambda v: 0 <= v < 2 ** 63)
TEXT = ((str,), "text of one line", lambda v: not re.search(r"[\0-\x1f\x7f-\x9f\u2028\u2029]", v) and len(v) < 5000)
TABLE = ((dict,), "a dictionary", lambda v: all(isinstance(key, str) for key in v))
FIELDS = {"method": TEXT, "arch": TEXT, "dataset": TEXT, "rule": TEXT, "epoch": COUNT, "prec1": PERCENT,
          "best_prec1": PERCENT, "args": TABLE, "cfg": TABLE, "run": TABLE, "resume": TABLE, "masks": TABLE,
          "soft_masks": TABLE, "activations": TABLE, "recipe": TABLE}
EMPTY = ("dataset", "rule", "prec1", "best_prec1", "recipe", "activations")  # these may be None


def fields(ckpt, path):
    """Of a checkpoint of ours, still packed."""
    if ckpt["format"] != FORMAT:
        raise UserError(f"{path} has checkpoint format {ckpt['format']}; this code reads format {FORMAT}")
    for name, (types, what, fits) in FIELDS.items():
        value = ckpt.get(name)
        if name in ckpt and not (value is None and name in EMPTY) and (
                isinstance(value, bool) or not isinstance(value, types) or not fits(value)):
            raise UserError(f"{path}: its {name} is not {what}; {AGAIN}")
    dense = ckpt.get("dense")
    if dense is not None and not (isinstance(dense, dict) and isinstance(dense.get("cfg"), dict) and all(
            isinstance(dense.get(key), int) and 0 < dense[key] < 2 ** 63 for key in ("params", "macs"))):
        raise UserError(f"{path}: its dense is not {{params, macs, cfg}} of a network; {AGAIN}")
    for name, value in (ckpt.get("soft_masks") or {}).items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise UserError(f"{path}: its soft mask of {name} is not a tensor of numbers; {AGAIN}")


def tensors(ckpt, path):
    """A checkpoint has all it needs, its weights are finite and its masks match them."""
    missing = [k for k in ("method", "stage", "arch", "cfg", "dataset", "state_dict") if k not in ckpt]
    if missing or ckpt["stage"] not in STAGES or not isinstance(ckpt["cfg"], dict) or not (
            isinstance(ckpt["state_dict"], dict) and all(isinstance(name, str) and isinstance(tensor, torch.Tensor)
                                                         for name, tensor in ckpt["state_dict"].items())):
        raise UserError(f"{path} is not a checkpoint of this repository (missing or wrong: "
                        f"{', '.join(missing) or 'stage, cfg or state_dict'})")
    state = ckpt["state_dict"]
    for name, mask in ckpt.get("masks", {}).items():
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or (
                name not in state or mask.shape != state[name].shape):
            raise UserError(f"{path}: its mask of {name} matches no weight; {AGAIN}")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            places = (~tensor.isfinite()).nonzero()
            first = tuple(places[0].tolist())
            raise UserError(f"{path}: {name}{list(first)} is {float(tensor[first])} ({len(places)} such values in this "
                            "tensor); use an earlier checkpoint, or train again with a smaller --lr")


def images(ckpt, path):
    """Its images are None or {"classes": names, "mean", "std": per channel}, as many classes as the network has."""
    images = ckpt.get("images")
    if images is not None and not (
            isinstance(images, dict) and all(isinstance(images.get(key), list) for key in ("classes", "mean", "std"))
            and len(images["classes"]) in (0, ckpt["cfg"].get("num_classes"))
            and all(isinstance(name, str) for name in images["classes"]) and len(images["mean"]) == len(images["std"])
            and all(isinstance(v, float) for v in images["mean"] + images["std"]) and min(images["std"] or [0]) > 0):
        raise UserError(f"{path}: its classes, mean and std do not fit the network")


def compare(model, state, path):
    """UserError if a tensor is missing, unexpected, or of another shape or type than in the model."""
    own = model.state_dict()
    for name in own:
        if name not in state:
            raise UserError(f"{path} has no {name}; it is not a {model.arch} with {model.cfg}")
        if state[name].shape != own[name].shape:
            raise UserError(f"{path}: {name} is {tuple(state[name].shape)}, the {model.arch} has "
                            f"{tuple(own[name].shape)}; another depth, width or class count")
        if state[name].is_floating_point() != own[name].is_floating_point():
            raise UserError(f"{path}: {name} is of {state[name].dtype}, the {model.arch} has {own[name].dtype}")
    extra = [name for name in state if name not in own]
    if extra:
        raise UserError(f"{path} has {extra[0]}, which a {model.arch} with {model.cfg} does not have")
    for name, m in model.named_modules():
        indices = state[f"{name}.indices"] if isinstance(m, ChannelSelection) else torch.zeros(0)
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < m.width:
            raise UserError(f"{path}: {name}.indices selects channels {int(indices.min())} to {int(indices.max())} of "
                            f"{m.width}")


def agree(path, ckpt, network, arch=None, depth=None):
    """The file's network is the one that --arch and --depth name: network(arch, depth) -> (arch, cfg)."""
    if not (arch or depth):
        return
    have, cfg = ckpt["arch"], ckpt["cfg"]
    asked, asked_cfg = network(arch, depth) if arch else (have, {"depth": depth})
    if ":" in asked and own.alike(asked, have):
        return
    said = {str(depth), *re.findall(r"\d+", arch or "")}     # the other numbers are defaults that nobody gave
    named = re.sub(r"[\d_]+(bn)?$", "", arch or "")
    if have not in (asked, named) or any(str(v) in said and cfg.get(k) != v for k, v in asked_cfg.items()):
        there = " ".join(f"{k} {v}" for k, v in cfg.items() if k in ("depth", "widen_factor"))
        raise UserError(f"{path} holds a {have} ({there}), not{f' --arch {arch}' if arch else ''}"
                        f"{f' --depth {depth}' if depth else ''}; leave them out to take it from the file")
