"""Network slimming: the penalty's gradient, the selection rule, and networks that compute the same after it."""
import copy
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from by_hand import STEPS, as_original, assert_same_logits, assert_same_network, pruned_by, save, train_by_hand
from conftest import Blank
from torch import nn

from common import UserError, compute_flops, models
from common.files import checkpoint
from common.models.layers import ChannelSelection
from common.models.narrow import narrow
from common.models.own import Own
from slimming import channels, compact, finetune, main, prune, streams
from slimming import mask as masking
from slimming.networks import network
from softmask import finetune as softmask_finetune

pytestmark = pytest.mark.usefixtures("undrawn")
FAMILIES = {"vgg": 11, "resnet": 11, "densenet": 10}
WIDTHS = {"vgg": {"widths": [16, "M", 32, "M", 40, 48, "M", 32, 40, "M", 48, 24]}}         # 280 channels


def trained_like(arch, depth=None, **more):
    """A network whose batch norms look trained: all statistics differ, gammas are spread and partly negative.

    depth None: a small one of the family.
    """
    torch.manual_seed(0)
    name, cfg = network(arch, depth or FAMILIES[arch])
    model = models.build(name, num_classes=10, **cfg, **(more if depth else WIDTHS.get(arch, {})))
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 0.3, 0.2)
            nn.init.normal_(m.bias, 0, 0.2)
            nn.init.normal_(m.running_mean, 0, 0.2)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
    return model.eval()


def saved(path, arch, **kwargs):
    model = trained_like(arch)
    save(path, model, stage="sparse", prec1=10.0, best_prec1=10.0, **kwargs)
    return model


def cut(source, folder, *flags, script=prune):
    script.main(["--model", str(source), "--save", str(folder), "--subset", "20", "--device", "cpu", *flags])
    return checkpoint.load(folder / "pruned.pth.tar")


def chosen(model, percent):
    scores = channels.gammas_of(model)
    return channels.keep_some(prune.choose(scores, percent)[0], scores)


A, B, SAME = [0.5, 0.1, 0.9], [0.2, 0.3, 0.8, 0.7], [0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("a, b, percent, faithful, keep", [
    (A, B, 0.45, False, "1010011"),                          # int(7 * 0.45) = 3 channels: 0.1, 0.2, 0.3
    (A, B, 0.45, True, "0010011"),                           # all that are not above sorted[3] = 0.5
    (SAME, [], 0.5, False, "0011"), (SAME, [], 0.5, True, "0000"),
    (B, [], 0, False, "1111"), (B, [], 0.999, False, "0010")])
def test_one_threshold_removes_exactly_k_channels_wherever_they_are(a, b, percent, faithful, keep):
    kept, threshold = prune.choose({"a": torch.tensor(a), "b": torch.tensor(b)}, percent, faithful)
    assert "".join(str(int(k)) for mask in kept.values() for k in mask) == keep
    assert threshold == sorted(torch.tensor(a + b).tolist())[int(len(a + b) * percent)]


@pytest.mark.parametrize("arch, depth, pruned", [("vgg", 13, 1178), ("resnet", 29, 813), ("densenet", 40, 3745)])
def test_the_original_counts_at_40_percent(arch, depth, pruned):
    """What the original scripts drop at --percent 0.4 (0.4 T + 1), and ours, one less."""
    scores = channels.gammas_of(trained_like(arch, depth))
    for faithful, expected in ((True, pruned), (False, pruned - 1)):
        keep, _ = prune.choose(scores, 0.4, faithful)
        assert sum(int((~mask).sum()) for mask in keep.values()) == expected


def test_no_layer_loses_all_its_channels(capsys):
    scores = {"weak": torch.tensor([0.1, 0.3, 0.2]), "strong": torch.tensor([1.0, 2.0])}
    keep, _ = prune.choose(scores, 0.6)
    assert not keep["weak"].any()
    kept = channels.keep_some(keep, scores)
    assert kept["weak"].tolist() == [False, True, False]
    assert capsys.readouterr().out == "weak: all 3 channels are below the threshold; it keeps its strongest 1\n"
    channels.keep_some(keep, scores, quiet=True)
    assert not capsys.readouterr().out


def test_round_to_gives_multiples_and_keeps_the_strongest():
    scores = {"a": torch.arange(32.0), "b": torch.arange(20.0), "c": torch.arange(6.0), "d": torch.arange(32.0),
              "e": torch.arange(22.0)}
    keep = {name: scores[name] >= least for name, least in (("a", 21), ("b", 3), ("c", 4), ("d", 19), ("e", 1))}
    assert [int(mask.sum()) for mask in keep.values()] == [11, 17, 2, 13, 21]
    kept = channels.keep_some(keep, scores, round_to=8)
    assert {name: int(mask.sum()) for name, mask in kept.items()} == {"a": 8, "b": 16, "c": 6, "d": 16, "e": 22}
    assert kept["a"].nonzero().flatten().tolist() == list(range(24, 32))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])            # None: the mean of all batches, as in --recalibrate
