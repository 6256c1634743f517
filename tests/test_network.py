"""Networks that are none of ours: named by a spec, built, saved and loaded without code in the file."""
import copy

import pytest
import torch
from by_hand import save
from reliability import same
from test_trace import EVERYTHING, half
from torch import nn

from common import UserError, compute_flops, models
from common.compact import compact
from common.files import checkpoint
from common.models import own
from common.models.narrow import narrow, prove, silence

SOURCE = '''
import pathlib
import torch
from torch import nn

pathlib.Path(__file__).with_name("ran").write_text("")


class Small(nn.Module):
    """channels, arch, cfg and net are its own affair."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.channels, self.arch, self.cfg, self.net = 16, None, {}, nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(16, num_classes)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.net(x))).mean((2, 3))), x


def ten():
    return Small(10)


def called(num_classes):
    net = Small(num_classes)
    net.channels, net.records = 16, nn.Identity()
    return net


def broken(num_classes):
    raise ValueError("no such thing")


three = 3
'''


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "NAMED", {})
    path = tmp_path / "nets.py"
    path.write_text(SOURCE)
    return path


def pruned(model):
    """(the masked network, the narrow one)."""
    masked, keep = copy.deepcopy(model), half(model)
    silence(masked, keep)
    small = narrow(masked, keep)
    assert prove(masked, small) < 1e-6
    return masked, small


def test_a_torchvision_network_is_saved_narrow_and_loaded(tmp_path):
    model = models.build("torchvision:squeezenet1_1", num_classes=7, input=[3, 40, 40])
    assert models.input_shape(model.arch, model.cfg) == (3, 40, 40)
    _, small = pruned(model)
    dense = {"params": 1, "macs": 1, "cfg": model.cfg}
    path = save(tmp_path / "a.pth.tar", small, dense=dense)
    ckpt = checkpoint.load(path)
    again = checkpoint.to_model(ckpt)
    assert (ckpt["arch"], ckpt["cfg"]) == ("torchvision:squeezenet1_1", small.cfg)
    images = torch.randn(2, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(again(images), small.eval()(images))
    assert models.build(ckpt["arch"], **ckpt["dense"]["cfg"]).features[0].out_channels == 64
    _, smaller = pruned(again)                               # and once more
    again = models.build(smaller.arch, **smaller.cfg)
    again.load_state_dict(smaller.state_dict())
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in small.parameters()) / 2


def test_code_runs_only_where_it_is_named(file, tmp_path):
    spec = f"{file}:Small"
    with pytest.raises(UserError, match="name it with --network"):
        models.build(spec)
    assert not (tmp_path / "ran").exists()
    own.name(spec)
    assert (tmp_path / "ran").exists()
    model = models.build(spec, num_classes=4)
    assert model.wrapped.channels == 16 and model.wrapped.arch is None and model.cfg["num_classes"] == 4
    assert list(model.state_dict()) == list(model.wrapped.state_dict())
    masked, small = pruned(model)
    assert isinstance(small.net, nn.Conv2d) and small.net.out_channels == len(small.norm.weight) < 16
    path = save(tmp_path / "a.pth.tar", small)
    own.NAMED.clear()
    (tmp_path / "ran").unlink()
    with pytest.raises(UserError, match=r"cannot be built.*name it with --network .*nets.py:Small"):
        checkpoint.load(path)
    assert not (tmp_path / "ran").exists()


def test_the_accuracy_that_a_file_records_is_read_with_an_own_network_too(file, tmp_path):
    spec = own.name(f"{file}:Small")
    torch.save({"state_dict": models.build(spec).state_dict(), "acc": 0.917}, tmp_path / "trained.pth")
    assert checkpoint.load(tmp_path / "trained.pth", arch=spec)["prec1"] == pytest.approx(91.7)


def test_a_copy_is_a_network_of_its_own(file):
    own.name(f"{file}:Small")
    model = models.build(f"{file}:Small")
    other = copy.deepcopy(model).train()
    with torch.no_grad():
        other.head.bias.fill_(9)
        assert other(torch.zeros(2, 3, 32, 32)).mean() > 8 > model.eval()(torch.zeros(2, 3, 32, 32)).mean()
    assert other.head.bias is other.wrapped.head.bias and other.wrapped.training and not model.wrapped.training
    assert other.double().wrapped.norm.weight.dtype == torch.float64


