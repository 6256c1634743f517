"""The reweighted L1 penalty on the weights of convolutions: its coefficients, its value, its gradient.

irregular   lambda * sum over weights  gamma |w|,      gamma = 1 / (|w| + eps)
the others  lambda * sum over groups   gamma ||w_g||,  gamma = 1 / (||w_g|| + eps), with the 2-norm over

    filter     all that one output channel is made of                    one gamma for each (out, 1, 1, 1)
    column     what all output channels read at one place of one input   (1, in, height, width)
    kernel     one input of one output channel                           (out, in, 1, 1)
    channel    one input of all output channels (for prune.py alone)     (1, in, 1, 1)

Right after the gammas are taken each term is about lambda, whatever the weight: the sum counts the weights that are
not zero (Candes, Wakin, Boyd 2008, "Enhancing Sparsity by Reweighted l1 Minimization"). A weight much smaller than the
others is pulled towards zero much harder than they are.

Each function takes lists of tensors, and works on them with torch._foreach operations: some hundred weights in a few
calls. The gammas have the memory layout of the weights, so that none of it copies.
"""
import torch

# kind: the dimensions of the norm
GROUPS = {"irregular": None, "filter": (1, 2, 3), "column": (0,), "kernel": (2, 3), "channel": (0, 2, 3)}
# lambda, as the original code has it; its column kind has a list for VGG-16 alone, of which this is the median
LAMBDA = {"irregular": 1e-6, "filter": 1e-3, "column": 3e-4, "kernel": 1e-5}
EPS, SMALLEST = 1e-3, 1e-18                                  # SMALLEST: of eps and of a norm, 1 / its square is finite


@torch.no_grad()
def sizes(weights, kind):
    """What the penalty is on: |w|, or the norms of the groups, with the dimensions of the weight kept."""
    if kind == "irregular":
        return torch._foreach_abs(weights)
    return [torch.linalg.vector_norm(w, dim=GROUPS[kind], keepdim=True) for w in weights]


@torch.no_grad()
def coefficients(weights, kind="irregular", eps=EPS, faithful=False):
    """gamma = 1 / (size + eps) for each weight or group of 4-D weights (out, in, height, width).

    faithful: 1 / (w + eps) for the irregular kind, as the original's code has it: without the absolute value, so that
    a weight near -eps has an infinite one.
    """
    measured = weights if faithful and kind == "irregular" else sizes(weights, kind)
    return torch._foreach_reciprocal(torch._foreach_add(measured, eps))


@torch.no_grad()
def value(weights, gammas, kind="irregular"):
    """sum |gamma w|, or sum gamma ||w_g||, as a number."""
    terms = torch._foreach_mul(sizes(weights, kind), torch._foreach_abs(gammas))
    return float(torch.stack([t.sum() for t in terms]).sum())


@torch.no_grad()
def gradient(weights, gammas, kind="irregular"):
    """d(sum |gamma w|)/dw = |gamma| sign(w); for a group gamma w / ||w_g||, and zero where the group is zero."""
    if kind == "irregular":
        directions = torch._foreach_sign(weights)
        torch._foreach_mul_(directions, torch._foreach_abs(gammas))      # negative as the original has them
        return directions
    norms = sizes(weights, kind)
    torch._foreach_clamp_min_(norms, SMALLEST)               # so that 0 * (gamma / norm) is 0, not 0 * infinity
    factors = torch._foreach_div(gammas, norms)
    return [w * factor for w, factor in zip(weights, factors, strict=True)]
