"""The records (channels.py) of any network, from one run of it.

    records, stays = trace(model, torch.zeros(1, 3, 224, 224))       # stays: {layer: why its channels are kept}

The network runs on the meta device, where tensors have shapes and no numbers, in evaluation and in training mode, under
labels of its channels (labels.py). Then one unit of every record is removed on trial, and every function must give the
shape that the labels say; a record with which one does not is dropped: a number of channels is fixed in the code.
"""
import torch
from torch.utils._pytree import tree_leaves

from common import UserError
from common.models.channels import Channels, Consumer, arranged
from common.models.functions import RULES
from common.models.labels import Labels
from common.models.layers import resize, twin


@torch.no_grad()
def trace(model, example):
    """([Channels], {layer: why its channels are kept}) of a network that reads a tensor like the example."""
    names = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    shared = {name for found in names.values() if len(found) > 1 for name in found}
    for device in ("meta", "cpu"):                           # meta tensors have no numbers; some code asks for them
        try:
            copied = twin(model, device)
            labels = Labels(twin(copied, device), RULES, shared)
            logs = [run(labels, example, training) for training in (False, True)]
            break
        except Exception as error:                           # somebody else's code may raise anything
            if device == "cpu":
                raise UserError(f"the network cannot read {tuple(example.shape[1:])} images: {error}") from error
    records, stays, units = build(labels)
    return on_trial(records, stays, units, labels, copied, example, logs)


def run(labels, example, training):
    """One forward pass of two images under the labels: the log of all function calls."""
    model = labels.model.train(training)
    images = torch.cat([example, example]).to(next(model.parameters()))
    labels.begin()
    channels = labels.fresh(images.shape[1])
    labels.freeze(channels, "the images")
    labels.give(images, 1, channels)
    with labels:
        output = model(images)
    for t in tree_leaves(output):
        if isinstance(t, torch.Tensor):
            labels.freeze(labels.know(t).labels, "the output")
    labels.finish()
    return labels.log


def build(labels):
    """(records, {layer: why its channels are kept}, {record: the roots of its units})."""
    axes = {key: labels.roots(own) for key, own in labels.axes.items()}
    frozen = {root: why for own, why in reversed(labels.frozen) for root in set(labels.roots(own).tolist())}
    added = {root for own in labels.added for root in labels.roots(own).tolist()}
    counts = {}                                              # root -> {(tensor, axis): how many positions}
    for key, roots in axes.items():
        for root, n in zip(*(found.tolist() for found in roots.unique(return_counts=True)), strict=True):
            counts.setdefault(root, {})[key] = n
    groups, stays = {}, {}
    for root, keys in counts.items():
        if root not in frozen:
            groups.setdefault(tuple(keys.items()), set()).add(root)
    records, units = [], {}
    for keys, roots in groups.items():
        record = record_of(labels, axes, dict(keys), roots, added)
        if isinstance(record, Channels):
            records.append(record)
            units[record] = roots
        elif record:
            stays.update(record)
    for layer in labels.layers:
        own = axes[f"{layer}.weight", 0].tolist()
        if any(root in frozen for root in own):
            stays[layer] = next(frozen[root] for root in own if root in frozen)
    order = {layer: i for i, layer in enumerate(labels.layers)}
    records.sort(key=lambda record: min(order[layer] for layer, _ in record.producers))
    return records, stays, units


def record_of(labels, axes, counts, roots, added):
    """The record of units that are at the same places, or {layer: why} where they cannot be removed one by one."""
    makers = [layer for layer in labels.layers if (f"{layer}.weight", 0) in counts]
    makers = [layer for layer in makers if layer not in labels.gates] or makers
    whole = [layer for layer in makers if set(axes[f"{layer}.weight", 0].tolist()) <= roots]
    if len(roots) == 1:
        return dict.fromkeys(makers, "all its channels can only be removed together")
    if not whole:
        return dict.fromkeys(makers, "its channels are in several groups")
    first = whole[0]
    number = {root: i for i, root in enumerate(dict.fromkeys(axes[f"{first}.weight", 0].tolist()))}
    index = {key: torch.tensor([number.get(root, -1) for root in axes[key].tolist()]) for key in counts}
    producers = [(layer, labels.norm_after.get(layer, "")) for layer in [first, *[x for x in makers if x != first]]]
    consumers = []
    for layer in labels.norm_before:
        if (key := (f"{layer}.weight", 1)) in counts:
            part = arranged(index[key], torch.arange(len(index[key]))).flatten()
            if torch.equal(part, torch.arange(int(part[0]), int(part[0]) + len(part))):
                last = int(part[0]) + len(part)
                part = slice(None) if len(part) == len(index[key]) else slice(int(part[0]), last)
            repeat = max(counts[key] // counts[f"{first}.weight", 0], 1)
            consumers.append(Consumer(layer, labels.norm_before[layer], repeat=repeat, part=part))
    if not consumers:
        return dict.fromkeys(makers, "no layer is seen to read its channels")
    record = Channels(producers, consumers, [], counts[f"{first}.weight", 0], index=index)
    record.stream = bool(roots & added) or record.joined and not any(norm for _, norm in producers)
    return record


def on_trial(records, stays, units, labels, model, example, logs):
    """(records, stays) without the records that do not stand a trial."""
    def wrong(tried):
        return why_wrong(tried, units, labels, model, example, logs)

    if wrong(records):
        left = []
        for record in records:
            if why := wrong([record]):
                stays.update(dict.fromkeys([layer for layer, _ in record.producers], why))
            else:
                left.append(record)
        records = left
        if why := wrong(records):
            stays.update({layer: why for record in records for layer, _ in record.producers})
            records = []
    return records, stays


def why_wrong(records, units, labels, model, example, logs):
    """"" if the network without the last unit of each record runs, and all its tensors have the shapes that the labels
    say; else what does not."""
    removed, shapes = set(), {}
    state = model.state_dict()
    for record in records:
        last = max(int(unit.max()) for unit in record.index.values())
        for (name, axis), unit in record.index.items():
            shape = shapes.setdefault(name, list(state[name].shape))
            shape[axis] -= int((unit == last).sum())
            if unit.max() == last and not removed & units[record]:
                removed.add(labels.root(int(labels.axes[name, axis][(unit == last).nonzero()[0, 0]])))
    gone = torch.tensor([labels.root(i) in removed for i in range(len(labels.parent))])
    tried = Labels(resize(twin(model, next(model.parameters()).device), shapes), {})
    for training, log in zip((False, True), logs, strict=True):
        try:
            run(tried, example, training)
        except Exception as error:
            where = tried.log[-1][1] if tried.log else "network"
            return f"a number of channels is fixed in the code ({where}: {str(error).partition(chr(10))[0]})"
        if len(log) != len(tried.log):
            return "the network runs otherwise with fewer channels"
        for (name, where, expected), (other, _, got) in zip(log, tried.log, strict=True):
            for (shape, known), (other_shape, _) in zip(expected, got, strict=False):
                if known.labels is not None:
                    shape = list(shape)
                    shape[known.axis] -= int(gone[known.labels].sum())
                if name != other or tuple(shape) != other_shape:
                    return f"a number of channels is fixed in the code ({name} in {where})"
    return ""
