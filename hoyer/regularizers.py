"""The penalties of DeepHoyer, element-wise and for groups, each as a function of one weight tensor.

Yang, Wen, Li, "DeepHoyer: Learning Sparser Neural Network with Differentiable Scale-Invariant Sparsity Measures",
ICLR 2020, section 3. With S1 = sum |w| and S2 = sum w^2 over all N entries of a tensor:

    l1            S1                                                grows with the scale of w
    hoyer         S1 / sqrt(S2)                                     from 1 (one entry) to sqrt(N) (all alike)
    hs            S1^2 / S2            Hoyer-Square                 from 1 to N: how many entries matter
    tl1           sum 2 |w| / (1 + |w|)   transformed L1, a = 1     saturates for large entries

Hoyer and Hoyer-Square do not change when w is scaled. The gradient of Hoyer-Square,

    dHS/dw_j = 2 sign(w_j) S1 / S2^2 (S2 - |w_j| S1),

pushes entries below S2 / S1 to zero and lets those above it grow: nothing is gained by shrinking all of them, as it
is with L1. The group penalties apply the same measures to the L2 norms f_o of the filters W[o] and c_i of the input
channels W[:, i] (rows and columns of a linear layer), S2 being the same sum for both:

    group-lasso   sum f + sum c
    group-hoyer   (sum f + sum c) / sqrt(S2)
    group-hs      ((sum f)^2 + (sum c)^2) / S2

A network's penalty is the sum over its tensors, with one coefficient for all. Every function gives 0 with gradient 0
for a tensor that is zero, and gradient 0 at a group that is.
"""
import torch


def l1(w):
    return torch.linalg.vector_norm(w, 1)


def hoyer(w):
    w = scaled(w)
    return ratio(l1(w), torch.linalg.vector_norm(w))


def hoyer_square(w):
    w = scaled(w)
    return ratio(l1(w).square(), w.flatten().dot(w.flatten()))


def transformed_l1(w):
    return (2 * w.abs() / (1 + w.abs())).sum()


def group_lasso(w):
    filters, channels, _ = group_norms(w)
    return filters.sum() + channels.sum()


def group_hoyer(w):
    filters, channels, whole = group_norms(scaled(w))
    return ratio(filters.sum() + channels.sum(), whole)


def group_hs(w):
    filters, channels, whole = group_norms(scaled(w))
    return ratio(filters.sum().square() + channels.sum().square(), whole.square())


def group_norms(w):
    """(out, in, ...) -> L2 norms (out,) of the filters (of a linear layer: rows), (in,) of all weights that read one
    input channel, and () of the whole tensor. The gradient is 0 at a norm of 0."""
    squares = w.square().flatten(2) if w.dim() > 2 else w.square()[..., None]
    return tuple(root(sums) for sums in (squares.sum((1, 2)), squares.sum((0, 2)), squares.sum()))


def root(x):
    """Square root; 0 with gradient 0 where x is 0."""
    zero = x == 0
    return torch.where(zero, 0, torch.where(zero, 1, x).sqrt())


def ratio(a, b):
    """a / b for scalars; 0 with gradient 0 if b is 0, as for a tensor of zeros."""
    zero = b == 0
    return torch.where(zero, 0, a / torch.where(zero, 1, b))


def scaled(w):
    """w times the power of two that brings its largest |entry| to [1, 2), for measures that scaling does not change.

    Multiplying by a power of two is exact, and with entries around 1e-20 S2^2 underflows in float32. If no entry is
    above 1e-30 the gradient would underflow too: such a tensor counts as zeros.
    """
    largest = w.detach().abs().max()
    return w * torch.where(largest > 1e-30, torch.exp2(-largest.log2().floor()), 0)


ELEMENT = {"l1": l1, "hoyer": hoyer, "hs": hoyer_square, "tl1": transformed_l1}
GROUP = {"group-lasso": group_lasso, "group-hoyer": group_hoyer, "group-hs": group_hs}
PENALTIES = ELEMENT | GROUP


def penalized(model, name):
    """[parameters] that the penalty `name` acts on. An element-wise one acts on all parameters of a LeNet.

    Otherwise these are the weights of convolutions and linear layers. Batch norms are left out, and biases, because
    Hoyer-Square drives them to huge values next to batch norms.
    """
    if name in ELEMENT and model.arch.startswith("lenet"):
        return list(model.parameters())
    return [p for p in model.parameters() if p.dim() > 1]
