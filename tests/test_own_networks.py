"""Files of well-known repositories load without --arch and --depth, and give the same logits as the networks there.

The networks, but torchvision's, are written out here under their own names, as briefly as they can be.
"""
import functools
import importlib
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from by_hand import FILE, METHODS, call, like_trained, save
from torch import nn

from common import UserError, compute_flops, data, models
from common.compact import compact
from common.files import checkpoint
from common.models import any_network
from common.models.narrow import narrow

TINY = ["--dataset", "shapes10", "--subset", "20", "--device", "cpu"]


def conv(i, o, k=3, stride=1, bias=False):
    return nn.Conv2d(i, o, k, stride, k // 2, bias=bias)


class Net(nn.Module):
    """Modules by their names, which the forward pass of a subclass uses."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


class Basic(Net):
    """conv1, bn1, conv2, bn2 and a shortcut under the name `shortcut`."""

    def __init__(self, i, o, stride, name="shortcut", slices=False):
        super().__init__(conv1=conv(i, o, 3, stride), bn1=nn.BatchNorm2d(o), conv2=conv(o, o), bn2=nn.BatchNorm2d(o))
        self.name, self.slices, self.new = name, slices and i != o, o - i
        project = nn.Sequential(conv(i, o, 1, stride), nn.BatchNorm2d(o))
        if name == "shortcut" or i != o:                     # torchvision has no `downsample` where none is needed
            setattr(self, name, project if i != o and not slices else nn.Sequential())

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.slices:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new // 2, self.new // 2))
        return F.relu(out + getattr(self, self.name, nn.Identity())(x))


class PreAct(Net):
    def __init__(self, i, o, stride):
        super().__init__(bn1=nn.BatchNorm2d(i), conv1=conv(i, o, 3, stride), bn2=nn.BatchNorm2d(o), conv2=conv(o, o))
        if i != o:
            self.shortcut = nn.Sequential(conv(i, o, 1, stride))

    def forward(self, x):
        active = F.relu(self.bn1(x))
        short = self.shortcut(active) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + short


class ResNet(Net):
    """A stem, stages and a linear layer; head: its name."""

    def __init__(self, block, counts, width, head, classes, normed=True):
        layers, i = {"conv1": conv(3, width)} | ({"bn1": nn.BatchNorm2d(width)} if normed else {}), width
        for stage, count in enumerate(counts):
            o, blocks = width * 2 ** stage, []
            for n in range(count):
                blocks.append(block(i, o, 2 if stage and not n else 1))
                i = o
            layers[f"layer{stage + 1}"] = nn.Sequential(*blocks)
        super().__init__(**layers, **{head: nn.Linear(i, classes)})
        self.stages, self.head, self.normed = len(counts), head, normed

    def forward(self, x):
        x = self.conv1(x)
        x = F.relu(self.bn1(x)) if self.normed else x
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return getattr(self, self.head)(x.mean((2, 3)))


class Weiaicunzai(ResNet):
    """kuangliu's ResNet18 under other names: everything is in Sequentials."""

    def __init__(self, classes):
        super().__init__(Basic, (2, 2, 2, 2), 64, "fc", classes)

    def state_dict(self):
        state = {}
        for name, tensor in super().state_dict().items():
            name = re.sub(r"^bn1\.", "conv1.1.", re.sub(r"^conv1\.", "conv1.0.", name))
            name = re.sub(r"^layer(\d)", lambda m: f"conv{int(m[1]) + 1}_x", name)
            state[re.sub(r"\.(conv|bn)(\d)\.", lambda m: f".residual_function.{3 * int(m[2]) - 3 + (m[1] == 'bn')}.",
                         name)] = tensor
        return state


VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


class VGG(Net):
    def __init__(self, classifier):
        layers, i = [], 3
        for o in VGG16:
            layers += [nn.MaxPool2d(2)] if o == "M" else [conv(i, o, bias=True), nn.BatchNorm2d(o), nn.ReLU()]
            i = i if o == "M" else o
        super().__init__(features=nn.Sequential(*layers), classifier=classifier)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def hidden(inputs, width, classes):
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(), nn.Linear(width, width), nn.ReLU(),
                         nn.Dropout(), nn.Linear(width, classes))