@pytest.mark.parametrize("spec, message", [
    ("nets.py", "give torchvision:NAME, timm:NAME or FILE.py:NAME"), ("no.py:Small", "there is no file no.py"),
    ("{file}:Large", "has no class or function Large"), ("{file}:three", "has no class or function three"),
    ("{file}:broken", "cannot be built: ValueError: no such thing"), ("{file}:ten", r"gives \(2, 10\) for two images"),
    ("{file}:called", "module or tensor called records"), ("{file}:nn.Linear", "has no class or function"),
    ("torchvision:nothing", "has no classifier nothing"), ("torchvision:deeplabv3_resnet50", "has no classifier")])
def test_a_network_that_is_none(file, spec, message):
    with pytest.raises(UserError, match=message):
        models.build(own.name(spec.format(file=file)), num_classes=5, input=[3, 32, 32])


@pytest.mark.parametrize("shapes, message", [
    ({"net.weight": [17, 3, 3, 3]}, "no larger layers"), ({"net.weight": [-1, 3, 3, 3]}, "no larger layers"),
    ({"net.weight": [8, 3]}, "no larger layers"), ({"other": [1]}, "has no other"), ({"net.weight": 8}, "no larger"),
    ({"net.weight": [8, 3, 3, 3]}, "cannot read images of 3 x 32 x 32")])
def test_shapes_that_do_not_fit(file, shapes, message):
    with pytest.raises(UserError, match=message):
        models.build(own.name(f"{file}:Small"), shapes=shapes, input=[3, 32, 32])


# A plain state_dict of one's own

def test_a_plain_state_dict_is_fitted(file, tmp_path):
    """As many classes, and as narrow, as its tensors are; what does not fit is named."""
    spec = own.name(f"{file}:Small")
    model = models.build(spec, num_classes=7, input=[3, 32, 32])
    small = pruned(model)[1]
    for whole, prefix in ((model, ""), (small, "module.")):
        torch.save({f"{prefix}{name}": t for name, t in whole.state_dict().items()}, tmp_path / "my.pth")
        again = checkpoint.to_model(checkpoint.load(tmp_path / "my.pth", arch=spec)).eval()
        images = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(again(images), whole.eval()(images))
        assert again.cfg["num_classes"] == 7 and again.net.out_channels == whole.net.out_channels
    state = model.state_dict()
    for change, message in (({"more": torch.zeros(1)}, "more is in .*my.pth and not in .*nets.py:Small"),
                            ({"net.weight": None}, "net.weight is in .*nets.py:Small and not in .*my.pth"),
                            ({"net.weight": torch.zeros(17, 3, 3, 3)}, "no larger layers"),
                            ({"net.weight": torch.zeros(8, 27)}, "net.weight is .8, 27., the .*nets.py:Small has"),
                            ({"head.weight": torch.zeros(())}, "cannot read images"),
                            ({"net.weight": torch.zeros(9, 3, 3, 3)}, "cannot read images")):
        torch.save({name: t for name, t in (state | change).items() if t is not None}, tmp_path / "my.pth")
        with pytest.raises(UserError, match=message):
            checkpoint.load(tmp_path / "my.pth", arch=spec)


class Net(nn.Module):
    """Three layers; `between` computes something after the first."""

    def __init__(self, between, **modules):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 100)
        self.between = [between]
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        x = self.between[0](self, torch.relu(self.a(x)))
        return self.fc(torch.relu(self.b(x)).mean((2, 3)))


@pytest.fixture
def build(monkeypatch):
    def build(between=lambda net, x: x, **modules):
        torch.manual_seed(0)
        monkeypatch.setitem(own.NAMED, "nets.py:Net", lambda: Net(between, **modules))
        return models.build("nets.py:Net", num_classes=100, input=[3, 8, 8]).eval()
    return build


def test_what_is_cut_in_two_steps_is_loaded(build, tmp_path):
    model, some = build(), torch.arange(8) < 5
    for keep in ({"a": some}, {"b": some}):                  # two axes of b's weight
        model = narrow(model, keep)
    again = checkpoint.to_model(checkpoint.load(save(tmp_path / "a.pth.tar", model)))
    assert again.b.weight.shape == (5, 5, 1, 1) and same(again.state_dict(), model.state_dict())


def test_a_state_dict_of_a_class_that_takes_no_number_of_classes(build, tmp_path):
    model = build()
    torch.save(model.state_dict(), tmp_path / "my.pth")
    assert checkpoint.load(tmp_path / "my.pth", arch="nets.py:Net", image_size=8)["cfg"]["num_classes"] == 100


def test_its_own_train_is_called(build):
    model = build()
    model.wrapped.train = lambda mode: model.a.eval() and model.b.train(mode)
    assert (model.train().training, model.a.training, model.b.training) == (True, False, True)


def attended(net, x):
    tokens = x.flatten(2).mT
    return net.attention(tokens, tokens, tokens)[0].mT.view_as(x)


