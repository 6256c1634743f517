"""Labels that say which channel every number of a network's tensors belongs to.

The network runs once, on the meta device, under a `Labels`. Every channel of every weight has a label, an integer. A
tensor that comes from the images has at most one axis of channels, with one label per position; functions.py says for
each function where its result has them, and which labels it ties: labels that are tied can only be removed together.
What a function without a rule reads is frozen, by name: those channels stay.
"""
from dataclasses import dataclass

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# read no values: they give a shape, a number of channels, a type
METADATA = set("""size dim numel len stride is_contiguous is_floating_point is_complex ndimension nelement element_size
get_device data_ptr storage_offset sym_size sym_numel is_same_size is_nonzero_shape is_tensor""".split())


@dataclass(eq=False)
class Known:
    """A tensor of the pass: its axis of channels, one label per position (None: no channels, its size is fixed).

    before: the tensor it was computed from channel by channel. layer, norm: what has computed it, if one of these.
    """
    tensor: torch.Tensor
    axis: int = 0
    labels: torch.Tensor = None
    before: "Known" = None
    layer: str = ""
    norm: str = ""
    uses: int = 0


@dataclass
class Call:
    """One call of a torch function; shapes: those its tensors had before it."""
    name: str
    function: object
    operands: tuple
    options: dict
    tensors: list
    shapes: list
    outputs: list

    def get(self, position, name, default=None):
        return self.operands[position] if len(self.operands) > position else self.options.get(name, default)


