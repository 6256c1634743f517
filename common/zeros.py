"""Which weights of a file are pruned: by its masks, or by its zeros.

    masks = kept(ckpt, args.keep_zeros, args.dense)               # {parameter: bool}, True where it is trained
"""
import torch

from common import UserError, models

FEW = 0.05                                                   # of a layer: rounding to 16 bits leaves zeros as well


def zeros(state):
    """{parameter: bool mask} of the layers that have more than a few zeros; where gamma and beta are zero, of both."""
    masks = {name: tensor != 0 for name, tensor in state.items()
             if name.endswith("weight") and (tensor == 0).float().mean() > FEW}
    betas = {f"{name.removesuffix('weight')}bias": mask for name, mask in masks.items() if mask.dim() == 1}
    return masks | {name: mask | (state[name] != 0) for name, mask in betas.items() if name in state}


def read(ckpt):
    """The state_dict, with 1 for the gammas of channels that a channel selection does not pass on: slimming leaves them
    at zero."""
    state = dict(ckpt["state_dict"])
    selects = any(name.endswith("select.indices") for name in state)
    for record in models.sketch(ckpt["arch"], **ckpt["cfg"]).channels() if selects else ():
        for consumer in record.consumers:
            if consumer.select and consumer.norm:
                name, indices = f"{consumer.norm}.weight", ckpt["state_dict"][f"{consumer.select}.indices"]
                state[name] = torch.ones_like(state[name]).index_copy(0, indices, state[name][indices])
    return state


def add_flags(parser, keep=True):
    """--dense and, where zeros can be kept, --keep-zeros."""
    add = parser.add_mutually_exclusive_group().add_argument
    if keep:
        add("--keep-zeros", action="store_true", help="in a file without masks, keep the zeros, as pruned weights")
    add("--dense", action="store_true", help="train the zeros of a file without masks like all other weights")


def kept(ckpt, keep_zeros=False, dense=False, needed=False):
    """{parameter: bool mask} of the weights to train: the file's masks, or its zeros where --keep-zeros says so.

    UserError if another repository's file has zeros, and neither masks nor flags tell whether they are pruned, or if
    masks are needed (unless --dense) and there are none. Ours hold masks where weights are pruned; zeros without one
    are gammas of channels that a selection passes over.
    """
    masks = ckpt.get("masks")
    if masks and dense:
        raise UserError(f"{ckpt['path']} holds masks, so its zeros are pruned weights; leave out --dense")
    found = {} if masks or dense or ckpt["method"] != "original" else zeros(read(ckpt))
    if found and not keep_zeros:
        name, mask = max(found.items(), key=lambda item: (~item[1]).float().mean())
        raise UserError(f"{ckpt['path']} holds no masks, but {100 * (~mask).float().mean():.0f} % of its {name} is zero"
                        f"{f' ({len(found) - 1} more tensors)' if len(found) > 1 else ''}; give --dense to train the "
                        "zeros too, or --keep-zeros (of finetune.py) where they are pruned weights")
    if needed and not (masks or found or dense):
        raise UserError(f"{ckpt['path']} holds no masks; prune it with prune.py first")
    return masks or found or {}