class Inverted(Net):
    def __init__(self, i, o, expansion, stride):
        mid = expansion * i
        super().__init__(conv1=conv(i, mid, 1), bn1=nn.BatchNorm2d(mid), conv2=nn.Conv2d(
            mid, mid, 3, stride, 1, groups=mid, bias=False), bn2=nn.BatchNorm2d(mid), conv3=conv(mid, o, 1),
            bn3=nn.BatchNorm2d(o), shortcut=nn.Sequential())
        self.stride = stride
        if stride == 1 and i != o:
            self.shortcut = nn.Sequential(conv(i, o, 1), nn.BatchNorm2d(o))

    def forward(self, x):
        out = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        out = self.bn3(self.conv3(out))
        return out + self.shortcut(x) if self.stride == 1 else out


class MobileNetV2(Net):
    def __init__(self, classes):
        layers, i = [], 32
        for expansion, o, count, stride in ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                                            (6, 160, 3, 2), (6, 320, 1, 1)):
            for n in range(count):
                layers.append(Inverted(i, o, expansion, 1 if n else stride))
                i = o
        super().__init__(conv1=conv(3, 32), bn1=nn.BatchNorm2d(32), layers=nn.Sequential(*layers),
                         conv2=conv(320, 1280, 1), bn2=nn.BatchNorm2d(1280), linear=nn.Linear(1280, classes))

    def forward(self, x):
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        return self.linear(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


def Down(i, o, stride):
    return Basic(i, o, stride, "downsample")


def Slicing(i, o, stride):
    return Basic(i, o, stride, slices=True)


def torchvisions(name, classes=10):
    torchvision = pytest.importorskip("torchvision")
    net = getattr(torchvision.models, name)(num_classes=classes)
    if name.startswith("vgg"):                               # 4096 channels would be half a gigabyte
        net.classifier = hidden(512 * 49, 64, classes)
    return net


REFERENCES = {
    "kuangliu ResNet18": lambda: ResNet(Basic, (2, 2, 2, 2), 64, "linear", 10),
    "kuangliu PreActResNet18": lambda: ResNet(PreAct, (2, 2, 2, 2), 64, "linear", 10, normed=False),
    "kuangliu VGG16": lambda: VGG(nn.Linear(512, 10)),
    "kuangliu MobileNetV2": lambda: MobileNetV2(10),
    "chenyaofo resnet20": lambda: ResNet(Down, (3, 3, 3), 16, "fc", 100),
    "chenyaofo resnet56": lambda: ResNet(Down, (9, 9, 9), 16, "fc", 100),
    "chenyaofo vgg16_bn": lambda: VGG(hidden(512, 512, 100)),
    "weiaicunzai vgg16_bn": lambda: VGG(hidden(512, 4096, 100)),
    "akamaster resnet20": lambda: ResNet(Slicing, (3, 3, 3), 16, "linear", 10),
    "weiaicunzai resnet18": lambda: Weiaicunzai(100),
    "torchvision resnet18": lambda: torchvisions("resnet18", 1000),
    **{f"torchvision {name}": functools.partial(torchvisions, name) for name in (
        "resnet34", "resnet50", "vgg11", "vgg13_bn", "vgg16", "vgg16_bn")},
}


@functools.cache
def random_network(kind):
    """(the network of that repository, what models.name calls it, the side of its images)."""
    torch.manual_seed(0)
    net, who, name = like_trained(REFERENCES[kind]()).eval(), *kind.lower().split()
    side = 32 if who != "torchvision" else 96 if "vgg" in name else 64
    return net, name.replace("preact", "pre").removesuffix("_bn"), side


@pytest.mark.parametrize("kind", [kind for kind in REFERENCES if kind != "weiaicunzai vgg16_bn"])
@torch.no_grad()
def test_the_file_alone_says_what_it_is_and_its_logits_are_the_same(kind, tmp_path):
    net, name, side = random_network(kind)
    torch.save({"net": net.state_dict(), "acc": 91.5, "epoch": 7}, tmp_path / "theirs.pth")
    ckpt = checkpoint.load(tmp_path / "theirs.pth", any_network)
    ours, x = checkpoint.to_model(ckpt), torch.randn(2, 3, side, side)
    assert models.name(ours.arch, ours.cfg) == name and (ckpt["epoch"], ckpt["best_prec1"]) == (7, 91.5)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in net.parameters())
    expected = net(x)
    assert expected.std() > 1e-3
    torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def network_of(method):
    return importlib.import_module(f"{method}.networks").network


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_the_network_of_the_file(method, tmp_path):
    network = network_of(method)
    for kind, arch in (("akamaster resnet20", "resnet20"), ("kuangliu VGG16", "vgg16"),
                       ("kuangliu ResNet18", "resnet18"), ("kuangliu MobileNetV2", "mobilenetv2")):
        torch.save(random_network(kind)[0].state_dict(), tmp_path / "theirs.pth")
        alone = checkpoint.load(tmp_path / "theirs.pth", network)
        said = None if method == "hoyer" and arch == "vgg16" else arch
        ckpt = checkpoint.load(tmp_path / "theirs.pth", network, said)
        assert {**ckpt["cfg"], "gamma": 0} == {**alone["cfg"], "gamma": 0}, kind
    with pytest.raises(UserError, match="theirs.pth holds a mobilenetv2 .*not --arch resnet18; leave them out"):
        checkpoint.load(tmp_path / "theirs.pth", network, "resnet18")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("arch", models.ARCHS)
