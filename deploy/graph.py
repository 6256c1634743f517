"""A network as a list of plain operations, batch norms folded into the convolutions before them.

    for node in operations(model): node.op, node.inputs, node.weight, node.bias, node.settings

This is what to_onnx.py writes as ONNX and to_c.py as C. The operations, on (N, C, H, W) or (N, features):

    conv        weight (out, in / groups, h, w), bias (out,); stride, padding, groups
    linear      weight (out, in), bias (out,)
    norm        weight, bias (C,): x * weight + bias for each channel, a batch norm with no convolution before it
    relu, add, concat (channels), flatten
    max_pool, avg_pool          size, stride, padding; size 0 is the mean over the whole image
    pad         before, after: so many zero channels
    skip        step: every step-th row and column
    gather      weight (channels,): the channels that a selection passes on
"""
import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from common import UserError, models


@dataclass
class Node:
    name: str
    op: str
    inputs: list
    weight: torch.Tensor = None
    bias: torch.Tensor = None
    settings: dict = field(default_factory=dict)


@torch.no_grad()
def operations(model):
    """[Node] in the order they are computed; the first reads "images", the last gives the logits. In float64.

    They are recorded while the network computes one image, and computed again: UserError, which names the first
    operation that is none of the above or differs from torch's.
    """
    model = copy.deepcopy(model).cpu().double().eval().to(memory_format=torch.contiguous_format).requires_grad_(False)
    recorder = Recorder(model)
    shape = 1, *models.input_shape(model.arch, model.cfg)
    images = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    copied = images.clone()
    recorder.seen[id(images)] = "images", images
    with recorder:
        logits = model(images)
    nodes = folded(merged(recorder.read_by(logits), model.arch))
    if not same(logits_of(nodes, copied), logits):           # each operation is right, so they share memory
        raise UserError(f"cannot export this {model.arch}: something in place changes what other operations read")
    return nodes


def compute(node, x, *others):
    """What an operation gives for the values that it reads."""
    channels, settings = (1, -1, *[1] * (x.dim() - 2)), node.settings
    return {"conv": lambda: F.conv2d(x, node.weight, node.bias, **settings),
            "linear": lambda: F.linear(x, node.weight, node.bias),
            "norm": lambda: x * node.weight.view(channels) + node.bias.view(channels),
            "relu": lambda: F.relu(x), "add": lambda: x + others[0], "concat": lambda: torch.cat([x, *others], 1),
            "flatten": lambda: x.flatten(1), "max_pool": lambda: F.max_pool2d(x, *settings.values()),
            "avg_pool": lambda: F.avg_pool2d(x, *settings.values()) if settings["size"] else x.mean((2, 3), True),
            "pad": lambda: F.pad(x, (0, 0, 0, 0, settings["before"], settings["after"])),
            "skip": lambda: x[:, :, ::settings["step"], ::settings["step"]],
            "gather": lambda: x[:, node.weight]}[node.op]()


def logits_of(nodes, images):
    """The logits (N, classes) of images (N, C, H, W), both in float64."""
    values = {"images": images}
    for node in nodes:
        values[node.name] = compute(node, *(values[name] for name in node.inputs))
    return values[nodes[-1].name]


def same(a, b):
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-9 * b.abs().max())


