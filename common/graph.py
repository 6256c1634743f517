"""A network as a list of plain operations, batch norms folded into the convolutions before them.

    for node in operations(model): node.op, node.inputs, node.weight, node.bias, node.settings

This is what export.py writes as ONNX and export_c.py as C. The operations, on (N, C, H, W) or (N, features):

    conv        weight (out, in / groups, h, w), bias (out,); stride, padding, groups
    linear      weight (out, in), bias (out,)
    norm        weight, bias (C,): x * weight + bias for each channel, a batch norm with no convolution before it
    relu, add, concat (channels), flatten
    max_pool, avg_pool          size (the stride is the same); size 0 is the mean over the whole image
    pad         channels: so many zero channels at the end
    gather      weight (channels,): the channels that a selection passes on
"""
import operator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import fx, nn

from common import UserError
from common.models.layers import ChannelSelection

NORMS = (nn.BatchNorm2d, nn.BatchNorm1d)


@dataclass
class Node:
    name: str
    op: str
    inputs: list
    weight: torch.Tensor = None
    bias: torch.Tensor = None
    settings: dict = field(default_factory=dict)


class Tracer(fx.Tracer):
    def is_leaf_module(self, module, name):
        return isinstance(module, ChannelSelection) or super().is_leaf_module(module, name)


@torch.no_grad()
def operations(model):
    """[Node] in the order they are computed; the first reads "images", the last gives the logits. In float64."""
    modules, nodes, alias = dict(model.named_modules()), [], {}

    def add(name, op, inputs, weight=None, bias=None, **settings):
        nodes.append(Node(name, op, inputs, weight, bias, settings))
        return name

    for step in Tracer().trace(model).nodes:
        inputs = [alias[i] for i in step.all_input_nodes if i in alias]
        module = modules.get(step.target) if step.op == "call_module" else None
        name, what = step.name, step.target
        if step.op == "placeholder":
            alias[step] = "images"
        elif step.op == "output":
            assert inputs == [nodes[-1].name]
        elif step.op == "get_attr":
            pass                                             # the batch norm that a selection is given
        elif isinstance(module, nn.Identity | nn.Dropout) or module is not None and not len(module._modules) and (
                isinstance(module, nn.Sequential)):
            alias[step] = inputs[0]
        elif isinstance(module, nn.Conv2d):
            bias = zeros(module.out_channels) if module.bias is None else module.bias.double()
            alias[step] = add(name, "conv", inputs, module.weight.double(), bias, stride=module.stride[0],
                              padding=module.padding[0], groups=module.groups)
        elif isinstance(module, nn.Linear):
            bias = zeros(module.out_features) if module.bias is None else module.bias.double()
            alias[step] = add(name, "linear", inputs, module.weight.double(), bias)
        elif isinstance(module, NORMS):
            alias[step] = add(name, "norm", inputs, *scale_and_shift(module))
        elif isinstance(module, ChannelSelection):
            indices, norm = module.indices, step.args[1] if len(step.args) > 1 else None
            alias[step] = inputs[0]
            if indices.numel() < module.width:
                alias[step] = add(f"{name}_gather", "gather", inputs, indices)
            if norm is not None:
                scale, shift = scale_and_shift(modules[norm.target])
                alias[step] = add(name, "norm", [alias[step]], scale[indices], shift[indices])
        elif what is F.relu or isinstance(module, nn.ReLU):
            alias[step] = add(name, "relu", inputs)
        elif what is operator.add:
            alias[step] = add(name, "add", [alias[i] for i in step.args])      # the same one twice, perhaps
        elif what is torch.cat and step.args[1] == 1:
            alias[step] = add(name, "concat", inputs)
        elif what == "flatten" and step.args[1:] == (1,):
            alias[step] = add(name, "flatten", inputs)
        elif what is F.max_pool2d:
            alias[step] = add(name, "max_pool", inputs, size=step.args[1])
        elif what is F.avg_pool2d:
            alias[step] = add(name, "avg_pool", inputs, size=step.args[1])
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            op = "max_pool" if isinstance(module, nn.MaxPool2d) else "avg_pool"
            alias[step] = add(name, op, inputs, size=module.kernel_size)
        elif what is F.adaptive_avg_pool2d and step.args[1] == 1:
            alias[step] = add(name, "avg_pool", inputs, size=0)
        elif isinstance(module, nn.ConstantPad3d):
            alias[step] = add(name, "pad", inputs, channels=module.padding[-1])
        else:
            raise UserError(f"cannot export {what} ({type(module).__name__}) of a {model.arch}")
    return folded(nodes)


def zeros(count):
    return torch.zeros(count, dtype=torch.float64)


def scale_and_shift(norm):
    """What an evaluating batch norm does to x (C,): x * scale + shift."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


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
