"""Slimming residual streams, which the paper leaves whole.

Several batch norms read (or, with ReLU after the addition, write) one residual stream. Its channel c is ranked among
all others by the mean of their gammas,

    score(c) = mean over the batch norms of |gamma_c|

and where it goes, it goes from all of them.
"""
import torch

from common import UserError


def records(model):
    """{first convolution that writes a stream: (its record, the batch norms that read or write it)}."""
    found = {}
    for record in model.channels():
        norms = [norm for _, norm in record.producers] + [consumer.norm for consumer in record.consumers]
        if record.stream and any(norms):
            found[record.producers[0][0]] = record, [norm for norm in dict.fromkeys(norms) if norm]
    return found


def scores(model):
    """{first convolution that writes a stream: mean |gamma| (channels,)}, 0 for a gamma that a selection leaves out."""
    modules, found = dict(model.named_modules()), {}
    for name, (record, norms) in records(model).items():
        selects = {consumer.norm: modules[consumer.select].indices for consumer in record.consumers if consumer.select}
        gammas = torch.stack([modules[norm].weight.detach().abs().float() for norm in norms])
        for gamma, norm in zip(gammas, norms, strict=True):
            if norm in selects:
                left_out = torch.ones_like(gamma, dtype=torch.bool).index_fill(0, selects[norm], False)
                gamma[left_out] = 0
        found[name] = gammas.mean(0).cpu()
    if not found:
        raise UserError(f"--streams: a {model.arch} has no residual stream that could be narrowed")
    return found


def follow(model, keep, candidates):
    """{batch norm before a selection: bool (candidates,)}: what its stream still has, by keep's choice of channels.

    A reader that would be left without any keeps the stream's first one of its own: keep is changed then.
    """
    arrives = {}
    for name, (record, _) in records(model).items():
        for consumer in record.consumers:
            if name in keep and consumer.select:
                own = candidates[consumer.norm]
                if not keep[name][own].any():
                    keep[name][own[0]] = True
                arrives[consumer.norm] = (keep[name], own)
    return {norm: stream[own] for norm, (stream, own) in arrives.items()}


@torch.no_grad()
def silence(model, keep):
    """Nothing writes or reads the stream channels that go, from here on: gammas, betas and weights on them are zero."""
    modules = dict(model.named_modules())
    for name, (record, norms) in records(model).items():
        if name not in keep:
            continue
        gone = ~keep[name].to(modules[name].weight.device)
        for norm in norms:
            modules[norm].weight[gone] = 0
            modules[norm].bias[gone] = 0
        for consumer in record.consumers:
            if not consumer.norm:                            # a projection that reads the stream as it is
                modules[consumer.layer].weight[:, gone] = 0
