"""Checkpoints: one dictionary of tensors, numbers, strings, lists and dicts, readable without running code.

    {format, method, stage, arch, cfg, dataset, state_dict, masks?, quant?, epoch, prec1, best_prec1, args,
     dense: {params, macs, cfg}, images?: {classes, mean, std}}

and, in a file to resume from, `resume` with the optimizer, scheduler and random states. prec1 is in percent.
`stage` is one of dense, sparse, pruned, finetuned, quantized. `load` reads files of other repositories as well.
Weights that a mask prunes are not stored: at 90 % sparsity a file is less than a fifth of the dense one. Quantized
weights are stored as integers (`quant`, see packing.py); `load` gives their values.
"""
from pathlib import Path

import torch
from torch.utils._pytree import tree_map_only

from common import UserError, models, say
from common.files import archive, checks, packing
from common.models import counting


def save(path, ckpt, half=False):
    """Writes the checkpoint, whole or not at all, and gives the path.

    half: weights as float16, half the bytes, but batch norms whole (their gammas are ranked) and quantized weights as
    their integers say; `load` gives float32.
    """
    ckpt = {"format": checks.FORMAT, **ckpt}
    if half:
        state, quant = ckpt["state_dict"], ckpt.get("quant") or {}
        ckpt["state_dict"] = {name: v if f"{name.rpartition('.')[0]}.running_var" in state or name in quant
                              or not v.is_floating_point() else v.half() for name, v in state.items()}
    path = Path(path)
    archive.write(path, packing.pack(ckpt))
    return path


def of(model, method, stage, dataset, epoch=0, prec1=None, best_prec1=None, args=None, dense=None, **more):
    """The checkpoint dictionary of a model."""
    state = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in model.state_dict().items()}
    more = tree_map_only(torch.Tensor, lambda v: v.detach().cpu(), {k: v for k, v in more.items() if v is not None})
    plain = (bool, int, float, str, list, type(None))
    args = {k: v for k, v in (args or {}).items() if isinstance(v, plain) and k != "data_dir"}
    return {"method": method, "stage": stage, "arch": model.arch, "cfg": model.cfg, "dataset": dataset,
            "state_dict": state, "epoch": epoch, "prec1": prec1, "best_prec1": best_prec1, "args": args, "dense": dense,
            **({"images": model.images} if getattr(model, "images", None) else {}), **more}


def locate(path):
    """The path, or the repository's own file for one that starts with chkpt/ and is not here."""
    path = Path(path)
    bundled = Path(__file__).resolve().parents[2] / path
    return bundled if path.parts[:1] == ("chkpt",) and not path.exists() and bundled.exists() else path


def load(path, network=models.any_network, arch=None, depth=None, image_size=None, quantized=False):
    """A validated checkpoint dictionary, whoever wrote the file: weights in float32 on the CPU. UserError otherwise.

    arch and depth are compared with the file's network; what a file of another repository does not say (whether a batch
    norm has a channel selection, where a stride is) is as network(arch, depth) -> (arch, cfg) has it. image_size: what
    its images are resized to. quantized: take a quantized file, too. It can be evaluated, but not trained or pruned:
    what is written then would have neither its integers nor the rounding of what its layers read.
    """
    path = locate(path)
    ckpt = archive.read(path)
    if "format" in ckpt:
        checks.fields(ckpt, path)
        try:
            ckpt = packing.unpack(ckpt)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            raise UserError(f"{path}: its masks and its packed weights do not match ({error}); copy or make it "
                            "again") from error
    else:
        from common.files.foreign import convert
        ckpt = convert(path, ckpt, network, arch, depth, image_size)
    checks.tensors(ckpt, path)
    model = network_of(ckpt["arch"], ckpt["cfg"], path, models.sketch)       # compared before memory is taken for it
    checks.compare(model, ckpt["state_dict"], path)
    ckpt = {"epoch": 0, "prec1": None, "best_prec1": None, "args": {}, "dense": None, **ckpt, "cfg": model.cfg,
            "path": str(path)}
    if ckpt["dense"]:
        network_of(ckpt["arch"], ckpt["dense"]["cfg"], f"{path}: its dense", models.sketch)
    checks.images(ckpt, path)
    if not quantized and (ckpt.get("quant") or ckpt.get("activations")):
        raise UserError(f"{path} is quantized already; give the network that it was made from")
    checks.agree(path, ckpt, network, arch, depth)
    ckpt["state_dict"] = {k: v.float() if v.is_floating_point() else v for k, v in ckpt["state_dict"].items()}
    cfg = {**model.cfg, "image_size": image_size}
    return ckpt | {"cfg": network_of(ckpt["arch"], cfg, path, models.sketch).cfg} if image_size else ckpt


def to_model(ckpt):
    """The network of a checkpoint, with its weights, in evaluation mode; layers in its `activations` round inputs.

    Weights below the smallest normal number of fp32, which a GPU may leave, are zero: a CPU computes with them as such.
    """
    path = ckpt.get("path", "checkpoint")
    model = network_of(ckpt["arch"], ckpt["cfg"], path)
    model.load_state_dict(ckpt["state_dict"])
    for p in model.parameters():
        p.data[p.data.abs() < torch.finfo(torch.float32).tiny] = 0
    packing.quantize_inputs(model, ckpt.get("activations") or {}, path)
    model.images = ckpt.get("images")
    return model.eval()


def to_classes(ckpt, dataset):
    """The checkpoint with a last layer for the classes of dataset, reinitialized if it had another number of them, or
    other names."""
    had, count = ckpt["cfg"]["num_classes"], dataset.num_classes
    names = (ckpt.get("images") or {}).get("classes")
    if had == count and (not names or not dataset.classes or names == list(dataset.classes)):
        return ckpt
    cfg, state, dense = {**ckpt["cfg"], "num_classes": count}, ckpt["state_dict"], ckpt["dense"]
    other = models.sketch(ckpt["arch"], **{**cfg, "num_classes": had + 1}).state_dict()
    last = {name: tensor for name, tensor in models.build(ckpt["arch"], **cfg).state_dict().items()
            if other[name].shape != state[name].shape}
    say(f"note: {ckpt['path']} has {had} classes, {dataset.name} has {count}{' others' * (had == count)}: "
        f"{' and '.join(last)} are reinitialized")
    if dense:
        dense = counting.summary(models.build(ckpt["arch"], **{**dense["cfg"], "num_classes": count}))
    masks = {name: mask for name, mask in ckpt.get("masks", {}).items() if name not in last}
    images = {"classes": list(dataset.classes), "mean": list(dataset.mean), "std": list(dataset.std)}
    return {**ckpt, "cfg": cfg, "state_dict": {**state, **last}, "dense": dense, "masks": masks, "images": images}


def network_of(arch, cfg, path, build=models.build):
    """build(arch, **cfg), the arch and cfg being those of the file `path`."""
    try:
        return build(arch, **cfg)
    except Exception as error:                               # a stranger's cfg can be wrong in any way
        raise UserError(f"{path} describes a network that cannot be built: {error}") from error


def fit(model, state, path):
    """load_state_dict, with the first thing that does not fit named."""
    checks.compare(model, state, path)
    model.load_state_dict(state)


def dataset_of(ckpt):
    if not ckpt["dataset"]:
        raise UserError(f"{ckpt['path']} does not say which data set it was trained on; give --dataset")
    return ckpt["dataset"]