def test_selecting_through_a_batch_norm_is_selecting_what_it_gives(momentum, training):
    torch.manual_seed(0)
    ours, plain, select = (*(nn.BatchNorm2d(6, momentum=momentum) for _ in range(2)), ChannelSelection(6, 3))
    select.indices = torch.tensor([0, 2, 5])
    nn.init.normal_(ours.weight)
    plain.load_state_dict(ours.state_dict())
    ours.train(training), plain.train(training)
    for _ in range(3):
        x = torch.randn(4, 6, 5, 5).contiguous(memory_format=torch.channels_last)
        a, b = select(x, ours), plain(x)[:, [0, 2, 5]]
        torch.testing.assert_close(a, b)
    assert a.is_contiguous(memory_format=torch.channels_last)
    a.square().sum().backward(), b.square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name)[[0, 2, 5]], getattr(plain, name)[[0, 2, 5]])
    assert ours.num_batches_tracked == plain.num_batches_tracked


def test_milestones():
    milestones = finetune.milestones
    assert milestones(160) == milestones(160, faithful=True) == [80, 120]
    assert milestones(99) == [49, 74]
    assert milestones(99, faithful=True) == []               # 49.5 and 74.25 never come
    assert milestones(1) == []                               # not at the very start
    assert milestones(2) == [1]                              # tenfold, not a hundredfold
    assert milestones(2, faithful=True) == [1]               # 1.5 never comes


def test_both_spellings_of_fine_tuning_have_the_same_flags():
    flags = ["--refine", "pruned.pth.tar", "-sr", "--s", "0.1", "--lr", "0.3", "--faithful"]
    for given in (flags, flags[:2]):
        assert vars(main.parse(given)) == vars(finetune.parse(given)) | {"pretrained": None}
    assert main.parse([]).s == main.parse(["-sr"]).s == 1e-4             # on record where it was not given


USUAL = ["--epochs", "4"], [0.02, 0.02, 0.002, 0.0002]
PENALTY = ["-sr", "--s", "0.1", "--epochs", "3", "--faithful"], [0.02, 0.02, 0.02]       # 1.5 and 2.25 never come


def train_and_compare(model, flags_and_rates, script, flags, folder, masks=None):
    """The script's network after training, against a loop written out by hand from the model on."""
    more, rates = flags_and_rates
    args = script.parse([*flags, *STEPS, *more, "--save", str(folder)])
    args.s = 0.1                                             # without -sr it changes nothing
    (script.finetune if args.refine else script.train)(args)

    def loss(logits, images, labels, epoch):
        gammas = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        return F.cross_entropy(logits, labels) + 0.1 * ("-sr" in more) * sum(gamma.abs().sum() for gamma in gammas)
    train_by_hand(model, rates, 0.8, 0.1, loss, masks)
    name = "finetuned" if masks else "checkpoint"
    assert_same_network(checkpoint.load(folder / f"{name}.pth.tar")["state_dict"], model)


@pytest.mark.parametrize("how", [USUAL, PENALTY])
def test_training_is_what_the_formulas_say(how, tmp_path):
    """Weight decay, momentum, schedule and the sign of negative gammas; from a network of another method."""
    torch.manual_seed(0)
    name, cfg = network("densenet", 7)
    model = models.build(name, num_classes=10, **cfg)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight.data[::2] *= -1
    path = save(tmp_path / "m.pth.tar", model, "magnitude")
    train_and_compare(model, how, main, ["--pretrained", str(path)], tmp_path / "run")


