"""A network with channels masked and the narrow network without them give the same logits."""
import json
import random
from functools import partial

import pytest
import torch
from by_hand import like_trained
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from common import UserError
from common.models import ARCHS, build, input_shape
from common.models.layers import ChannelSelection
from common.models.narrow import narrow, narrow_masks

NETS = {                                                     # every kind of network, as small as it can be
    "lenet300": ("lenet300", {}),
    "lenet5": ("lenet5", {}),
    "alexnet": ("alexnet", dict(widths=[12, 10, 9, 8, 7])),
    "vgg": ("vgg", dict(depth=11, widths=[6, "M", 8, "M", 9, 8, "M", 7, 8, "M", 9, 10])),
    "vgg-bearpaw": ("vgg", dict(depth=11, variant="bearpaw",
                                widths=[6, "M", 8, "M", 9, 8, "M", 7, 8, "M", 9, 10, "M"])),
    "vgg-head512": ("vgg", dict(depth=11, variant="head512", head=[20],
                                widths=[6, "M", 8, "M", 9, 8, "M", 7, 8, "M", 9, 10])),
    "resnet-basic": ("resnet", dict(depth=14)),
    "resnet-bottleneck": ("resnet", dict(depth=20, block="bottleneck", streams=[8, 12, 14, 16])),
    "resnet-pad": ("resnet", dict(depth=14, shortcut="pad")),
    "preresnet-basic": ("preresnet", dict(depth=14)),
    "preresnet-bottleneck": ("preresnet", dict(depth=20, block="bottleneck", streams=[8, 12, 14, 16])),
    "preresnet-basic-select": ("preresnet", dict(depth=14, selection=True)),
    "preresnet-bottleneck-select": ("preresnet", dict(depth=20, block="bottleneck", selection=True)),
    "densenet-select": ("densenet", dict(depth=13, growth=5, selection=True)),
    "densenet": ("densenet", dict(depth=10, growth=4)),
    "densenet-bc": ("densenet", dict(depth=16, growth=4, block="bottleneck", compression=2)),
    "wideresnet": ("wideresnet", dict(depth=16, widen_factor=2, streams=[8, 10, 12, 14], dropout=0.3)),
    "wideresnet-1": ("wideresnet", dict(depth=10, widen_factor=1)),
    "wideresnet-softmask": ("wideresnet", dict(depth=16, widen_factor=2, variant="softmask", streams=[8, 10, 12, 14])),
    "resnext": ("resnext", dict(depth=20, cardinality=3, streams=[8, 10, 12, 14],
                                widths=[192, 128, 384, 256, 512, 768])),
    "resnext-1": ("resnext", dict(depth=11, cardinality=2, widen_factor=1, streams=[8, 8, 12, 14])),
    "mobilenetv2": ("mobilenetv2", dict(width_multiplier=0.25, num_classes=10)),
    "resnet-slice": ("resnet", dict(depth=14, shortcut="slice")),
    "vgg-bearpaw-bn": ("vgg", dict(depth=11, variant="bearpaw_bn",
                                   widths=[6, "M", 8, "M", 9, 8, "M", 7, 8, "M", 9, 10, "M"])),
    "vgg-hidden": ("vgg", dict(depth=11, variant="bearpaw_bn", head=[20, 18],
                               widths=[6, "M", 8, "M", 9, 8, "M", 7, 8, "M", 9, 10, "M"])),
    "vgg-imagenet": ("vgg", dict(depth=11, variant="bearpaw_bn", head=[20, 18], pool=7, image_size=96,
                                 widths=[6, "M", 8, "M", 9, 8, "M", 7, 8, "M", 9, 10, "M"])),
    "resnet18": ("resnet_imagenet", dict(streams=[8, 8, 10, 12, 14], widths=[9, 8, 7, 6, 8, 9, 10, 7])),
    "resnet18-imagenet": ("resnet_imagenet", dict(stem="imagenet", streams=[8, 8, 10, 12, 14], image_size=64,
                                                  widths=[9, 8, 7, 6, 8, 9, 10, 7])),
    "resnet50": ("resnet_imagenet", dict(depth=50, streams=[8, 10, 10, 12, 14], widths=[7] * 16 + [9] * 16)),
    "preresnet18": ("resnet_imagenet", dict(preact=True, streams=[8, 8, 10, 12, 14], widths=[9, 8, 7, 6, 8, 9, 10, 7])),
    "vgg-64": ("vgg", dict(depth=11, image_size=64, widths=[6, "M", 8, "M", 9, 8, "M", 7, 8, "M", 9, 10])),
}


