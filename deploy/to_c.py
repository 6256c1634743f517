"""A network as one C file that multiplies only by the weights that are not zero. Needs a C compiler, nothing else.

    void logits(const float *images, int count, float *out);     any number of threads may call it

Everything linear (convolutions of any stride and groups, linear layers, batch norms, additions, average pooling) is a
sum of taps: output channel = bias + the sum of weight * an earlier channel, shifted by dy rows and dx columns. Sums are
computed only where something reads them: a residual addition adds its taps to those of the convolution before it, and
selections, concatenations and added zero channels only change which channels the taps read. model.c has the loops.
"""
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from common import UserError, models
from deploy.graph import operations
from deploy.spread import spread

TEMPLATE = Path(__file__).with_name("model.c")


@dataclass(eq=False)
class Planes:
    """Channels of one size in the arena, with rows of zeros above and below each."""
    first: int                                               # number of the first channel among all of the network
    count: int
    height: int
    width: int
    pitch: int                                               # floats from row to row: 4, 8 or 16 n
    border: int = 1                                          # rows of zeros, as many as taps read
    start: int = 0                                           # where in the arena it begins

    def plane(self):
        """Floats from channel to channel."""
        return rounded((self.height + self.border) * self.pitch)

    def address(self, channel):
        """Where in the arena pixel (0, 0) of the channel is."""
        return self.start + rounded(self.border * self.pitch) + (channel - self.first) * self.plane()

    def layer(self):
        """As the C struct."""
        return (f"(layer){{arena + {self.address(self.first)}, {self.plane()}, {self.count}, {self.height}, "
                f"{self.width}, {self.pitch}}}")


@dataclass
class Value:
    """A sum of taps; place (n, 4): output channel, number of the channel that is read, dy and dx; weight (n,)."""
    height: int
    width: int
    bias: torch.Tensor
    place: torch.Tensor
    weight: torch.Tensor


