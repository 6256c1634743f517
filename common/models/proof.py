"""A narrow network computes what the masked one does: shown on random images at every pruning."""
import copy

import torch

from common import UserError
from common.models.layers import input_shape
from common.models.narrow import narrow, silence

MOST = 1e-5                                                  # biases that take up constants are rounded to fp32


def prove(masked, small):
    """How far the logits of the narrow network are from those of the masked one, at most, as a fraction of the largest.

    Two random images, in float64. UserError where they differ, or where the narrow network cannot be trained; for a
    traced network it names the layers whose removal is to blame.
    """
    difference, why = compare(masked, small)
    if not why:
        return difference
    blamed = []
    for record in masked.channels():
        if record.index:
            first = record.producers[0][0]
            units = record.by_unit(first, torch.ones(len(masked.get_submodule(first).weight))).shape[0]
            keep = {first: record.over_channels(torch.arange(units) < units - 1)}
            closed = copy.deepcopy(masked)
            silence(closed, keep)
            blamed += [first] if compare(closed, narrow(closed, keep))[1] else []
    what = f" Channels of {', '.join(blamed)} cannot be removed: their number is fixed in the code." if blamed else ""
    raise UserError(f"the narrow network does not compute what the masked one does: {why}. Nothing was written.{what}")


def compare(masked, small):
    """(largest difference of the logits as a fraction of the largest, "" or what is wrong)."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *input_shape(masked.arch, masked.cfg), generator=generator, dtype=torch.float64)
    one, other = [copy.deepcopy(model).cpu().double().eval() for model in (masked, small)]
    try:
        with torch.no_grad():
            logits, got = one(images), other(images)
        difference = float((logits - got).abs().max() / logits.abs().max().clamp_min(1e-30))
        with torch.enable_grad():
            other.requires_grad_(True).train()(images).sum().backward()
    except Exception as error:                               # somebody else's code may raise anything
        return float("inf"), f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return difference, "" if difference <= MOST else f"their logits differ by {difference:.1e} of the largest"
