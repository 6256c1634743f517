"""Recognize the network of a state_dict by its names and shapes.

    told("resnet", state)                  # {"depth": 20, "block": "basic"}: options of models.build
    model = sized("resnet", cfg, state)    # with as many channels and classes as the tensors have, on the meta device
    model, state, form = recognize(path, state)     # by the names that the repositories of originals.py give
"""
import copy
import re
from collections import Counter

import torch
from torch import nn

from common import UserError, models
from common.files.originals import FORMATS, translated
from common.models.resnet_imagenet import DEPTHS
from common.models.vgg import CONVS


def told(arch, state):
    """Options of models.build, apart from widths, from the names and shapes of a state_dict."""
    def blocks(pattern):
        return len({m[0] for name in state if (m := re.match(pattern, name))})

    deep = any(name.endswith("conv3.weight") or name == "dense1.0.conv2.weight" for name in state)
    kind = {"block": "bottleneck" if deep else "basic"}
    if any("select" in name for name in state):
        kind["selection"] = True
    if arch in ("resnet", "preresnet"):
        return {"depth": (3 if deep else 2) * blocks(r"layer\d\.\d+\.") + 2, **kind}
    if arch == "resnet_imagenet":
        plan = kind["block"], tuple(blocks(rf"layer{stage}\.\d+\.") for stage in (1, 2, 3, 4))
        return {"depth": next((depth for depth, known in DEPTHS.items() if known == plan), 18),
                "stem": "imagenet" if state["conv1.weight"].shape[-1] == 7 else "small"}
    if arch == "wideresnet":                                 # the smallest widen factor that holds all widths
        made = [(len(t), int(name[5])) for name, t in state.items() if re.match(r"block\d.*conv\w*\.weight", name)]
        return {"depth": 2 * blocks(r"block\d\.layer\.\d+\.") + 4,
                "widen_factor": max(1 + ("block1.layer.0.convShortcut.weight" in state),
                                    *(-(-width // (8 * 2 ** stage)) for width, stage in made))}
    if arch == "densenet":
        wide, narrow = len(state["trans1.bn1.weight"]), len(state["trans1.conv1.weight"])
        return {"depth": (2 if deep else 1) * blocks(r"dense\d\.\d+\.") + 4, "compression": wide // narrow,
                "growth": len(state[f"dense1.0.conv{2 if deep else 1}.weight"]), **kind}
    if arch == "resnext":
        first = "stage_1.stage_1_bottleneck_0.conv_conv.weight"
        return {"depth": 3 * blocks(r"stage_\d\.\w+") + 2, "cardinality": len(state[first]) // 64,
                "widen_factor": state["classifier.weight"].shape[1] // 256}
    if arch == "mobilenetv2":
        return {"width_multiplier": len(state["layers.16.conv3.weight"]) / 320}
    if arch == "vgg":
        convs = sum(t.dim() == 4 for t in state.values())
        normed = any(name.startswith("feature.") and name.endswith("running_var") for name in state)
        bias = "feature.0.bias" in state
        found = {"depth": next((depth for depth, plan in CONVS.items() if sum(plan) == convs), 16),
                 "variant": ("bearpaw_bn" if normed else "bearpaw") if bias else "slimming"}
        if "classifier.6.weight" in state:
            last = f"feature.{max(int(name.split('.')[1]) for name in state if name.startswith('feature.'))}.bias"
            found |= {"head": [len(state["classifier.0.weight"]), len(state["classifier.3.weight"])],
                      "pool": 7 if state["classifier.0.weight"].shape[1] == 49 * len(state[last]) else 1}
        elif "classifier.1.running_var" in state:
            found |= {"variant": "head512"}
        return found
    return {}


def sized(arch, cfg, state):
    """The network on the meta device, with the channels and classes of the state_dict."""
    model = models.sketch(arch, **cfg)
    cfg = copy.deepcopy(model.cfg)
    last = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    if f"{last}.weight" in state:                            # else `misfits` names the head
        cfg["num_classes"] = len(state[f"{last}.weight"])
    for record in model.channels():
        name = f"{record.producers[0][0]}.weight" if record.producers else f"{record.consumers[0].select}.indices"
        for key, position in record.places:
            cfg[key][position] = len(state[name]) if name in state else cfg[key][position]
    return models.sketch(arch, **cfg)


def complete(model, state):
    """The state_dict with entries that some files lack: selections that keep all, and batch counts (torch < 0.4.1)."""
    state = dict(state)
    for name, tensor in model.state_dict().items():
        if name not in state and name.endswith(".indices"):
            state[name] = torch.arange(tensor.numel())
        if name not in state and name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
    return state


def likeness(model, state):
    """Fraction of the weights that a network and a state_dict have in common, by name and number of dimensions or by
    shape, whichever is larger."""
    ours, theirs = ({name: t for name, t in d.items() if name.endswith("weight")} for d in (model.state_dict(), state))
    named = sum(name in theirs and theirs[name].dim() == t.dim() for name, t in ours.items())
    shapes = Counter(tuple(t.shape) for t in theirs.values() if t.dim() > 1)
    alike = (shapes & Counter(tuple(t.shape) for t in ours.values() if t.dim() > 1)).total()
    return max(named / max(len(ours), len(theirs), 1), alike / max(shapes.total(), 1))


def misfits(model, state, theirs):
    """Differences between a network and a state_dict, by the file's names; a head of several layers is one."""
    own, wrong = model.state_dict(), []
    head = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    inside = [name for name in state if name.startswith(f"{head}.") and name not in own]
    if inside and f"{head}.weight" not in state:
        layers = dict.fromkeys(theirs[name].rpartition(".")[0] for name in inside)
        wrong = [f"its head ({', '.join(layers)}) is not one linear layer"]
        own = {name: tensor for name, tensor in own.items() if not name.startswith(f"{head}.")}
        state = {name: tensor for name, tensor in state.items() if name not in inside}
    wrong += [f"it has no {name}" if name not in state else
              f"its {theirs.get(name, name)} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
              for name, tensor in own.items() if name not in state or state[name].shape != tensor.shape]
    return wrong + [f"it has {theirs.get(name, name)} too" for name in state if name not in own]


def recognize(path, state, asked=None, asked_cfg=None, wide=None, alone=True):
    """(network on the meta device, state_dict in our names, format) of the first format that fits.

    asked: an arch whose options are used if the file does not record them; wide: the widen factor of the dense network,
    for which narrowed widths only give a lower bound; alone: whether the file is only a state_dict. UserError names the
    nearest format, if any is near, and the first two differences.
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
