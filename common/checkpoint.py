"""Checkpoints: one dictionary of tensors, numbers, strings, lists and dicts, readable without running code.

    {format, method, stage, arch, cfg, dataset, state_dict, masks?, quant?, epoch, prec1, best_prec1, args,
     dense: {params, macs, cfg}}

and, in a file to resume from, `resume` with the optimizer, scheduler and random states. prec1 is in percent.
`stage` is one of dense, sparse, pruned, finetuned, quantized. A file of the original repositories loads too.
Weights that a mask prunes are not stored: at 90 % sparsity a file is less than a fifth of the dense one.
"""
import math
import os
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import torch

from common import UserError, models

FORMAT = 1
# Originals may hold an accuracy as a numpy number, which is plain data too.
NUMPY_NUMBERS = [type(np.dtype(np.float64)), type(np.dtype(np.float32)), np.dtype, np.float64(0).__reduce__()[0]]
STAGES = ("dense", "sparse", "pruned", "finetuned", "quantized")


def save(path, ckpt, half=False):
    """Writes to a temporary file, then renames: a stopped run leaves the old file or the new one, never half.

    half: weights as float16, half the bytes, but batch norms whole (their gammas are ranked); `load` gives float32.
    """
    ckpt = {"format": FORMAT, **ckpt}
    if half:
        state = ckpt["state_dict"]
        ckpt["state_dict"] = {name: v if f"{name.rpartition('.')[0]}.running_var" in state or not v.is_floating_point()
                              else v.half() for name, v in state.items()}
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(pack(ckpt), partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write {path} ({error})") from error
    finally:
        if partial.exists():
            partial.unlink()
    return path


def pack(ckpt):
    """Pruned weights as one bit each and the surviving values in order; `unpack` gives the dictionary back.

    That is for every weight whose bool mask (True: kept) has zeros where it prunes; its shape stands in its place.
    """
    masks = dict(ckpt.get("masks") or {})
    state = dict(ckpt["state_dict"]) if masks else {}
    names = [name for name, mask in masks.items() if name in state and state[name].is_floating_point()
             and mask.dtype == torch.bool and mask.shape == state[name].shape and not state[name][~mask].any()]
    if not names:
        return ckpt
    packed = {"bits": torch.from_numpy(np.packbits(torch.cat([masks[name].flatten() for name in names]).numpy())),
              "values": torch.cat([state[name][masks[name]] for name in names])}
    for name in names:
        state[name] = masks[name] = list(state[name].shape)
    return {**ckpt, "state_dict": state, "masks": masks, "packed": packed}


def unpack(ckpt):
    """The dictionary that `pack` was given."""
    packed, state, masks = ckpt.pop("packed"), ckpt["state_dict"], ckpt["masks"]
    shapes = {name: shape for name, shape in masks.items() if isinstance(shape, list)}
    sizes = [math.prod(shape) for shape in shapes.values()]
    kept = torch.from_numpy(np.unpackbits(packed["bits"].numpy(), count=sum(sizes))).bool()
    values = torch.zeros(len(kept), dtype=packed["values"].dtype)
    values[kept] = packed["values"]
    for (name, shape), mask, value in zip(shapes.items(), kept.split(sizes), values.split(sizes), strict=True):
        masks[name], state[name] = mask.reshape(shape), value.reshape(shape)
    return ckpt


def of(model, method, stage, dataset, epoch=0, prec1=None, best_prec1=None, args=None, dense=None, **more):
    """The checkpoint dictionary of a model."""
    state = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in model.state_dict().items()}
    plain = (bool, int, float, str, list, type(None))
    args = {k: v for k, v in (args or {}).items() if isinstance(v, plain) and k != "data_dir"}
    return {"method": method, "stage": stage, "arch": model.arch, "cfg": model.cfg, "dataset": dataset,
            "state_dict": state, "epoch": epoch, "prec1": prec1, "best_prec1": best_prec1,
            "args": args, "dense": dense, **{k: on_cpu(v) for k, v in more.items() if v is not None}}