@pytest.mark.parametrize("how, script", [(USUAL, finetune), (PENALTY, main), (PENALTY, finetune)])
def test_fine_tuning_is_what_the_formulas_say(how, script, tmp_path):
    torch.manual_seed(0)
    name, cfg = network("densenet", 7)
    model = models.build(name, num_classes=10, **cfg)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 0, 0.5)                # half of what pruning leaves is negative
            nn.init.normal_(m.bias, 0, 0.2)
    save(tmp_path / "m.pth.tar", model, stage="sparse")
    ckpt = cut(tmp_path / "m.pth.tar", tmp_path / "p", "--percent", "0.4", script=masking)
    train_and_compare(checkpoint.to_model(ckpt), how, script, ["--refine", str(tmp_path / "p/pruned.pth.tar")],
                      tmp_path / "run", ckpt["masks"])


@pytest.mark.parametrize("arch", ["vgg", "densenet"])
def test_mask_then_compact_is_the_same_network(arch, tmp_path):
    saved(tmp_path / "m.pth.tar", arch)
    masked = cut(tmp_path / "m.pth.tar", tmp_path / "masked", "--percent", "0.6", script=masking)
    small = cut(tmp_path / "masked/pruned.pth.tar", tmp_path / "small", script=compact)
    assert masked["masks"] and "masks" not in small and small["stage"] == "pruned"
    assert "(as the masks say)" in (tmp_path / "small/prune.txt").read_text()
    assert_same_logits(checkpoint.to_model(masked), checkpoint.to_model(small))
    assert sum(v.numel() for v in small["state_dict"].values()) < sum(v.numel() for v in masked["state_dict"].values())
    tuned = checkpoint.save(tmp_path / "tuned.pth.tar", {**masked, "stage": "finetuned"})
    assert cut(tuned, tmp_path / "c", script=compact)["stage"] == "finetuned"
    assert cut(tuned, tmp_path / "d", "--percent", "0.5")["stage"] == "pruned"


def test_compact_after_a_first_narrowing(tmp_path):
    """The selections of the narrow network pass on only some channels, and the masks are about these."""
    had = sum(map(len, channels.gammas_of(saved(tmp_path / "m.pth.tar", "resnet")).values()))
    cut(tmp_path / "m.pth.tar", tmp_path / "narrow", "--percent", "0.3")
    masked = cut(tmp_path / "narrow/pruned.pth.tar", tmp_path / "masked", "--percent", "0.3", script=masking)
    small = cut(tmp_path / "masked/pruned.pth.tar", tmp_path / "small", script=compact)
    left = had - int(0.3 * had)
    assert sum(small["cfg"]["widths"]) == left - int(0.3 * left) and sum(masked["cfg"]["widths"]) == left
    unread = torch.ones(256, dtype=torch.bool).index_fill(0, masked["state_dict"]["select.indices"], False)
    assert unread.any() and not masked["masks"]["bn.weight"][unread].any()   # dropped before, so they stay dropped
    assert masked["state_dict"]["bn.weight"][unread].eq(0).all()
    assert_same_logits(checkpoint.to_model(masked), checkpoint.to_model(small))


def test_masks_of_gammas_alone_remove_no_channels(tmp_path):
    """hoyer prunes gammas, and their channels are constant then."""
    model = trained_like("vgg")
    masks = {f"{name}.weight": torch.arange(len(i)) > 0 for name, i in channels.candidates(model).items()}
    with pytest.raises(UserError, match="x holds no masks of channels"):
        channels.masked({"path": "x", "masks": masks}, model)
    first, *_ = names = list(channels.candidates(model))
    both = masks | {f"{name}.bias": masks[f"{name}.weight"].clone() for name in names}
    both[f"{first}.bias"][0] = True
    found = channels.masked({"path": "x", "masks": both}, model)
    assert found[first].all() and [name for name in names if found[name].all()] == [first]