def test_every_method_knows_every_network(method, arch):
    name, cfg = network_of(method)(arch)
    with torch.device("meta"):
        model = models.build(name, **cfg)
    assert models.name(name, cfg) == models.name(name, model.cfg)        # by which main.py names its folder
    assert model.arch == (arch if method != "slimming" or arch != "resnet" else "preresnet")
    for named in ("resnet18", "vgg13"):
        assert models.name(*network_of(method)(named)) == named


@pytest.mark.parametrize("kind, mean", [
    ("akamaster resnet20", 0.485), ("torchvision resnet18", 0.485), ("torchvision vgg16_bn", 0.485),
    ("weiaicunzai resnet18", 0.507075), ("weiaicunzai vgg16_bn", 0.507075), ("chenyaofo vgg16_bn", 0.507),
    ("chenyaofo resnet20", 0.507), ("bearpaw resnet20", 0.4914), ("kuangliu ResNet18", 0.4914)])
def test_images_are_normalized_as_in_that_repository(kind, mean, tmp_path):
    net, _, side = random_network(kind.replace("bearpaw", "chenyaofo"))
    state = net.state_dict()                                 # bearpaw's has the names of chenyaofo's, in a checkpoint
    torch.save({"state_dict": state, "epoch": 1} if "bearpaw" in kind else state, tmp_path / "theirs.pth")
    model = checkpoint.to_model(checkpoint.load(tmp_path / "theirs.pth", any_network))
    classes = model.cfg["num_classes"]
    y = torch.arange(2 * classes).numpy() % classes
    x = torch.randint(0, 256, (len(y), 4, 4, 3), dtype=torch.uint8).repeat(1, side // 4, side // 4, 1).numpy()
    np.savez(tmp_path / "cifar10.npz", x_train=x, y_train=y, x_test=x[:classes], y_test=y[:classes])
    assert data.for_network(model, "theirs.pth", "cifar10", tmp_path).mean[0] == model.images["mean"][0] == mean


@pytest.mark.parametrize("wrapped", [
    lambda s: s, lambda s: {"net": s}, lambda s: {"model": s}, lambda s: {"state_dict": s, "best_prec1": 90.0},
    lambda s: {"model_state_dict": s, "loss": 0.1}, lambda s: {f"module.{k}": v for k, v in s.items()},
    lambda s: {"model": {"state_dict": {f"_orig_mod.module.{k}": v for k, v in s.items()}}},
    lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}},
    lambda s: {"state_dict": {f"net.{k}": v for k, v in s.items()}, "epoch": "last", "acc": None},
    lambda s: {"model": s, "epoch": float("inf"), "best_acc": torch.zeros(3)},
    lambda s: {"model_state": s}, lambda s: {"weights": s}, lambda s: {"params": s}, lambda s: {"ema": {"shadow": s}},
    lambda s: {"optimizer": {"state": {0: {"step": torch.ones(1)}}}, "trainer": {"student": s}},
    lambda s: {"ema": {k: v + 1 for k, v in s.items()}, "model": s},
    lambda s: {"model": s, "criterion.weight": torch.ones(10)},
    lambda s: {**s, "epoch": 3, "metrics": {"acc": 0.9}},
    lambda s: {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in s.items()}},
    lambda s: {"state_dict": {**{f"model.{k}": v for k, v in s.items()}, "criterion.weight": torch.ones(10),
                              "train_acc.confmat": torch.ones(10, 10)}},
    lambda s: {f"backbone.{k}" if "linear" not in k else k: v for k, v in s.items()},
    lambda s: {f"network.module.{k}": v for k, v in s.items()}, lambda s: {f"module.0.{k}": v for k, v in s.items()},
    lambda s: {f"resnet.0._orig_mod.{k}": v for k, v in s.items()},
    lambda s: {k.replace("linear.", "linear.1."): v for k, v in s.items()}])
