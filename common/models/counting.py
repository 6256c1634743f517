"""Counts of a network: parameters, non-zeros and MACs, layer by layer.

MACs are the multiply-accumulates of convolutions and linear layers for one image; batch norm, ReLU, pooling and
biases cost nothing here. FLOPs = 2 x MACs. Sparse MACs count only the non-zero weights; `weights` is the number of
these, without biases and batch norms, as pruning papers count. "thop" is the figure of the slimming README:
2 x (MACs + 2 per batch-norm output element).

Three files watch a forward pass, and one list for all of them would be longer. Counting needs a row for every layer of
any network, on any device; the MicroNet tally (scores.py) the elementary operations inside the layers; the exporter
(deploy/graph.py) refuses whatever ONNX and C do not have.
"""
from dataclasses import dataclass

import torch
from torch import nn

from common import models
from common.models.layers import ChannelSelection, twin


@dataclass
class Row:
    """One layer, or the total: shape is that of the weight; bytes at 4 a parameter, or as the weights are stored."""
    name: str
    shape: tuple
    params: int = 0
    nonzeros: int = 0
    weights: int = 0
    macs: int = 0
    sparse_macs: int = 0
    norm_elements: int = 0
    bytes: int = 0

    @property
    def thop_flops(self):
        return 2 * (self.macs + 2 * self.norm_elements)


@dataclass
class Count:
    rows: list
    selections: int = 0     # length of all channel selections together, which the originals counted as parameters
    elsewhere: int = 0      # MACs outside of convolutions and linear layers: products of matrices, functional layers

    @property
    def total(self):
        sums = {k: sum(getattr(row, k) for row in self.rows)
                for k in ("params", "nonzeros", "weights", "macs", "sparse_macs", "norm_elements", "bytes")}
        for k in ("macs", "sparse_macs"):
            sums[k] += self.elsewhere
        return Row("total", (), **sums)


def nonzeros(p):
    return int(p.count_nonzero()) if p.device.type != "meta" else p.numel()


@torch.no_grad()
def count(model):
    """Counts one forward pass of one image; the model is left as it was."""
    weight = next(model.parameters())
    model = twin(model, weight.device).eval()                # with hooks that the given one should not have
    rows, seen = {}, set()                                   # by id: hooks that know the layers would keep them alive

    def add(m, inputs, output):
        if isinstance(m, (nn.modules.conv._ConvNd, nn.Linear)):
            # every weight is used once per position of the output, of a transposed convolution of the input
            positions = (output.numel() // m.out_features if isinstance(m, nn.Linear) else inputs[0].numel() //
                         m.in_channels if m.transposed else output.numel() // m.out_channels)
            row = rows[id(m)]
            row.macs += positions * m.weight.numel()
            row.sparse_macs += positions * row.weights
        elif isinstance(m, (nn.BatchNorm2d, nn.BatchNorm1d)):
            rows[id(m)].norm_elements += output.numel()
        elif isinstance(m, ChannelSelection) and len(inputs) == 2 and m.indices.numel() < m.width:
            rows[id(inputs[1])].norm_elements += inputs[0].numel()       # the original normalizes all, then selects

    for name, m in model.named_modules():
        if parameters := list(m.parameters(recurse=False)):
            row = rows[id(m)] = Row(name, tuple(getattr(m, "weight", parameters[0]).shape))
            if isinstance(m, (nn.modules.conv._ConvNd, nn.Linear)):          # also those that only training runs
                row.weights = nonzeros(m.weight)
            for p in [p for p in parameters if id(p) not in seen]:        # layers may share it
                seen.add(id(p))
                row.params += p.numel()
                row.nonzeros += nonzeros(p)
                row.bytes += p.numel() * p.element_size()
        if parameters or isinstance(m, ChannelSelection):
            m.register_forward_hook(add)
    image = torch.zeros(1, *models.input_shape(model.arch, model.cfg), device=weight.device, dtype=weight.dtype)
    elsewhere = 0
    if ":" in model.arch:                                    # somebody else's code may multiply anywhere
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode
        fused = torch.backends.mha.get_fastpath_enabled()    # whose products it does not see
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                model(image)
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
        elsewhere = counter.get_total_flops() // 2 - sum(row.macs for row in rows.values())
    else:
        model(image)
    selections = sum(m.width for m in model.modules() if isinstance(m, ChannelSelection))
    return Count(list(rows.values()), selections, elsewhere)


def summary(model):
    """{params, macs, cfg}: what a checkpoint remembers of the dense network."""
    total = count(model).total
    return {"params": total.params, "macs": total.macs, "cfg": model.cfg}


def dense_network(ckpt, model):
    """The dense network that the checkpoint's network comes from, with random weights and the image size of `model`,
    which may differ from the file's."""
    size = {name: model.cfg[name] for name in ("image_size", "input") if name in model.cfg}
    return models.build(ckpt["arch"], **{**(ckpt["dense"] or ckpt)["cfg"], **size})


def dense_total(ckpt, model):
    """count's totals of `dense_network`; `weights` are all of them."""
    with torch.device("meta"):
        return count(dense_network(ckpt, model)).total
