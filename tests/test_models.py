"""Every network has the parameters, convolution weights, batch-norm channels and MACs of the original it stands for."""
import functools
import json
import re
from pathlib import Path

import pytest
import torch
from by_hand import SMALL
from conftest import NATIVE_BF16
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common import UserError
from common.files import checkpoint
from common.models import ARCHS, any_network, build, input_shape, sketch, split_name

TRUTH = json.loads(Path(__file__).with_name("ground_truth.json").read_text())
MNIST = {"mnist:lenet-300-100": ("lenet300", {}), "mnist:lenet5": ("lenet5", {})}


def ours(key):
    """'slimming:resnet164|c10' -> ('preresnet', options)."""
    if key in MNIST:
        return MNIST[key]
    name, classes = key.split("|")
    source, name = name.split(":")
    cfg = dict(num_classes=int(classes[1:]))
    match = re.match(r"([a-z]+(?:-bc)?)-?(\d*)(.*)", name)
    family, depth, rest = match[1], int(match[2] or 0), match[3].strip("-")
    if family == "alexnet":
        return "alexnet", cfg
    if family == "vgg":
        bearpaw = "bearpaw_bn" if rest == "_bn" else "bearpaw"
        variant = {"bearpaw": bearpaw, "slimming": "slimming", "kesi": "head512"}[source]
        return "vgg", cfg | dict(depth=depth, variant=variant)
    if family == "densenet-bc":
        return "densenet", cfg | dict(depth=depth, growth=int(rest), block="bottleneck", compression=2)
    if family == "densenet":
        return "densenet", cfg | dict(depth=depth, compression=2 if rest == "basic-c2" else 1,
                                      selection=source == "slimming", gamma=0.5 if source == "slimming" else 1.0)
    if family == "wrn":
        return "wideresnet", cfg | dict(depth=depth, widen_factor=int(rest))
    if family == "resnext":
        return "resnext", cfg | dict(depth=depth, cardinality=int(rest.removesuffix("x64")))
    if source == "slimming":
        return "preresnet", cfg | dict(depth=depth, block="bottleneck", selection=True, gamma=0.5)
    if source == "mask":
        return "preresnet", cfg | dict(depth=depth, gamma=0.5)
    if source == "kesi" and family == "resnet":
        return "resnet", cfg | dict(depth=depth, shortcut="pad")
    if source == "weightlevel":              # (depth - 2) / 6 bottlenecks a stage: its resnet56 is 83 layers deep
        deep = 9 * ((depth - 2) // 6) + 2 if family == "resnet" else depth
        return family, cfg | dict(depth=deep, block="bottleneck")
    return family, cfg | dict(depth=depth, block=rest or None)


def count_weights(model):
    modules = list(model.modules())
    return dict(params=sum(p.numel() for p in model.parameters()),
                conv_weights=sum(m.weight.numel() for m in modules if isinstance(m, nn.Conv2d)),
                linear_params=sum(p.numel() for m in modules if isinstance(m, nn.Linear) for p in m.parameters()),
                bn_params=sum(p.numel() for m in modules if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)
                              for p in m.parameters()),
                bn2d_channels=sum(m.num_features for m in modules if isinstance(m, nn.BatchNorm2d)),
                n_conv=sum(isinstance(m, nn.Conv2d) for m in modules))


def count_macs(model):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits = model(torch.empty(1, *input_shape(model.arch, model.cfg), device="meta"))
    assert logits.shape == (1, model.cfg["num_classes"])
    return counter.get_total_flops() // 2


@functools.cache
def macs_for_10_classes(arch, cfg):
    return count_macs(sketch(arch, **json.loads(cfg)).eval())


@pytest.mark.parametrize("key", TRUTH)
def test_counts_equal_the_originals(key):
    arch, cfg = ours(key)
    model = sketch(arch, **cfg).eval()
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    # Classes concern only the last layer: one forward pass serves 10 and 100 of them.
    counts = dict(count_weights(model), macs=macs_for_10_classes(arch, json.dumps(dict(model.cfg, num_classes=10)))
                  + (last.out_features - 10) * last.in_features)
    truth = dict(TRUTH[key])
    truth["params"] -= truth.pop("selection_indexes")        # ours are buffers
    assert counts == truth


