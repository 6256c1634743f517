"""The small network after pruning, without dead neurons, channels and input pixels.

    small = compact(model)                                   # fewer channels, the same logits

Three kinds are removed, until nothing changes:

    a neuron that nothing reads        all weights on it in the next layer are zero
    a neuron that reads nothing        all its weights are zero; the constant that it is is added to the next layer's
                                       bias
    an input pixel that nothing reads
"""
import copy

import torch

from common import UserError
from common.keep import rounded_up
from common.models.narrow import after_norm, compare, narrow, narrow_masks, width_of
from common.models.own import Own


def foldable_constants(modules, record, norm_after):
    """bool (channels,): the channels whose filter is all zero, or whose gamma is, and whose constant can go into the
    next layer's bias."""
    producer, norm = record.producers[0]
    layer = modules[producer]
    none = torch.zeros(width_of(layer), dtype=torch.bool)
    if record.stream or len(record.producers) > 1:
        return none                                          # others add to these channels: no constants
    if norm and (modules[norm].weight is None or modules[norm].running_mean is None):
        return none
    empty = layer.weight.detach().eq(0).flatten(1).all(1).cpu()
    value = none.double() if layer.bias is None else layer.bias.detach().cpu().double()
    if norm:
        empty |= modules[norm].weight.detach().eq(0).cpu()   # the channel is its beta
        value = after_norm(modules[norm], value)
    consumers = [(consumer.layer, modules[consumer.layer]) for consumer in record.consumers]
    foldable = all((layer.bias is not None or norm_after.get(name)) and not any(getattr(layer, "padding", ()))
                   for name, layer in consumers)
    # Where the next convolution pads with zeros, only a constant of zero is the same at the border, which a ReLU makes
    # of all below it. Other networks may have another activation function.
    return empty & (foldable | (value <= 0) & (not record.index))


def removable(model, round_to=1, constants=True):
    """{layer: keep (channels,)} for `narrow`, only for layers that lose channels; {} if none can be removed. constants:
    also remove channels that are constant, not only those that nothing reads."""
    modules, records, keep = dict(model.named_modules()), model.channels(), {}
    norm_after = {producer: norm for record in records for producer, norm in record.producers if norm}
    for record in records:
        if not record.producers:
            continue
        first = record.producers[0][0]
        alive = record.used(modules)
        if constants:
            alive &= ~record.by_unit(first, foldable_constants(modules, record, norm_after)).all(1)
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
    for constants in (True, False):                          # a gate may make a channel with no weights vary
        small, left = copy.deepcopy(model), masks
        try:
            while keep := removable(small, round_to, constants):
                left = narrow_masks(small, left, keep)
                small = narrow(small, keep)
        except UserError:
            if not constants:
                raise
            continue
        if not isinstance(model, Own) or not compare(model, small)[1]:
            break
    parameters = dict(small.named_parameters())
    return small, {name: mask | parameters[name].ne(0).cpu() for name, mask in left.items()}