def network(name, dtype=torch.float64, seed=0):
    """In evaluation mode, with random batch norms and biases."""
    torch.manual_seed(seed)
    arch, cfg = NETS[name]
    return like_trained(build(arch, **cfg)).to(dtype).eval()


def images_for(model):
    torch.manual_seed(1)
    return torch.randn(3, *input_shape(model.arch, model.cfg), dtype=next(model.parameters()).dtype)


def random_keep(model, record, share=0.6):
    """Whole units of the record's first layer, at least one of them, never all where there is a choice."""
    layer = model.get_submodule(record.names()[0])
    width = layer.width if isinstance(layer, ChannelSelection) else layer.weight.shape[0]
    units = width // record.group_size
    keep = torch.rand(units) < share
    one, other = torch.randperm(units)[:2].tolist() if units > 1 else (0, 0)
    keep[other] = False
    keep[one] = True
    return keep.repeat_interleave(record.group_size)


@torch.no_grad()
def mask(model, record, keep, silence=False):
    """Makes the dropped channels zero where they are read, by zeros in the weights alone.

    silence: zero only the first producer, with the bias of its norm, instead of all.
    """
    modules, gone = dict(model.named_modules()), ~keep
    for producer, norm in record.producers[:1] if silence else record.producers:
        layer = modules[producer]
        layer.weight[gone] = 0
        for part in (layer, modules[norm] if norm else layer):
            if part.bias is not None:
                part.bias[gone] = 0
        if norm:
            modules[norm].weight[gone] = 0
    for reader in record.consumers:
        if reader.norm:
            modules[reader.norm].weight[reader.part][gone] = 0
            modules[reader.norm].bias[reader.part][gone] = 0
        elif reader.select and not record.producers:
            indices = modules[reader.select].indices
            modules[reader.layer].weight[:, gone[indices]] = 0


def choose(model, which, share=0.6):
    """{first layer: keep} of the records that `which` wants."""
    return {record.names()[0]: random_keep(model, record, share) for record in model.channels() if which(record)}


def zeroed(model, keep, how=mask):
    """The model with what `keep` drops made zero."""
    for record in model.channels():
        if record.names()[0] in keep:
            how(model, record, keep[record.names()[0]])
    return model


def assert_same(masked, slim):
    images = images_for(masked)
    with torch.no_grad():
        expected, got = masked(images), slim(images)
    assert expected.std() > 1e-6                             # something is left to compare
    tolerance = 1e-9 if expected.dtype == torch.float64 else 1e-4 * expected.abs().max().item()
    assert (got - expected).abs().max() <= tolerance


def assert_masks_follow(model, slim, keep):
    """Masks of all weights, here of the positive ones, are narrowed as these are; those of a removed block are gone."""
    signs = [{name: p > 0 for name, p in m.named_parameters() if p.dim() > 1} for m in (model, slim)]
    got = narrow_masks(model, signs[0], keep)
    assert got.keys() == signs[1].keys() and all(torch.equal(got[name], signs[1][name]) for name in got)


# Random widths under random masks, with hypothesis; tests/reliability.py has more of them


def random_network(name, seed, dtype):
    """One of these, narrowed at random, with fresh weights and random batch norms: a network of random widths."""
    torch.manual_seed(seed)
    model = network(name, seed=seed)
    keep = choose(model, lambda record: record.producers, share=float(torch.rand(())))
    try:
        cfg = narrow(zeroed(model, keep), keep).cfg
    except UserError:                                        # a selection was left with nothing to read
        cfg = model.cfg
    torch.manual_seed(seed + 1)
    return like_trained(build(model.arch, **cfg)).to(dtype).eval()