def test_a_fully_masked_layer_is_no_error_and_still_compacts(tmp_path, capsys):
    model = trained_like("resnet")
    model.layer2[0].bn2.weight.data.mul_(1e-6)               # this layer goes as a whole
    save(tmp_path / "m.pth.tar", model, stage="sparse")
    cut(tmp_path / "m.pth.tar", tmp_path / "a", "--percent", "0.5", script=masking)
    out = capsys.readouterr().out
    assert "layer2.0.bn2: all channels are zero" in out and out.count("all channels are zero") == 1
    small = cut(tmp_path / "a/pruned.pth.tar", tmp_path / "b", script=compact)
    assert small["state_dict"]["layer2.0.conv1.weight"].shape[0] == 1
    assert_same_logits(tmp_path / "a/pruned.pth.tar", tmp_path / "b/pruned.pth.tar")


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_file_of_the_original_repository_prunes_like_the_original(arch, tmp_path, capsys):
    """Strict threshold over all batch norms, gamma and beta to zero; widths are kept channels, 'M' for the pools."""
    model = trained_like(arch)
    widths = [] if arch != "vgg" else WIDTHS["vgg"]["widths"]
    torch.save({"epoch": 3, "state_dict": as_original(model), "best_prec1": 0.9, "cfg": widths or None},
               tmp_path / "theirs.pth.tar")
    small = checkpoint.to_model(cut(
        tmp_path / "theirs.pth.tar", tmp_path / "p", "--arch", arch, "--depth", str(FAMILIES[arch]), "--dataset",
        "shapes10", "--faithful", "--percent", "0.3"))
    assert "without -sr" not in capsys.readouterr().out      # the file does not say how it was trained
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    everything = torch.cat([m.weight.detach().abs() for m in norms]).sort().values
    masks = [m.weight.abs() > everything[int(len(everything) * 0.3)] for m in norms]
    for m, mask in zip(norms, masks, strict=True):
        m.weight.data.mul_(mask)
        m.bias.data.mul_(mask)
    kept = iter(int(mask.sum()) for mask in masks)
    assert small.cfg["widths"] == [w if w == "M" else next(kept) for w in widths or masks]
    assert_same_logits(model, small)


