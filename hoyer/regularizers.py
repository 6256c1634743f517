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

A network's penalty is the sum over its tensors, with one strength for all. Every function gives 0 with gradient 0 for
a tensor that is zero, and gradient 0 at a group that is.
"""
import torch
from torch import nn

from common import UserError


def ratio(a, b):
    """a / b for scalars; 0 with gradient 0 where b is 0, which it is only for a tensor of zeros."""
    there = b > torch.finfo(b.dtype).tiny
    return torch.where(there, a / torch.where(there, b, 1), 0)


def l1(w):
    return torch.linalg.vector_norm(w, 1)


def hoyer(w):
    return ratio(l1(w), torch.linalg.vector_norm(w))


def hoyer_square(w):
    return ratio(l1(w).square(), w.flatten().dot(w.flatten()))


def transformed_l1(w):
    return (2 * w.abs() / (1 + w.abs())).sum()


def group_norms(w):
    """(out, in, ...) -> L2 norms (out,) of the filters (of a linear layer: rows), (in,) of all that reads one input
    channel, its kernel positions together, and () of the whole tensor. The gradient is 0 at a norm of 0."""
    squares = w.square().flatten(2) if w.dim() > 2 else w.square()[..., None]
    return tuple(root(sums) for sums in (squares.sum((1, 2)), squares.sum((0, 2)), squares.sum()))


def root(x):
    """Square root; 0 with gradient 0 where x is 0."""
    there = x > 0
    return torch.where(there, torch.where(there, x, 1).sqrt(), 0)


def group_lasso(w):
    filters, channels, _ = group_norms(w)
    return filters.sum() + channels.sum()


def group_hoyer(w):
    filters, channels, all_of_it = group_norms(w)
    return ratio(filters.sum() + channels.sum(), all_of_it)


def group_hs(w):
    filters, channels, all_of_it = group_norms(w)
    return ratio(filters.sum().square() + channels.sum().square(), all_of_it.square())


def group_lasso_by_position(w):
    """Group lasso as the original's LeNet-5 script has it: every kernel position is a group of its own."""
    return torch.linalg.vector_norm(w, dim=0).sum() + torch.linalg.vector_norm(w, dim=1).sum()


ELEMENT = {"l1": l1, "hoyer": hoyer, "hs": hoyer_square, "tl1": transformed_l1}
GROUP = {"group-lasso": group_lasso, "group-hoyer": group_hoyer, "group-hs": group_hs}
NUMBERS = {  # what --reg 0, 1, 2, ... means in the original scripts
    "element": ("none", "l1", "hoyer", "hs", "tl1"),
    "structure": ("none", "group-lasso", "group-hs"),
    "cifar_group": ("none", "group-lasso", "group-hoyer", "group-hs"),
}


def named(text, script=None):
    """The name of the penalty that --reg `text` asks for in this script: a name, or its number there. UserError."""
    numbers = NUMBERS.get(script, ())
    names = numbers or ("none", *ELEMENT, *GROUP)
    if text in names:
        return text
    if text.isdecimal() and int(text) < len(numbers):
        return numbers[int(text)]
    valid = ", ".join(f"{i} or {name}" for i, name in enumerate(numbers)) or ", ".join(names)
    raise UserError(f"--reg {text} is no penalty here; valid are {valid}")


def penalized(model, name):
    """[parameters] that the penalty acts on.

    Element-wise: all of them, biases too, except the batch norms'. Group penalties: the weights of convolutions and
    linear layers. "none": nothing.
    """
    norms = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
    if name in ELEMENT:
        return [p for p in model.parameters() if id(p) not in norms]
    return [p for p in model.parameters() if p.dim() > 1] if name in GROUP else []
