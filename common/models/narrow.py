"""Remove channels from a network without changing what it computes, and prove that on random images.

Which channels there are is in its records: `channels()` of the families, trace.py of any other network.
"""
import copy

import torch

from common import UserError
from common.models import input_shape, sketch
from common.models.constants import fold
from common.models.own import Own, shapes_of

MOST = 1e-5                                                  # biases that take up constants are rounded to fp32


@torch.no_grad()
def narrow(model, keep):
    """A new network without the channels that `keep` drops, computing the same from the others.

    keep: {layer name: bool tensor (output channels,)}; before a channel selection the batch norm's name, over
    the batch norm's own channels. What is not named stays whole. A dropped channel that is constant (zero weights,
    or zero gamma) leaves its constant in the next bias; one that is not constant is simply dropped.
    A residual branch that loses all channels of one layer goes as a whole: its block is the shortcut.
    ValueError names the layers where a vector has the wrong length, is empty, differs within a residual stream, or
    where a constant cannot be moved because the next convolution pads with zeros.
    """
    whole = copy.deepcopy(model).cpu().double().eval()       # takes up the constants, and is then cut to size
    choices, cfg, kept, indices = cuts(whole, keep)
    check_empty(dict(whole.named_modules()), choices)
    norms = {producer: norm for record, _ in choices for producer, norm in record.producers if norm}
    fold(whole, torch.full((1, *input_shape(model.arch, model.cfg)), torch.nan, dtype=torch.float64), kept, norms)
    state = cut({**whole.state_dict(), **indices}, kept)
    if isinstance(model, Own):
        slim = copy.deepcopy(model).resized(shapes_of(model, state))
        slim.load_state_dict(state)
        slim.reads(input_shape(model.arch, model.cfg))       # an error where its code counts on more channels
        return slim
    slim = sketch(model.arch, **cfg)                         # without the empty branches
    slim.load_state_dict({name: state[name].clone(memory_format=torch.contiguous_format)
                          for name in slim.state_dict()}, assign=True)
    slim.images = getattr(model, "images", None)
    return slim.to(next(model.parameters())).train(model.training)       # on its device, in its precision


def narrow_masks(model, masks, keep):
    """The masks, {parameter: bool, shaped like it}, narrowed like their parameters by `narrow` with keep."""
    if not masks:
        return {}
    _, cfg, kept, _ = cuts(model, keep)
    masks = cut({name: mask.cpu() for name, mask in masks.items()}, kept)
    left = sketch(model.arch, **cfg).state_dict()            # without blocks that have lost all their channels
    return {name: mask for name, mask in masks.items() if name in left}


def cut(tensors, kept):
    """{name: tensor}, in place, with the positions that stay; kept: {(name, axis): bool (positions,)}."""
    for (name, axis), stays in kept.items():
        if name in tensors:
            tensors[name] = tensors[name].index_select(axis, stays.nonzero().flatten())
    return tensors


def cuts(model, keep):
    """What `narrow` cuts: ([(record, bool (units,) that stay)], the cfg after it, {(tensor, axis): bool, the positions
    that stay}, {a selection's indices: those after it})."""
    modules = dict(model.named_modules())
    choices = choose(model, modules, keep)
    cfg, kept, indices = copy.deepcopy(model.cfg), {}, {}
    for record, stays in choices:
        for key, units in record.tensors(modules).items() if record.producers else ():
            kept[key] = kept.get(key, True) & (stays[units] | (units < 0))
        left = int(record.over_channels(stays).sum())
        if not record.producers:
            name, layer = record.consumers[0].select, record.consumers[0].layer
            passed, arrives = modules[name].indices.cpu(), kept.pop((name, 0), torch.ones_like(stays))
            stays = kept[f"{layer}.weight", 1] = (arrives & stays)[passed]
            left = int(stays.sum())
            if not left:
                raise UserError(f"narrow: nothing is left for {layer} to read")
            indices[f"{name}.indices"] = (arrives.cumsum(0) - 1)[passed[stays]]
        for key, position in record.places:
            cfg[key][position] = left
    return choices, cfg, kept, indices