def test_the_random_control_drops_as_many_channels_but_others(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(prune, "draw", lambda gammas, keep, threshold: drawn.append(threshold) or Blank())
    saved(tmp_path / "m.pth.tar", "vgg")
    gamma, random, other = (
        [w for w in cut(tmp_path / "m.pth.tar", tmp_path / str(number), "--percent", "0.4", "--criterion", *more)[
            "cfg"]["widths"] if w != "M"]
        for number, more in enumerate((["gamma"], ["random"], ["random", "--seed", "2"])))
    assert sum(gamma) == sum(random) == sum(other) and gamma != random != other
    assert 0 < drawn[0] < 1 and drawn[1:] == [None] * 2      # random numbers have no place among the gammas
    saved(tmp_path / "r.pth.tar", "resnet")
    flags = ["--keep-macs", "0.4", "--criterion", "random", "--streams", "--round-to", "8"]
    streams = cut(tmp_path / "r.pth.tar", tmp_path / "s", *flags)["cfg"]["streams"]
    assert all(left < had and left % 8 == 0 for left, had in zip(streams[1:], (64, 128, 256), strict=True))


def test_keep_macs_reads_no_constants():
    """A channel with a gamma of zero before a convolution that pads: its beta becomes zero when it is removed."""
    model = trained_like("vgg")
    model.feature[1].weight.data[:8], model.feature[1].bias.data[:8] = 0, 0.5
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    args = prune.parse(["--model", "x", "--keep-macs", "0.5"])
    ckpt = {"arch": model.arch, "cfg": model.cfg, "dense": None}
    percent = prune.amount_for(args, ckpt, model, channels.gammas_of(model), args.percent)
    masked, keep = copy.deepcopy(model), chosen(model, percent)
    channels.zero(masked, keep)
    left = compute_flops.count(narrow(masked, keep)).total.macs / compute_flops.count(model).total.macs
    assert 0.45 < left <= 0.5 and not keep["feature.1"][:8].any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_streams_without_batch_norms_are_left_whole():
    class Plain(nn.Module):
        """A stream that only convolutions without a batch norm write."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
            self.norm, self.fc = nn.BatchNorm2d(6), nn.Linear(8, 10)

        def forward(self, x):
            x = self.a(x)
            return self.fc((x + self.c(self.norm(self.b(x)).relu())).mean((2, 3)))
    model = Own(Plain(), "FILE.py:Plain", {"num_classes": 10, "input": [3, 8, 8]})
    assert [record.stream for record in model.channels()].count(True) == 1
    with pytest.raises(UserError, match="has no residual or dense stream"):
        streams.scores(model)
    assert list(channels.gammas_of(model)) == ["norm"]


def test_prune_writes_what_it_says(tmp_path, capsys, rendered):
    model = trained_like("resnet", 20)
    save(tmp_path / "m.pth.tar", model, stage="sparse")
    threshold = torch.cat(list(channels.gammas_of(model).values())).sort().values[544]
    ckpt = cut(tmp_path / "m.pth.tar", tmp_path / "p", "--percent", "0.4")
    out, text = capsys.readouterr().out, (tmp_path / "p/prune.txt").read_text()
    lines = text.splitlines()
    small, whole = (compute_flops.count(checkpoint.to_model(checkpoint.load(path)))
                    for path in (tmp_path / "p/pruned.pth.tar", tmp_path / "m.pth.tar"))
    total, before = small.total, whole.total
    assert (before.params, whole.selections, small.selections) == (219_482, 912, 912)
    assert lines[0] == "Configuration:" and json.loads(lines[1]) == ckpt["cfg"]["widths"]
    assert lines[2] == "Number of parameters:" and int(lines[3]) == total.params
    assert lines[4:6] == ["Test accuracy:", f"{ckpt['prec1'] / 100:.4f}"]
    for report in (text, out):
        assert f"{total.params:,}" in report and f"{total.macs:,}" in report and f"{2 * total.macs:,}" in report
        assert "requested 40.00 %" in report and "dropped 544 of 1360 channels: 40.00 %" in report
        assert f"threshold {threshold:.4g})" in report and compute_flops.table(small, whole) in report
        assert f"\n{'bn':34} {256:9,} {ckpt['cfg']['widths'][-1]:9,}\n" in report
        for name, a, b in (("parameters", before.params, total.params), ("MACs", before.macs, total.macs),
                           ("parameters with selection indexes", before.params + 912, total.params + 912),
                           ("FLOPs (2 x MACs)", 2 * before.macs, 2 * total.macs),
                           ("FLOPs as thop counts (2 x (MACs + 2 BN))", before.thop_flops, total.thop_flops)):
            assert f"\n{name:40} {a:14,} {b:14,} {100 * b / a:6.1f} %" in report
    assert (tmp_path / "p/prune.png").stat().st_size > 5000
    assert ckpt["dense"]["params"] == 219_482


@pytest.mark.parametrize("arch, script, flags", [("vgg", masking, []), ("resnet", prune, ["--round-to", "8"]),
                                                 ("densenet", prune, [])])
def test_another_methods_masks_stay_with_their_weights(arch, script, flags, tmp_path):
    model = trained_like(arch)
    masks = {name: torch.rand(w.shape) < 0.2 for name, w in model.named_parameters() if w.dim() == 4}
    save(tmp_path / "m.pth.tar", pruned_by(masks, model), "magnitude", "pruned", masks=masks)
    ckpt = cut(tmp_path / "m.pth.tar", tmp_path / "b", "--percent", "0.4", *flags, script=script)
    for name in masks:                                       # no other weight is exactly zero
        assert torch.equal(ckpt["state_dict"][name] != 0, ckpt["masks"][name])


def test_compact_takes_the_masks_of_every_batch_norm():
    model = trained_like("vgg")
    masks = channels.masks_of({name: torch.arange(len(i)) % 2 == 0 for name, i in channels.candidates(model).items()},
                              model)
    ckpt = {"masks": masks, "path": "m.pth.tar"}
    assert all(mask[0] and not mask[1] for mask in channels.masked(ckpt, model).values())
    for names in (["feature.0.weight"], list(masks)[:-2]):   # another method's alone, all but one
        with pytest.raises(UserError, match="m.pth.tar holds no masks"):
            channels.masked({**ckpt, "masks": {name: masks.get(name) for name in names}}, model)


def test_defaults_of_prune():
    args = prune.parse(["--model", "m.pth.tar"])
    assert (args.percent, args.criterion, args.seed, args.round_to) == (0.5, "gamma", 1, 1)


@pytest.mark.parametrize("gamma", [0.5, 0.0])
@pytest.mark.parametrize("keep", [[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]])
def test_of_equally_strong_channels_those_that_were_kept_stay(keep, gamma):
    keep = torch.tensor(keep, dtype=torch.bool)
    kept = channels.keep_some({"a": keep}, {"a": torch.full(keep.shape, gamma)}, round_to=4)["a"]
    assert int(kept.sum()) == 4 and int((kept & keep).sum()) == min(4, int(keep.sum()))


def test_which_channels_are_candidates():
    """Not those that a residual stream adds up; of a depthwise convolution those after it; of a selection all."""
    assert list(channels.candidates(models.build("resnet", depth=8))) == [f"layer{stage}.0.bn1" for stage in (1, 2, 3)]
    mobilenet = models.build("mobilenetv2")
    records = [record for record in mobilenet.channels() if not record.stream]
    assert list(channels.candidates(mobilenet)) == [record.producers[-1][1] for record in records]
    assert len(records[3].producers) == 2
    selections = channels.candidates(trained_like("resnet"))
    assert len(selections) == 3 * 3 + 1 and len(selections["bn"]) == 256


def test_zeroing_takes_gamma_and_beta_and_nothing_else():
    model, whole = trained_like("vgg"), trained_like("vgg")
    keep = {"feature.1": torch.arange(16) % 2 == 0}
    channels.zero(model, keep)
    masks = channels.masks_of(keep, model)
    assert masks.keys() == {"feature.1.weight", "feature.1.bias"}
    for name, tensor in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor * keep["feature.1"] if name in masks else tensor)
        assert name not in masks or torch.equal(masks[name], keep["feature.1"])


def test_the_random_control_has_a_seed():
    scores = {"a": torch.ones(50), "b": torch.ones(30)}
    first, again, other = (prune.random_scores(scores, seed) for seed in (1, 1, 2))
    for name, gammas in scores.items():
        assert len(first[name]) == len(gammas) and torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])
    assert not torch.equal(first["a"][:30], first["b"])


@pytest.mark.parametrize("arch, flags", [
    ("vgg", ["--percent", "0.2"]), ("vgg", ["--percent", "0.6"]), ("resnet", ["--percent", "0.2"]),
    ("densenet", ["--percent", "0.4", "--criterion", "random"])])
def test_pruning_again_by_less_gives_nothing_back(arch, flags, tmp_path):
    saved(tmp_path / "m.pth.tar", arch)
    first = cut(tmp_path / "m.pth.tar", tmp_path / "a", "--percent", "0.5", script=masking)["masks"]
    ckpt = cut(tmp_path / "a/pruned.pth.tar", tmp_path / "b", *flags, script=masking)
    left = sum(int(mask.sum()) for mask in channels.masked(ckpt, checkpoint.to_model(ckpt)).values())
    gone, total = map(int, re.search(r"dropped (\d+) of (\d+) ", (tmp_path / "b/prune.txt").read_text()).groups())
    assert gone == total - left == int(total * max(float(flags[1]), 0.5))                # all that are gone
    for folder in "bc":
        if folder == "c":                                    # narrowed, which drops what is masked
            ckpt = cut(tmp_path / "a/pruned.pth.tar", tmp_path / "c", *flags)
        for norm, passed in channels.candidates(checkpoint.to_model(ckpt)).items():      # those that are passed on
            for name in (f"{norm}.weight", f"{norm}.bias"):
                mask = ckpt["masks"][name]
                assert torch.equal(ckpt["state_dict"][name][passed] != 0, mask[passed])
                assert int(mask.sum()) <= int(first[name].sum())
                assert folder == "c" or not (mask & ~first[name]).any()


def test_a_network_trained_without_the_penalty_is_noted(tmp_path, capsys):
    for stage in ("dense", "finetuned"):
        save(tmp_path / "m.pth.tar", trained_like("densenet"), stage=stage)
        cut(tmp_path / "m.pth.tar", tmp_path / stage)
        assert ("without -sr" in capsys.readouterr().out) == (stage == "dense")


@pytest.mark.parametrize("script, arch, other", [("vggprune", "vgg", "resnet"), ("resprune", "resnet", "densenet"),
                                                 ("denseprune", "densenet", "vgg")])
def test_the_originals_prune_scripts_know_their_network(script, arch, other, tmp_path, monkeypatch, capsys):
    saved(tmp_path / "m.pth.tar", other)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--model", str(tmp_path / "m.pth.tar")])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(Path(prune.__file__).with_name(f"{script}.py")), run_name="__main__")
    assert end.value.code == 2 and f"not --arch {arch};" in capsys.readouterr().err


@pytest.mark.parametrize("script, flag", [(finetune, "--model"), (softmask_finetune, "--pruned")])
def test_fine_tuning_what_is_not_pruned_is_noted(script, flag, tmp_path, capsys):
    for stage in ("dense", "sparse", "pruned"):
        path = save(tmp_path / "m.pth.tar", models.build("resnet", depth=8), stage=stage)
        script.main([flag, str(path), "--subset", "20", "--batch-size", "10", "--epochs", "1", "--device", "cpu",
                     "--save", str(tmp_path / stage)])
        noted = f"note: {path} is {stage}, nothing in it is pruned" in capsys.readouterr().out
        assert noted == (stage != "pruned")
