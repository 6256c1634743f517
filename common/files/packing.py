"""Small files: masked weights as one bit each and the remaining values, quantized weights as b-bit integers.

    entry = quantized(codes, bits=4, scale=scale, zero=zero)   # value = (code - zero) * scale
    entry = quantized(codes, bits=4, codebook=centroids)       # value = codebook[code]
    weight = dequantize(entry)                                 # float32

A checkpoint's `quant` is {tensor name: entry}. Its file has the entries instead of these tensors, so it is as small
as the bits say: a quarter of float32 at 8 bits.
"""
import math

import numpy as np
import torch

from common import UserError


def pack(ckpt):
    """Pruned weights as one bit each and the surviving values in order; `unpack` gives the dictionary back.

    That is for every weight whose bool mask (True: kept) has zeros where it prunes; its shape stands in its place.
    Tensors named in `quant` are left out, and their masks where the entry has them.
    """
    quant, masks, state = ckpt.get("quant") or {}, dict(ckpt.get("masks") or {}), dict(ckpt["state_dict"])
    for name, entry in quant.items():
        if not torch.equal(state.pop(name).float(), dequantize(entry)):
            raise ValueError(f"the weights of {name} are not what its quantized entry says")
        if "kept" in entry:
            masks.pop(name, None)
    names = [name for name, mask in masks.items() if name in state and state[name].is_floating_point()
             and mask.dtype == torch.bool and mask.shape == state[name].shape and not state[name][~mask].any()]
    ckpt = {**ckpt, "state_dict": state}
    if names:
        ckpt["packed"] = {"bits": to_bits(torch.cat([masks[name].flatten() for name in names])),
                          "values": torch.cat([state[name][masks[name]] for name in names])}
        for name in names:
            state[name] = masks[name] = list(state[name].shape)
    return {**ckpt, "masks": masks} if "masks" in ckpt else ckpt


def unpack(ckpt):
    """The dictionary that `pack` was given. KeyError, TypeError, ValueError, ... where its parts do not match."""
    state = ckpt.get("state_dict")
    if "packed" in ckpt:
        packed, masks = ckpt.pop("packed"), ckpt["masks"]
        shapes = {name: shape for name, shape in masks.items() if isinstance(shape, list)}
        sizes = [math.prod(shape) for shape in shapes.values()]
        kept = from_bits(packed["bits"], sum(sizes))
        values = torch.zeros(len(kept), dtype=packed["values"].dtype)
        values[kept] = packed["values"]
        for (name, shape), mask, value in zip(shapes.items(), kept.split(sizes), values.split(sizes), strict=True):
            masks[name], state[name] = mask.reshape(shape), value.reshape(shape)
    for name, entry in (ckpt.get("quant") or {}).items():
        state[name] = dequantize(entry)
        if "kept" in entry:
            kept = from_bits(entry["kept"], state[name].numel())
            ckpt.setdefault("masks", {})[name] = kept.view(state[name].shape)
    return ckpt


def to_bits(flags):
    """bool (N,) as uint8 (N / 8 rounded up,)."""
    return torch.from_numpy(np.packbits(flags.numpy()))


def from_bits(packed, count):
    """bool (count,). ValueError where `packed` has another length, before memory is taken for `count` entries."""
    if packed.numel() != -(-count // 8):
        raise ValueError(f"{packed.numel():,} bytes are not {count:,} bits")
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count)).bool()


def quantized(codes, bits, scale=None, zero=None, codebook=None, mask=None):
    """The entry of one quantized tensor for a checkpoint's `quant`.

    codes: integers from 0 to 2^bits - 1, in the tensor's shape; bits: 1 to 16. Either scale (float) and zero (int),
    0-d or (C, 1, 1, 1): value = (code - zero) * scale; or codebook, (K,) or (C, K): value = codebook[code].
    mask: bool, True where the weight is kept; the others are zero and cost one bit.
    """
    if not 1 <= bits <= 16 or codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < 2 ** bits:
        raise ValueError(f"codes that are not integers of {bits} bits, from 1 to 16")
    codes = codes.detach().cpu()
    entry = {"bits": bits, "shape": list(codes.shape)}
    if mask is not None:
        entry["kept"] = to_bits(mask.cpu().flatten())
        codes = codes[mask.cpu()]
    two_bytes = codes.flatten().numpy().astype(">u2").view(np.uint8).reshape(-1, 2)      # the high byte first
    entry["codes"] = torch.from_numpy(np.packbits(np.unpackbits(two_bytes, axis=1)[:, 16 - bits:]))
    if codebook is not None:
        entry["codebook"] = codebook.detach().float().cpu()
    else:
        entry["scale"], entry["zero"] = scale.detach().float().cpu(), zero.detach().int().cpu()
    return entry


def codes_of(entry):
    """The integers of an entry: int64, in the tensor's shape, 0 where its mask prunes. ValueError: wrong length."""
    bits, shape = entry["bits"], entry["shape"]
    kept = from_bits(entry["kept"], math.prod(shape)) if "kept" in entry else None
    count = math.prod(shape) if kept is None else int(kept.sum())
    if not 1 <= bits <= 16 or len(entry["codes"]) != -(-count * bits // 8):
        raise ValueError(f"{len(entry['codes'])} bytes are not {count} codes of {bits} bits")
    flags = np.unpackbits(entry["codes"].numpy(), count=count * bits).reshape(-1, bits)
    two_bytes = np.packbits(np.pad(flags, ((0, 0), (16 - bits, 0))), axis=1)
    codes = torch.from_numpy(two_bytes.reshape(-1).view(">u2").astype(np.int64))
    if kept is not None:
        codes = torch.zeros(len(kept), dtype=torch.int64).masked_scatter(kept, codes)
    return codes.view(shape)


def decode(codes, scale=None, zero=None, codebook=None):
    """The float32 tensor of int64 codes, on their device; arguments as in `quantized`."""
    if codebook is None:
        return (codes.float() - zero.float()) * scale
    return codebook[codes] if codebook.dim() == 1 else codebook.gather(1, codes.flatten(1)).view(codes.shape)


def dequantize(entry):
    """The float32 tensor of an entry. KeyError, TypeError, ValueError, ... where the entry is damaged."""
    codes = codes_of(entry)
    if "codebook" not in entry and torch.broadcast_shapes(
            codes.shape, entry["zero"].shape, entry["scale"].shape) != codes.shape:
        raise ValueError(f"scales that do not fit a tensor of {entry['shape']}")
    value = decode(codes, entry.get("scale"), entry.get("zero"), entry.get("codebook"))
    if value.shape != codes.shape or not value.isfinite().all():
        raise ValueError(f"scales that do not fit a tensor of {entry['shape']}")
    if "kept" in entry:
        value = value * from_bits(entry["kept"], value.numel()).view(value.shape)
    return value


def quantize_inputs(model, activations, path):
    """Lets layers round what they read: {layer: {"bits", "scale", "zero"}}, value = (code - zero) * scale."""
    modules = dict(model.named_modules())
    for name, entry in activations.items():
        try:
            bits, scale, zero = int(entry["bits"]), float(entry["scale"]), int(entry["zero"])
            if not (1 <= bits <= 16 and 0 < scale < float("inf") and 0 <= zero < 2 ** bits):
                raise ValueError(f"{bits} bits, scale {scale}, zero point {zero}")
            modules[name].register_forward_pre_hook(lambda m, x, scale=scale, zero=zero, most=2 ** bits - 1: (
                torch.fake_quantize_per_tensor_affine(x[0], scale, zero, 0, most),))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{path}: its activations do not fit the network ({name}: {error})") from error