def test_attention_is_counted_on_every_device(build):
    model = build(attended, attention=nn.MultiheadAttention(8, 2, batch_first=True))
    a, b, fc, inside = 64 * 27 * 8, 64 * 8 * 8, 800, 64 * 8 * 24 + 2 * 64 * 64 * 8 + 64 * 8 * 8
    assert compute_flops.count(model).total.macs == a + b + fc + inside
    assert compute_flops.dense_total({"arch": model.arch, "cfg": model.cfg, "dense": None}, model).macs == (
        a + b + fc + inside)
    assert torch.backends.mha.get_fastpath_enabled()


def test_layers_that_run_on_patches_are_counted_on_all_and_shared_parameters_once(build):
    shared = nn.Conv2d(8, 8, 1)
    model = build(lambda net, x: net.c(net.d(x.unflatten(3, (2, 4)).movedim(3, 1).flatten(0, 1)))
                  .unflatten(0, (-1, 2)).movedim(1, 3).flatten(3), c=shared, d=nn.Conv2d(8, 8, 1))
    model.d.weight = shared.weight
    count = compute_flops.count(model)
    assert [row.macs for row in count.rows if row.name in "cd"] == [64 * 64] * 2 and count.elsewhere == 0
    assert count.total.params == sum(p.numel() for p in model.parameters())


def test_weights_of_layers_that_only_training_runs_are_counted(build):
    model = build(lambda net, x: net.c(x) if net.training else x, c=nn.Conv2d(8, 8, 1))
    assert compute_flops.count(model).total.weights == sum(p.numel() for p in model.parameters() if p.dim() > 1)


def gated(net, x):
    return x * torch.sigmoid(net.gate(x.mean((2, 3))))[:, :, None, None]


@pytest.mark.parametrize("between, modules", [
    (gated, {"gate": nn.Linear(8, 8)}), (lambda net, x: net.norm(x), {"norm": nn.BatchNorm2d(8, affine=False)})])
def test_compaction_takes_no_channel_for_a_constant_that_is_none(between, modules, build):
    model = build(between, **modules)
    with torch.no_grad():
        model.a.weight[1], model.a.bias[1], model.b.weight[:, 2] = 0, 0.5, 0
        for gate in modules.values() if between is gated else ():
            gate.weight[:, 2] = 0
    small = compact(model)
    assert prove(model, small) < 1e-6 and small.a.out_channels == 7            # without the one that nothing reads


def test_code_that_cannot_compute_in_float64_is_named(build):
    model = build(lambda net, x: x.float())
    model.channels()
    with pytest.raises(UserError, match="the network's code cannot compute in float64 .*float"):
        narrow(model, {"a": torch.arange(8) < 5})


# Scripts; the commands of docs/own-network.md, with all five methods, run in test_readmes.py

def test_the_score_of_a_function_that_is_not_counted_is_refused(run, tmp_path):
    (tmp_path / "nets.py").write_text(EVERYTHING)
    own.NAMED.clear()
    model = models.build(own.name(f"{tmp_path}/nets.py:Everything"), num_classes=10, input=[3, 32, 32])
    save(tmp_path / "own.pth.tar", model)
    done = run("softmask/eval.py", "own.pth.tar", "--network", "nets.py:Everything", "--subset", 40, "--device", "cpu",
               cwd=tmp_path)
    assert done.returncode == 2 and "stem.2 runs _prelu_kernel, which common/scores.py cannot count" in done.stderr


class Counted(nn.Module):
    """Convolutions of one to three dimensions, transposed and grouped ones, and a product outside of layers."""

    def __init__(self):
        super().__init__()
        self.a, self.up = nn.Conv2d(3, 6, 3, padding=1), nn.ConvTranspose2d(6, 4, 2, 2, groups=2)
        self.line, self.volume = nn.Conv1d(4, 6, 3), nn.Conv3d(1, 2, 3)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        x = self.up(self.a(x))
        lines = self.line(x.mean(2))
        pairs = lines @ lines.transpose(1, 2)
        return self.head(pairs + self.volume(x[:, None]).mean((1, 2, 3, 4), True)[:, :, 0, 0]).mean(1)


def test_counts_equal_those_of_torch(capsys):
    from torch.utils.flop_counter import FlopCounterMode
    model = own.Own(Counted(), "FILE.py:Counted", {"num_classes": 10, "input": [3, 8, 8]}).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 8, 8))
    counted = compute_flops.count(model)
    assert 2 * counted.total.macs == counter.get_total_flops()
    assert counted.elsewhere == 6 * 6 * 14
    assert "504 of the MACs are outside of" in compute_flops.table(counted)
    assert {row.name: row.macs for row in counted.rows}["up"] == 8 * 8 * 6 * 2 * 4
