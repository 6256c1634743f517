"""Quantizers of weights and activations: numbers on a grid of 2^bits integers, one scale for each tensor.

linear   power of two:  I = ceil(log2(max |w|)),  step = 2^(I + 1 - bits),  code = floor(w / step + 0.5), clamped to
         [-2^(bits - 1), 2^(bits - 1) - 1]: dividing by the step is a shift of bits. For numbers that are never
         negative step = 2^(I - bits), codes from 0 to 2^bits - 1.
minmax   step = (max - min) / (2^bits - 1), the range widened to hold zero, which gets a code of its own

Both give integers from 0 on, a scale and a zero point with value = (code - zero) * scale. Zero stays zero.
"""
import torch

# The original's lists: {index among the tensors of two or more dimensions, in the state_dict's order: bits}, others 8.
# "seed" is the README's, "Layers - 3" is 55; "mixed" that of its successor reweighted_prune4.
PRESETS = {
    "seed": dict.fromkeys((3, 5, 8, 10, 11, 14, 16, 19, -3), 6),
    "mixed": {0: 9, **dict.fromkeys((21, 24, 26, 28, 30, 31, 34, 36, 38, 39, 43, 55, 57), 6)},
}
METHODS = ("linear", "minmax")


def exponent(w, overflow_rate=0.0):
    """I = ceil(log2(v)), v the largest |w| after the fraction overflow_rate of them, which will be clamped.

    A power of two counts as just below the next one (double precision sees the 1e-12), so that it has a code itself.
    """
    sizes = w.detach().flatten().abs().float()
    rank = min(int(overflow_rate * sizes.numel()), sizes.numel() - 1)
    v = sizes.max() if rank == 0 else sizes.sort(descending=True).values[rank]
    return int(torch.ceil(torch.log2(v.double() + 1e-12)))


def grid(method, bits, low, high, exponent_of=None):
    """(scale, zero) of the grid for numbers from low to high, which holds zero. ValueError for fewer than 2 bits."""
    if bits < 2:
        raise ValueError(f"{bits} bit: one bit has no zero; 2 or more are needed")
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if method == "minmax":
        scale = (high - low) / (2 ** bits - 1) or 1.0
        return torch.tensor(scale), torch.tensor(round(-low / scale), dtype=torch.int32)
    power = exponent(torch.tensor([low, high])) if exponent_of is None else exponent_of
    if low < 0:
        return torch.tensor(2.0 ** (power + 1 - bits)), torch.tensor(2 ** (bits - 1), dtype=torch.int32)
    return torch.tensor(2.0 ** (power - bits)), torch.tensor(0, dtype=torch.int32)


def codes(w, bits, scale, zero):
    """Integers from 0 to 2^bits - 1: floor(w / scale + 0.5) + zero, clamped."""
    return (torch.floor(w.detach().double() / scale.double() + 0.5).long() + int(zero)).clamp(0, 2 ** bits - 1)


def quantize(w, bits, method="linear", overflow_rate=0.0):
    """(codes in the shape of w, scale, zero). Weights have signs, so power-of-two grids are signed."""
    if method == "minmax":
        scale, zero = grid(method, bits, w.min(), w.max())
    else:
        scale, zero = grid(method, bits, -1, 1, exponent(w, overflow_rate))
    return codes(w, bits, scale, zero), scale, zero


def bit_list(text, names, default=8):
    """[bits for each of names] of "8", of a preset, or of "0=9,3=6,-3=6,conv2.weight=4" over the default.

    ValueError names what is wrong with it.
    """
    if text.isdigit():
        given, default = {}, int(text)
    elif text in PRESETS:
        given = PRESETS[text]
    else:
        parts = [part.rpartition("=") for part in text.split(",")]
        given = {key.strip(): value for key, _, value in parts}
    bits = [default] * len(names)
    for key, value in given.items():
        try:
            index = names.index(key) if key in names else int(key)
            bits[index] = int(value)
        except (ValueError, IndexError) as error:
            raise ValueError(f"{text}: expected BITS, one of {', '.join(PRESETS)}, or TENSOR=BITS,..., where TENSOR is "
                             f"a name or an index below {len(names)}") from error
    if not all(2 <= b <= 16 for b in bits):
        raise ValueError(f"{text}: bits from 2 to 16")
    return bits
