"""Files of other repositories as checkpoints: their weights under bare names, and what else they record.

    ckpt = convert(path, ckpt, network)     # in these steps; shapes.py finds the network

    outer, state, key = find(ckpt)          # {"net": {...}, "acc": 91.5}: the dictionary around the weights, and "net"
    state, left_out = bare(state)           # without module., backbone., ...; without criterion.weight, n_averaged, ...
    state, masks = unmasked(state)          # weight_orig, weight_mask -> weight and its mask
    prec1 = accuracy(outer, "acc", "prec1")                     # 91.5, None where there is none
    state, soft_masks = folded(model, state, mask_parameters)   # of the soft-mask code, into its weights
"""
import re
from collections import Counter

import torch
from torch import nn

from common import UserError, models, say
from common.files.originals import PIXELS, translated
from common.files.shapes import recognize
from common.models import counting, own

# Keys that may hold the weights, in this order where there are several; others are looked into after them.
WRAPPERS = ("pruned_state_dict", "state_dict", "model_state_dict", "model_state", "net", "model", "network", "weights",
            "params", "ema")
PREFIXES = ("model", "net", "network", "backbone")                       # that most names may begin with
NO_LAYER = re.compile(r"n_averaged$|(criterion|loss|loss_fn|metrics?|acc|accuracy|ema|ema_model|model_ema|"
                      r"(train|val|valid|test)_\w*)\.|(.*\.)?total_(ops|params)$")
HEADS = ("fc", "linear", "classifier.6", "classifier")


def convert(path, ckpt, network, arch=None, depth=None, image_size=None):
    """Someone else's dictionary, the weights somewhere inside it, as a checkpoint. Prints how it is read."""
    found = find(ckpt)
    if not found:
        raise UserError(f"{path} holds no weights (keys: {', '.join(map(str, list(ckpt)[:5]))})")
    outer, state, key = found
    alone = not key and not any(name.startswith("module.") for name in state)
    outer, (state, left_out) = {**ckpt, **outer}, bare(state)
    prec1 = accuracy(outer, "acc", "prec1", "accuracy")
    best = accuracy(outer, "best_prec1", "best_acc", "best_acc1") or prec1
    if ":" in (arch or ""):                                  # a network that is none of ours, in its own names
        say(f"{path}: read as {arch}")
        state = {name.removeprefix("module."): tensor for name, tensor in found[1].items()}
        model = own.fitted(path, state, arch, image_size)
        return {"method": "original", "stage": "dense", "arch": model.arch, "cfg": model.cfg, "dataset": None,
                "state_dict": {name: state[name] for name in model.state_dict()}, "prec1": prec1, "best_prec1": best}
    soft = {name: state.pop(name) for name in list(state) if name.endswith(".mweight")}
    state, masks = unmasked(state)
    asked, asked_cfg = network(arch, depth) if arch else (None, {})
    wide = {k: v for k, v in asked_cfg.items() if k == "widen_factor" and str(v) in re.findall(r"\d+", arch)}
    if key == "pruned_state_dict" and (whole := find({**outer, key: None})):        # the network before pruning
        whole = {name: tensor for name, tensor in bare(whole[1])[0].items() if "mweight" not in name}
        wide = {k: v for k, v in recognize(path, whole)[0].cfg.items() if k == "widen_factor"}
    model, state, form = recognize(path, state, asked, asked_cfg, wide, alone)
    state, soft_masks = folded(path, model, state, translated(soft, form.names)[0])
    classes = model.cfg["num_classes"]
    pixels = PIXELS[form.pixels][{10: 0, 100: 1}.get(classes, 2)]
    taken = [f"weights under {key!r}" if key else "", f"without {', '.join(left_out[:3])}" if left_out else "",
             "masks clamp(m + 0.5, 0, 1) inside the weights" if soft_masks else ""]
    say(f"{path}: read as {form.who} ({models.name(model.arch, model.cfg)}): {described(model)}"
        f"{''.join(f'; {text}' for text in taken if text)}")
    read = {"method": "original", "arch": model.arch, "cfg": model.cfg, "dataset": None,
            "stage": "dense", "state_dict": state, "epoch": max(0, int(number(outer.get("epoch")))),
            "prec1": prec1, "best_prec1": best, "args": {}, "dense": None, "masks": translated(masks, form.names)[0]}
    if pixels:
        read["images"] = {"classes": [], "mean": list(pixels[0]), "std": list(pixels[1])}
    if soft_masks:
        read |= {"stage": "sparse", "soft_masks": soft_masks, "args": {"nfp": False}}
    if masks or isinstance(outer.get("cfg"), list):
        read["stage"] = "pruned"
    elif form.cfg.get("variant") == "softmask":
        dense = models.sketch(model.arch, **{k: v for k, v in model.cfg.items() if k not in ("widths", "streams")})
        if dense.cfg != model.cfg:
            read |= {"stage": "pruned", "dense": counting.summary(dense)}
    return read


