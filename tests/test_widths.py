"""Widths in multiples of 8, and streams that are slimmed too: exact, and never a layer without channels."""
import copy

import pytest
import torch
from by_hand import call, save
from test_narrow import NETS, assert_same, choose, images_for, network, zeroed

from common import UserError, compute_flops, models
from common.compact import compact
from common.files import checkpoint
from common.keep import rounded_up
from common.models.narrow import narrow
from reweighted import prune as reweighted_prune
from slimming import channels, prune, streams
from softmask import prune as softmask_prune

STREAMS = ("resnet-basic", "preresnet-bottleneck", "preresnet-basic-select", "preresnet-bottleneck-select",
           "wideresnet", "mobilenetv2", "densenet", "densenet-select", "densenet-bc")


def bools(text):
    return torch.tensor([c == "1" for c in text])


def test_rounding_up_keeps_the_highest_of_those_that_went():
    assert rounded_up(bools("0100100000"), 4).tolist() == bools("1110100000").tolist()       # the first ones
    scores = torch.tensor([0, 3, 0, 9, 1, 8, 0, 7, 0, 0.])                                  # what stays, stays
    assert rounded_up(bools("0100100000"), 4, scores=scores).tolist() == bools("0101110000").tolist()
    assert rounded_up(bools("0110110"), 4).tolist() == bools("0110110").tolist()             # is one already
    assert rounded_up(bools("111110"), 8).all() and not rounded_up(bools("0000"), 8).any()
    assert rounded_up(bools("1000"), 8, unit=4).sum() == 2 and rounded_up(bools("1000"), 8, unit=64).sum() == 1


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("percent,round_to", [(0.3, 1), (0.6, 4), (0.97, 1)])
def test_slimmed_streams_compute_what_the_masked_network_does(name, percent, round_to):
    model = network(name)
    scores = {**channels.gammas_of(model), **streams.scores(model)}
    chosen = channels.keep_some(prune.choose(scores, percent)[0], scores, round_to, quiet=True)
    before = {name: mask.clone() for name, mask in chosen.items()}
    keep = streams.follow(chosen, scores, model, round_to)
    assert all(torch.equal(before[name], mask) for name, mask in chosen.items())         # a choice of its own
    masked, whole = copy.deepcopy(model), channels.over_all_channels(keep, model)
    channels.zero(masked, whole)
    small, images = narrow(masked, whole), images_for(model)
    assert not torch.equal(masked(images), model(images))
    assert_same(masked, small)
    assert small.cfg["streams"] != model.cfg["streams"]
    assert not round_to > 1 or all(width % round_to == 0 for width in small.cfg["streams"])
    assert round_to == 1 or all(width % round_to == 0 or width in model.cfg["widths"] for width in small.cfg["widths"])
    again = {**channels.gammas_of(small), **streams.scores(small)}                  # and once more from there
    keep = streams.follow(channels.keep_some(prune.choose(again, 0.5)[0], again, quiet=True), again, small)
    with torch.no_grad():
        assert narrow(small, channels.over_all_channels(keep, small))(images).isfinite().all()


def test_a_stream_is_ranked_by_the_mean_gamma_of_its_readers():
    model = models.build("preresnet", depth=14, selection=True)
    norms = [model.layer3[1].bn1, model.bn]                  # what reads the last stream: it begins with layer3.0
    for norm, value in zip(norms, (0.2, 0.6), strict=True):
        torch.nn.init.constant_(norm.weight, value)
    model.layer3[1].bn1.weight.data[5] = -1.0
    model.layer3[1].select.indices = torch.tensor([i for i in range(64) if i != 7])
    score = streams.scores(model)["layer3.0.downsample.0"]
    assert torch.allclose(score[[0, 5, 7]], torch.tensor([0.4, 0.8, 0.3]))
    for norm, value in ((model.layer2[1].bn1, 0.2), (model.layer3[0].bn1, 0.6)):     # two layers read through the last
        torch.nn.init.constant_(norm.weight, value)
    assert torch.allclose(streams.scores(model)["layer2.0.downsample.0"], torch.tensor(0.4))
    assert streams.scores(model).keys() == {"conv1", "layer2.0.downsample.0", "layer3.0.downsample.0"}
    with pytest.raises(UserError, match="--streams: a vgg has no residual or dense stream"):
        streams.scores(network("vgg"))


