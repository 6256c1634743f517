"""The reweighted L1 penalty on the weights of convolutions: its coefficients, its value, its gradient.

irregular   lambda * sum over weights  gamma |w|,      gamma = 1 / (|w| + eps)
the others  lambda * sum over groups   gamma ||w_g||,  gamma = 1 / (||w_g|| + eps), with the 2-norm over

    filter     all weights of one output channel                         one gamma for each (out, 1, 1, 1)
    column     weights of all output channels at one place of one input  (1, in, height, width)
    kernel     one input of one output channel                           (out, in, 1, 1)
    channel    one input of all output channels (for prune.py alone)     (1, in, 1, 1)

Right after the gammas are computed each term is about lambda, whatever the weight: the sum counts the non-zero weights
(Candes, Wakin, Boyd 2008, "Enhancing Sparsity by Reweighted l1 Minimization"). A weight much smaller than the others is
pulled towards zero much harder than they are.
"""
import torch

# kind: the dimensions of the norm
GROUPS = {"irregular": None, "filter": (1, 2, 3), "column": (0,), "kernel": (2, 3), "channel": (0, 2, 3)}
# lambda, as the original code has it; its column kind has a list for VGG-16 alone, of which this is the median
LAMBDA = {"irregular": 1e-6, "filter": 1e-3, "column": 3e-4, "kernel": 1e-5}
EPS, SMALLEST = 1e-3, 1e-18                                  # SMALLEST: of eps and of a norm, 1 / its square is finite


@torch.no_grad()
def size(w, kind):
    """|w|, or the norms of the groups, with the dimensions of w, (out, in, height, width), kept."""
    return w.abs() if kind == "irregular" else torch.linalg.vector_norm(w, dim=GROUPS[kind], keepdim=True)


@torch.no_grad()
def coefficients(weights, kind="irregular", eps=EPS, faithful=False):
    """[gamma = 1 / (size + eps) for each weight or group of w, for w in weights].

    faithful: 1 / (w + eps) for the irregular kind, as the original's code has it: without the absolute value, so that
    a weight near -eps has an infinite one.
    """
    signed = faithful and kind == "irregular"
    return [((w if signed else size(w, kind)) + eps).reciprocal() for w in weights]


@torch.no_grad()
def value(weights, gammas, kind="irregular"):
    """sum |gamma w|, or sum gamma ||w_g||, as a number."""
    terms = [(size(w, kind) * gamma.abs()).sum() for w, gamma in zip(weights, gammas, strict=True)]
    return float(torch.stack(terms).sum())


@torch.no_grad()
def gradient(w, gamma, kind="irregular"):
    """d(sum |gamma w|)/dw = |gamma| sign(w); for a group gamma w / ||w_g||, and zero where the group is zero."""
    if kind == "irregular":
        return gamma.abs() * w.sign()                        # the original's gammas can be negative
    return w * (gamma / size(w, kind).clamp_min(SMALLEST))   # so that 0 * (gamma / norm) is 0, not 0 * infinity
