"""Removing channels from a network without changing what it computes.

Each network lists its removable channels in `channels()` (channels.py). `narrow` needs nothing else.
"""
import copy

import torch

from common import UserError


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
    whole = copy.deepcopy(model).cpu().double()              # takes up the constants, and is then cut to size
    modules = dict(whole.named_modules())
    choices = choose(model, modules, keep)
    norm_after = {producer: norm for record, _ in choices for producer, norm in record.producers}
    cfg, outputs, inputs = copy.deepcopy(model.cfg), {}, {}  # layer -> which of its outputs, of its inputs stay
    for record, stays in choices:
        if record.producers:
            fold(modules, norm_after, record, ~stays)
            outputs.update({name: stays for pair in record.producers for name in pair})
            for consumer in record.consumers:
                name, width = consumer.select or consumer.layer, inputs_of(modules, consumer)
                inputs.setdefault(name, torch.ones(width, dtype=torch.bool))
                inputs[name][consumer.part] = stays.repeat_interleave(consumer.repeat)
                outputs[consumer.norm] = inputs[name]
        else:
            consumer = record.consumers[0]
            select = modules[consumer.select]
            arrives = inputs.pop(consumer.select, torch.ones_like(stays))
            fold(modules, norm_after, record, arrives & ~stays)          # what does not arrive is folded already
            stays = inputs[consumer.layer] = (arrives & stays)[select.indices]
            if not stays.any():
                raise UserError(f"narrow: nothing is left for {consumer.layer} to read")
            select.indices = (arrives.cumsum(0) - 1)[select.indices[stays]]
        for key, position in record.places:
            cfg[key][position] = int(stays.sum())
    check_empty(modules, choices)

    state = whole.state_dict()
    for name, tensor in state.items():
        layer = name.rpartition(".")[0]
        if tensor.dim() > 1 and layer in inputs:
            tensor = tensor[:, inputs[layer]]
        if tensor.dim() > 0 and layer in outputs:
            tensor = tensor[outputs[layer]]
        state[name] = tensor
    size = {key: cfg.pop(key) for key in ("image_size",) if key in cfg}
    slim = type(model)(**cfg).to(next(model.parameters()))   # on its device, in its precision
    slim.cfg.update(size)
    slim.arch, slim.images = model.arch, getattr(model, "images", None)
    slim.load_state_dict({name: state[name] for name in slim.state_dict()})          # without the empty branches
    return slim.train(model.training)


def choose(model, modules, keep):
    """[(record, its checked keep vector), ...] for all records, a selection after the stream it reads."""
    records = sorted(model.channels(), key=lambda record: not record.producers)
    owner = {name: record for record in records for name in record.names()}
    chosen = {}                                              # record -> (its vector, the name that this came under)
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
        other, first = chosen.setdefault(record, (vector, name))
        if not torch.equal(other, vector):
            raise UserError(f"narrow: {first} and {name} share their channels, but their keep vectors differ")
        if not vector.any() and not record.branch:
            raise UserError(f"narrow: no channel of {name} is left")
        units = vector.view(-1, record.group_size)
        if not torch.equal(units.any(1), units.all(1)):
            raise UserError(f"narrow: channels of {name} go {record.group_size} at a time")
    for record in records:
        name = record.names()[0]
        chosen.setdefault(record, (torch.ones(width_of(modules[name]), dtype=torch.bool), name))
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


def fold(modules, norm_after, record, dropped):
    """Moves what dropped channels always give into the biases after their consumers.

    Where there is a batch norm instead of a bias it goes to the running mean. In the values nan means: it varies.
    """
    varies = torch.full(dropped.shape, torch.nan, dtype=torch.float64)
    value, total, silent = varies, torch.zeros_like(varies), torch.zeros_like(dropped)
    for producer, norm in record.producers:
        layer = modules[producer]
        dead = layer.weight.flatten(1).eq(0).all(1) | silent
        value = torch.where(dead, torch.zeros_like(varies) if layer.bias is None else layer.bias, varies)
        if norm:
            value = after_norm(modules[norm], value)
        total += value.abs()                                 # a stream is read in between: its parts must not cancel
        if not record.stream:                                # after a ReLU: groups that read only zeros
            silent = (value <= 0).view(-1, record.group_size).all(1).repeat_interleave(record.group_size)
    if record.stream:
        value = total
        read = torch.stack([reads(modules, consumer) for consumer in record.consumers]).any(0)
        if (value[dropped & read] > 0).any():
            raise UserError(f"narrow: a dropped channel of {record.producers[0][0]} carries a constant into a residual "
                            "stream; zero the batch norm's bias there first")
    for consumer in record.consumers:
        layer, here = modules[consumer.layer], value.relu()
        if consumer.norm:
            here = after_norm(modules[consumer.norm], here, consumer.part).relu()
        taken = dropped & reads(modules, consumer)           # what is read with zero weights leaves no constant
        moved = torch.where(taken, here, 0).nan_to_num(0).repeat_interleave(consumer.repeat)
        here = torch.zeros(inputs_of(modules, consumer), dtype=torch.float64)
        here[consumer.part] = moved
        if consumer.select:
            here = here[modules[consumer.select].indices]
        if not here.any():
            continue
        if any(getattr(layer, "padding", ())):
            raise UserError(f"narrow: a dropped channel's constant cannot pass {consumer.layer}, which pads with "
                            "zeros; zero the bias of the batch norm before it first")
        shift = layer.weight.reshape(*layer.weight.shape[:2], -1).sum(2) @ here
        if layer.bias is not None:
            layer.bias += shift
        elif norm_after.get(consumer.layer):
            modules[norm_after[consumer.layer]].running_mean -= shift
        else:
            raise UserError(f"narrow: {consumer.layer} has neither bias nor batch norm to take a dropped channel's "
                            "constant")


def inputs_of(modules, consumer):
    """How many inputs the consumer has, before its selection."""
    return modules[consumer.select].width if consumer.select else modules[consumer.layer].weight.shape[1]


def reads(modules, consumer):
    """bool (channels,): the channels of its producers that this consumer has a non-zero weight on."""
    read = modules[consumer.layer].weight.detach().ne(0).transpose(0, 1).flatten(1).any(1).cpu()
    if consumer.select:                                      # the consumer sees only the selected ones
        select = modules[consumer.select]
        read = torch.zeros(select.width, dtype=torch.bool).index_copy(0, select.indices.cpu(), read)
    return read[consumer.part].view(-1, consumer.repeat).any(1)


def after_norm(norm, x, part=slice(None)):
    """What an evaluating batch norm makes of the constants x (C,), its channels `part`: after a zero gamma everything
    is one."""
    weight, bias, mean, var = [tensor.double().cpu()[part] for tensor in (norm.weight, norm.bias, norm.running_mean,
                                                                          norm.running_var)]
    return torch.where(weight == 0, bias, bias + weight / (var + norm.eps).sqrt() * (x - mean))