def test_a_dense_stream_is_ranked_by_what_reads_each_part_of_it():
    model = models.build("densenet", depth=7, growth=2, selection=True)          # one layer a stage: 4 + 2 channels
    for norm, value in ((model.dense1[0].bn1, 0.2), (model.trans1.bn1, 0.6), (model.dense2[0].bn1, 1.0)):
        torch.nn.init.constant_(norm.weight, value)
    model.trans1.bn1.weight.data[5] = -0.9
    model.trans1.select.indices = torch.tensor([0, 1, 3, 4, 5])
    score = streams.scores(model)
    assert torch.allclose(score["conv1"], torch.tensor([0.4, 0.4, 0.1, 0.4]))    # dense1.0 and trans1 read them
    assert torch.allclose(score["dense1.0.conv1"], torch.tensor([0.6, 0.9]))     # trans1 alone
    keep = {name: torch.ones(len(s), dtype=torch.bool) for name, s in score.items()}
    keep["conv1"][:3], keep["dense1.0.conv1"][1] = False, False
    model.dense1[0].select.indices = torch.tensor([1, 2])    # neither is left: it keeps its first one
    arrives = streams.arriving(model, keep)
    assert keep["conv1"].tolist() == [False, True, False, True]
    assert arrives["dense1.0.bn1"].tolist() == [True, False]
    assert arrives["trans1.bn1"].tolist() == [False, True, True, True, False]    # of 0, 1, 3, 4, 5
    for own, kept in (([3, 4], ("conv1", 3)), ([4, 5], ("dense1.0.conv1", 0))):  # the first one, wherever it comes from
        model.trans1.select.indices = torch.tensor(own)
        keep = {name: torch.ones(len(s), dtype=torch.bool) for name, s in score.items()}
        keep["conv1"][3], keep["dense1.0.conv1"][:] = False, False
        assert streams.arriving(model, keep)["trans1.bn1"].tolist() == [True, False]
        gone = {("conv1", 3), ("dense1.0.conv1", 0), ("dense1.0.conv1", 1)} - {kept}
        assert {(name, int(i)) for name, mask in keep.items() for i in (~mask).nonzero()} == gone


def macs_left(model, scores, k, round_to=1):
    """The MACs after slimming.prune has removed the k channels with the smallest scores."""
    keep, _ = prune.choose(scores, (k + 0.5) / sum(map(len, scores.values())))
    keep = channels.keep_some(keep, scores, round_to, quiet=True)
    keep = streams.follow(keep, scores, model, round_to)
    return compute_flops.count(narrow(model, channels.over_all_channels(keep, model))).total.macs


@pytest.mark.parametrize("with_streams, round_to", [(False, 1), (False, 4), (True, 1), (True, 4)])
@pytest.mark.parametrize("wanted", [0.5, 0.25])
def test_keep_macs_removes_the_fewest_channels_that_do(wanted, with_streams, round_to, capsys):
    """Also from a network that was narrowed before, whose selections pass on part of their channels."""
    model = network("preresnet-basic-select")
    ckpt = {"dense": compute_flops.summary(model), "arch": model.arch}
    dense = ckpt["dense"]["macs"]
    flags = ["--model", "m", "--keep-macs", str(wanted), "--round-to", str(round_to)]
    if wanted == 0.25:
        gammas = channels.gammas_of(model)
        model = narrow(model, channels.keep_some(prune.choose(gammas, 0.3)[0], gammas, quiet=True))
    scores = {**channels.gammas_of(model), **(streams.scores(model) if with_streams else {})}
    percent = prune.amount_for(prune.parse(flags), ckpt, model, scores, None)
    k = int(sum(map(len, scores.values())) * percent)
    left = macs_left(model, scores, k, round_to)
    assert left <= wanted * dense < macs_left(model, scores, k - 1, round_to)
    assert capsys.readouterr().out == f"--percent {percent:.6f} keeps {left / dense:.4f} of the MACs\n"


