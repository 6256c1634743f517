"""Channels that slimming may remove: those with their own gamma, by batch norm.

Residual and dense streams (streams.py) and channels that a channel selection has dropped are not among them.
"""
import torch
from torch import nn

from common import UserError
from common.models.narrow import silence


def candidates(model):
    """{batch norm: indices of the channels that may be removed}, from input to output."""
    modules, found = dict(model.named_modules()), {}
    for record in model.channels():
        norms = [name for name in record.names() if isinstance(modules[name], nn.BatchNorm2d)]
        if norms and not record.stream and record.group_size == 1:
            select = "" if record.producers else record.consumers[0].select
            found[norms[-1]] = modules[select].indices if select else torch.arange(modules[norms[-1]].num_features)
    return {name: found[name].cpu() for name in modules if name in found}


def gammas_of(model):
    """{batch norm: |gamma| of its candidates}, from input to output."""
    modules = dict(model.named_modules())
    return {name: modules[name].weight.detach().abs().float().cpu()[i] for name, i in candidates(model).items()}


def check_gammas(gammas, ckpt):
    """UserError if the network of a checkpoint has none; a note if they were trained without the penalty."""
    if not gammas:
        raise UserError(f"{ckpt['path']} has no batch norm whose channels could be removed; slimming needs one "
                        "(if all are in residual streams, prune.py --streams removes those)")
    if ckpt["stage"] == "dense" and ckpt["method"] != "original":
        print("note: this network was trained without -sr, so its gammas are not sparse")


def keep_some(keep, scores, round_to=1, quiet=False):
    """keep, with at least one channel in every layer, and the nearest multiple of round_to, up to the layer's width.

    quiet: does not print which layers would lose all channels.
    """
    kept = {}
    for name, above in keep.items():
        count = int(above.sum())
        wanted = min(max(round(count / round_to), 1) * round_to, len(above))
        if not count and not quiet:
            print(f"{name}: all {len(above)} channels are below the threshold; it keeps its strongest {wanted}")
        if wanted == count:
            kept[name] = above
            continue
        strongest = torch.where(above, scores[name] + scores[name].max() + 1, scores[name]).topk(wanted).indices
        kept[name] = torch.zeros_like(above).index_fill(0, strongest, True)
    return kept


def over_all_channels(keep, model):
    """keep over all channels of each batch norm; channels that a selection dropped before are not kept."""
    modules, own = dict(model.named_modules()), candidates(model)
    return {name: torch.zeros(modules[name].num_features, dtype=torch.bool).index_put((own[name],), kept)
            if name in own else kept for name, kept in keep.items()}


@torch.no_grad()
def zero(model, keep):
    """gamma = beta = 0 for every channel that is not kept, so that it contributes nothing."""
    modules = dict(model.named_modules())
    silence(model, keep)                                     # stream channels
    for name, kept in keep.items():
        if isinstance(modules[name], nn.BatchNorm2d):
            for parameter in (modules[name].weight, modules[name].bias):
                parameter.mul_(kept.to(parameter))


def masks_of(keep, model):
    """{parameter: mask} of the gammas and betas of keep, which is over all channels."""
    modules = dict(model.named_modules())
    return {f"{name}.{parameter}": kept.clone() for name, kept in keep.items()
            if isinstance(modules[name], nn.BatchNorm2d) for parameter in ("weight", "bias")}


def masked(ckpt, model):
    """{batch norm: keep (candidates,)} by the masks of a checkpoint. UserError if it does not have them all."""
    masks, found = ckpt.get("masks", {}), {}
    for name, i in candidates(model).items():
        parts = [masks[key][i] for key in (f"{name}.weight", f"{name}.bias") if key in masks]
        if len(parts) < 2:
            raise UserError(f"{ckpt['path']} holds no masks of channels; give a network that mask.py pruned")
        found[name] = parts[0] | parts[1]
    return found