@torch.no_grad()
def check(name, seed, share, some, dtype=torch.float64):
    """narrow(masked) computes what masked does, for a random network and masks that keep `share` in `some` layers."""
    model = random_network(name, seed, dtype)
    rng, records = random.Random(seed), {record.names()[0]: record for record in model.channels()}
    keep = choose(model, lambda record: rng.random() < some, share)
    masked = zeroed(model, keep)
    try:
        slim = narrow(masked, keep)
    except UserError as error:
        assert "nothing is left" in str(error)
        return False
    images = images_for(model)
    expected, got = masked(images), slim(images)
    assert (got - expected).abs().max() <= (1e-9 if dtype == torch.float64 else 1e-4) * max(1, expected.abs().max())
    assert got.dtype == dtype and slim.arch == model.arch and not slim.training
    for layer, kept in keep.items():
        for key, i in records[layer].places:
            assert slim.cfg[key][i] <= kept.sum() and (slim.cfg[key][i] == kept.sum() or not records[layer].producers)
    assert_masks_follow(masked, slim, keep)
    again = build(slim.arch, **json.loads(json.dumps(slim.cfg))).to(dtype).eval()           # plain and complete
    again.load_state_dict(slim.state_dict())
    assert torch.equal(again(images), got)
    return True


def narrow_examples(name, count):
    """Runs `count` examples of a family; how many were compared."""
    compared = [0]

    @settings(max_examples=count, deadline=None, derandomize=True, database=None, print_blob=False,
              suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 10 ** 6), st.floats(0.05, 0.95), st.floats(0.1, 1))
    def examples(seed, share, some):
        compared[0] += check(name, seed, share, some)
    examples()
    return compared[0]


def test_every_family_is_among_them():
    assert {arch for arch, _ in NETS.values()} == set(ARCHS)


@pytest.mark.parametrize("name", NETS)
def test_masked_is_narrow_for_random_widths_and_masks(name):
    assert narrow_examples(name, 4)
    assert any([check(name, seed, 0.6, 1, torch.float32) for seed in (1, 2)])              # all layers at once


@pytest.mark.parametrize("name", NETS)
def test_nothing_named_nothing_changed(name):
    model = network(name).train()
    whole = {"lenet5": {"conv1": torch.ones(20)}, "vgg": {"classifier": torch.ones(10)}}    # where none could go, too
    slim = narrow(model, whole.get(name, {}))
    assert slim.training and slim.cfg == model.cfg and slim is not model
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, slim.state_dict()[key])


# Constants: a dropped channel whose weights are zero but whose bias is not.

def constant(model, record, keep):
    """Zeroes what varies in the dropped channels and leaves the biases."""
    modules, gone = dict(model.named_modules()), ~keep
    with torch.no_grad():
        if not record.producers:
            modules[record.consumers[0].norm].weight[gone] = 0
            return
        producer, norm = record.producers[-1]
        modules[norm or producer].weight[gone] = 0


def folds(model, record):
    """Its readers do not pad, and have a bias or a batch norm of their own after them."""
    modules = dict(model.named_modules())
    normed = {producer for r in model.channels() for producer, norm in r.producers if norm}
    if record.stream or (not record.producers and not record.consumers[0].norm):
        return False
    return all(not any(getattr(modules[r.layer], "padding", (0,))) and
               (r.layer in normed or modules[r.layer].bias is not None) for r in record.consumers)


@pytest.mark.parametrize("name", [n for n, (arch, cfg) in NETS.items()
                                  if any(folds(m, r) for m in [build(arch, **cfg)] for r in m.channels())])
def test_constants_are_folded(name):
    model = network(name)
    keep = choose(model, lambda r: folds(model, r))
    slim = narrow(zeroed(model, keep, constant), keep)
    images = images_for(model)
    with torch.no_grad():
        expected = model(images)
        assert (slim(images) - expected).abs().max() <= 1e-9 * max(1, expected.abs().max())
    zeroed(model, keep)                                      # without the constants the logits differ
    with torch.no_grad():
        assert (model(images) - expected).abs().max() > 1e-6


def test_constants_of_a_float32_network_are_added_up_in_double_precision():
    """Of two hundred neurons nothing is left but their biases: the next bias is rounded once, at the end."""
    model = network("lenet300", torch.float32)
    with torch.no_grad():
        model.fc1.weight[100:] = 0
        model.fc1.bias[100:] = torch.rand(200)
        shift = model.fc2.weight[:, 100:].double() @ model.fc1.bias[100:].double()
    slim = narrow(model, {"fc1": torch.arange(300) < 100})
    assert slim.fc2.bias.dtype == torch.float32
    assert torch.equal(slim.fc2.bias, (model.fc2.bias.double() + shift).float())


