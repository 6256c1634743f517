"""Slim residual and dense streams, which the paper does not.

Several batch norms read (or, with ReLU after the addition, write) one stream. Its channel c is ranked among all others
by the mean of their gammas,

    score(c) = mean over the batch norms of |gamma_c|

and a removed channel is removed from every layer that uses the stream.
"""
import torch

from common import UserError
from slimming.channels import candidates, keep_some


def records(model):
    """{first convolution that writes stream channels: (their record, the batch norms that read or write them and which
    of a norm's channels they are)}."""
    found = {}
    for record in model.channels():
        norms = {norm: slice(None) for _, norm in record.producers}
        norms |= {consumer.norm: consumer.part for consumer in record.consumers}
        norms.pop("", None)
        if record.stream and norms and record.group_size == 1:
            found[record.producers[0][0]] = record, norms
    return found


def scores(model):
    """{first convolution that writes stream channels: mean |gamma| (channels,)}, 0 for one that a selection leaves
    out."""
    modules, found = dict(model.named_modules()), {}
    for name, (record, norms) in records(model).items():
        selects = {consumer.norm: modules[consumer.select].indices for consumer in record.consumers if consumer.select}
        gammas = []
        for norm, part in norms.items():
            gamma = modules[norm].weight.detach().abs().float()
            if norm in selects:
                gamma = torch.zeros_like(gamma).index_copy(0, selects[norm], gamma[selects[norm]])
            gammas.append(gamma[part])
        found[name] = torch.stack(gammas).mean(0).cpu()
    if not found:
        raise UserError(f"--streams: a {model.arch} has no residual or dense stream that could be narrowed")
    return found


def follow(keep, scores, model, round_to=1):
    """keep, without the removed stream channels for batch norms before a selection; at least one channel a layer."""
    keep = {name: kept.clone() for name, kept in keep.items()}
    for name, arrives in arriving(model, keep).items():
        part = keep_some({name: keep[name][arrives]}, {name: scores[name][arrives]}, round_to, quiet=True)
        keep[name] = torch.zeros_like(arrives).masked_scatter(arrives, part[name])
    return keep


def arriving(model, keep):
    """{batch norm before a selection: bool (candidates,)}: the channels that its stream still has, with keep's choice.

    If a layer would have no input left, its first channel is kept: keep is changed then.
    """
    modules, own = dict(model.named_modules()), candidates(model)
    readers = {}                                             # batch norm -> [(convolution that writes, which channels)]
    for name, (record, _) in records(model).items():
        for consumer in record.consumers:
            if name in keep and consumer.select:
                readers.setdefault(consumer.norm, []).append((name, consumer.part))

    def left(norm):
        stream = torch.ones(modules[norm].num_features, dtype=torch.bool)
        for name, part in readers[norm]:
            stream[part] = keep[name]
        return stream[own[norm]]

    for norm in readers:
        if not left(norm).any():
            first = int(own[norm][0])
            for name, part in readers[norm]:
                place = first - (part.start or 0)
                if 0 <= place < len(keep[name]):
                    keep[name][place] = True
    return {norm: left(norm) for norm in readers}