def on_cpu(value):
    if isinstance(value, dict):
        return {k: on_cpu(v) for k, v in value.items()}
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


def locate(path):
    """The path, or the repository's own file for one that starts with chkpt/ and is not here."""
    path = Path(path)
    bundled = Path(__file__).resolve().parent.parent / path
    return bundled if path.parts[:1] == ("chkpt",) and not path.exists() and bundled.exists() else path


def load(path, network=None, arch=None, depth=None):
    """A validated checkpoint dictionary, weights in float32 on the CPU.

    A file that does not say what it is (a bare state_dict, or one of an original repository) is what
    network(arch, depth) -> (arch, cfg) says; its class count, narrowed widths and channel selections are read from the
    file itself. For one that does, arch and depth are only compared. UserError otherwise.
    """
    path = locate(path)
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(NUMPY_NUMBERS):
            warnings.simplefilter("ignore")
            ckpt = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:                               # junk makes the unpickler raise almost anything
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise UserError(f"{path} is no plain checkpoint: loading it would run code, so it is refused; save its "
                            "state_dict alone with torch.save") from error
        if isinstance(error, PermissionError):
            raise UserError(f"{path} cannot be read ({error.strerror})") from error
        raise UserError(f"{path} is truncated, or was not written by torch.save; copy or make it anew") from error
    if not isinstance(ckpt, dict):
        raise UserError(f"{path} holds a {type(ckpt).__name__}, not a checkpoint dictionary")
    if "format" not in ckpt:
        if not network:
            raise UserError(f"{path} was not written by this repository; prune.py, finetune.py and eval.py read such "
                            "files, with --arch and --depth")
        ckpt = foreign(path, ckpt, network, arch, depth)
    if ckpt["format"] != FORMAT:
        raise UserError(f"{path} has checkpoint format {ckpt['format']}; this code reads format {FORMAT}")
    if "packed" in ckpt:
        try:
            ckpt = unpack(ckpt)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            raise UserError(f"{path}: its masks and its packed weights do not fit together ({error}); copy or make it "
                            "anew") from error
    missing = [k for k in ("method", "stage", "arch", "cfg", "dataset", "state_dict") if k not in ckpt]
    if missing or ckpt["stage"] not in STAGES or not isinstance(ckpt["cfg"], dict) or not weights(ckpt["state_dict"]):
        raise UserError(f"{path} is no checkpoint of this repository (missing or wrong: "
                        f"{', '.join(missing) or 'stage, cfg or state_dict'})")
    for name, mask in ckpt.get("masks", {}).items():         # those that are not bool are a method's own affair
        if not isinstance(mask, torch.Tensor) or mask.dtype == torch.bool and (
                name not in ckpt["state_dict"] or mask.shape != ckpt["state_dict"][name].shape):
            raise UserError(f"{path}: its mask of {name} fits no weight; copy or make it anew")
    ckpt = {"epoch": 0, "prec1": None, "best_prec1": None, "args": {}, "dense": None, **ckpt}
    if network and (arch or depth):
        asked, cfg = network(arch, depth) if arch else (ckpt["arch"], {"depth": depth})
        said = {str(depth), *re.findall(r"\d+", arch or "")}  # cfg's other numbers are defaults, asked for by nobody
        if ckpt["arch"] != asked or any(str(v) in said and ckpt["cfg"].get(k) != v for k, v in cfg.items()):
            there = " ".join(f"{k} {v}" for k, v in ckpt["cfg"].items() if k in ("depth", "widen_factor"))
            raise UserError(f"{path} holds a {ckpt['arch']} ({there}), not{f' --arch {arch}' if arch else ''}"
                            f"{f' --depth {depth}' if depth else ''}; leave them out to take it from the file")
    ckpt["path"] = str(path)
    ckpt["state_dict"] = {k: v.float() if v.is_floating_point() else v for k, v in ckpt["state_dict"].items()}
    return ckpt


