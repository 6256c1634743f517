"""Checkpoints: one dictionary of tensors, numbers, strings, lists and dicts, readable without running code.

    {format, method, stage, arch, cfg, dataset, state_dict, masks?, quant?, epoch, prec1, best_prec1, args,
     dense: {params, macs, cfg}, images?: {classes, mean, std}}

and, in a file to resume from, `resume` with the optimizer, scheduler and random states. prec1 is in percent.
`stage` is one of dense, sparse, pruned, finetuned, quantized. A file of the original repositories loads too.
Weights that a mask prunes are not stored: at 90 % sparsity a file is less than a fifth of the dense one. Quantized
weights are stored as integers (`quant`, see packing.py); `load` gives their values.
"""
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import torch

from common import UserError, models
from common.files import checks, foreign, packing

FORMAT = 1
# Originals may hold an accuracy as a numpy number, which is plain data too; numpy 1 had its function elsewhere.
MAKES_NUMBER = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS = [*{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"}, np.dtype, MAKES_NUMBER,
                 (MAKES_NUMBER, "numpy.core.multiarray.scalar")]
STAGES = ("dense", "sparse", "pruned", "finetuned", "quantized")


def save(path, ckpt, half=False):
    """Writes to a temporary file, then renames: a stopped run leaves the old file or the new one, never half.

    half: weights as float16, half the bytes, but batch norms whole (their gammas are ranked) and quantized weights as
    their integers say; `load` gives float32.
    """
    ckpt = {"format": FORMAT, **ckpt}
    if half:
        state, quant = ckpt["state_dict"], ckpt.get("quant") or {}
        ckpt["state_dict"] = {name: v if f"{name.rpartition('.')[0]}.running_var" in state or name in quant
                              or not v.is_floating_point() else v.half() for name, v in state.items()}
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left_over in path.parent.glob(f".{path.name}.*.partial"):    # of a run that was killed while writing
            left_over.unlink(missing_ok=True)
        torch.save(packing.pack(ckpt), partial)
        checks.seal(partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write {path} ({checks.why_unwritten(error, partial)})") from error
    finally:
        if partial.exists():
            partial.unlink()
    return path


def of(model, method, stage, dataset, epoch=0, prec1=None, best_prec1=None, args=None, dense=None, **more):
    """The checkpoint dictionary of a model."""
    state = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in model.state_dict().items()}
    plain = (bool, int, float, str, list, type(None))
    args = {k: v for k, v in (args or {}).items() if isinstance(v, plain) and k != "data_dir"}
    return {"method": method, "stage": stage, "arch": model.arch, "cfg": model.cfg, "dataset": dataset,
            "state_dict": state, "epoch": epoch, "prec1": prec1, "best_prec1": best_prec1,
            "args": args, "dense": dense, **({"images": model.images} if getattr(model, "images", None) else {}),
            **{k: on_cpu(v) for k, v in more.items() if v is not None}}


def on_cpu(value):
    if isinstance(value, dict):
        return {k: on_cpu(v) for k, v in value.items()}
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


def locate(path):
    """The path, or the repository's own file for one that starts with chkpt/ and is not here."""
    path = Path(path)
    bundled = Path(__file__).resolve().parents[2] / path
    return bundled if path.parts[:1] == ("chkpt",) and not path.exists() and bundled.exists() else path


def read(path):
    """(path, dictionary) of a file written by torch.save, loaded without running code. UserError otherwise."""
    path = locate(path)
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    try:
        if what := foreign.kind(path):
            raise UserError(f"{path} {what}")
        checks.archive(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(NUMPY_NUMBERS):
            warnings.simplefilter("ignore")
            ckpt = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:                               # junk makes the unpickler raise almost anything
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise UserError(f"{path} is no plain checkpoint: loading it would run code, so it is refused; save its "
                            "state_dict alone with torch.save") from error
        if isinstance(error, PermissionError):
            raise UserError(f"{path} cannot be read ({error.strerror})") from error
        raise UserError(f"{path} is truncated, or was not written by torch.save; copy or make it again") from error
    if not isinstance(ckpt, dict):
        raise UserError(f"{path} holds a {type(ckpt).__name__}, not a checkpoint dictionary")
    checks.tensors(ckpt, path)
    return path, ckpt


def load(path):
    """A validated checkpoint dictionary of our own format, weights in float32 on the CPU. UserError otherwise."""
    path, ckpt = read(path)
    if "format" not in ckpt:
        raise UserError(f"{path} was not written by this repository; prune.py, finetune.py and eval.py read such "
                        "files, with --arch and --depth")
    return validated(path, ckpt)


def validated(path, ckpt):
    """The dictionary with masks unpacked, weights in float32 and every key there; UserError names what is wrong."""
    if ckpt["format"] != FORMAT:
        raise UserError(f"{path} has checkpoint format {ckpt['format']}; this code reads format {FORMAT}")
    checks.fields(ckpt, path)
    if "packed" in ckpt or "quant" in ckpt:
        try:
            ckpt = packing.unpack(ckpt)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            raise UserError(f"{path}: its masks and its packed weights do not match ({error}); copy or make it "
                            "again") from error
    missing = [k for k in ("method", "stage", "arch", "cfg", "dataset", "state_dict") if k not in ckpt]
    if missing or ckpt["stage"] not in STAGES or not isinstance(ckpt["cfg"], dict) or not weights(ckpt["state_dict"]):
        raise UserError(f"{path} is no checkpoint of this repository (missing or wrong: "
                        f"{', '.join(missing) or 'stage, cfg or state_dict'})")
    checks.weights(ckpt["state_dict"], ckpt.get("masks", {}), path)
    model = network_of(ckpt["arch"], ckpt["cfg"], path, models.sketch)       # compared before memory is taken for it
    checks.compare(model, ckpt["state_dict"], path)
    if ckpt.get("dense"):
        network_of(ckpt["arch"], ckpt["dense"]["cfg"], f"{path}: its dense", models.sketch)
    ckpt = {"epoch": 0, "prec1": None, "best_prec1": None, "args": {}, "dense": None, **ckpt, "cfg": model.cfg,
            "path": str(path)}
    ckpt["state_dict"] = {k: v.float() if v.is_floating_point() else v for k, v in ckpt["state_dict"].items()}
    return ckpt


def to_model(ckpt):
    """The network of a checkpoint, with its weights, in evaluation mode; layers in its `activations` round inputs.

    Weights below the smallest normal number of fp32, which a GPU may leave, are zero: a CPU computes with them as such.
    """
    path = ckpt.get("path", "checkpoint")
    model = network_of(ckpt["arch"], ckpt["cfg"], path)
    fit(model, ckpt["state_dict"], path)
    for p in model.parameters():
        p.data[p.data.abs() < torch.finfo(torch.float32).tiny] = 0
    quantize_inputs(model, ckpt.get("activations") or {}, path)
    model.images = images_of(ckpt)
    return model.eval()


def network_of(arch, cfg, path, build=models.build):
    """build(arch, **cfg), the arch and cfg being those of the file `path`."""
    try:
        return build(arch, **cfg)
    except Exception as error:                               # a stranger's cfg can be wrong in any way
        raise UserError(f"{path} describes a network that cannot be built: {error}") from error


def images_of(ckpt):
    """{"classes": names, "mean", "std": per channel} of the images it was trained on, or None. UserError if odd."""
    images = ckpt.get("images")
    if images is not None and not (
            isinstance(images, dict) and all(isinstance(images.get(key), list) for key in ("classes", "mean", "std"))
            and len(images["classes"]) in (0, ckpt["cfg"].get("num_classes"))
            and all(isinstance(name, str) for name in images["classes"]) and len(images["mean"]) == len(images["std"])
            and all(isinstance(v, float) for v in images["mean"] + images["std"]) and min(images["std"] or [0]) > 0):
        raise UserError(f"{ckpt.get('path', 'checkpoint')}: its classes, mean and std do not fit the network")
    return images


def quantize_inputs(model, activations, path):
    """Lets layers round what they read: {layer: {"bits", "scale", "zero"}}, value = (code - zero) * scale."""
    modules = dict(model.named_modules())
    for name, entry in activations.items():
        try:
            bits, scale, zero = int(entry["bits"]), float(entry["scale"]), int(entry["zero"])
            if not (1 <= bits <= 16 and 0 < scale < float("inf") and 0 <= zero < 2 ** bits):
                raise ValueError(f"{bits} bits, scale {scale}, zero point {zero}")
            modules[name].register_forward_pre_hook(lambda m, x, scale=scale, zero=zero, most=2 ** bits - 1: (
                torch.fake_quantize_per_tensor_affine(x[0], scale, zero, 0, most),))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path}: its activations do not fit the network ({name}: {error})") from error


def weights(state):
    """Whether it is a state_dict."""
    return isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items())


def fit(model, state, path):
    """load_state_dict, with the first thing that does not fit named."""
    checks.compare(model, state, path)
    model.load_state_dict(state)


def dataset_of(ckpt):
    if not ckpt["dataset"]:
        raise UserError(f"{ckpt['path']} does not say which data set it was trained on; give --dataset")
    return ckpt["dataset"]
