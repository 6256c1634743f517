"""The small network after pruning, without dead neurons, channels and input pixels, and its reports.

    small = compact(model)                                   # fewer channels, the same logits

Three kinds are removed, until nothing changes:

    a neuron that nothing reads        all weights on it in the next layer are zero
    a neuron that reads nothing        all its weights are zero; the constant that it is is added to the next layer's
                                       bias
    an input pixel that nothing reads
"""
import copy

import torch
from torch import nn

from common.keep import rounded_up
from common.models import counting
from common.models.narrow import after_norm, narrow, narrow_masks, prove, width_of


def sparsity_report(model):
    """The original's report as text: non-zeros of every tensor but the batch norms', and of its groups.

    dim0 counts the inputs of a layer that any weight reads, dim1 its outputs that any weight feeds.
    """
    lines, alive, total, weights, nonzero_weights = [], 0, 0, 0, 0
    for layer, module in model.named_modules():
        for leaf, tensor in module.named_parameters(recurse=False):
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                continue
            name, count, size = f"{layer}.{leaf}", int(tensor.count_nonzero()), tensor.numel()
            alive, total = alive + count, total + size
            lines.append(f"{name:20} | nonzeros = {count:7} / {size:7} ({100 * count / size:6.2f}%) | "
                         f"total_pruned = {size - count:7} | shape = {tuple(tensor.shape)}")
            if tensor.dim() > 1:
                weights, nonzero_weights = weights + size, nonzero_weights + count
                nonzero = tensor.detach().ne(0)
                groups = [("dim0", nonzero.transpose(0, 1).flatten(1).any(1)), ("dim1", nonzero.flatten(1).any(1))]
                counts = [f"{dim} = {int(g.sum()):7} / {len(g):7} ({100 * int(g.sum()) / len(g):6.2f}%)"
                          for dim, g in groups]
                lines.append(f"{name:20} | {' | '.join(counts)}")
    rate = total / alive if alive else float("inf")
    lines.append(f"alive: {alive}, pruned : {total - alive}, total: {total}, Compression rate : {rate:10.2f}x  "
                 f"({100 * (total - alive) / total:6.2f}% pruned)")
    rate = weights / nonzero_weights if nonzero_weights else float("inf")
    lines.append(f"weights alone, as papers count: {nonzero_weights} of {weights} left "
                 f"({100 * nonzero_weights / weights:.2f}%, {rate:.2f}x)")
    return "\n".join(lines)


def foldable_constants(modules, record, norm_after):
    """bool (channels,): the channels whose filter is all zero and whose constant can go into the next layer's bias."""
    producer, norm = record.producers[0]
    layer = modules[producer]
    none = torch.zeros(width_of(layer), dtype=torch.bool)
    if record.stream or len(record.producers) > 1:
        return none                                          # others add to these channels: no constants
    empty = layer.weight.detach().eq(0).flatten(1).all(1).cpu()
    value = none.double() if layer.bias is None else layer.bias.detach().double().cpu()
    value = after_norm(modules[norm], value) if norm else value
    consumers = [(consumer.layer, modules[consumer.layer]) for consumer in record.consumers]
    foldable = all((layer.bias is not None or norm_after.get(name)) and not any(getattr(layer, "padding", ()))
                   for name, layer in consumers)
    # Where the next convolution pads with zeros, only a constant of zero is the same at the border, which a ReLU makes
    # of all below it. Other networks may have another activation function.
    return empty & (foldable | (value <= 0) & (not record.index))


def removable(model, round_to=1):
    """{layer: keep (channels,)} for `narrow`, only for layers that lose channels; {} if none can be removed."""
    modules, records, keep = dict(model.named_modules()), model.channels(), {}
    norm_after = {producer: norm for record in records for producer, norm in record.producers if norm}
    for record in records:
        if not record.producers:
            continue
        first = record.producers[0][0]
        constant = foldable_constants(modules, record, norm_after)
        alive = record.used(modules) & ~record.by_unit(first, constant).all(1)
        if not alive.any():
            alive[0] = True                                  # a layer keeps one channel, even of zeros
        alive = rounded_up(alive, round_to, record.group_size)
        if not alive.all():
            keep[first] = record.over_channels(alive)
    if keep:
        return keep
    for record in records:
        if not record.producers:                             # the pixels or positions that fc1 reads
            consumer = record.consumers[0]
            read, indices = record.used(modules), modules[consumer.select].indices.cpu()
            if not read.any():
                read[indices[0]] = True
            if not read[indices].all():
                keep[consumer.select] = read
    return keep


def compact(model, round_to=1):
    """A new, narrower network with the same outputs; the given one is not changed.

    round_to: keeps removable channels that make a layer's number of channels a multiple of this.
    """
    return compact_masked(model, {}, round_to)[0]


@torch.no_grad()
def compact_masked(model, masks, round_to=1):
    """(the network of `compact`, its masks): the given masks without the removed channels. A bias that absorbed a
    channel's constant is no longer masked."""
    model = copy.deepcopy(model)
    while keep := removable(model, round_to):
        masks = narrow_masks(model, masks, keep)
        model = narrow(model, keep)
    parameters = dict(model.named_parameters())
    return model, {name: mask | parameters[name].ne(0).cpu() for name, mask in masks.items()}


def architecture(model):
    """'353-45-11' for a LeNet; the list of widths for others."""
    return ("-" if model.arch.startswith("lenet") else " ").join(map(str, model.cfg.get("widths") or []))


def compaction_report(model, small, dense):
    """Widths, parameters and MACs of the compacted network, and how far its logits are from the masked one's."""
    total = counting.count(small).total
    return (f"compacted: {architecture(small)}, {total.params:,} parameters of {dense['params']:,} "
            f"({100 * total.params / dense['params']:.2f}%), {total.macs:,} MACs of {dense['macs']:,} "
            f"({100 * total.macs / dense['macs']:.2f}%); its logits differ by "
            f"{prove(model, small):.1e} of the largest")