def test_wrappers_are_taken_off(wrapped, tmp_path):
    state = random_network("akamaster resnet20")[0].state_dict()
    torch.save(wrapped(state), tmp_path / "theirs.pth")
    ckpt = checkpoint.load(tmp_path / "theirs.pth", any_network)
    assert torch.equal(ckpt["state_dict"]["layer3.2.conv2.weight"], state["layer3.2.conv2.weight"])
    assert ckpt["cfg"]["shortcut"] == "slice" and "linear.weight" not in ckpt["state_dict"]


@pytest.mark.parametrize("kind, head", [("torchvision resnet18", "fc"), ("torchvision vgg16_bn", "classifier.6"),
                                        ("kuangliu VGG16", "classifier")])
def test_a_head_of_dropout_and_a_linear_layer_is_read(kind, head, tmp_path):
    state = random_network(kind)[0].state_dict()
    torch.save({k.replace(f"{head}.", f"{head}.1."): v for k, v in state.items()}, tmp_path / "theirs.pth")
    ckpt = checkpoint.load(tmp_path / "theirs.pth", any_network)
    assert torch.equal(ckpt["state_dict"][f"{head}.weight"], state[f"{head}.weight"])


@pytest.mark.parametrize("kind, head", [("torchvision resnet18", "fc"), ("akamaster resnet20", "linear"),
                                        ("kuangliu VGG16", "classifier")])
def test_of_another_head_that_is_the_difference(kind, head, tmp_path):
    state = random_network(kind)[0].state_dict()
    classes, inputs = state.pop(f"{head}.weight").shape
    state |= {f"{head}.0.weight": torch.ones(7, inputs), f"{head}.3.weight": torch.ones(classes, 7)}
    del state[f"{head}.bias"]
    torch.save(state, tmp_path / "theirs.pth")
    with pytest.raises(UserError, match=rf"but its head \({head}.0, {head}.3\) is not one linear layer\. There"):
        checkpoint.load(tmp_path / "theirs.pth", any_network)


@pytest.mark.parametrize("kind, words", [
    ("torchvision resnet18", "torchvision ResNet (resnet18): 7 x 7 stem of stride 2 and max pool"),
    ("kuangliu ResNet18", "kuangliu ResNet (resnet18): 3 x 3 stem of stride 1 without max pool")])