def measure(arch, **cfg):
    model = sketch(arch, **cfg).eval()
    return count_weights(model)["params"], count_macs(model)


@pytest.mark.parametrize("arch, cfg, params, macs", [
    ("wideresnet", dict(depth=34, widen_factor=9, num_classes=100, variant="softmask"), 37_446_900, 5_969_518_848),
    ("mobilenetv2", {}, 3_989_668, 153_407_488),    # the paper's "153.41 M adds"
    ("preresnet", dict(depth=164, selection=True), 1_703_258, 247_646_720),
    ("resnet_imagenet", {}, 11_173_962, 555_422_720),                                   # kuangliu's ResNet18
    ("resnet_imagenet", dict(preact=True), 11_171_146, 555_422_720),
    ("resnet_imagenet", dict(depth=18, num_classes=1000, stem="imagenet"), 11_689_512, 1_814_073_344),   # torchvision
    ("resnet_imagenet", dict(depth=50, num_classes=1000, stem="imagenet"), 25_557_032, 4_089_184_256),
    ("vgg", dict(depth=16, num_classes=1000, variant="bearpaw_bn", head=[4096, 4096], pool=7), 138_365_992,
     15_470_264_320),
    ("vgg", dict(depth=16, variant="bearpaw_bn", head=[512, 512]), 15_253_578, 313_725_952),             # chenyaofo
    ("resnet", dict(depth=20, shortcut="slice"), 269_722, 40_551_040),
    ("mobilenetv2", dict(width_multiplier=1, num_classes=10), 2_296_922, 91_154_944),
    ("resnet", dict(depth=20, image_size=64), 272_474, 4 * 40_812_544 + 640),           # counts follow the image
    ("vgg", dict(depth=16, image_size=64), 14_724_042, 4 * 313_196_544 + 5_120),
])
def test_counts_of_the_papers(arch, cfg, params, macs):
    assert measure(arch, **cfg) == (params, macs)


