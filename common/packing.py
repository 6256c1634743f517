"""Small files: masked weights as one bit each and the values that are left."""
import math

import numpy as np
import torch


def pack(ckpt):
    """Pruned weights as one bit each and the surviving values in order; `unpack` gives the dictionary back.

    That is for every weight whose bool mask (True: kept) has zeros where it prunes; its shape stands in its place.
    """
    masks = dict(ckpt.get("masks") or {})
    state = dict(ckpt["state_dict"]) if masks else {}
    names = [name for name, mask in masks.items() if name in state and state[name].is_floating_point()
             and mask.dtype == torch.bool and mask.shape == state[name].shape and not state[name][~mask].any()]
    if not names:
        return ckpt
    packed = {"bits": torch.from_numpy(np.packbits(torch.cat([masks[name].flatten() for name in names]).numpy())),
              "values": torch.cat([state[name][masks[name]] for name in names])}
    for name in names:
        state[name] = masks[name] = list(state[name].shape)
    return {**ckpt, "state_dict": state, "masks": masks, "packed": packed}


def unpack(ckpt):
    """The dictionary that `pack` was given."""
    packed, state, masks = ckpt.pop("packed"), ckpt["state_dict"], ckpt["masks"]
    shapes = {name: shape for name, shape in masks.items() if isinstance(shape, list)}
    sizes = [math.prod(shape) for shape in shapes.values()]
    kept = torch.from_numpy(np.unpackbits(packed["bits"].numpy(), count=sum(sizes))).bool()
    values = torch.zeros(len(kept), dtype=packed["values"].dtype)
    values[kept] = packed["values"]
    for (name, shape), mask, value in zip(shapes.items(), kept.split(sizes), values.split(sizes), strict=True):
        masks[name], state[name] = mask.reshape(shape), value.reshape(shape)
    return ckpt
