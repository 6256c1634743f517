"""Parameters and FLOPs of a masked network, as sums of products of its numbers of active channels.

A convolution that reads a and makes b active channels has k k a b parameters, a batch norm 2 b. So each tensor is a
term (coefficient) A[i] A[j]: A holds the active channels of each record of `model.channels()`, 1 or 0 for each
removable branch, and a last 1 for tensors with one factor.

FLOPs are counted as the original's training counter does: 2 per multiply-accumulate, 1 per bias and per input element
of a batch norm. WideResNet-34-9 on CIFAR-100 has 37,446,900 parameters and 11,941,966,436 FLOPs.
"""
import copy

import torch
from torch import nn

from common import compute_flops, models
from common.models.narrow import width_of


def branches_of(model, records):
    """The residual branches that can be removed: [(numbers of the records inside), ...], and {layer: branch number} of
    the layers that are removed with them."""
    names = list(dict.fromkeys(record.branch for record in records if record.branch))
    inside = [tuple(i for i, record in enumerate(records) if record.branch == name) for name in names]
    cfg = copy.deepcopy(model.cfg)
    for record in records:
        for key, position in record.places if record.branch else ():
            cfg[key][position] = 0
    with torch.device("meta"):
        left = dict(models.build(model.arch, **cfg).named_modules())
    return inside, {layer: b for b, name in enumerate(names) for layer, _ in model.named_modules()
                    if layer.startswith(f"{name}.") and layer not in left}


class Cost(nn.Module):
    """params(alive), flops(alive): int64 0-d tensors, from the living entries of every mask (masks,), on its device.

    unstructured: the masks are those of single weights, of all layers but the last. terms (tensors, 4): coefficients in
    parameters and in FLOPs, i, j.
    """

    def __init__(self, model, records, unstructured=False):
        super().__init__()
        modules, rows = dict(model.named_modules()), compute_flops.count(model).rows
        inside, lost = branches_of(model, records)
        self.weights = [f"{row.name}.weight" for row in rows if row.macs][:-1]
        self.norms = [row.name for row in rows if not row.macs]
        if unstructured:
            self.sizes = [model.get_parameter(name).numel() for name in self.weights]
            makes = {name.rpartition(".")[0]: i for i, name in enumerate(self.weights)}
        else:
            self.sizes = [width_of(modules[record.producers[0][0]]) // record.group_size for record in records]
            makes = {name: i for i, record in enumerate(records) for pair in record.producers for name in pair}
            makes |= {consumer.norm: i for i, record in enumerate(records) for consumer in record.consumers}
            makes |= {name.rpartition(".")[0]: i for i, record in enumerate(records)
                      for name, axis in record.index if axis == 0}                       # of a traced network
            makes.pop("", None)                              # no norm; the network's own parameters have that name
        reads = {consumer.layer: i for i, record in enumerate(records) for consumer in record.consumers}
        sizes = [*self.sizes, *[1] * len(inside), 1]
        one, terms = len(sizes) - 1, []

        def term(params, flops, i, j):
            terms.append((params // (sizes[i] * sizes[j]), flops // (sizes[i] * sizes[j]), i, j))

        for row in rows:
            layer, made = modules[row.name], makes.get(row.name, one)
            if not row.macs:                                 # a batch norm
                term(row.params, row.norm_elements, made, len(self.sizes) + lost[row.name] if row.name in lost else one)
                continue
            term(layer.weight.numel(), 2 * row.macs, made, reads.get(row.name, one))
            if layer.bias is not None:
                positions = row.macs // layer.weight.numel()
                term(layer.bias.numel(), layer.bias.numel() * positions, one if unstructured else made, one)
        # A layer outside of these branches keeps a channel, and so does a stream.
        least = [0 if unstructured or records[i].branch else 1 for i in range(len(self.sizes))]
        for name, values in {"terms": terms, "least": least, "inside": inside}.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.int64), persistent=False)
        self.all_params, self.all_flops = (int(f(torch.tensor(self.sizes))) for f in (self.params, self.flops))

    def products(self, alive):
        alive = torch.maximum(alive, self.least)
        if len(self.inside):
            there = (alive[self.inside] > 0).all(1)
            alive = alive.index_put((self.inside.flatten(),), (alive[self.inside] * there[:, None]).flatten())
            alive = torch.cat([alive, there.long()])
        a = torch.cat([alive, alive.new_ones(1)])
        return a[self.terms[:, 2]] * a[self.terms[:, 3]]

    def params(self, alive):
        return (self.terms[:, 0] * self.products(alive)).sum()

    def flops(self, alive):
        return (self.terms[:, 1] * self.products(alive)).sum()


def legacy_flops(model, dense_cfg, halve=False):
    """FLOPs as the original's eval.py counts them, for one image: a float.

    Its counter uses the dense network's input channels, so a convolution costs 2 k k (dense inputs) (living outputs) H
    W, and a batch norm 4 per element (it sees a batch of two). halve: half for convolutions, as with its --freebie and
    --half. With model.cfg for dense_cfg the inputs are the true ones.
    """
    with torch.device("meta"):
        dense = models.build(model.arch, **dense_cfg)
    modules, convolutions, others = dict(model.named_modules()), 0, 0
    for row in compute_flops.count(model).rows:
        layer = modules[row.name]
        if isinstance(layer, nn.Conv2d):
            positions = row.macs // layer.weight.numel()
            inputs, dense_inputs = layer.weight.shape[1], dense.get_submodule(row.name).weight.shape[1]
            convolutions += 2 * row.macs // inputs * dense_inputs
            convolutions += positions * layer.bias.numel() if layer.bias is not None else 0
        elif isinstance(layer, nn.Linear):
            others += 2 * layer.weight.numel() + (layer.bias.numel() if layer.bias is not None else 0)
        else:
            others += 4 * row.norm_elements
    return convolutions / (2 if halve else 1) + others
