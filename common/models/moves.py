"""Rules, as in functions.py, of torch functions that move numbers and compute nothing."""
import torch


def cat(labels, call):
    dims, dim = len(call.shapes[0]), call.get(1, "dim", 0)
    known = [labels.know(t) for t in call.tensors]
    axes = {k.axis for k in known if k.labels is not None}
    if "axis" in call.options or len(axes) != 1 or call.operands and not isinstance(call.operands[0], list | tuple):
        return NotImplemented
    axis = axes.pop()
    if call.name == "stack" or axis != dim % (dims + (call.name == "stack")):
        if any(k.labels is None for k in known):
            return NotImplemented
        for k in known[1:]:
            labels.tie(known[0].labels, k.labels)
        moved = call.name == "stack" and dim % (dims + 1) <= axis
        return [dict(axis=axis + moved, labels=known[0].labels)]
    parts = []
    for k, shape in zip(known, call.shapes, strict=True):
        parts.append(labels.fresh(shape[axis]) if k.labels is None else k.labels)
        if k.labels is None:
            labels.freeze(parts[-1], "a fixed number of channels")
    return [dict(axis=axis, labels=torch.cat(parts))]


def moved(labels, call, pick=False):
    """What the function makes of the labels themselves, as a tensor of the input's shape; pick: it must leave their
    axis as it is. One axis that is seen as several: the last of these shrinks, so the others repeat its choice."""
    known, shape = labels.know(call.tensors[0]), call.shapes[0]
    if known.labels is None or len(call.tensors) > 1 or not call.operands or call.operands[0] is not call.tensors[0]:
        return NotImplemented
    every = known.labels.view([-1 if d == known.axis else 1 for d in range(len(shape))]).expand(shape).contiguous()
    results, found = call.function(every, *call.operands[1:], **call.options), []
    for new in [results] if isinstance(results, torch.Tensor) else results:
        if new.dtype != torch.long or new.dim() == 0:
            return NotImplemented
        full = new.shape
        for d, n in enumerate(full):
            if n > 1 and new.eq(new.narrow(d, 0, 1)).all():
                new = new.narrow(d, 0, 1)
        varies = [d for d, n in enumerate(new.shape) if n > 1]
        for d in varies[:-1]:
            labels.tie(new, new.narrow(d, 0, 1))
            new = new.narrow(d, 0, 1)
        if not varies and len(known.labels) > 1:
            return NotImplemented
        axis = varies[-1] if varies else min(known.axis, new.dim() - 1)
        own = new.flatten().expand(full[axis])
        if pick and not torch.equal(own, known.labels):
            return NotImplemented
        found.append(dict(axis=axis, labels=own, before=known if len(own) % len(known.labels) == 0 else None))
    return found


def pick(labels, call):
    return moved(labels, call, pick=True)


def chunk(labels, call):
    """Equal parts shrink alike."""
    known, found = labels.know(call.tensors[0]), moved(labels, call)
    if found is NotImplemented or call.outputs[0].shape[known.axis] == call.shapes[0][known.axis]:
        return found                                         # parts of another axis
    if len({t.shape for t in call.outputs}) > 1:
        return NotImplemented
    for other in found[1:]:
        labels.tie(found[0]["labels"], other["labels"])
    return found


def nothing(labels, call):
    """A new tensor, of which only the type is that of the one read."""
    return [{}]
