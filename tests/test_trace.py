"""Any network: its records are found by one run of it, and pruning by them is exact or refused."""
import copy
import inspect
import re

import pytest
import torch
import torch.nn.functional as F
from by_hand import like_trained
from test_narrow import NETS
from torch import nn

from common import UserError
from common.models import build, input_shape
from common.models.narrow import compare, narrow, prove, silence
from common.models.own import Own
from common.models.trace import trace


def own(net, size=8, seed=0):
    torch.manual_seed(seed)
    return like_trained(Own(net, "FILE.py:Net", {"num_classes": 10, "input": [3, size, size]})).double().eval()


def half(model, seed=0, shift=0):
    """{first layer: keep} of all records, about half of the units of each; shift: of the choice, by so many units."""
    generator, keep = torch.Generator().manual_seed(seed), {}
    for record in model.channels():
        first = record.producers[0][0]
        units = len(record.by_unit(first, torch.ones(len(model.get_submodule(first).weight))))
        alive = torch.rand(units, generator=generator) < 0.5
        alive[0], alive[1] = True, False
        keep[first] = record.over_channels(alive.roll(shift))
    return keep


def assert_exact(model, **options):
    """Half of everything that can be removed is; returns the narrow network."""
    keep = half(model, **options)
    masked = copy.deepcopy(model)
    silence(masked, keep)
    assert compare(model, masked)[0] > 1e-6                  # the channels did count
    small = narrow(masked, keep)
    difference, why = compare(masked, small)
    assert difference < 1e-12, why
    return small


# The families

def form(record):
    """What a record says, in one way: a batch norm that all consumers share may stand beside them or the producer; a
    stream that is only read looks like any channels."""
    def place(part):
        return (part.start or 0, part.stop or 0) if part.start else 0

    consumers = {(c.layer, c.repeat, place(c.part)) for c in record.consumers}
    norms = {norm for _, norm in record.producers} | {c.norm for c in record.consumers} - {""}
    alone = len(record.producers) == 1 and not record.joined
    return {layer for layer, _ in record.producers}, norms - {""}, consumers, record.group_size, alone or record.stream


@pytest.mark.parametrize("name", NETS)
def test_the_records_of_the_families_are_found(name):
    arch, cfg = NETS[name]
    model = build(arch, **cfg)
    found, stays = trace(model, torch.zeros(1, *input_shape(arch, model.cfg)))
    expected = [record for record in model.channels() if record.producers]
    assert len(found) == len(expected) > 0
    for record in expected:
        assert form(record) in [form(other) for other in found]
    modules = dict(model.named_modules())
    for record in expected:                                  # and narrow cuts the same tensors at the same places
        first = record.producers[0][0]
        twin = next(other for other in found if any(layer == first for layer, _ in other.producers))
        tensors = record.tensors(modules)
        for key, units in tensors.items():
            if key[0] in model.state_dict():
                assert torch.equal(twin.index[key], units), key
        assert {key for key in twin.index if key[0] in model.state_dict()} >= {
            key for key in tensors if key[0] in model.state_dict()}
    assert all("output" in why for why in stays.values()) or "pad" in name or "slice" in name


# A network of one's own