class Labels(TorchFunctionMode):
    """model: a copy of a network, which gets hooks. rules: {function's name: rule(labels, call) -> what the result has,
    see functions.py}. shared: the names of parameters that the model has under two names."""

    def __init__(self, model, rules, shared=()):
        super().__init__()
        self.model, self.rules, self.shared = model, rules, shared
        self.modules, self.stored = dict(model.named_modules()), set(model.state_dict())
        self.names = {id(t): name for name, t in [*model.named_parameters(), *model.named_buffers()]}
        self.plain = {id(v) for m in self.modules.values() for v in vars(m).values() if isinstance(v, torch.Tensor)}
        self.axes, self.parent, self.frozen, self.added, self.gates = {}, [], [], [], set()
        self.layers, self.norm_after, self.norm_before = {}, {}, {}      # in the order of the pass; layer -> batch norm
        self.where = where = ["network"]
        for name, m in self.modules.items():                 # hooks that do not hold the model itself in memory
            m.register_forward_pre_hook(lambda m, x, name=name: where.append(name or "network"))
            m.register_forward_hook(lambda m, x, y: where.pop() and None)
        self.begin()

    def begin(self):
        """Another pass of the same network."""
        self.seen, self.log, self.reads, self.norms = {}, [], [], []

    # labels

    def fresh(self, n):
        first = len(self.parent)
        self.parent += range(first, first + n)
        return torch.arange(first, first + n)

    def root(self, i):
        parent = self.parent
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    def roots(self, labels):
        return torch.tensor([self.root(i) for i in labels.flatten().tolist()], dtype=torch.long).view(labels.shape)

    def tie(self, a, b):
        for i, j in set(zip(a.flatten().tolist(), b.expand_as(a).flatten().tolist(), strict=True)):
            self.parent[self.root(j)] = self.root(i)

    def freeze(self, labels, why):
        if labels is not None:
            self.frozen.append((labels.flatten(), f"{why} ({self.where[-1]})"))

    def axis(self, tensor, axis):
        """The labels of an axis of a parameter or buffer."""
        name = self.names[id(tensor)]
        if (name, axis) not in self.axes:
            self.axes[name, axis] = self.fresh(tensor.shape[axis])
            if name not in self.stored:
                self.freeze(self.axes[name, axis], f"{name} is not in the state_dict")
            if name in self.shared:
                self.freeze(self.axes[name, axis], f"{name} has two names")
        return self.axes[name, axis]

    # tensors

    def know(self, tensor):
        """What is known of a tensor that a function reads. A parameter outside of its layer has at most one axis."""
        if id(tensor) in self.seen:
            return self.seen[id(tensor)]
        if id(tensor) in self.names:
            known = Known(tensor)
            if tensor.is_floating_point():
                long = [axis for axis, n in enumerate(tensor.shape) if n > 1]
                for axis in long if len(long) > 1 else ():
                    self.freeze(self.axis(tensor, axis), f"{self.names[id(tensor)]} is read outside of its layer")
                if len(long) == 1:
                    known.axis, known.labels = long[0], self.axis(tensor, long[0])
            return known
        if id(tensor) not in self.plain:                     # made by code that runs unseen: it may have read anything
            for known in list(self.seen.values()):
                self.freeze(known.labels, "before a tensor from code that cannot be followed")
        self.seen[id(tensor)] = Known(tensor)
        return self.seen[id(tensor)]

    def give(self, tensor, axis=0, labels=None, **origin):
        self.seen[id(tensor)] = Known(tensor, axis % max(tensor.dim(), 1), labels, **origin)

    def along(self, tensor, axis):
        """The labels of this axis; None if its size is fixed. Channels that the tensor has along another one freeze."""
        known = self.know(tensor)
        if known.labels is None or known.axis == axis % tensor.dim():
            return known.labels
        return self.freeze(known.labels, "read along another axis")

    def carries(self, tensor):
        return id(tensor) in self.names and tensor.is_floating_point() or self.know(tensor).labels is not None

    # the pass

    def __torch_function__(self, function, types, operands=(), options=None):
        options = options or {}
        name = getattr(function, "__name__", str(function)).strip("_")
        read = [t for t in tree_leaves((operands, options)) if isinstance(t, torch.Tensor)]
        carrying, shapes = [t for t in read if self.carries(t)], [tuple(t.shape) for t in read]
        before = {id(t): self.seen.get(id(t)) for t in read}
        result = function(*operands, **options)
        outputs = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        if not outputs and (name in METADATA or name == "get"):
            return result
        for known in before.values():
            if known is not None:
                known.uses += 1
        found = ()
        if carrying:
            call = Call(name, function, operands, options, read, shapes, outputs)
            rule = self.rules.get(name)
            found = NotImplemented if rule is None or "out" in options else rule(self, call)
            if found is NotImplemented:
                found = ()
                for t in carrying:
                    self.know(t)                             # freezes a parameter of several axes
                    self.freeze(self.know(t).labels, f"read by {name}")
        for i, t in enumerate(outputs):
            origin = found[min(i, len(found) - 1)] if found else {}
            self.give(t, **origin)
        self.log.append((name, self.where[-1], [(tuple(t.shape), self.seen[id(t)]) for t in outputs]))
        return result

    # who reads whom

    def chain(self, known):
        """The tensors that this one was computed from, channel by channel, from the last to the first."""
        while known is not None:
            yield known
            known = known.before

    def maker(self, tensor):
        """The layer whose output this is, channel by channel, or ""."""
        return next((known.layer for known in self.chain(self.know(tensor)) if known.layer), "")

    def finish(self):
        """Ends a pass. A batch norm belongs to the layer it follows if nothing else reads that layer's output; else to
        those that read what it gives."""
        for norm, known in self.norms:
            chain = list(self.chain(known))
            i = next((i for i, k in enumerate(chain) if k.layer), None)
            if i is not None and all(k.uses == 1 for k in chain[:i + 1]) and not any(k.norm for k in chain[:i]):
                self.norm_after.setdefault(chain[i].layer, norm)
        taken = set(self.norm_after.values())
        for layer, known in self.reads:
            chain = list(self.chain(known))
            i = next((i for i, k in enumerate(chain) if k.layer), len(chain))
            self.norm_before.setdefault(layer, next((k.norm for k in chain[:i] if k.norm and k.norm not in taken), ""))