def rounded(floats):
    """At least so many floats, in whole vectors."""
    return -(-floats // 16) * 16


def table(kind, name, values):
    return f"static const {kind} {name}[] = {{{', '.join(map(str, values)) or '{0, 0}'}}};"


def copied(height, width, channels):
    """The Value with one tap of weight 1 for each of the channels."""
    place = torch.stack([torch.arange(len(channels)), channels, *[torch.zeros_like(channels)] * 2], 1)
    return Value(height, width, torch.zeros(len(place)).double(), place, torch.ones(len(place)).double())


def joined(values, firsts, count):
    """The sum of the Values in `count` channels; each Value begins at its own channel, one of firsts."""
    place = torch.cat([v.place + torch.tensor([first, 0, 0, 0]) for v, first in zip(values, firsts, strict=True)])
    bias = sum(F.pad(v.bias, (first, count - first - len(v.bias))) for v, first in zip(values, firsts, strict=True))
    return Value(values[0].height, values[0].width, bias, place, torch.cat([v.weight for v in values]))


class Program:
    """Collects steps: (Planes computed, Planes read, function of the step's number -> [line of C, tables...])."""

    def __init__(self, shape):
        self.owners, self.steps, self.parts = [], [], {}     # owners: the Planes of every channel
        self.images, self.value_of_images = self.new(*shape)

    def new(self, count, height, width, pitch=None):
        """New Planes, and the Value that they are."""
        pitch = pitch or next((n for n in (4, 8) if width <= n), rounded(width))
        made = Planes(len(self.owners), count, height, width, pitch)
        self.owners += [made] * count
        return made, copied(height, width, torch.arange(made.first, made.first + count))

    def sources(self, channels):
        """The Planes that hold the channels."""
        return list({self.owners[c]: None for c in channels.unique().tolist()})

    def address(self, channels):
        unique, inverse = channels.unique(return_inverse=True)
        return torch.tensor([self.owners[c].address(c) for c in unique.tolist()])[inverse]

    def compute(self, value, relu=False):
        """The Value after a step that sums its taps."""
        (to, channel, dy, dx), weight = value.place[value.weight != 0].T, value.weight[value.weight != 0]
        sources = self.sources(channel)
        pitch, = {planes.pitch for planes in sources} or {None}
        out, result = self.new(len(value.bias), value.height, value.width, pitch)
        if out.width > out.pitch:
            raise UserError(f"no C file of a network in which a convolution makes rows of {out.width} pixels out of "
                            f"shorter ones")
        for planes in sources:
            planes.border = max(planes.border, -int(dy.min()), int(dy.max()) + out.height - planes.height)
        left, right = (max([0, *far.tolist()]) for far in (-dx, dx))
        group = to * (left + right + 1) + torch.where(dx > 0, left + right + 1 - dx, left + dx)
        order = group.argsort(stable=True)
        rows, width = out.height, out.pitch
        if left == right == 0 and out.width == width and rows * width % 16 == 0:
            rows, width = rows * width // 16, 16             # no column differs: wider vectors than the rows
        lanes = {4: "4", 8: "NARROW"}.get(width, "LANES")

        def code(i):
            shift = (self.address(channel) + dy * out.pitch)[order]
            taps = [f"{{{s}, {w:.9g}}}" for s, w in zip(shift.tolist(), weight[order].tolist(), strict=True)]
            ends = torch.bincount(group, minlength=out.count * (left + right + 1)).cumsum(0)
            call = f"{out.layer()}, {int(relu)}, {left}, {right}, ends{i}, taps{i}, bias{i}"
            return [f"sums_{rows}x{width}({call});", f"SUMS({rows}, {width}, {lanes})",
                    table("int", f"ends{i}", ends.tolist()), table("tap", f"taps{i}", taps),
                    table("float", f"bias{i}", [f"{b:.9g}" for b in value.bias.tolist()])]
        self.steps.append((out, sources, code))
        return result

    def plain(self, value):
        """The Value with one tap of weight 1 for each channel: computed, unless it is that already."""
        one_each = torch.equal(value.place[:, 0], torch.arange(len(value.bias))) and (value.weight == 1).all()
        whole = all((p.height, p.width) == (value.height, value.width) for p in self.sources(value.place[:, 1]))
        moved = value.place[:, 2:].any() or value.bias.any()
        return value if one_each and whole and not moved else self.compute(value)

    def aligned(self, values):
        """The Values, copied if their rows are not equally long in the arena."""
        if len({planes.pitch for value in values for planes in self.sources(value.place[:, 1])}) < 2:
            return values
        return [self.call("split", self.plain(v), len(v.bias), v.height, v.width, 1) for v in values]

    def call(self, function, value, count, height, width, *numbers):
        """The Value after a step that is no sum: a C function of the channels in the table from<i>."""
        (out, result), channel = self.new(count, height, width), value.place[:, 1]
        sources = self.sources(channel)

        def code(i):
            words = [out.layer(), len(channel), f"from{i}", value.height, value.width, sources[0].pitch, *numbers]
            return [f"{function}({', '.join(map(str, words))});",
                    table("int", f"from{i}", self.address(channel).tolist())]
        self.steps.append((out, sources, code))
        return result

    def conv(self, value, weight, bias=None, stride=1, padding=0, groups=1):
        value = self.plain(value)
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side, kernel in zip(
            (value.height, value.width), weight.shape[2:], strict=True))
        to, channel, dy, dx = weight.nonzero().T
        channel, dy, dx = to // (len(weight) // groups) * weight.shape[1] + channel, dy - padding, dx - padding
        if stride > 1:                                       # it reads one of stride * stride parts of a channel
            key = (stride, *value.place[:, 1].tolist())
            if key not in self.parts:
                self.parts[key] = self.call("split", value, len(value.bias) * stride ** 2, -(-value.height // stride),
                                            -(-value.width // stride), stride)
            value = self.parts[key]
            channel, dy, dx = (channel * stride + dy % stride) * stride + dx % stride, dy // stride, dx // stride
        bias = torch.zeros(len(weight)).double() if bias is None else bias
        place = torch.stack([to, value.place[channel, 1], dy, dx], 1)
        return Value(height, width, bias, place, weight[weight != 0])

    def mean(self, value, height, width, stride=1, padding=0):
        weight = torch.full((len(value.bias), 1, height, width), 1 / (height * width)).double()
        return self.conv(value, weight, None, stride, padding, len(weight))

    def avg_pool(self, x, size, stride, padding):
        if not size:                                         # of all: columns, then rows, which are fewer taps
            return self.mean(self.mean(x, x.height, 1), 1, x.width)
        return self.mean(x, size, size, stride, padding)

    def max_pool(self, x, size, stride, padding):
        height, width = ((side + 2 * padding - size) // stride + 1 for side in (x.height, x.width))
        return self.call("max_pool", self.plain(x), len(x.bias), height, width, size, stride, padding)

    def flatten(self, x):
        """A step that copies the pixels, since taps of as many columns are slow."""
        if x.height == x.width == 1:
            return x
        channel = self.plain(x).place[:, 1]
        sources = self.sources(channel)
        out, result = self.new(len(channel) * x.height * x.width, 1, 1)

        def code(i):
            pixels = torch.arange(x.height)[:, None] * sources[0].pitch + torch.arange(x.width)
            return [f"for (int i = 0; i < {out.count}; i++) arena[{out.address(out.first)} + {out.plane()} * i] = "
                    f"arena[from{i}[i]];",
                    table("int", f"from{i}", (self.address(channel)[:, None] + pixels.flatten()).flatten().tolist())]
        self.steps.append((out, sources, code))
        return result

    def value(self, node, *values):
        """What the Node computes from the Values that it reads."""
        values = self.aligned(values) if len(values) > 1 else values
        x, counts, settings = values[0], [len(v.bias) for v in values], node.settings
        return {
            "conv": lambda: self.conv(x, node.weight, node.bias, **settings),
            "linear": lambda: self.conv(x, node.weight[:, :, None, None], node.bias),
            "norm": lambda: Value(x.height, x.width, x.bias * node.weight + node.bias, x.place,
                                  x.weight * node.weight[x.place[:, 0]]),
            "relu": lambda: self.compute(x, relu=True),
            "add": lambda: joined(values, [0, 0], counts[0]),
            "concat": lambda: joined(values, [sum(counts[:i]) for i in range(len(counts))], sum(counts)),
            "pad": lambda: joined(values, [settings["before"]], settings["before"] + counts[0] + settings["after"]),
            "gather": lambda: copied(x.height, x.width, self.plain(x).place[node.weight, 1]),
            "flatten": lambda: self.flatten(x),
            "skip": lambda: self.mean(x, 1, 1, settings["step"]),
            "avg_pool": lambda: self.avg_pool(x, **settings),
            "max_pool": lambda: self.max_pool(x, **settings)}[node.op]()

    def allocate(self):
        """Sets where in the arena all Planes start, and returns its size. Planes that nothing reads any more are reused
        by others of the same layout: their borders are zero."""
        def layout(planes):
            return planes.count, planes.height, planes.width, planes.pitch, planes.border

        free, size = {}, 0
        last = {planes: i for i, (_, sources, _) in enumerate(self.steps) for planes in sources}
        for i, (out, sources, _) in enumerate([(self.images, (), None), *self.steps], -1):
            spare = free.get(layout(out))
            out.start = spare.pop() if spare else size
            size = max(size, out.address(out.first + out.count))
            for planes in sources:
                if last[planes] == i:
                    free.setdefault(layout(planes), []).append(planes.start)
        return size


def source(model):
    """The C file as text."""
    try:
        nodes = operations(spread(model, lambda layer: False).cpu().eval())
    except UserError as error:
        has = ("convolutions with one stride and padding, linear layers, batch norms, ReLU, additions, concatenations "
               "of channels and pooling")
        raise UserError(f"{error}; a C file has {has}; an .onnx file may have more") from error
    reads = Counter(name for node in nodes for name in node.inputs)
    shape = channels, height, width = models.input_shape(model.arch, model.cfg)
    program = Program(shape)
    values = {"images": program.value_of_images}
    for node in nodes:
        value = program.value(node, *(values[name] for name in node.inputs))
        values[node.name] = program.plain(value) if reads[node.name] > 1 else value
    logits = program.plain(value).place[:, 1]
    arena, images = program.allocate(), program.images
    made = [code(i) for i, (_, _, code) in enumerate(program.steps)]
    row = f"arena + {images.address(0)} + i / {height} * {images.plane()} + i % {height} * {images.pitch}"
    lines = [f"for (int i = 0; i < {channels * height}; i++)",
             f"    memcpy({row}, images + i * {width}, sizeof(float) * {width});", *(line for line, *_ in made),
             f"for (int i = 0; i < {len(logits)}; i++) out[i] = arena[logit[i]];"]
    tables = dict.fromkeys(line for _, *more in made for line in more)       # the loops for one size only once
    tables = [*tables, table("int", "logit", program.address(logits).tolist())]
    text = TEMPLATE.read_text()
    for mark, part in (("TABLES", "\n".join(tables)), ("LAYERS", "\n        ".join(lines))):
        text = text.replace(f"/* {mark} */", part)
    return (f"/* {model.arch}: {math.prod(shape)} floats of an image -> {len(logits)} logits */\n"
            f"#define ARENA {arena}\n#define IMAGE {math.prod(shape)}\n#define CLASSES {len(logits)}\n{text}")


def export(model, path):
    """Writes the C file and says how large it is."""
    if Path(path).resolve() == TEMPLATE.resolve():
        raise UserError(f"{path} is the template of all C files; give another name")
    text = source(model)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    print(f"wrote {path}, {len(text):,} bytes; cc -O3 -march=native -o model {path} -lm")
