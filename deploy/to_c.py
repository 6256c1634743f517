"""A network as one C file that multiplies only by the weights that are not zero. Needs a C compiler, nothing else.

    void logits(const float *images, int count, float *out);     any number of threads may call it

Everything linear (convolutions of any stride and groups, linear layers, batch norms, additions, average pooling) is a
sum of taps: output channel = bias + the sum of weight * an earlier channel, shifted by dy rows and dx columns. Sums are
computed only where something reads them: a residual addition adds its taps to those of the convolution before it, and
selections, concatenations and added zero channels only change which channels the taps read.
"""
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from common import UserError, models
from deploy.graph import operations
from deploy.spread import spread

TEMPLATE = Path(__file__).with_name("model.c")
ROOM = 16                                                    # floats in the widest vector


@dataclass(eq=False)
class Planes:
    """Channels of one size in the arena. group: all Planes with equal pitch, since some sum reads or writes both."""
    first: int                                               # number of the first channel among all of the network
    count: int
    height: int
    width: int
    group: list
    border: int = 0                                          # zeros around it that taps read
    start: int = 0                                           # where in the arena it begins

    def struct(self, relu=False):
        """As the C struct `layer`."""
        pitch, lead, plane = self.layout()
        return (f"(layer){{arena + {self.start + lead}, {plane}, {self.count}, {self.height}, {self.width}, {pitch}, "
                f"{int(relu)}}}")

    def layout(self):
        """In floats: from row to row, from the start to pixel (0, 0), from channel to channel."""
        border = max(p.border for p in self.group)
        pitch = max(p.width for p in self.group) + border
        lead = rounded(border * (pitch + 1))
        return pitch, lead, rounded(lead + (self.height + border) * pitch + ROOM)


@dataclass
class Value:
    """A sum of taps; place (n, 4): output channel, number of the channel that is read, dy and dx; weight (n,)."""
    height: int
    width: int
    bias: torch.Tensor
    place: torch.Tensor
    weight: torch.Tensor