def test_how_a_file_is_read_is_said(kind, words, tmp_path, capsys):
    torch.save({"ema": {**random_network(kind)[0].state_dict(), "criterion.weight": torch.ones(3)}}, tmp_path / "t.pth")
    checkpoint.load(tmp_path / "t.pth", any_network)
    said = capsys.readouterr().out
    assert f"t.pth: read as {words}, ReLU, batch norm eps 1e-05; weights under 'ema'; without criterion.weight" in said


@pytest.mark.parametrize("record, shown", [({"best_prec1": 12.0}, "12.00"), ({"accuracy": "0.1"}, "10.00")])
def test_the_accuracy_that_a_file_records_is_shown_beside_ours(record, shown, tmp_path, capsys):
    torch.save({"state_dict": random_network("akamaster resnet20")[0].state_dict(), **record}, tmp_path / "t.th")
    call("slimming.eval", tmp_path / "t.th", *TINY)
    assert f"; the file's record: {shown} %" in (said := capsys.readouterr().out) and "note: that is" not in said


def test_mean_and_std_of_the_command_line_win(tmp_path, capsys):
    torch.save(random_network("akamaster resnet20")[0].state_dict(), tmp_path / "t.th")
    for flags in ([], ["--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25"], ["--mean", "0.5,0.5,0.5"]):
        call("slimming.eval", tmp_path / "t.th", *TINY, *flags)
    said = capsys.readouterr().out
    assert "normalized by mean 0.485 0.456 0.406 and std 0.229 0.224 0.225, as the network's file says" in said
    assert all(f"by mean 0.5 0.5 0.5 and std {std}" in said for std in ("0.25 0.25 0.25, as given", "0.229 0.224"))
    assert len(set(re.findall(r"loss \d\.\d+", said))) == 3
    call("slimming.main", "--pretrained", tmp_path / "t.th", *TINY, "--epochs", 1, "--save", tmp_path / "run", "--mean",
         "0.1,0.2,0.3")
    assert checkpoint.load(tmp_path / "run/checkpoint.pth.tar")["images"]["mean"] == [0.1, 0.2, 0.3]


def test_narrowed_files_load_by_their_shapes(tmp_path):
    """A bare state_dict of a network that was narrowed here."""
    torch.manual_seed(0)
    model = models.build("resnet_imagenet", preact=True)
    keep = {"layer2.0.bn2": torch.arange(128) % 3 > 0, "layer4.1.bn2": torch.arange(512) < 40}
    small = narrow(model, keep).eval()
    torch.save(small.state_dict(), tmp_path / "small.pth")
    again = checkpoint.to_model(checkpoint.load(tmp_path / "small.pth", any_network))
    assert again.cfg == small.cfg and again.cfg["widths"][2] == 85 and again.cfg["widths"][-1] == 40


def changed(state, **changes):
    return {k: v for k, v in {**state, **changes}.items() if v is not None}


@pytest.mark.parametrize("change, message", [
    (lambda s: changed(s, **{"layer2.0.conv2.weight": None}),
     r"nearest is akamaster ResNet \(resnet20\), but it has no layer2.0.conv2.weight\. "),
    (lambda s: changed(s, **{"layer1.1.conv1.weight": torch.zeros(16, 16, 5, 5), "layer3.0.bn1.bias": None}),
     r"but its layer1.1.conv1.weight is \(16, 16, 5, 5\), not \(16, 16, 3, 3\) and it has no layer3.0.bn1.bias"),
    (lambda s: changed(s, **{f"layer1.0.se.{i}.weight": torch.zeros(3) for i in range(4)}),
     r"nearest is akamaster.*it has layer1.0.se.0.weight too and it has layer1.0.se.1.weight too \(2 more\)"),
    (lambda s: {k.replace("layer", "stage"): v for k, v in s.items()}, "The nearest is .*There are: kuangliu ResNet"),
    (lambda s: {"encoder.weight": torch.zeros(3, 4), "encoder.bias": torch.zeros(3)}, "(?!.*nearest).*There"),
    (lambda s: {f"features.{i}.conv.{j}.weight": torch.zeros(8 * i + 8, 1, 3, 3) for i in range(9) for j in range(3)},
     "(?!.*nearest).*There"),
])
def test_what_fits_nowhere_is_told_with_the_nearest_network(change, message, tmp_path):
    torch.save(change(random_network("akamaster resnet20")[0].state_dict()), tmp_path / "odd.pth")
    with pytest.raises(UserError, match=f"odd.pth is none of the networks here.*{message}"):
        checkpoint.load(tmp_path / "odd.pth", any_network)
    with pytest.raises(UserError, match="There are: .*torchvision ResNet.*LeNet-5"):
        checkpoint.load(tmp_path / "odd.pth", any_network, "resnet20")


