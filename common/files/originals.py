"""Files that others wrote: bare state_dicts, and checkpoints of the original and of other well-known repositories.

    ckpt = load("resnet18.pth", network)

The result is what checkpoint.load gives for our own files, which this reads as well. formats.py says which names a
repository gives its layers; depth, widths and class count are read off the tensors' shapes.
"""
import re

import torch
from torch import nn

from common import UserError, models, zeros
from common.files import checkpoint, foreign
from common.files.formats import FORMATS, PIXELS
from common.files.shapes import complete, likeness, misfits, sized, told


def load(path, network, arch=None, depth=None, image_size=None, quantized=False):
    """A validated checkpoint dictionary, whoever wrote the file; image_size: what its images are resized to, if any.

    quantized: take a quantized file, too. It can be evaluated, but not trained or pruned: what is written then would
    have neither its integers nor the rounding of what its layers read. The network is the file's. arch and depth are
    compared with it; what the file cannot say (whether a batch norm has a channel selection, where a stride is) is as
    network(arch, depth) -> (arch, cfg) has it. UserError otherwise.
    """
    path, ckpt = checkpoint.read(path)
    ckpt = checkpoint.validated(path, ckpt if "format" in ckpt else convert(path, ckpt, network, arch, depth))
    if not quantized and (ckpt.get("quant") or ckpt.get("activations")):
        raise UserError(f"{path} is quantized already; give the network that it was made from")
    agree(path, ckpt["arch"], ckpt["cfg"], network, arch, depth)
    if image_size:
        ckpt["cfg"] = {**ckpt["cfg"], "image_size": image_size}
    return ckpt


def agree(path, have, cfg, network, arch, depth):
    """UserError where the file holds another network than --arch and --depth say."""
    if not (arch or depth):
        return
    asked, asked_cfg = network(arch, depth) if arch else (have, {"depth": depth})
    said = {str(depth), *re.findall(r"\d+", arch or "")}     # the other numbers are defaults, asked for by nobody
    named = re.sub(r"[\d_]+(bn)?$", "", arch or "")
    if have not in (asked, named) or any(str(v) in said and cfg.get(k) != v for k, v in asked_cfg.items()):
        there = " ".join(f"{k} {v}" for k, v in cfg.items() if k in ("depth", "widen_factor"))
        raise UserError(f"{path} holds a {have} ({there}), not{f' --arch {arch}' if arch else ''}"
                        f"{f' --depth {depth}' if depth else ''}; leave them out to take it from the file")


def convert(path, ckpt, network, arch=None, depth=None):
    """Someone else's dictionary, the weights somewhere inside it, as a checkpoint. Prints how it is read."""
    found = foreign.find(ckpt)
    if not found:
        raise UserError(f"{path} holds no weights (keys: {', '.join(map(str, list(ckpt)[:5]))})")
    outer, state, key = found
    alone = not key and not any(name.startswith("module.") for name in state)
    outer, (state, left_out) = {**ckpt, **outer}, foreign.bare(state)
    soft = {name: state.pop(name) for name in list(state) if name.endswith(".mweight")}
    state, masks = zeros.unmasked(state)
    asked, asked_cfg = network(arch, depth) if arch else (None, {})
    wide = {k: v for k, v in asked_cfg.items() if k == "widen_factor" and str(v) in re.findall(r"\d+", arch)}
    if key == "pruned_state_dict" and (whole := foreign.find({**outer, key: None})):        # the network before pruning
        whole = {name: tensor for name, tensor in foreign.bare(whole[1])[0].items() if "mweight" not in name}
        wide = {k: v for k, v in recognize(path, whole)[0].cfg.items() if k == "widen_factor"}
    model, state, form = recognize(path, state, asked, asked_cfg, wide, alone)
    state, soft_masks = foreign.folded(path, model, state, translated(soft, form.names)[0])
    prec1 = foreign.accuracy(outer, "acc", "prec1", "accuracy")
    classes = model.cfg["num_classes"]
    pixels = PIXELS[form.pixels][{10: 0, 100: 1}.get(classes, 2)]
    taken = [f"weights under {key!r}" if key else "", f"without {', '.join(left_out[:3])}" if left_out else "",
             "masks clamp(m + 0.5, 0, 1) inside the weights" if soft_masks else ""]
    print(f"{path}: read as {form.who} ({models.name(model.arch, model.cfg)}): {described(model)}"
          f"{''.join(f'; {text}' for text in taken if text)}")
    read = {"format": checkpoint.FORMAT, "method": "original", "arch": model.arch, "cfg": model.cfg, "dataset": None,
            "stage": "dense", "state_dict": state, "epoch": max(0, int(foreign.number(outer.get("epoch")))),
            "prec1": prec1, "best_prec1": foreign.accuracy(outer, "best_prec1", "best_acc") or prec1, "args": {},
            "dense": None, "masks": translated(masks, form.names)[0]}
    if pixels:
        read["images"] = {"classes": [], "mean": list(pixels[0]), "std": list(pixels[1])}
    if soft_masks:
        read |= {"stage": "sparse", "soft_masks": soft_masks, "args": {"nfp": False}}
    if masks or isinstance(outer.get("cfg"), list):
        read["stage"] = "pruned"
    elif form.cfg.get("variant") == "softmask":
        dense = models.sketch(model.arch, **{k: v for k, v in model.cfg.items() if k not in ("widths", "streams")})
        if dense.cfg != model.cfg:
            read |= {"stage": "pruned", "dense": summary(dense)}
    return read