@pytest.mark.parametrize("name", ["preresnet-bottleneck", "preresnet-bottleneck-select"])
def test_a_silent_stream_leaves_the_constants_of_the_norms_that_read_it(name):
    """Zero in the stream is not zero after the next batch norm; with a selection too it is folded once."""
    model = network(name)
    for _ in range(2):                                       # the second time after selections that are not whole
        modules, keep = dict(model.named_modules()), {}
        selections = {r.consumers[0].layer: r for r in model.channels() if not r.producers}
        for record in (r for r in model.channels() if r.stream):
            kept = random_keep(model, record)
            keep[record.names()[0]] = kept
            with torch.no_grad():
                for producer, _ in record.producers:
                    modules[producer].weight[~kept] = 0
                for reader in record.consumers:                # a selection drops some of these channels, and others
                    if reader.layer in selections:
                        own = torch.rand(len(kept)) < 0.7
                        modules[reader.norm].weight[~own] = 0
                        keep[selections[reader.layer].names()[0]] = own
        slim = narrow(model, keep)
        assert_same(model, slim)
        model = slim


@pytest.mark.parametrize("name", ["mobilenetv2", "resnext"])
def test_channels_that_die_before_the_grouped_convolution(name):
    """Zero in front of the second batch norm, whose shift alone then reaches the last convolution."""
    model = network(name)
    keep = choose(model, lambda r: len(r.producers) == 2 and not r.stream)
    zeroed(model, keep, partial(mask, silence=True))
    assert_same(model, narrow(model, keep))


def test_a_group_of_which_one_channel_is_silent_is_not_constant():
    """What its convolution makes of the others varies: the group is dropped, and nothing of it folded."""
    model = network("resnext")
    block, name = model.stage_1.stage_1_bottleneck_0, "stage_1.stage_1_bottleneck_0.conv_reduce"
    with torch.no_grad():
        block.conv_reduce.weight[0], block.bn_reduce.bias[0], block.bn.bias[:64] = 0, -9, 0.5
    slim = narrow(model, {name: torch.arange(192) >= 64})
    assert torch.equal(slim.stage_1.stage_1_bottleneck_0.bn_expand.running_mean, block.bn_expand.running_mean)


@pytest.mark.parametrize("bias", [0.5, -0.5])
def test_only_silence_passes_a_padded_depthwise_convolution(bias):
    """A positive constant comes out of it varying at the borders: no bias can take that up."""
    model = network("mobilenetv2")
    with torch.no_grad():
        model.layers[0].bn1.weight[1], model.layers[0].bn1.bias[1] = 0, bias
    keep = {"layers.0.bn1": keep_of(model.layers[0].bn1.num_features, 1)}
    if bias > 0:
        with pytest.raises(UserError, match="pads with zeros"):
            narrow(model, keep)
    else:
        assert_same(model, narrow(model, keep))


def test_lenet5_loses_maps_and_positions_together():
    model = network("lenet5")
    maps, positions = torch.rand(50) < 0.3, torch.rand(800) < 0.4
    with torch.no_grad():
        model.conv2.weight[~maps] = 0                        # their biases stay: constants, 16 positions each
        model.conv2.bias.abs_()
        model.fc1.weight[:, ~positions] = 0
    slim = narrow(model, {"conv2": maps, "select": positions})
    left = int((positions & maps.repeat_interleave(16)).sum())
    assert slim.cfg["widths"] == [20, int(maps.sum()), left, 500]
    assert slim.select.width == 16 * int(maps.sum()) and slim.fc1.in_features == left
    assert_same(model, slim)
    only = narrow(model, {"conv2": maps})                    # without a word about positions they follow
    assert only.cfg["widths"][2] == 16 * int(maps.sum())
    assert_same(model, only)


