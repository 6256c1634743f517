"""Files that are not in our format: bare state_dicts, and those of the original repositories.

    ckpt = load("checkpoint.pth.tar", network, arch="vgg", depth=13)

The result is what checkpoint.load gives for our own files, which this reads as well.
"""
import re

from common import UserError, checkpoint, models


def load(path, network, arch=None, depth=None):
    """A validated checkpoint dictionary, whoever wrote the file.

    A file that does not say what it is (a bare state_dict, or one of an original repository) is what
    network(arch, depth) -> (arch, cfg) says; its class count, narrowed widths and channel selections are read from the
    file itself. For one that does, arch and depth are only compared. UserError otherwise.
    """
    path, ckpt = checkpoint.read(path)
    if "format" not in ckpt:
        return checkpoint.validated(path, convert(path, ckpt, network, arch, depth))
    ckpt = checkpoint.validated(path, ckpt)
    if arch or depth:
        asked, cfg = network(arch, depth) if arch else (ckpt["arch"], {"depth": depth})
        said = {str(depth), *re.findall(r"\d+", arch or "")}  # cfg's other numbers are defaults, asked for by nobody
        if ckpt["arch"] != asked or any(str(v) in said and ckpt["cfg"].get(k) != v for k, v in cfg.items()):
            there = " ".join(f"{k} {v}" for k, v in ckpt["cfg"].items() if k in ("depth", "widen_factor"))
            raise UserError(f"{path} holds a {ckpt['arch']} ({there}), not{f' --arch {arch}' if arch else ''}"
                            f"{f' --depth {depth}' if depth else ''}; leave them out to take it from the file")
    return ckpt


def convert(path, ckpt, network, arch, depth):
    """A bare state_dict, or an original repository's {epoch, state_dict, best_prec1 or acc, cfg?}, as a checkpoint."""
    state = ckpt.get("state_dict", ckpt)
    if not state or not checkpoint.weights(state):
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
    checkpoint.fit(model, state, path)
    best = float(ckpt.get("best_prec1", ckpt.get("best_acc", 0)) or 0)
    return {"format": checkpoint.FORMAT, "method": "original", "stage": "pruned" if "cfg" in ckpt else "dense",
            "arch": arch, "cfg": model.cfg, "dataset": None, "state_dict": state, "epoch": int(ckpt.get("epoch", 0)),
            "prec1": None, "best_prec1": 100 * best if best <= 1 else best, "args": {}, "dense": None}


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