def rounded(floats):
    return -(-floats // ROOM) * ROOM


def table(kind, name, values):
    return f"static const {kind} {name}[] = {{{', '.join(map(str, values)) or '{0, 0}'}}};"


def plain(height, width, place):
    """The Value with one tap of weight 1 for each channel, each as a row of place says."""
    place = torch.cat([torch.arange(len(place))[:, None], place[:, 1:]], 1)
    return Value(height, width, torch.zeros(len(place)).double(), place, torch.ones(len(place)).double())


def joined(values, firsts, count):
    """The sum of the Values in `count` channels; each Value begins at its own channel, one of firsts."""
    place = torch.cat([v.place + torch.tensor([first, 0, 0, 0]) for v, first in zip(values, firsts, strict=True)])
    order, bias = place[:, 0].argsort(stable=True), torch.zeros(count).double()
    for value, first in zip(values, firsts, strict=True):
        bias[first:first + len(value.bias)] += value.bias
    return Value(values[0].height, values[0].width, bias, place[order], torch.cat([v.weight for v in values])[order])


class Program:
    """Collects steps: (Planes computed, Planes read, function of the step's number -> [line of C, tables...])."""

    def __init__(self, shape):
        self.owners, self.steps, self.parts = [], [], {}     # owners: the Planes of every channel
        self.images, self.value_of_images = self.new(*shape)

    def new(self, count, height, width):
        """New Planes, and the Value that they are."""
        made = Planes(len(self.owners), count, height, width, [])
        made.group.append(made)
        self.owners += [made] * count
        place = torch.arange(made.first, made.first + count)[:, None] * torch.tensor([0, 1, 0, 0])
        return made, plain(height, width, place)

    def add(self, out, channels, united, code):
        """Adds a step that reads the channels; united: Planes that get the same pitch as those."""
        sources = {self.owners[c]: None for c in channels.unique().tolist()}
        group = [p for g in {id(p.group): p.group for p in [*united, *sources]}.values() for p in g]
        for planes in group:
            planes.group = group
        self.steps.append((out, sources, code))

    def address(self, channels):
        """Where in the arena pixel (0, 0) of each channel is."""
        unique, inverse = channels.unique(return_inverse=True)
        owners = [self.owners[c] for c in unique.tolist()]
        return torch.tensor([p.start + p.layout()[1] + (c - p.first) * p.layout()[2] for c, p in zip(
            unique.tolist(), owners, strict=True)])[inverse]

    def compute(self, value, relu=False):
        """The Value after a step that sums its taps."""
        out, result = self.new(len(value.bias), value.height, value.width)
        (to, channel, dy, dx), weight = value.place[value.weight != 0].T, value.weight[value.weight != 0]
        height, width = (torch.tensor([getattr(p, side) for p in self.owners])[channel] for side in ("height", "width"))
        beyond = torch.cat([-dy, -dx, out.height - height + dy, out.width - width + dx])
        out.border = max(0, int(beyond.max())) if len(beyond) else 0

        def code(i):
            shift = self.address(channel) + dy * out.layout()[0] + dx
            taps = [f"{{{s}, {w:.9g}}}" for s, w in zip(shift.tolist(), weight.tolist(), strict=True)]
            ends = torch.bincount(to, minlength=out.count).cumsum(0).tolist()
            bias = [f"{b:.9g}" for b in value.bias.tolist()]
            return [f"sums({out.struct(relu)}, start{i}, taps{i}, bias{i});", table("int", f"start{i}", [0, *ends]),
                    table("tap", f"taps{i}", taps), table("float", f"bias{i}", bias)]
        self.add(out, channel, [out], code)
        return result

    def plain(self, value):
        """The Value with one tap of weight 1 for each channel: computed, unless it is that already."""
        if (torch.equal(value.place[:, 0], torch.arange(len(value.bias))) and bool((value.weight == 1).all())
                and not value.bias.any()):
            return value
        return self.compute(value)

    def call(self, function, value, count, height, width, *numbers):
        """The Value after a step that is no sum: a C function of the channels in the table from<i>."""
        (out, result), channel = self.new(count, height, width), value.place[:, 1]

        def code(i):
            pitch = self.owners[channel[0]].layout()[0]
            words = [f"from{i}", value.height, value.width, pitch, *numbers]
            return [f"{function}({out.struct()}, {len(channel)}, {', '.join(map(str, words))});",
                    table("int", f"from{i}", self.address(channel).tolist())]
        self.add(out, channel, [], code)
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
        read = value.place[channel]
        bias = torch.zeros(len(weight)).double() if bias is None else bias
        return Value(height, width, bias, torch.stack([to, read[:, 1], read[:, 2] + dy, read[:, 3] + dx], 1),
                     weight[weight != 0])

    def mean(self, value, height, width, stride=1, padding=0):
        weight = torch.full((len(value.bias), 1, height, width), 1 / (height * width)).double()
        return self.conv(value, weight, None, stride, padding, len(weight))

    def value(self, node, x, *others):
        """What the Node computes from the Values that it reads."""
        settings, count = node.settings, len(x.bias)
        if node.op == "conv":
            return self.conv(x, node.weight, node.bias, **settings)
        if node.op == "linear":
            return self.conv(x, node.weight[:, :, None, None], node.bias)
        if node.op == "norm":
            weight = x.weight * node.weight[x.place[:, 0]]
            return Value(x.height, x.width, x.bias * node.weight + node.bias, x.place, weight)
        if node.op == "relu":
            return self.compute(x, relu=True)
        if node.op == "add":
            return joined([x, *others], [0, 0], count)
        if node.op == "concat":
            counts = [len(value.bias) for value in (x, *others)]
            return joined([x, *others], [sum(counts[:i]) for i in range(len(counts))], sum(counts))
        if node.op == "pad":
            return joined([x], [settings["before"]], settings["before"] + count + settings["after"])
        if node.op == "skip":
            return self.mean(x, 1, 1, settings["step"])
        if node.op == "avg_pool" and not settings["size"]:   # columns, then rows: fewer taps than all at once
            return self.mean(self.mean(x, x.height, 1), 1, x.width)
        if node.op == "avg_pool":
            return self.mean(x, settings["size"], settings["size"], settings["stride"], settings["padding"])
        x = self.plain(x)
        if node.op == "max_pool":
            size, stride, padding = (settings[key] for key in ("size", "stride", "padding"))
            height, width = ((side + 2 * padding - size) // stride + 1 for side in (x.height, x.width))
            return self.call("max_pool", x, count, height, width, size, stride, padding)
        if node.op == "gather":
            return plain(x.height, x.width, x.place[node.weight])
        pixels = torch.cartesian_prod(*(torch.arange(n) for n in (1, 1, x.height, x.width)))         # flatten
        return plain(1, 1, (x.place[:, None] + pixels).flatten(0, 1))


def allocate(program):
    """Sets where in the arena all Planes start, and returns its size. Planes that nothing reads any more are reused by
    others of the same layout: their borders are zero."""
    def key(planes):
        return planes.count, planes.height, planes.width, planes.layout()

    free, size = {}, ROOM
    last = {planes: i for i, (_, sources, _) in enumerate(program.steps) for planes in sources}
    for i, (out, sources) in enumerate([(program.images, ()), *(step[:2] for step in program.steps)], -1):
        spare = free.get(key(out))
        out.start = spare.pop() if spare else size
        size = max(size, out.start + out.count * out.layout()[2])
        for planes in sources:
            if last[planes] == i:
                free.setdefault(key(planes), []).append(planes.start)
    return size + ROOM


def source(model):
    """The C file as text."""
    shape, classes = models.input_shape(model.arch, model.cfg), model.cfg["num_classes"]
    nodes = operations(spread(model, lambda layer: False).cpu().eval())
    reads = Counter(name for node in nodes for name in node.inputs)
    program = Program(shape)
    values = {"images": program.value_of_images}
    for node in nodes:
        value = program.value(node, *(values[name] for name in node.inputs))
        values[node.name] = program.plain(value) if reads[node.name] > 1 else value
    logits = program.plain(value).place[:, 1]
    arena = allocate(program)
    made = [code(i) for i, (_, _, code) in enumerate(program.steps)]
    pitch, lead, plane = program.images.layout()
    channels, height, width = shape
    lines = [f"for (int i = 0; i < {channels * height}; i++)",
             f"    memcpy(arena + {program.images.start + lead} + i / {height} * {plane} + i % {height} * {pitch}, "
             f"images + i * {width}, sizeof(float) * {width});", *(line for line, *_ in made),
             f"for (int i = 0; i < {classes}; i++) out[i] = arena[logit[i]];"]
    tables = [*(line for _, *more in made for line in more), table("int", "logit", program.address(logits).tolist())]
    head = (f"/* {model.arch}: {math.prod(shape)} floats of an image -> {classes} logits */\n#define ARENA {arena}\n"
            f"#define IMAGE {math.prod(shape)}\n#define CLASSES {classes}")
    text = TEMPLATE.read_text()
    for mark, part in (("HEAD", head), ("TABLES", "\n".join(tables)), ("LAYERS", "\n        ".join(lines))):
        text = text.replace(f"/* {mark} */", part)
    return text


def export(model, path):
    """Writes the C file and says how large it is."""
    text = source(model)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror})") from error
    print(f"wrote {path}, {len(text):,} bytes; cc -O3 -march=native -o model {path} -lm")