def find(ckpt, depth=4, known=True):
    """(dictionary, state_dict, key): the weights inside it, and the dictionary and key they are under; None if none.

    Whatever is not a tensor is left out of the state_dict. depth: a dictionary may hold itself.
    """
    tensors = {name: value for name, value in ckpt.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}
    layers = any(name.endswith(".weight") and not NO_LAYER.match(name) for name in tensors)
    if tensors and (layers or known and len(tensors) == len(ckpt)):
        return ckpt, tensors, ""
    for key in sorted(ckpt, key=lambda key: WRAPPERS.index(key) if key in WRAPPERS else len(WRAPPERS)):
        if depth and isinstance(ckpt[key], dict) and (found := find(ckpt[key], depth - 1, key in WRAPPERS)):
            return found if found[2] else (ckpt, found[1], str(key))
    return None


def bare(state):
    """({bare name: tensor}, [names left out, which are of no layer])."""
    state = {".".join(part for part in name.split(".") if part not in ("module", "_orig_mod")): tensor
             for name, tensor in state.items()}
    left_out = [name for name in state if NO_LAYER.match(name)]
    if len(left_out) < len(state):
        state = {name: tensor for name, tensor in state.items() if name not in left_out}
    while state:
        prefix, count = Counter(name.partition(".")[0] for name in state).most_common(1)[0]
        common = count == len(state) and all(name.count(".") > 1 for name in state)
        renamed = {name.removeprefix(f"{prefix}."): tensor for name, tensor in state.items()}
        if len(renamed) < len(state) or not common and not (
                2 * count > len(state) and (prefix in PREFIXES or prefix.isdigit())):
            break
        state = renamed
    for head in HEADS:                                       # Sequential(Dropout, Linear), by the name of the latter
        inside = {name[len(head) + 1:].partition(".")[0] for name in state if name.startswith(f"{head}.")}
        if len(inside) == 1 and (number := inside.pop()).isdigit():
            state = {name.replace(f"{head}.{number}.", f"{head}.", 1) if name.startswith(head) else name: tensor
                     for name, tensor in state.items()}
    return state, [name for name in left_out if not name.endswith(("total_ops", "total_params"))]


def unmasked(state):
    """(state_dict, {weight: bool mask}) of a state_dict with masks.

    torch.nn.utils.prune has weight_orig and weight_mask, shrinkbench and NNI have weight and weight_mask.
    """
    state, masks = dict(state), {}
    for name in [name for name in state if name.endswith("_mask")]:
        weight = name.removesuffix("_mask")
        values = next((f"{weight}{end}" for end in ("_orig", "") if f"{weight}{end}" in state), None)
        if values and state[values].shape == state[name].shape:
            mask = state.pop(name)
            state[weight], masks[weight] = state.pop(values) * mask, mask != 0
    return state, masks


def number(value):
    """The value as a float, 0 where it is none."""
    try:
        return float(value) if abs(float(value)) < 1e9 else 0.0
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return 0.0


def accuracy(outer, *keys):
    """The first of these that is one, fraction or percentage, in percent; None where none is: a count, -1, text."""
    values = [number(outer.get(key)) for key in keys]
    return next((100 * value if value <= 1 else value for value in values if 0 < value <= 100), None)


def folded(path, model, state, parameters):
    """(state_dict, {layer: its mask (channels,)}): masks clamp(m + 0.5, 0, 1) put into the weights that they scale.

    parameters: {layer.mweight: m} of the soft-mask code. All layers of a residual stream have the same m there, as wide
    as the widest stream; one of C channels takes every (widest / C)-th entry. Batch norms have the mask of what they
    read.
    """
    parameters = {name.removesuffix(".mweight"): m for name, m in parameters.items()}
    state, soft_masks, used = dict(state), {}, set()
    for record in model.channels():
        layers = [layer for layer, _ in record.producers]
        if not parameters.keys() & set(layers):
            continue
        m, channels = parameters.get(layers[0]), len(state[f"{layers[0]}.weight"])
        if m is None or not parameters.keys() >= set(layers) or m.numel() % channels or m.numel() != len(m):
            raise UserError(f"{path}: its masks (mweight) are not one for each output channel of {', '.join(layers)}; "
                            "take the file's pruned network")
        mask = soft_masks[layers[0]] = (m.flatten()[::m.numel() // channels].float() + 0.5).clamp(0, 1)
        norms = [norm for _, norm in record.producers] + [consumer.norm for consumer in record.consumers]
        for layer in dict.fromkeys([*layers, *norms]):
            for name in (f"{layer}.weight", f"{layer}.bias"):
                if name in state:
                    state[name] = state[name] * mask.view(-1, *[1] * (state[name].dim() - 1))
        used |= set(layers)
    if rest := sorted(parameters.keys() - used):
        raise UserError(f"{path}: its mask of {rest[0]} (mweight) is of a layer that has none here; take the file's "
                        "pruned network")
    return state, soft_masks


def described(model):
    """What the network computes where a state_dict does not show it, as text."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    norm = next((m for m in model.modules() if isinstance(m, nn.BatchNorm2d)), None)
    words = []
    if first and first.kernel_size[0] > 1:
        words.append(f"{first.kernel_size[0]} x {first.kernel_size[0]} stem of stride {first.stride[0]}")
    if model.arch == "resnet_imagenet":
        words[-1] += " and max pool" if model.cfg["stem"] == "imagenet" else " without max pool"
    return ", ".join([*words, "ReLU", *([f"batch norm eps {norm.eps:g}"] if norm else [])])