PRUNE = {"slimming": ["--percent", "0.3"], "hoyer": ["--sensitivity", "0.02"], "magnitude": ["--percent", "0.5"],
         "reweighted": ["--percentile", "0.5"]}


def steps(method):
    """[(script, its flags, what it writes)] to prune a network and fine-tune it; FILE: what was written last."""
    prune = ("prune", ["--model", "FILE", *PRUNE.get(method, [])], "pruned.pth.tar")
    if method == "softmask":
        prune = ("main", ["--pretrained", "FILE", "--target", "0.5", "--epochs", "1", "--swa-start", "2"],
                 "pruned_model.pth.tar")
    warmup = ["--warmup-epochs", "0"] * (method == "reweighted")
    return [prune, ("finetune", [FILE.get(method, "--model"), "FILE", "--epochs", "1", *warmup], "finetuned.pth.tar"),
            ("eval", ["FILE"], None)]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_prunes_fine_tunes_and_evaluates_it(method, tmp_path, capsys):
    """Beside its accuracy stands the one that the file records, with a note where that is far off."""
    torch.save({"state_dict": random_network("akamaster resnet20")[0].state_dict(), "acc": 0.99, "best_acc": 0.5},
               tmp_path / "theirs.th")
    call(f"{method}.eval", tmp_path / "theirs.th", *TINY)
    said = capsys.readouterr().out
    assert "; the file's record: 99.00 %" in said and "note: that is" in said and "batch norm eps" in said
    file = tmp_path / "theirs.th"
    for script, flags, wrote in steps(method):
        folder = ["--save", tmp_path / script] if wrote else []
        call(f"{method}.{script}", *[file if flag == "FILE" else flag for flag in flags], *TINY, *folder)
        said = capsys.readouterr().out
        if script == "prune":
            assert "as it is: top-1 " in said and "; the file's record: 99.00 %" in said
        file = tmp_path / script / wrote if wrote else file
    ckpt = checkpoint.load(file)
    assert (ckpt["arch"], ckpt["cfg"]["shortcut"], ckpt["images"]["mean"][0]) == ("resnet", "slice", 0.485)
    assert "resnet depth=20" in said.replace("  ", " ") or method == "softmask"
    if method == "slimming":
        call("slimming.finetune", "--refine", tmp_path / "theirs.th", "--epochs", 1, *TINY, "--save", tmp_path / "t")
        assert "; the file's record: 99.00 %" in capsys.readouterr().out
    if method == "magnitude":                                # training images, which the record is not of
        call("magnitude.sensitivity", tmp_path / "theirs.th", *TINY, "--channels", "--save", tmp_path / "s")
        assert "record" not in capsys.readouterr().out


RESNET18 = "resnet_imagenet", {"depth": 18, "num_classes": 10, "stem": "imagenet", "streams": [8, 8, 16, 32, 64],
                               "widths": [8, 8, 16, 16, 32, 32, 64, 64]}