def test_keep_macs_may_take_all_but_one_channel_of_every_layer():
    """The last two channels lie in one layer: it is left with one of them."""
    model = network("vgg")
    scores = {name: torch.zeros(len(gamma)) for name, gamma in channels.gammas_of(model).items()}
    scores["feature.1"][:2] = torch.tensor([1.0, 2.0])
    keep = {name: torch.arange(len(s)) == int(s.argmax()) for name, s in scores.items()}
    dense = compute_flops.summary(model)
    least = compute_flops.count(narrow(model, keep)).total.macs / dense["macs"]
    args = prune.parse(["--model", "m", "--keep-macs", str(1.0001 * least)])
    percent = prune.amount_for(args, {"dense": dense, "arch": model.arch}, model, scores, None)
    total = sum(map(len, scores.values()))
    assert int(total * percent) == total - 1


def thinned(name):
    """The network with some of its filters zero, their batch norms too: channels that may go."""
    model = network(name)
    return zeroed(model, choose(model, lambda r: r.producers and not r.stream and r.group_size == 1))


@pytest.mark.parametrize("name", ["vgg", "resnet-basic", "wideresnet", "mobilenetv2", "lenet5"])
def test_compact_and_reweighted_round_up_exactly(name):
    model = thinned(name)
    odd, even = compact(model), compact(model, 4)
    other, _ = reweighted_prune.narrowed(copy.deepcopy(model), {}, quiet=True, round_to=4)
    for small in (odd, even, other):
        assert_same(model, small)
    had, widths = ([w for w in m.cfg["widths"] if w != "M"] for m in (model, even))
    assert all(w % 4 == 0 or w == h for w, h in zip(widths, had, strict=True))
    assert any(w % 4 for w in odd.cfg["widths"] if w != "M") and widths != had
    if name != "lenet5":
        assert all(w % 4 == 0 or w == h for w, h in zip([w for w in other.cfg["widths"] if w != "M"], had, strict=True))


def test_a_constant_that_the_next_batch_norm_takes_up_keeps_no_channel():
    model = network("resnet-bottleneck")
    block = model.layer1[0]                                  # conv3 has no padding and no bias, and bn3 behind it
    with torch.no_grad():
        block.conv2.weight[3] = 0
        block.bn2.bias[3] = 9
    small = compact(model)
    assert small.layer1[0].conv2.out_channels == block.conv2.out_channels - 1
    assert_same(model, small)


def test_compacted_groups_count_as_many_channels_as_they_have():
    model = network("resnext")
    record = next(r for r in model.channels() if r.group_size > 1)
    modules, size = dict(model.named_modules()), record.group_size
    with torch.no_grad():
        for layer in record.names():
            for parameter in modules[layer].parameters(recurse=False):
                parameter[:size] = 0
        for consumer in record.consumers:
            modules[consumer.layer].weight[:, :size] = 0
    for multiple, kept in ((1, 2), (size, 2), (3 * size, 3)):            # of three groups
        small = compact(model, multiple)
        assert small.cfg[record.places[0][0]][record.places[0][1]] == kept * size


def test_hoyer_compacts_to_multiples(tmp_path):
    call("hoyer.compact", "--model", save(tmp_path / "a.pth", thinned("vgg").float()), "--round-to", 4)
    widths = checkpoint.load(tmp_path / "a_compact.pth")["cfg"]["widths"]
    assert all(w == "M" or w % 4 == 0 or w == h for w, h in zip(widths, NETS["vgg"][1]["widths"], strict=True))


def test_soft_masks_round_up_by_their_values():
    model = network("resnet-basic")
    name = "layer1.0.conv1"
    mask = torch.zeros(16)
    mask[[2, 5, 9]], mask[11] = 0.9, 0.4
    keep = softmask_prune.choose(model, {name: mask}, t=0.5, quiet=True, round_to=4)[name]
    assert keep.nonzero().flatten().tolist() == [2, 5, 9, 11]
    assert softmask_prune.choose(model, {name: mask}, t=0.5, quiet=True)[name].sum() == 3
    assert not softmask_prune.choose(model, {name: mask * 0}, quiet=True, round_to=4)[name].any()   # the shortcut
    last = softmask_prune.choose(network("vgg"), {"feature.0": torch.tensor([0.1, 0.2, 0.5, 0.4, 0.3, 0])}, t=0.9)
    assert last["feature.0"].tolist() == [False, False, True, False, False, False]       # it keeps its strongest
    name = "stage_1.stage_1_bottleneck_0.conv_reduce"        # groups of 64 channels, each with one mask
    keep = softmask_prune.choose(network("resnext"), {name: torch.tensor([0, 0.5, 0])}, round_to=128)[name]
    assert keep.tolist() == [True] * 128 + [False] * 64