def to_model(ckpt):
    """The network of a checkpoint, with its weights, in evaluation mode."""
    path = ckpt.get("path", "checkpoint")
    try:
        model = models.build(ckpt["arch"], **ckpt["cfg"])
    except (UserError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} describes a network that cannot be built: {error}") from error
    fit(model, ckpt["state_dict"], path)
    return model.eval()


def weights(state):
    """Whether it is a state_dict."""
    return isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items())


def fit(model, state, path):
    """load_state_dict, with the first thing that does not fit named."""
    own = model.state_dict()
    for name in own:
        if name not in state:
            raise UserError(f"{path} has no {name}; it is not a {model.arch} with {model.cfg}")
        if state[name].shape != own[name].shape:
            raise UserError(f"{path}: {name} is {tuple(state[name].shape)}, the {model.arch} has "
                            f"{tuple(own[name].shape)}; another depth, width or class count")
    extra = [name for name in state if name not in own]
    if extra:
        raise UserError(f"{path} has {extra[0]}, which a {model.arch} with {model.cfg} has not")
    model.load_state_dict(state)


def dataset_of(ckpt):
    if not ckpt["dataset"]:
        raise UserError(f"{ckpt['path']} does not say which data set it was trained on; give --dataset")
    return ckpt["dataset"]


def foreign(path, ckpt, network, arch, depth):
    """A bare state_dict, or an original repository's {epoch, state_dict, best_prec1 or acc, cfg?}, as a checkpoint."""
    state = ckpt.get("state_dict", ckpt)
    if not state or not weights(state):
        raise UserError(f"{path} holds no weights (keys: {', '.join(map(str, list(ckpt)[:5]))})")
    if not arch:
        raise UserError(f"{path} does not say which network it is; give --arch and --depth")
    arch, cfg = network(arch, depth)
    state = translate(state, arch)
    for name in reversed(list(state)):
        if name.endswith(".bias"):
            cfg["num_classes"] = len(state[name])
            break
    if "cfg" in ckpt:                                   # the originals' list of widths of a pruned network
        if not isinstance(ckpt["cfg"], list):
            raise UserError(f"{path}: its cfg is no list of widths")
        whole = models.build(arch, **cfg).state_dict()
        if any(state[name].shape != whole[name].shape for name in whole.keys() & state.keys()):
            cfg["widths"] = ckpt["cfg"]                 # else a mask-impl file: it counts what is kept of whole weights
    model = models.build(arch, **cfg)
    for name, tensor in model.state_dict().items():
        if name not in state and name.endswith(".indices"):
            state[name] = tensor                        # mask-impl networks have no channel selection: all is kept
        if name not in state and name.endswith("num_batches_tracked"):
            state[name] = tensor                        # torch before 0.4.1 did not write it
    fit(model, state, path)
    best = float(ckpt.get("best_prec1", ckpt.get("best_acc", 0)) or 0)
    return {"format": FORMAT, "method": "original", "stage": "pruned" if "cfg" in ckpt else "dense", "arch": arch,
            "cfg": model.cfg, "dataset": None, "state_dict": state, "epoch": int(ckpt.get("epoch", 0)), "prec1": None,
            "best_prec1": 100 * best if best <= 1 else best, "args": {}, "dense": None}


def translate(state, arch):
    """The originals' parameter names in ours, and their 0/1 selection vectors as indices."""
    renames = {"vgg": [(r"^features\.", "feature.")],
               "wideresnet": [(r"^layer(\d)\.", r"block\1.layer."), (r"\.downsample\.", ".convShortcut.")]}
    ours = {}
    for name, tensor in state.items():
        name = name.removeprefix("module.").replace(".module.", ".")     # DataParallel, around all or a part
        if name.endswith(("total_ops", "total_params")):                 # thop leaves these
            continue
        if name.endswith("select.indexes"):
            name, tensor = name.replace("indexes", "indices"), tensor.nonzero().flatten()
        for pattern, ours_is in renames.get(arch, ()):
            name = re.sub(pattern, ours_is, name)
        ours[name] = tensor
    return ours
