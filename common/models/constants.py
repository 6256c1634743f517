"""Constants that removed channels give, added to the layers that read them.

The network runs once on images of NaN: a number that comes out of it does not depend on the images.
"""
import torch
from torch.overrides import TorchFunctionMode

from common import UserError

LAYERS = ("conv1d", "conv2d", "conv3d", "linear")


class Constants(TorchFunctionMode):
    """wanted: names of weights. reads: [(weight's name, function, operands, options)] of the layers that have these."""

    def __init__(self, model, wanted):
        super().__init__()
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.wanted, self.reads = wanted, []

    def __torch_function__(self, function, types, operands=(), options=None):
        options, name = options or {}, getattr(function, "__name__", "").strip("_")
        if name in LAYERS and len(operands) > 1:
            if self.names.get(id(operands[1])) in self.wanted:
                self.reads.append((self.names[id(operands[1])], function, operands, options))
            return of_layer(function, operands, options)
        if name == "mul" and len(operands) == 2 and all(isinstance(x, torch.Tensor) for x in operands):
            zero = operands[0].eq(0) | operands[1].eq(0)     # times whatever varies
            return function(*operands).masked_fill_(zero, 0)
        result = function(*operands, **options)
        if name == "batch_norm" and options.get("weight") is not None:
            weight, bias = [options[leaf].view([-1 if d == 1 else 1 for d in range(result.dim())])
                            for leaf in ("weight", "bias")]
            result = torch.where(weight == 0, bias, result)
        return result


def of_layer(function, operands, options):
    """What a convolution or linear layer makes of x: NaN for an output that has a weight on a channel that varies."""
    x, weight, *rest = operands
    groups = (operands[6] if len(operands) > 6 else options.get("groups", 1))
    axis = -1 if weight.dim() == 2 else x.dim() - weight.dim() + 1
    varies = x.isnan().movedim(axis, 0).flatten(1).any(1).view(groups, -1, 1).double()
    has = weight.ne(0).reshape(*weight.shape[:2], -1).any(2).view(groups, -1, weight.shape[1]).double()
    varies = (has @ varies).flatten() > 0
    result = function(*[t.to("meta") if isinstance(t, torch.Tensor) else t for t in operands],
                      **{k: t.to("meta") if isinstance(t, torch.Tensor) else t for k, t in options.items()})
    if varies.all():
        return torch.full(result.shape, torch.nan, dtype=x.dtype)
    shape = [-1 if d == axis % x.dim() else 1 for d in range(result.dim())]
    return function(x.nan_to_num(0), weight, *rest, **options).masked_fill(varies.view(shape), torch.nan)


def fold(model, images, kept, norms):
    """Adds to biases what removed channels, where they are constant, give to the layers that read them, in place.

    images: of NaN. kept: {(tensor, axis): which of its positions stay}. norms: {layer: the batch norm after it}, whose
    running mean takes it up where there is no bias. UserError where nothing can.
    """
    wanted = [name for (name, axis), stays in kept.items() if axis == 1 and not stays.all()]
    if not wanted:
        return
    hidden, modules, shifts = Constants(model, wanted), dict(model.named_modules()), {}
    try:
        with hidden:
            model(images)
    except RuntimeError as error:
        why = str(error).partition("\n")[0]
        raise UserError(f"narrow: the network's code cannot compute in float64 ({why})") from error
    for name, function, (x, weight, *rest), options in hidden.reads:
        gone, layer = (~kept[name, 1]).nonzero().flatten(), name.rpartition(".")[0]
        axis = -1 if weight.dim() == 2 else x.dim() - weight.dim() + 1
        here = x.index_select(axis, gone).nan_to_num(0)
        shift = function(here, weight[:, gone], None, *rest[1:], **{k: v for k, v in options.items() if k != "bias"})
        shift = shift.movedim(axis, 0).flatten(1)
        first = shift[:, 0]
        if not torch.allclose(shift, first[:, None], rtol=1e-12, atol=1e-12 * float(weight.abs().max())):
            raise UserError(f"narrow: a dropped channel's constant cannot pass {layer}, which pads with zeros or reads "
                            "what does; zero the bias of the batch norm before it first")
        if not torch.allclose(shifts.setdefault(layer, first), first, rtol=1e-12, atol=1e-12):
            raise UserError(f"narrow: {layer} is called twice, and a dropped channel's constant differs there")
    for layer, shift in shifts.items():
        if not shift.any():
            continue
        if modules[layer].bias is not None:
            modules[layer].bias += shift
        elif layer in norms and modules[norms[layer]].running_mean is not None:
            modules[norms[layer]].running_mean -= shift
        else:
            raise UserError(f"narrow: {layer} has neither bias nor batch norm to take a dropped channel's constant")