def test_lenet300_forgets_dead_pixels():
    model = network("lenet300")
    pixels = torch.rand(784) < 0.45
    with torch.no_grad():
        model.fc1.weight[:, ~pixels] = 0
    slim = narrow(model, {"select": pixels})
    assert torch.equal(slim.select.indices, pixels.nonzero().flatten())
    assert_same(model, slim)
    with torch.no_grad():
        slim.fc1.weight[:, 1::2] = 0
    assert_same(slim, narrow(slim, {"select": torch.zeros(784).bool().index_fill(0, slim.select.indices[::2], True)}))


def test_narrowed_projections_stay_projections():
    """A stream narrowed to its neighbour's width still has the convolution between them."""
    streams = [r for r in network("mobilenetv2").channels() if r.stream]
    assert sum(len(r.places) for r in streams) == 8 > len(streams)       # at 0.25 some stages share a width
    for arch, cfg in (("resnet", dict(depth=11, block="bottleneck", streams=[16, 16, 16, 16])),
                      ("wideresnet", dict(depth=10, widen_factor=2, streams=[16, 16, 16, 16])),
                      ("resnext", dict(depth=11, cardinality=1, streams=[16, 16, 16, 16]))):
        assert len([r for r in build(arch, **cfg).channels() if r.stream]) == 4


def keep_of(width, *gone):
    keep = torch.ones(width, dtype=torch.bool)
    keep[list(gone)] = False
    return keep


@pytest.mark.parametrize("name, keep, message", [
    ("vgg", {"feature.0": keep_of(5, 1)}, "feature.0 has 6 channels, keep has 5"),
    ("vgg", {"feature.0": torch.zeros(6)}, "no channel of feature.0 is left"),
    ("vgg", {"feature.99": keep_of(6, 1)}, "no layer 'feature.99'"),
    ("vgg", {"classifier": keep_of(10, 1)}, "classifier cannot be removed"),
    ("vgg", {"feature.0": keep_of(6, 1), "feature.1": keep_of(6, 2)}, "feature.0 and feature.1 share"),
    ("resnet-basic", {"conv1": keep_of(16, 1), "layer1.0.conv2": keep_of(16, 2)}, "conv1 and layer1.0.conv2 share"),
    ("resnet-pad", {"layer1.0.conv2": keep_of(16, 2)}, "layer1.0.conv2 cannot be removed"),
    ("preresnet-basic", {"conv1": keep_of(16, 1), "layer1.0.bn1": keep_of(16, 2)}, "conv1 and layer1.0.bn1 share"),
    ("wideresnet", {"block1.layer.0.conv2": keep_of(10, 1), "block1.layer.0.convShortcut": keep_of(10, 3)}, "share"),
    ("densenet-bc", {"dense1.0.bn1": keep_of(8, 1)}, "dense1.0.bn1 cannot be removed"),
    ("densenet-select", {"dense1.0.conv1": keep_of(4, 1)}, "dense1.0.conv1 has 5 channels, keep has 4"),
    ("densenet-select", {"dense1.0.bn1": keep_of(9, 1)}, "dense1.0.bn1 has 10 channels, keep has 9"),
    ("resnext", {"stage_1.stage_1_bottleneck_0.conv_conv": keep_of(192, 5)}, "64 at a time"),
    ("lenet5", {"conv2": keep_of(50, *range(25)), "select": keep_of(800, *range(400, 800))}, "nothing is left for fc1"),
])
def test_what_cannot_be_narrowed_is_refused(name, keep, message):
    with pytest.raises(UserError, match=message):
        narrow(network(name), keep)


@pytest.mark.parametrize("name, layer", [("vgg", "feature.0"), ("alexnet", "features.0"),
                                         ("wideresnet", "block1.layer.0.conv1"), ("densenet-select", "dense1.0.bn1")])
def test_a_constant_does_not_pass_padding_unless_nothing_reads_it(name, layer):
    model = network(name)
    modules = dict(model.named_modules())
    record = next(r for r in model.channels() if layer in r.names())
    part = modules[(record.producers[0][1] if record.producers else "") or layer]
    keep = {layer: keep_of(part.weight.shape[0], 1)}
    with torch.no_grad():
        part.weight[1], part.bias[1] = 0, 0.5
        with pytest.raises(UserError, match="pads with zeros"):
            narrow(model, keep)
        part.bias[1] = -0.5                                  # after the ReLU it is zero
        assert_same(model, narrow(model, keep))
        part.bias[1] = 0.2
        modules[record.consumers[0].layer].weight[:, 1] = 0
        assert_same(model, narrow(model, keep))