@torch.no_grad()
def silence(model, keep):
    """Zeroes filters and biases of the channels that keep, {first layer that makes them: (channels,)}, drops, and the
    batch norms after them. What `narrow` leaves then computes the same."""
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    for record in model.channels():
        names = record.names() if record.index else []       # of these all layers are zeroed, whichever keep names
        names = [name for name in (*[layer for layer, _ in record.producers[:1]], *names) if name in keep]
        if not names:
            continue
        gone = ~record.by_unit(names[0], keep[names[0]].bool().cpu()).any(1)
        reading = {(f"{consumer.layer}.weight", 1) for consumer in record.consumers}
        for (name, axis), units in record.tensors(modules).items():
            if name in parameters and (name, axis) not in reading:
                places = (gone[units] & (units >= 0)).nonzero().flatten()
                parameters[name].index_fill_(axis, places.to(parameters[name].device), 0)
        if gone.all() and record.branch_norm:                # the block is its shortcut
            for parameter in modules[record.branch_norm].parameters():
                parameter.zero_()


def choose(model, modules, keep):
    """[(record, bool (units,) that stay), ...] for all records, a selection after the stream it reads."""
    records = sorted(model.channels(), key=lambda record: not record.producers)
    owner = {name: record for record in records for name in record.names()}
    chosen = {}                                              # record -> (its units, the name that they came under)
    for name, vector in keep.items():
        if name not in modules:
            raise UserError(f"narrow: the network has no layer {name!r}")
        vector, record = torch.as_tensor(vector, dtype=torch.bool).cpu(), owner.get(name)
        if vector.numel() != width_of(modules[name]):
            raise UserError(f"narrow: {name} has {width_of(modules[name])} channels, keep has {vector.numel()}")
        if record is None and vector.all():
            continue
        if record is None:
            raise UserError(f"narrow: the channels of {name} cannot be removed in a {model.arch}")
        units = record.by_unit(name, vector)
        if not vector.any() and not record.branch:
            raise UserError(f"narrow: no channel of {name} is left")
        if not torch.equal(units.any(1), units.all(1)):
            raise UserError(f"narrow: channels of {name} go {record.group_size} at a time")
        other, first = chosen.setdefault(record, (units.any(1), name))
        if not torch.equal(other, units.any(1)):
            raise UserError(f"narrow: {first} and {name} share their channels, but their keep vectors differ")
    for record in records:
        name = record.names()[0]
        every = record.by_unit(name, torch.ones(width_of(modules[name]), dtype=torch.bool))
        chosen.setdefault(record, (every.any(1), name))
    empty = {record.branch for record in records if record.branch and not chosen[record][0].any()}
    return [(record, chosen[record][0] & (record.branch not in empty)) for record in records]


def check_empty(modules, choices):
    """UserError where a residual branch that goes still adds a constant to the stream (its last batch norm does)."""
    for record, stays in choices:
        norm = record.branch_norm
        if norm and not stays.any() and after_norm(modules[norm], torch.zeros(1).double()).any():
            raise UserError(f"narrow: {record.branch} is left without channels, but {norm} still adds a constant; zero "
                            "its weight and bias first")


def width_of(layer):
    for attribute in ("out_channels", "out_features", "num_features", "width"):
        if hasattr(layer, attribute):
            return getattr(layer, attribute)
    raise UserError(f"a {type(layer).__name__} has no channels")


def after_norm(norm, x):
    """What an evaluating batch norm makes of the constants x (C,): after a zero gamma everything is one."""
    weight, bias, mean, var = [tensor.cpu().double() for tensor in (norm.weight, norm.bias, norm.running_mean,
                                                                    norm.running_var)]
    return torch.where(weight == 0, bias, bias + weight / (var + norm.eps).sqrt() * (x - mean))


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