def summary(model):
    """As compute_flops.summary, of a network without memory."""
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *models.input_shape(model.arch, model.cfg), device="meta"))
    return {"params": sum(p.numel() for p in model.parameters()), "macs": counter.get_total_flops() // 2,
            "cfg": model.cfg}


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


def recognize(path, state, asked=None, asked_cfg=None, wide=None, alone=True):
    """(the network without its weights, its state_dict in our names, the format) of the first that fits.

    asked: an arch whose options are taken where the file does not say; wide: a widen factor that a narrowed network was
    trained with, of which its widths only say how large it is at least; alone: whether the file is nothing but these
    weights. UserError names the nearest format, if any is near, and the first two misfits.
    """
    def is_there(names):
        return [any(name.startswith(f"{sign}.") or name == sign for name in state) for sign in names.split()]

    likely = [f for f in FORMATS if all(is_there(f.has)) and not any(is_there(f.lacks))]
    nearest = None
    for form in likely or FORMATS:
        ours, theirs = translated(state, form.names)
        for options in ([asked_cfg, {}] if form.arch == asked else [{}]):
            try:
                said = told(form.arch, ours)
                said |= {k: v for k, v in (wide or {}).items() if k in said and v > said[k]}
                model, name = sized(form.arch, {**options, **form.cfg, **said}, ours), True
            except (UserError, AssertionError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError):
                if likely and form is not likely[-1] or options:
                    continue
                model, name = models.sketch(form.arch, **form.cfg), False
            filled = complete(model, ours)
            wrong = misfits(model, filled, theirs)
            if not wrong and likely and form.fits({"pool": 1, **model.cfg}, alone):
                return model, filled, form
            rank = -likeness(model, filled), len(wrong)
            if wrong and (nearest is None or rank < nearest[0]):
                nearest = rank, wrong, f"{form.who} ({models.name(model.arch, model.cfg)})" if name else form.who
    rank, wrong, name = nearest
    more = f" ({len(wrong) - 2} more)" if len(wrong) > 2 else ""
    near = f"The nearest is {name}, but {' and '.join(wrong[:2])}{more}. " if rank[0] < -0.5 else ""
    raise UserError(f"{path} is none of the networks here. {near}There are: {', '.join(f.who for f in FORMATS)}")


def translated(state, names):
    """({our name: tensor}, {our name: the file's}); 0/1 selection vectors become indices."""
    ours, theirs = {}, {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in names:
            new = re.sub(pattern, replacement, new)
        if new.endswith("select.indexes"):
            new, tensor = new.replace("indexes", "indices"), tensor.nonzero().flatten()
        ours[new], theirs[new] = tensor, name
    return ours, theirs