class Everything(nn.Module):
    """Squeeze-excite, concatenation, chunk, depthwise and grouped convolutions, PReLU, a scale, a branch on a shape."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.PReLU(16))
        self.a = nn.Conv2d(16, 24, 1)
        self.b = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.Hardswish())
        self.squeeze, self.excite = nn.Linear(40, 10), nn.Linear(10, 40)
        self.scale = nn.Parameter(torch.rand(1, 40, 1, 1))
        self.wide = nn.Conv2d(40, 20, 3, padding=1, bias=False)
        self.grouped = nn.Conv2d(20, 40, 3, padding=1, groups=4)
        self.point = nn.Conv2d(40, 32, 1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.fc1, self.fc2 = nn.Linear(32 * 16, 64), nn.Linear(64, num_classes)

    def forward(self, x):
        x = self.stem(x)
        if x.shape[2] > 1:
            x = torch.cat([F.leaky_relu(self.a(x)), self.b(x)], 1)
        s = torch.sigmoid(self.excite(torch.sigmoid(self.squeeze(x.mean((2, 3))))))      # f(0) is not 0
        x = x * s[:, :, None, None] * self.scale + x
        x = F.relu(self.wide(x))
        left, right = torch.chunk(torch.sigmoid(self.grouped(x)), 2, 1)
        x = self.point(torch.cat([left, right], 1))
        x = F.adaptive_avg_pool2d(torch.tanh(self.norm(x)), 4)
        return self.fc2(F.gelu(self.fc1(x.view(x.size(0), -1))))


EVERYTHING = ("import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n\n"           # as a file
              f"{inspect.getsource(Everything)}")


@pytest.mark.parametrize("seed", range(3))
def test_a_network_of_ones_own(seed):
    model = own(Everything(), seed=seed)
    records, stays = model.records()
    assert stays == {"fc2": "the output (network)"}
    makers = {layer for record in records for layer, _ in record.producers}
    assert makers == {"stem.0", "a", "b.0", "squeeze", "wide", "grouped", "point", "fc1"}        # excite is a gate
    small = assert_exact(model, seed=seed)
    assert small.wrapped.excite.out_features == small.wrapped.a.out_channels + small.wrapped.b[0].out_channels < 40
    assert small.wrapped.b[0].groups == small.wrapped.stem[0].out_channels
    assert set(small.state_dict()) == set(model.wrapped.state_dict()) == set(model.state_dict())
    keep = half(small, seed=9)                               # and once more, from what is left
    silence(small, keep)
    assert compare(small, narrow(small, keep))[0] < 1e-12


def test_another_choice_than_that_masked_changes_the_logits():
    """So that the comparison can fail."""
    model = own(Everything())
    masked = copy.deepcopy(model)
    silence(masked, half(model))
    assert compare(masked, narrow(masked, half(model)))[0] < 1e-12
    wrong = narrow(masked, half(model, shift=1))
    assert compare(masked, wrong)[0] > 1e-3
    with pytest.raises(UserError, match="logits differ by"):
        prove(masked, wrong)


# What it does not know stays, by name. Each network has a hole between its layers a and b.

class Holed(nn.Module):
    def __init__(self, between, width=12, **modules):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 8, 1), nn.Linear(8, 10)
        self.between = [between]
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        x = self.b(self.between[0](self, F.relu(self.a(x))))
        return self.fc(x.mean((2, 3)))


def assigned(net, x):
    y = torch.zeros_like(x)
    y[...] = x
    return y


def first_assigned(net, x):
    x = x.clone()
    x[:, 0] = 0
    return x


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


@torch.jit.script
def scripted(x):
    return x * torch.sigmoid(x) + x.mean()


@torch.jit.script
def scripted_mean(x):
    return x.mean(1, True)


def split_at_six(net, x):
    a, b = x.split([6, x.shape[1] - 6], 1)
    return torch.cat([b, a], 1)


def split_in_sixes(net, x):
    a, b = x.split(6, 1)
    return torch.cat([a * b, b], 1)


def in_threes(net, x):
    n, _, h, w = x.shape
    return x.view(n, -1, 3, h, w).cumsum(2).flatten(1, 2)


def in_three_parts(net, x):
    n, c, h, w = x.shape
    return x.view(n, 3, c // 3, h, w).transpose(1, 2).flatten(1, 2)


class Masking(nn.Module):
    def __init__(self, persistent):
        super().__init__()
        self.register_buffer("by", torch.rand(12), persistent=persistent)

    def forward(self, x):
        return x * self.by.view(1, -1, 1, 1)


def plain(net, x):
    return x * net.plain.to(x)


HOLES = {                                                    # between a and b, other modules, why a stays if it does
    "setitem": (assigned, {}, "setitem"),
    "setitem-zero": (first_assigned, {}, "setitem"),
    "T": (lambda net, x: x + x[0, :, 0].T.mean(), {}, "read by"),
    "data": (lambda net, x: x.data, {}, "read by get"),
    "scripted": (lambda net, x: scripted(x), {}, "cannot be followed|read by"),
    "scripted-beside": (lambda net, x: x + scripted_mean(x), {}, "cannot be followed|read by sum.default"),
    "scripted-numbers": (lambda net, x: scripted(x) if float(x.sum((0, 2, 3))[0]) < 1e9 else x, {}, "read by"),
    "split-stored": (split_at_six, {}, "fixed in the code"),
    "split-uneven": (lambda net, x: torch.cat(x.split([5, 7], 1)[::-1], 1), {}, "read by split"),
    "split-sixes": (split_in_sixes, {}, "fixed in the code"),
    "half-stored": (lambda net, x: torch.cat([x[:, 6:], x[:, :6]], 1), {}, "read by getitem"),
    "view-threes": (in_threes, {}, "read by|fixed in the code"),
    "view-stored": (lambda net, x: x.reshape(-1, 12, 8, 8), {}, "fixed in the code"),
    "layer-norm": (lambda net, x: F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],)).permute(0, 3, 1, 2), {},
                   "read by layer_norm"),
    "group-norm": (lambda net, x: net.norm(x), {"norm": nn.GroupNorm(3, 12)}, "read by group_norm"),
    "buffer": (lambda net, x: net.by(x), {"by": Masking(False)}, "not in the state_dict"),
    "plain-tensor": (plain, {"plain": torch.rand(12, 1, 1)}, "read by mul"),
    "flipped-meets": (lambda net, x: x * x.mT, {}, "read by"),
    "weight-outside": (lambda net, x: x * net.a.weight.mean(), {}, "outside of its layer"),
    "roll": (lambda net, x: x.roll(1, 1), {}, "read by roll"),
    "matmul": (lambda net, x: (x.flatten(2).mT @ x.flatten(2)).mean() + x, {}, "read by"),
    "softmax": (lambda net, x: x.softmax(1), {}, "read by softmax"),
    "mean": (lambda net, x: x - x.mean(1, True), {}, "read by mean"),
    "sum": (lambda net, x: x + x.sum(1, True), {}, "read by sum"),
    "transposed": (lambda net, x: net.up(x), {"up": nn.ConvTranspose2d(12, 12, 1)}, "read by conv_transpose2d"),
    "list": (lambda net, x: x.repeat(1, 2, 1, 1)[:, :12], {}, "read by getitem"),
    "weight-norm": (lambda net, x: net.c(x), {"c": nn.utils.parametrizations.weight_norm(nn.Conv2d(12, 12, 1))},
                    "read by conv2d"),
    "shared-name": (lambda net, x: net.c(x), {}, "two names"),
    "depthwise-fixed": (lambda net, x: net.c(F.group_norm(x, 3)) + x, {"c": nn.Conv2d(12, 12, 3, padding=1, groups=12)},
                        "reads a fixed number of channels"),
    "std": (lambda net, x: x / x.std(False), {}, "read by std"),
    "expanded": (lambda net, x: x + net.p.expand(len(x), -1, -1, -1), {"p": nn.Parameter(torch.rand(1, 12, 8, 8))},
                 "read by add"),
    "joined": (lambda net, x: x * torch.cat([net.p, net.p], 1), {"p": nn.Parameter(torch.rand(1, 6, 8, 8))},
               "read by mul"),
    "standardized": (lambda net, x: F.conv2d(x, net.c.weight - net.c.weight.mean((1, 2, 3), True)),
                     {"c": nn.Conv2d(12, 12, 1)}, "read by conv2d"),
    "buffer-stored": (lambda net, x: net.by(x), {"by": Masking(True)}, ""),
    "called-twice": (lambda net, x: net.c(F.relu(net.c(x))), {"c": nn.Conv2d(12, 12, 1)}, ""),
    "function": (lambda net, x: Doubled.apply(x), {}, ""),
    "view-parts": (in_three_parts, {}, ""),
    "shuffle": (lambda net, x: x[:, :, ::2].flip(1), {}, ""),
    "weight-elsewhere": (lambda net, x: F.conv2d(x, net.c.weight) + net.c(x), {"c": nn.Conv2d(12, 12, 1)}, ""),
    "glu": (lambda net, x: torch.cat([x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid()] * 2, 1), {}, ""),
}


def test_one_channel_that_is_broadcast_over_others_is_kept():
    model = own(Holed(lambda net, x: x * net.c(x).sigmoid(), c=nn.Conv2d(12, 1, 1)))
    records, stays = model.records()
    assert "c" not in {layer for record in records for layer, _ in record.producers}
    assert stays["c"].startswith("one channel beside many")
    assert_exact(model)


@pytest.mark.parametrize("name", HOLES)
def test_a_hole_is_exact_or_refused(name):
    between, modules, why = HOLES[name]
    net = Holed(between, **copy.deepcopy(modules))
    if name == "shared-name":
        net.c = nn.Conv2d(12, 12, 1)
        net.other = nn.Conv2d(12, 12, 1)
        net.other.weight = net.c.weight
        net.a = nn.Sequential(net.a, net.c)
    model = own(net)
    records, stays = model.records()
    makers = {layer for record in records for layer, _ in record.producers}
    if why:
        assert "a" not in makers
        assert re.search(why, " ".join(stays.values())), stays
    else:
        assert "a" in makers, stays
    assert_exact(model)


class Scaled(nn.Module):
    """Divides by the number of its channels: nothing in the run of it tells."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 1), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = F.relu(self.a(x))
        return self.fc(F.relu(self.c(F.relu(self.b(x) / x.shape[1]))).mean((2, 3)))


def test_the_proof_names_what_the_labels_cannot_see():
    model = own(Scaled())
    assert len(model.channels()) == 3
    masked, keep = copy.deepcopy(model), half(model)
    silence(masked, keep)
    with pytest.raises(UserError, match="logits differ.*Channels of a cannot be removed"):
        prove(masked, narrow(masked, keep))
    del keep["a"]
    masked = copy.deepcopy(model)
    silence(masked, keep)
    assert prove(masked, narrow(masked, keep)) < 1e-12