def test_narrowed_counts_of_slimming():
    """Half of every layer, and the 40 % VGG-19 that its authors published."""
    half = [(w + 1) // 2 if w != "M" else "M" for w in build("vgg", depth=13).cfg["widths"]]
    assert measure("vgg", depth=13, widths=half) == (2_356_458, 57_510_400)
    half = [(w + 1) // 2 for w in build("preresnet", depth=164, selection=True).cfg["widths"]]
    assert measure("preresnet", depth=164, selection=True, widths=half) == (569_178, 80_332_032)
    published = [52, 64, "M", 128, 128, "M", 256, 254, 247, 218, "M", 218, 162, 166, 294, "M", 317, 315, 318, 165]
    assert measure("vgg", depth=19, widths=published) == (6_728_249, 247_488_006)


def test_selection_lists_are_the_originals():
    widths = build("preresnet", depth=164, selection=True).cfg["widths"]
    assert len(widths) == 163 and sum(widths) == 12_112 and widths[:6] == [16, 16, 16, 64, 16, 16]
    widths = build("densenet", depth=40, selection=True).cfg["widths"]
    assert len(widths) == 39 and sum(widths) == 9_360 and widths[:2] == [24, 36] and widths[12:14] == [168, 168]


@pytest.mark.parametrize("arch", ARCHS)
def test_trains_in_channels_last_and_bf16(arch):
    torch.manual_seed(0)
    model = build(arch, **{"num_classes": 7, **SMALL[arch]}).to(memory_format=torch.channels_last)
    images = torch.randn(2, *input_shape(arch)).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=NATIVE_BF16):
        logits = model(images)
    assert logits.shape == (2, 7)
    logits.float().logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


NAMES = {                                                    # of the originals' files; their `indexes` is our `indices`
    "lenet300": "fc1 fc2 fc3 select.indices",
    "lenet5": "conv1 conv2 fc1 fc2 select.indices",
    "alexnet": "features.0 features.3 features.6 features.8 features.10 classifier",
    "resnet": "conv1 bn1 layer#.#.conv1 layer#.#.bn1 layer#.#.conv2 layer#.#.bn2 layer#.#.downsample.0 "
              "layer#.#.downsample.1 fc",
    "preresnet": "conv1 layer#.#.bn1 layer#.#.select.indices layer#.#.conv1 layer#.#.bn2 layer#.#.conv2 layer#.#.bn3 "
                 "layer#.#.conv3 layer#.#.downsample.0 bn select.indices fc",
    "densenet": "conv1 dense#.#.bn1 dense#.#.select.indices dense#.#.conv1 trans#.bn1 trans#.select.indices "
                "trans#.conv1 bn select.indices fc",
    "wideresnet": "conv1 block#.layer.#.bn1 block#.layer.#.conv1 block#.layer.#.bn2 block#.layer.#.conv2 "
                  "block#.layer.#.convShortcut bn1 fc",
    "resnext": "conv_1_3x3 bn_1 classifier " + " ".join("stage_#.stage_#_bottleneck_#." + part for part in (
        "conv_reduce bn_reduce conv_conv bn conv_expand bn_expand "
        "shortcut.shortcut_conv shortcut.shortcut_bn").split()),
    "mobilenetv2": "conv1 bn1 conv2 bn2 linear " + " ".join("layers.#." + part for part in (
        "conv1 bn1 conv2 bn2 conv3 bn3 shortcut.0 shortcut.1").split()),
}


@pytest.mark.parametrize("arch", NAMES)
def test_names_are_the_originals(arch):
    def numberless(name):
        name = re.sub(r"\.(weight|bias|running_mean|running_var|num_batches_tracked)$", "", name)
        if arch == "alexnet":
            return name
        name = re.sub(r"\b(layer|dense|trans|block|stage_)\d", r"\1#", name)
        return re.sub(r"(?<=\.)\d+(?=\.)|(?<=bottleneck_)\d+", "#", name)
    assert {numberless(n) for n in build(arch, **SMALL[arch]).state_dict()} == set(NAMES[arch].split())
    plain = build(arch, **{k: v for k, v in SMALL[arch].items() if k != "selection"}).state_dict()
    assert arch.startswith("lenet") or not any("select" in name for name in plain)


def test_the_depth_chooses_the_block():
    assert [build("resnet", depth=d).cfg["block"] for d in (20, 32, 56, 29, 47)] == ["basic"] * 3 + ["bottleneck"] * 2
    assert build("preresnet", depth=110).cfg["block"] == "basic"
    assert build("preresnet", depth=164).cfg["block"] == "bottleneck"
    assert split_name("resnet56") == ("resnet", 56)
    assert split_name("resnet18") == split_name("resnet", 18) == ("resnet_imagenet", 18)


@pytest.mark.parametrize("asked, arch, cfg", [
    (("vgg13",), "vgg", {"depth": 13}), (("vgg16_bn",), "vgg", {"depth": 16, "variant": "bearpaw_bn"}),
    (("resnet", 44), "resnet", {"depth": 44}), (("resnet34",), "resnet_imagenet", {"depth": 34}),
    (("preresnet18",), "resnet_imagenet", {"depth": 18, "preact": True}), (("lenet5",), "lenet5", {}),
    (("wrn_16_8",), "wideresnet", {"depth": 16, "widen_factor": 8}), (("alexnet",), "alexnet", {}),
    (("mobilenetv2_1.4",), "mobilenetv2", {"width_multiplier": 1.4}),
    (("vgg11_0.25",), "vgg", {"depth": 11, "widths": [16, "M", 32, "M", 64, 64, "M", 128, 128, "M", 128, 128]})])
def test_any_network_goes_by_its_usual_name(asked, arch, cfg):
    assert any_network(*asked) == (arch, cfg) and build(arch, **cfg).arch == arch


def test_padded_shortcuts_have_gradients():
    model = build("resnet", depth=8, shortcut="pad")
    x = torch.randn(2, 16, 8, 8, requires_grad=True)
    out = model.layer2[0].downsample(x)
    assert out.shape == (2, 32, 4, 4) and out[:, 16:].eq(0).all()
    out.sum().backward()
    assert x.grad.eq(0.25).all()


REFUSED = {  # what is asked for, and what is wrong with it
    "vgg": [(dict(depth=12), "11, 13, 16, 19"), (dict(depth=11, head=[64]), "head512"),
        (dict(depth=11, pool=7), "two hidden layers"), (dict(depth=11, variant="bearpaw", head=[64]), "2 widths")],
    "resnet": [(dict(depth=21), "6n\\+2.*9n\\+2.*got 21"), (dict(depth=2), "got 2"),
        (dict(depth=29, block="basic"), "6n\\+2"), (dict(depth=60002), "60002; the deepest"),
        (dict(depth=29, shortcut="pad"), "basic"), (dict(depth=20, shortcut="pad", streams=[8, 8, 32, 64]), "streams"),
        (dict(depth=20, streams=[8, 16, 32, 64]), "one stream"), (dict(depth=20, shortcut="none"), "conv, pad, slice")],
    "preresnet": [(dict(depth=21, block="bottleneck"), "9n\\+2 \\(20, 29, 56, 110, 164\\); got 21"),
        (dict(depth=20, block="wide"), "basic, bottleneck"), (dict(depth=20, widths=[16]), "9 widths"),
        (dict(depth=11, selection=True, widths=[17, 16, 16, 64, 32, 32, 128, 64, 64, 256]), "17 out of 16")],
    "densenet": [(dict(depth=41), "3n\\+4"), (dict(depth=43, block="bottleneck"), "6n\\+4"),
        (dict(block="bottleneck", selection=True), "basic blocks only"), (dict(widths=[12]), "0 widths")],
    "wideresnet": [(dict(depth=30), "6n\\+4"), (dict(depth=28, widen_factor=1000), "the largest has"),
        (dict(variant="odd"), "usual, softmask"), (dict(widen_factor=0), "widen_factor >= 1"),
        (dict(widen_factor=10 ** 12), "arch wideresnet: [^\n]*$")],
    "resnext": [(dict(depth=30), "9n\\+2"), (dict(depth=11, widths=[500, 1024, 2048]), "groups")],
    "lenet": [({}, "unknown arch")],
    "alexnet": [(dict(depth=5), "depth"), (dict(image_size=64), "reads images of 32 x 32, not 64")],
    "resnet_imagenet": [(dict(depth=20), "18, 34, 50, 101, 152; got 20"), (dict(stem="large"), "small, imagenet"),
        (dict(depth=50, preact=True), "depths 18, 34")],
    "lenet5": [(dict(image_size=32), "reads images of 28 x 28, not 32"),
        (dict(widths=[20, 5, 81, 13]), "81 out of 80")],
    "mobilenetv2": [(dict(widths=[1]), "18 widths"), (dict(width_multiplier=1e300), "arch mobilenetv2: [^\n]*$"),
        *[(dict(width_multiplier=width), "a positive width multiplier; got")
          for width in (0.0, -1.0, float("nan"), float("inf"))]],
    "lenet300": [(dict(widths=[784, 0, 10]), "without channels")],
}


@pytest.mark.parametrize("arch, cfg, message", [(arch, *row) for arch, rows in REFUSED.items() for row in rows])
def test_a_network_that_does_not_exist_is_refused(arch, cfg, message):
    """One line for the user, whether flags ask for it or a file."""
    with pytest.raises(UserError, match=message):
        build(arch, **cfg)
    with pytest.raises(UserError, match=f"made.pth.tar describes a network that cannot be built: .*{message}"):
        checkpoint.to_model({"arch": arch, "cfg": cfg, "state_dict": {}, "path": "made.pth.tar"})