@pytest.mark.parametrize("method", PRUNE)
def test_counts_are_those_of_the_images_it_is_given(method, tmp_path, capsys):
    """torchvision's resnet18, here a narrow one, usually reads 224 x 224."""
    torch.save(models.build(RESNET18[0], **RESNET18[1]).state_dict(), tmp_path / "theirs.pth")
    of = [compute_flops.count(models.build(RESNET18[0], **RESNET18[1], image_size=side)).total.macs
          for side in (224, 32)]
    common, file = [*TINY, "--subset", "10"], tmp_path / "theirs.pth"
    call(f"{method}.eval", file, *common)
    first, _, then = capsys.readouterr().out.partition("counted for images of 32 x 32")
    assert f"{of[0]:,} MACs" in first and f"{of[1]:,} MACs" in then      # before the images are opened, and after
    for script, flags, wrote in steps(method):
        more = ["--save", tmp_path] * bool(wrote) + ["--batch-size", "10"] * (script == "finetune")
        call(f"{method}.{script}", *[file if flag == "FILE" else flag for flag in flags], *common, *more)
        shown = capsys.readouterr().out
        first, note, then = shown.partition("of 32 x 32, as shapes10 has them, not of 224 x 224\n")
        assert bool(note) == (script == "prune") and (f"{of[0]:,} MACs" in first) == (script == "prune")
        assert not note or f"{of[0]:,}" not in then and (f"{of[1]:,}" in then or method == "slimming")
        file = tmp_path / wrote if wrote else file
        assert checkpoint.load(file)["dense"]["macs"] == of[1]
    total = compute_flops.count(checkpoint.to_model(checkpoint.load(file))).total
    assert f"{of[1] / total.sparse_macs:.2f}x fewer MACs" in shown


@pytest.mark.parametrize("method, flags", [
    ("slimming", []), ("hoyer", ["--granularity", "channel"]), ("reweighted", ["--sparsity-type", "filter"])])
def test_keep_macs_is_a_fraction_of_those_at_the_size_of_the_images(method, flags, tmp_path):
    torch.save(models.build(RESNET18[0], **RESNET18[1]).state_dict(), tmp_path / "theirs.pth")
    call(f"{method}.prune", "--model", tmp_path / "theirs.pth", *TINY, "--keep-macs", "0.6", "--save", tmp_path, *flags)
    ckpt = checkpoint.load(tmp_path / "pruned.pth.tar")
    small = compact(checkpoint.to_model(ckpt))
    assert 0.5 < compute_flops.count(small).total.macs / ckpt["dense"]["macs"] <= 0.6


def test_the_dense_network_is_counted_at_the_size_of_the_images(tmp_path, capsys):
    """The file has it at the usual 32 x 32; the images have 64 x 64."""
    x, y = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8), np.arange(20) % 10
    np.savez(tmp_path / "big.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    torch.manual_seed(0)
    model = like_trained(models.build("resnet", depth=8))
    recipe = {"epochs": 2, "lr": 0.01, "schedule": [1], "gamma": 0.1, "batch_size": 10}
    file = save(tmp_path / "m.pth.tar", model, "magnitude", dense=compute_flops.summary(model), args=recipe)

    def run(script, *flags):
        call(script, *flags, "--dataset", tmp_path / "big.npz", "--device", "cpu", "--save",
             tmp_path / script.partition(".")[0], "--overwrite")
        return capsys.readouterr().out

    shown = run("hoyer.prune", "--model", file, "--sensitivity", "0")
    shown += run("hoyer.finetune", "--model", tmp_path / "hoyer/pruned.pth.tar", "--epochs", "1")
    assert sum(line.startswith("compacted: ") and "(100.00%); its" in line for line in shown.splitlines()) == 2
    run("magnitude.prune", "--model", file, "--percent", "0.5")
    run("magnitude.rewind", "--model", tmp_path / "magnitude/pruned.pth.tar", "--retrain", "scratch-b")
    ckpt = checkpoint.load(tmp_path / "magnitude/finetuned.pth.tar")
    total = compute_flops.count(checkpoint.to_model(checkpoint.load(tmp_path / "magnitude/pruned.pth.tar"))).total
    assert ckpt["epoch"] == round(2 * total.macs / total.sparse_macs) > 2