def test_a_constant_does_not_pass_a_convolution_into_a_raw_stream():
    """Without a bias or a batch norm after it there is nothing to take the constant up."""
    model = network("preresnet-bottleneck")
    with torch.no_grad():
        model.layer1[0].bn3.weight[1], model.layer1[0].bn3.bias[1] = 0, 0.5
    with pytest.raises(UserError, match="layer1.0.conv3 has neither bias nor batch norm"):
        narrow(model, {"layer1.0.conv2": keep_of(16, 1)})


@pytest.mark.parametrize("name, first, block, norm", [
    ("resnet-basic", "layer1.1.conv1", "layer1.1", "bn2"), ("resnet-pad", "layer2.0.conv1", "layer2.0", "bn2"),
    *[("resnet-bottleneck", f"layer2.1.{first}", "layer2.1", "bn3") for first in ("conv1", "conv2")],
    ("preresnet-basic", "layer1.1.conv1", "layer1.1", ""),
    ("wideresnet", "block2.layer.0.conv1", "block2.layer.0", "")])
def test_an_empty_branch_goes_unless_it_still_adds_a_constant(name, first, block, norm):
    model = network(name)
    part = dict(model.named_modules())
    width = part[first].weight.shape[0]
    with torch.no_grad():                                    # nothing comes through its inner channels
        for n, m in part[block].named_modules():
            if isinstance(m, nn.Conv2d) and "hortcut" not in n and "downsample" not in n:
                m.weight.zero_()
            if isinstance(m, nn.BatchNorm2d) and n and (n != "bn1" or norm) and n != norm and "downsample" not in n:
                m.weight.zero_()
                m.bias.zero_()
        if norm:
            with pytest.raises(UserError, match=f"{block}.{norm} still adds a constant"):
                narrow(model, {first: torch.zeros(width)})
            part[f"{block}.{norm}"].weight.zero_()
            part[f"{block}.{norm}"].bias.zero_()
    slim = narrow(model, {first: torch.zeros(width)})
    gone = [left for left, had in zip(slim.cfg["widths"], model.cfg["widths"], strict=True) if left != had]
    assert gone == [0] * (2 if "bottleneck" in name else 1)
    assert not hasattr(dict(slim.named_modules())[block], "conv1")
    assert_same(model, slim)
    assert_masks_follow(model, slim, {first: torch.zeros(width)})
    again = build(slim.arch, **slim.cfg)
    again.load_state_dict(slim.state_dict())


def test_a_constant_in_a_residual_stream_is_folded_into_all_that_read_it():
    """Each reads its own sum of constants: shares that cancel at the end are seen in between."""
    model = network("resnet-bottleneck")
    stream = next(r for r in model.channels() if len(r.producers) > 1)
    mask(model, stream, keep_of(12, 1))
    keep = {stream.producers[0][0]: keep_of(12, 1)}
    norms = dict(model.named_modules())
    with torch.no_grad():
        norms[stream.producers[0][1]].bias[1], norms[stream.producers[-1][1]].bias[1] = 0.5, -0.5
    assert len(stream.consumers) > 1
    slim = narrow(model, keep)
    assert_same(model, slim)
    means = [dict(m.named_buffers()) for m in (model, slim)]
    assert any(len(mean) == len(means[1][name]) and (mean - means[1][name]).abs().max() > 1e-3
               for name, mean in means[0].items() if name.endswith("running_mean"))


def test_a_stream_varies_where_any_of_its_layers_does():
    """A first layer that is silent does not empty the filters of those that add to it."""
    model = network("resnet-bottleneck")
    stream = next(r for r in model.channels() if len(r.producers) > 1)
    modules, first = dict(model.named_modules()), stream.producers[0][0]
    with torch.no_grad():
        modules[first].weight[1] = 0
        for _, norm in stream.producers:
            modules[norm].bias[1] = -9
    assert all(modules[layer].weight[1].any() for layer, _ in stream.producers[1:])
    slim = narrow(model, {first: keep_of(12, 1)})            # simply dropped, as channels that are not constant are
    assert slim.cfg["streams"][stream.places[0][1]] == 11