class Recorder(TorchFunctionMode):
    """Notes what torch functions do with the values that come from the images."""

    def __init__(self, model):
        super().__init__()
        self.nodes, self.seen = [], {}                       # seen: id -> (name, value); the value keeps its id taken
        self.arch, self.names = model.arch, {id(p): name for name, p in model.named_parameters()}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, what = kwargs or {}, function.__name__.strip("_")
        args = [list(a) if isinstance(a, tuple) and what == "cat" else a for a in args]
        flat = args[0] if what == "cat" else args
        inputs = [self.seen[id(a)][0] for a in flat if id(a) in self.seen]
        before = [a for a in flat if isinstance(a, torch.Tensor)]
        read = [a.clone() for a in before if id(a) in self.seen]           # which the function may change
        result = function(*args, **kwargs)
        made = [r for r in tree_leaves(result) if isinstance(r, torch.Tensor)]
        if not inputs or not made:
            return result
        node = self.translate(what, inputs, before, args, kwargs, result) if made[0] is result else None
        checked = isinstance(node, Node) and node.op != "adaptive_pool"
        if node is None or checked and not same(compute(node, *read), result):
            raise UserError(f"cannot export this {self.arch}: {what} from {tuple(before[0].shape)} to "
                            f"{tuple(made[0].shape)}")
        if isinstance(node, Node):
            self.nodes.append(node)
            node = node.name
        self.seen[id(result)] = node, result
        return result

    def read_by(self, logits):
        """The nodes that the logits need."""
        needed, nodes = {self.seen.get(id(logits), [None])[0]}, []
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
                nodes.insert(0, node)
        if not nodes:
            raise UserError(f"cannot export this {self.arch}: its logits are made of lists of tensors, or of none")
        return nodes

    def translate(self, what, inputs, tensors, args, kwargs, result):
        """The Node of a call, the name of its input where it changes nothing, or None for any other call."""
        def node(op, weight=None, bias=None, **settings):
            name = self.names.get(id(tensors[1]), "") if weight is not None and len(tensors) > 1 else ""
            name = name.rpartition(".")[0].replace(".", "_") or f"{op}_{len(self.nodes)}"
            return Node(name, op, inputs, weight, bias, settings)

        def option(position, name, otherwise):
            value = args[position] if len(args) > position else kwargs.get(name, otherwise)
            return value[0] if isinstance(value, tuple | list) and len(set(value)) == 1 else value

        def square(node):
            return node if all(isinstance(value, int) for value in node.settings.values()) else None

        if what == "conv2d" or what == "linear" and result.dim() == 2:
            bias = option(2, "bias", None)
            bias = torch.zeros(len(tensors[1]), dtype=torch.float64) if bias is None else bias
            if what == "linear":
                return node("linear", tensors[1], bias)
            return square(node("conv", tensors[1], bias, stride=option(3, "stride", 1),
                               padding=option(4, "padding", 0), groups=option(6, "groups", 1)))
        if what == "batch_norm" and option(1, "running_mean", None) is not None:
            mean, var, weight, bias, eps = (option(i, name, otherwise) for i, name, otherwise in (
                (1, "running_mean", None), (2, "running_var", None), (3, "weight", None), (4, "bias", None),
                (7, "eps", 1e-5)))
            scale = (1 if weight is None else weight) / (var + eps).sqrt()
            return Node(f"norm_{len(self.nodes)}", "norm", inputs, scale, (0 if bias is None else bias) - mean * scale)
        if what in ("dropout", "contiguous") and result.shape == tensors[0].shape:
            return inputs[0]
        if what in ("relu", "flatten", "view", "reshape"):
            return node("relu" if what == "relu" else "flatten")
        if what == "add" and len(inputs) == 2 and tensors[0].shape == tensors[1].shape:
            return Node(f"add_{len(self.nodes)}", "add", inputs)
        if what in ("add", "radd") and len(tensors) == 1 and args[1] == 0:         # a branch that is not there
            return inputs[0]
        if what == "cat" and len(inputs) == len(tensors) and option(1, "dim", 0) % result.dim() == 1:
            return Node(f"cat_{len(self.nodes)}", "concat", inputs)
        if what == "index_select" and args[1] == 1:
            return Node(f"gather_{len(self.nodes)}", "gather", inputs, args[2])
        if what in ("max_pool2d", "avg_pool2d"):
            size = option(1, "kernel_size", None)
            return square(node(what.removesuffix("2d"), size=size, stride=option(2, "stride", None) or size,
                               padding=option(3, "padding", 0)))
        if what == "adaptive_avg_pool2d" and tuple(result.shape[2:]) == (1, 1):
            return node("avg_pool", size=0, stride=0, padding=0)
        if what == "adaptive_avg_pool2d":                    # as a matrix, which `merged` makes part of a layer
            pixels = torch.eye(tensors[0][0, 0].numel(), dtype=torch.float64).view(-1, 1, *tensors[0].shape[2:])
            return node("adaptive_pool", F.adaptive_avg_pool2d(pixels, result.shape[2:]).flatten(1).t())
        if what == "pad" and len(args[1]) == 6 and not any(args[1][:4]):
            return node("pad", before=args[1][4], after=args[1][5])
        if what == "getitem" and isinstance(args[1], tuple) and [type(i) for i in args[1]] == [slice] * 4:
            return node("skip", step=args[1][3].step or 1)
        return None


def merged(nodes, arch):
    """The nodes without adaptive pooling to several pixels; its matrix goes into the next linear layer's weight.

    UserError where something else reads it.
    """
    pools = {node.name: node for node in nodes if node.op == "adaptive_pool"}
    flat = {node.name: node for node in nodes if node.op == "flatten" and node.inputs[0] in pools}
    for node in nodes:
        if node.op == "linear" and node.inputs[0] in flat:
            pool = pools[flat[node.inputs[0]].inputs[0]].weight
            node.weight = (node.weight.view(len(node.weight), -1, len(pool)) @ pool).flatten(1)
        elif node.name not in flat and not {*node.inputs}.isdisjoint({*pools, *flat}):
            raise UserError(f"cannot export this {arch}: {node.op} after an adaptive pooling to several pixels")
    for node in flat.values():
        node.inputs = pools[node.inputs[0]].inputs
    return [node for node in nodes if node.name not in pools]


def folded(nodes):
    """The nodes without the norms whose input is a convolution or linear layer that nothing else reads."""
    makers, readers, kept, renamed = {node.name: node for node in nodes}, {}, [], {}
    for node in nodes:
        for name in node.inputs:
            readers[name] = readers.get(name, 0) + 1
    for node in nodes:
        node.inputs = [renamed.get(name, name) for name in node.inputs]
        maker = makers.get(node.inputs[0])
        if node.op == "norm" and maker is not None and maker.op in ("conv", "linear") and readers[maker.name] == 1:
            maker.weight = maker.weight * node.weight.view(-1, *[1] * (maker.weight.dim() - 1))
            maker.bias = maker.bias * node.weight + node.bias
            renamed[node.name] = maker.name
        else:
            kept.append(node)
    return kept
