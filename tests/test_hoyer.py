"""DeepHoyer: the penalties and their gradients, the pruning rules, the report, and compaction that changes nothing."""
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from by_hand import assert_same_logits, assert_same_network, like_trained, rows_of, save, train_by_hand
from reliability import same
from torch import nn

from common import UserError, cli, compute_flops, data, models
from common.compact import compact as take_out
from common.compact import compact_masked, removable
from common.evaluate import evaluate
from common.files import checkpoint
from common.models.narrow import narrow
from hoyer import (
    cifar,
    cifar_group,
    cifar_prun_tune,
    compact,
    element,
    finetune,
    launchers,
    main,
    networks,
    prun_tune_T,
    prun_tune_V,
    prune,
    regularizers,
    structure,
    sweep,
)
from hoyer.reports import architecture, compaction_report, sparsity_report

pytestmark = pytest.mark.usefixtures("undrawn")
ALL = regularizers.PENALTIES
INVARIANT = ("hoyer", "hs", "group-hoyer", "group-hs")
ROOT = Path(__file__).resolve().parent.parent
TRUTH = json.loads(Path(__file__).with_name("ground_truth.json").read_text())
VGG = [6, "M", 8, "M", 9, 8, "M", 7, 8, "M", 9, 10]
QUICK = ["--dataset", "shapes10", "--device", "cpu", "--precision", "fp32"]


# ---------------------------------------------------------------- the penalties

@pytest.mark.parametrize("name, value", [("l1", 7), ("hoyer", 1.4), ("hs", 1.96), ("tl1", 3.1), ("group-lasso", 12),
                                         ("group-hoyer", 2.4), ("group-hs", 2.96)])
def test_values_by_hand(name, value):
    w = torch.tensor([[3.0, 4.0], [0.0, 0.0]])               # columns 3 and 4, rows 5 and 0
    assert float(ALL[name](w)) == pytest.approx(value, abs=1e-5)
    assert float(ALL[name](-w)) == pytest.approx(value, abs=1e-5)


def test_groups_of_a_convolution_are_whole_filters_and_channels():
    w = torch.zeros(2, 3, 2, 2)
    w[0, 0] = torch.tensor([[1.0, 2.0], [2.0, 4.0]])         # norm 5
    w[1, 0, 0, 0] = 12
    filters, channels, everything = regularizers.group_norms(w)
    assert filters.tolist() == pytest.approx([5, 12]) and channels.tolist() == pytest.approx([13, 0, 0])
    assert float(everything) == pytest.approx(13)
    assert float(regularizers.group_lasso(w)) == pytest.approx(30)
    assert float(regularizers.group_hs(w)) == pytest.approx((17 ** 2 + 13 ** 2) / 169)


def test_gradients_by_their_formulas():
    torch.manual_seed(0)
    w = torch.randn(30, dtype=torch.float64, requires_grad=True)
    s1, s2, a, sign = w.abs().sum().item(), w.square().sum().item(), w.detach().abs(), w.detach().sign()
    expected = {"l1": sign, "hoyer": sign * (s2 ** -0.5 - a * s1 / s2 ** 1.5),
                "hs": 2 * sign * s1 / s2 ** 2 * (s2 - a * s1), "tl1": 2 * sign / (1 + a) ** 2}
    for name, gradient in expected.items():
        got, = torch.autograd.grad(ALL[name](w), w)
        torch.testing.assert_close(got, gradient)
    small, (hs,) = a < s2 / s1, torch.autograd.grad(ALL["hs"](w), w)
    assert (hs * sign > 0)[small].all() and (hs * sign < 0)[~small].all()              # shrinks below, grows above


@pytest.mark.parametrize("name", regularizers.GROUP)
def test_group_gradients_numerically(name):
    torch.manual_seed(0)
    w = torch.randn(3, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ALL[name], w)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2, 2)])
def test_zero_groups_and_zero_tensors_give_no_nan(name, shape):
    torch.manual_seed(0)
    w = torch.randn(shape)
    w[1], w[:, 2] = 0, 0
    zero, tiny = torch.zeros(shape), torch.full(shape, 1e-25)
    for tensor in (w, zero, tiny):
        tensor.requires_grad_()
        value = ALL[name](tensor)
        value.backward()
        assert value.isfinite() and tensor.grad.isfinite().all()
    assert not w.grad[1].any() and not w.grad[:, 2].any()
    assert ALL[name](zero) == 0 and not zero.grad.any()
    with torch.no_grad():
        tiny[1, 2] = torch.nan                               # which is not taken for zero
    assert ALL[name](tiny).isnan()


@pytest.mark.parametrize("name", INVARIANT)
@pytest.mark.parametrize("shape", [(300, 784), (4, 3), (4, 3, 2, 2)])
def test_tiny_entries_have_the_value_and_gradient_of_large_ones(name, shape):
    """R(w) = R(1e20 w), so dR/dw = 1e20 R'(1e20 w); squares of these entries are no float32 numbers."""
    torch.set_flush_denormal(True)                           # as in every run
    torch.manual_seed(0)
    w = (torch.randn(shape) * 1e-20).requires_grad_()
    large = (1e20 * w.detach().double()).requires_grad_()
    value, exact = ALL[name](w), ALL[name](large)
    gradient, expected = torch.autograd.grad(value, w)[0], 1e20 * torch.autograd.grad(exact, large)[0]
    assert gradient.isfinite().all() and value.item() == pytest.approx(exact.item(), rel=1e-4)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=float(expected.abs().max()) * 1e-4)


def test_scaling_a_tensor_costs_no_digit():
    """Value and gradient of Hoyer-Square are, bit for bit, those of S1^2 / S2 as it is written."""
    torch.manual_seed(0)
    w = (torch.randn(300, 784) * 0.03).requires_grad_()
    plain = torch.linalg.vector_norm(w, 1).square() / w.flatten().dot(w.flatten())
    assert torch.equal(ALL["hs"](w), plain)
    for ours, theirs in zip(torch.autograd.grad(ALL["hs"](w), w), torch.autograd.grad(plain, w), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("arch, sums", [("mlp", (5123, 623.5, 199_840, 9980, 634, 1591)),
                                        ("cnn", (7806, 797, 323_578, 15_236, 761, 1889))])
def test_sums_over_a_fresh_lenet_are_the_originals(arch, sums):
    torch.manual_seed(0)
    model = models.build(networks.network(arch)[0])
    for name, expected in zip(("l1", "hoyer", "hs", "tl1", "group-lasso", "group-hs"), sums, strict=True):
        got = sum(ALL[name](w) for w in regularizers.penalized(model, name))
        assert got.item() == pytest.approx(expected, rel=2e-3), name


def test_which_tensors_are_penalized():
    lenet, resnet = models.build("lenet300"), models.build("resnet", depth=20)
    assert len(regularizers.penalized(lenet, "hs")) == 6     # biases too
    assert len(regularizers.penalized(lenet, "group-hs")) == 3
    assert len(regularizers.penalized(resnet, "group-hs")) == 22                       # 21 convolutions and fc
    for arch, cfg, weights in (("resnet", {"depth": 20}, 22), ("vgg", {"depth": 11, "variant": "bearpaw_bn"}, 9),
                               ("vgg", {"depth": 16, "variant": "head512"}, 15)):     # the latter with a BatchNorm1d
        found = regularizers.penalized(models.build(arch, **cfg), "hs")
        assert len(found) == weights and all(w.dim() > 1 for w in found)


def test_numbers_and_names_of_reg():
    def regs(script, numbers):
        parser = launchers.training_flags("", script.PENALTIES)
        return [parser.parse_args(["--reg", number]).reg for number in numbers]

    assert regs(element, "01234") == ["none", "l1", "hoyer", "hs", "tl1"]
    assert regs(structure, "012") == ["none", "group-lasso", "group-hs"]
    assert regs(cifar_group, "0123") == ["none", "group-lasso", "group-hoyer", "group-hs"]
    assert regs(element, ["hs"]) == ["hs"] and main.flags().parse_args(["--reg", "hs"]).reg == "hs"


# ---------------------------------------------------------------- training

def saved(path, arch="lenet300", **cfg):
    torch.manual_seed(0)
    model = models.build(arch, **cfg)
    save(path, model, "hoyer", "sparse", dense=compute_flops.summary(model))
    return model


def cut(source, folder, *flags):
    prune.main(["--model", str(source), "--save", str(folder), "--subset", "20", "--device", "cpu", *flags])
    return checkpoint.load(Path(folder) / "pruned.pth.tar")


def train(folder, *flags, script=main):
    script.main([*QUICK, "--subset", "20", "--epochs", "1", "--save", str(folder), *flags])
    return checkpoint.load(Path(folder) / "checkpoint.pth.tar")


@pytest.mark.parametrize("script, flags, expected", [
    *[(script, ["--reg", reg] if reg else [], ("mnist", 250, 100, 1e-3, [], decay)) for script, reg, decay in (
        (element, "", 0), (element, "1", 0), (structure, "", 1e-4), (structure, "0", 1e-4),
        (main, "", 0), (main, "group-hs", 1e-4), (main, "hs", 0))],
    (cifar, [], ("cifar10", 300, 128, 0.1, [150, 225], 5e-4)),
    (main, ["--arch", "vgg11_bn"], ("cifar10", 300, 128, 0.1, [150, 225], 5e-4)),
    (main, ["--arch", "vgg11_bn", "--epochs", "9", "--batch-size", "8", "--lr", "0", "--schedule", "--wd", "0"],
     ("cifar10", 9, 8, 0.0, [], 0.0))])
def test_defaults_of_training(script, flags, expected, settings_of):
    found = settings_of(script, *flags)
    names = ("dataset", "epochs", "batch_size", "lr", "schedule", "weight_decay")
    assert tuple(found[name] for name in names) == expected


@pytest.mark.parametrize("script", [main, finetune])
@pytest.mark.parametrize("arch, cfg", [("lenet300", {}), ("resnet", {"depth": 8, "block": "basic"})])
def test_training_step_by_step_by_hand(script, arch, cfg, tmp_path, monkeypatch):
    """The penalty, Adam and SGD, both schedules, masks after every step; the result is of the last epoch, not the
    best."""
    model, lenet = saved(tmp_path / "m.pth.tar", arch, **cfg), arch == "lenet300"
    lr, falls, schedule = (1e-3, [1, 0.75, 0.25], ["cosine"]) if lenet else (0.05, [1, 0.5, 0.25], ["1", "2"])
    flags = ["--lr", str(lr), "--wd", "0.01", "--momentum", "0.7", "--batch-size", "10", "--epochs", "3", "--schedule",
             *schedule, "--gamma", "0.5", "--seed", "3", "--holdout", "20", "--subset", "40"]
    accuracies = iter([60.0, 50.0, 40.0, 30.0, 20.0])
    monkeypatch.setattr(script, "evaluate", lambda *_: {"loss": 1.0, "top1": next(accuracies)})
    if script is main:
        masks, reg, name = {}, "hs" if lenet else "group-hs", "checkpoint"
        train(tmp_path / "f", "--pretrained", str(tmp_path / "m"), "--reg", reg, "--decay", "1e-4", *flags)

        def loss(logits, images, labels, epoch):
            weights = [w for w in model.parameters() if lenet or w.dim() > 1]
            return F.cross_entropy(logits, labels) + sum(1e-4 * ALL[reg](w) for w in weights)
    else:
        masks = cut(tmp_path / "m.pth.tar", tmp_path / "p", "--sensitivity", "0.02")["masks"]
        model, loss, name = checkpoint.to_model(checkpoint.load(tmp_path / "p/pruned.pth.tar")), None, "finetuned"
        train(tmp_path / "f", "--model", str(tmp_path / "p/pruned.pth.tar"), *flags, script=finetune)
    whole = data.load("shapes10", channels=1 if lenet else 3, subset=40)
    dataset = replace(whole, x_train=whole.x_train[:20], y_train=whole.y_train[:20])
    loader = data.Loader(dataset, "train", 10, seed=3, **({} if lenet else {"crop": 4, "flip": True}))
    train_by_hand(model, [lr * fall for fall in falls], 0.7, 0.01, loss, masks, adam=lenet, loader=loader)
    assert_same_network(checkpoint.load(tmp_path / f"f/{name}.pth.tar")["state_dict"], model, 2e-3, 2e-5)
    assert checkpoint.load(tmp_path / "f/model_best.pth.tar")["epoch"] == 1


def test_names_of_files_and_pretrained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [*QUICK, "--subset", "20", "--epochs", "1"]
    saved("saves/elt_0.0_0.pth")
    element.main([*flags, "--reg", "3", "--decay", "0.00001", "--pretrained"])
    assert checkpoint.load("saves/elt_1e-05_3.pth")["stage"] == "sparse"
    with pytest.raises(UserError, match="already holds a run"):
        element.main([*flags, "--reg", "hs", "--decay", "0.00001"])
    prun_tune_T.main([*flags, "--model", "saves/elt_1e-05_3"])             # without its suffix
    prun_tune_T.main([*flags, "--model", "saves/elt_1e-05_3_T_0.001", "--sensitivity", "0.01"])          # further
    first, second = (checkpoint.load(f"saves/elt_1e-05_3_T_0.001{more}.pth") for more in ("", "_T_0.01"))
    assert first["stage"] == "finetuned"
    assert sum(int(m.sum()) for m in second["masks"].values()) < sum(int(m.sum()) for m in first["masks"].values())


@pytest.mark.parametrize("script, flags, name", [
    (element, "--reg 0 --decay 1", "saves/elt_0.0_0"), (structure, "--reg 2", "saves/str_0.001_2"),
    (structure, "--reg group-hs --decay 1e-3", "saves/str_0.001_2"),
    (structure, "--reg 0 --arch cnn", "saves/cnn/str_0.0_0")])
def test_folders_are_named_by_penalty(script, flags, name, settings_of):
    assert settings_of(script, *flags.split())["save"] == name


def test_holdout_takes_the_last_training_images(tmp_path):
    whole, part = (data.load("shapes10", channels=1, holdout=n) for n in (0, 100))
    assert torch.equal(part.x_test, whole.x_train[-100:]) and torch.equal(part.x_train, whole.x_train[:-100])
    assert torch.equal(part.y_test, whole.y_train[-100:]) and torch.equal(part.y_train, whole.y_train[:-100])
    train(tmp_path / "x", "--subset", "60", "--holdout", "20", "--lr", "0")
    ckpt = checkpoint.load(tmp_path / "x/checkpoint.pth.tar")
    held_out = data.Loader(data.load("shapes10", channels=1, subset=60, holdout=20), "test", 500)
    result = evaluate(checkpoint.to_model(ckpt), held_out)
    assert ckpt["resume"]["rows"][0]["test_loss"] == pytest.approx(result["loss"]) and ckpt["prec1"] == result["top1"]
    for n in (10000, -1):
        with pytest.raises(UserError, match=f"--holdout {n}"):
            data.load("shapes10", channels=1, holdout=n)


@pytest.mark.parametrize("n", [3, 10, 14])                   # of the last class, all of it, all and four more
def test_holdout_refuses_images_in_the_order_of_their_classes(n, tmp_path):
    x, y = torch.zeros(30, 28, 28, dtype=torch.uint8).numpy(), torch.arange(3).repeat_interleave(10).numpy()
    for name, order in (("sorted", range(30)), ("mixed", [i % 3 * 10 + i // 3 for i in range(30)])):
        np.savez(tmp_path / f"{name}.npz", x_train=x, y_train=y[list(order)], x_test=x, y_test=y)
    assert len(data.load(str(tmp_path / "mixed.npz"), holdout=n).y_test) == n
    with pytest.raises(UserError, match="order of its classes"):
        data.load(str(tmp_path / "sorted.npz"), holdout=n)


@pytest.mark.parametrize("flags, truth", [
    ("alexnet", "alexnet"), ("vgg19_bn", "vgg19_bn"), ("resnet --depth 110", "resnet110-basic"),
    ("preresnet --depth 164 --block-name Bottleneck", "preresnet164-bottleneck"),
    ("wrn --depth 28 --widen-factor 10 --drop 0.3", "wrn-28-10"),
    ("resnext", "resnext29-8x64"), ("resnext --depth 29 --cardinality 16", "resnext29-16x64"),
    ("densenet", "densenet-bc-100-12"),
    ("densenet --depth 190 --growthRate 40", "densenet-bc-190-40")])
def test_the_nine_networks_of_the_trainer(flags, truth):
    _, arch, cfg = main.starting_point(main.flags().parse_args(["-a", *flags.split()]))
    model = models.sketch(arch, **cfg)
    assert sum(p.numel() for p in model.parameters()) == TRUTH[f"bearpaw:{truth}|c10"]["params"]
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.3] * 12 * ("--drop" in flags)


def test_a_name_that_says_depth_and_width_leaves_the_dropout_to_choose():
    long, short = (main.starting_point(cli.settings(main, arch=arch, **sizes, dropout=0.3)) for arch, sizes in (
        ("wrn", dict(depth=28, widen_factor=10)), ("wrn_28_10", {})))
    assert long == short and short[2] == {"depth": 28, "widen_factor": 10, "dropout": 0.3}
    with pytest.raises(UserError, match="wrn_28_10 has no widen factor to choose; leave out 4"):
        networks.network("wrn_28_10", widen_factor=4)


def test_a_file_of_the_original_trainer_is_the_start(tmp_path, capsys, settings_of):
    """A state_dict as DataParallel wrote it; the flags say which network it is. Evaluated, and trained on."""
    torch.manual_seed(0)
    flags = ["-a", "wrn", "--depth", "10", "--widen-factor", "2"]
    arch, cfg = networks.network("wrn", 10, widen_factor=2)
    state = {f"module.{name}": w for name, w in models.build(arch, **cfg).state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3, "acc": 50.0, "best_acc": 60.0}, tmp_path / "model_best.pth.tar")
    file = str(tmp_path / "model_best")
    cifar.main([*QUICK, "--subset", "20", *flags, "--resume", file, "-e"])
    assert "top-1" in capsys.readouterr().out
    ckpt = train(tmp_path / "x", *flags, "--model", file, "--reg", "3", script=cifar_group)
    assert ckpt["cfg"]["widen_factor"] == 2 and ckpt["stage"] == "sparse" and ckpt["args"]["reg"] == "group-hs"
    assert settings_of(main, "--model", str(tmp_path / "x/checkpoint"))["dataset"] == "shapes10"     # the file's own


# ---------------------------------------------------------------- pruning

def test_thresholds_by_hand():
    w = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert prune.threshold(w, "T", 0.3) == 0.3
    assert prune.threshold(w, "V", 0.5) == pytest.approx(0.5 * 1.7853571, rel=1e-6)    # population deviation
    assert prune.threshold(w, "V", 0.5) == pytest.approx(0.5 * float(np.std(w.numpy())), rel=1e-6)
    assert prune.element_mask(torch.tensor([0.1, -0.2, 0.3, -0.4]), 0.3).tolist() == [False, False, True, True]
    assert prune.element_mask(torch.tensor([0.0, 1e-9]), 0.0).all()                   # 0 prunes nothing


def test_groups_go_as_a_whole():
    w = torch.tensor([[0.1, 0.1, 0.1], [3.0, 4.0, 0.0], [2.0, 0.0, 0.01]])
    keep = prune.group_mask(w, 0.2)                         # row 0 and column 2 have small root mean squares
    assert keep.tolist() == [[False] * 3, [True, True, False], [True, True, False]]
    conv = torch.ones(2, 2, 3, 3)
    conv[0] = 0.1
    assert torch.equal(prune.group_mask(conv, 0.3), conv == 1)           # root mean squares of 0.1, norms of 0.42
    assert torch.equal(prune.group_mask(conv.transpose(0, 1), 0.3), conv.transpose(0, 1) == 1)
    conv[1, 0, 0, 0] = 0                                     # one zero in a strong group stays with it
    assert prune.group_mask(conv, 0.5)[1].all()
    assert prune.group_mask(torch.tensor([0.0, 1.0]), 0.5).all()


def test_groups_are_chosen_by_granularity():
    torch.manual_seed(0)
    model = models.build("lenet5")
    groups, _ = prune.choose(model, "T", 0.02, granularity="group")
    for name, w in model.named_parameters():
        assert torch.equal(groups[name], prune.group_mask(w, 0.02)), name
    assert not torch.equal(groups["fc1.weight"], prune.element_mask(model.fc1.weight, 0.02))


def test_what_is_prunable():
    assert len(prune.prunable(models.build("lenet5"))) == 8
    names = set(prune.prunable(models.build("resnet", depth=20)))
    assert {"bn1.weight", "conv1.weight", "fc.weight"} <= names and not any("bias" in name for name in names)


def test_the_random_control_keeps_as_many_of_each_tensor():
    """By keep.shuffled, which test_magnitude.py tests."""
    torch.manual_seed(0)
    model = models.build("lenet300")
    by_size, _ = prune.choose(model, "V", 0.5)
    at_random, other = (prune.choose(model, "V", 0.5, criterion="random", seed=seed)[0] for seed in (1, 2))
    assert all(by_size[name].sum() == mask.sum() for name, mask in at_random.items())
    for masks in (by_size, other):
        assert not torch.equal(masks["fc1.weight"], at_random["fc1.weight"])
    as_many = prune.choose(model, "V", 0.6, previous_masks=at_random)[0]
    masks = prune.choose(model, "V", 0.6, criterion="random", previous_masks=at_random)[0]
    for name, mask in masks.items():                         # of those that are there, and none of the others
        assert mask.sum() == as_many[name].sum() < at_random[name].sum() and not (mask & ~at_random[name]).any()


def test_prune_writes_what_it_says(tmp_path, capsys, rendered):
    model = saved(tmp_path / "m.pth.tar")
    ckpt = cut(tmp_path / "m.pth.tar", tmp_path / "p", "--sensitivity", "0.05")
    out, text = capsys.readouterr().out, (tmp_path / "p/prune.txt").read_text()
    left = {name: p.detach() * (p.detach().abs() >= 0.05) for name, p in model.named_parameters()}
    for name, w in left.items():
        assert torch.equal(ckpt["state_dict"][name], w) and torch.equal(ckpt["masks"][name], model.get_parameter(
            name).abs() >= 0.05)
    alive = sum(int(w.count_nonzero()) for w in left.values())
    for report in (out, text):
        assert f"alive: {alive}, pruned : {266610 - alive}, total: 266610, Compression rate : " in report
    assert (tmp_path / "p/prune.png").stat().st_size > 5000
    assert ckpt["stage"] == "pruned" and ckpt["dense"]["params"] == 266_610


def test_pruning_again_gives_nothing_back(tmp_path):
    """At threshold 0 every |w| is high enough, a pruned one's too. Masks of batch norms' biases, which slimming/mask.py
    makes and nothing prunes here, stay: else fine-tuning revives those."""
    model, masks = models.build("vgg", depth=11, widths=[64, *VGG[1:]]), {}
    for name in ("feature.1.weight", "feature.1.bias"):
        masks[name] = torch.arange(64) > 9
        model.get_parameter(name).data.fill_(0.3).mul_(masks[name])
    save(tmp_path / "m.pth.tar", model, stage="pruned", masks=masks)
    pruned = cut(tmp_path / "m.pth.tar", tmp_path / "p", "--sensitivity", "0")["masks"]
    for name, mask in pruned.items():
        assert torch.equal(mask, masks.get(name, torch.ones_like(mask))), name
    assert "feature.0.weight" in pruned and masks.keys() < pruned.keys()


# ---------------------------------------------------------------- the report

def test_the_report_line_for_line():
    model = models.build("lenet300", widths=[4, 3, 2], num_classes=2)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1)
        model.fc1.weight.copy_(torch.tensor([[1.0, 0, 0, 2], [0, 0, 0, 0], [0, 3, 0, 0]]))
        model.fc1.bias[1] = 0
    assert sparsity_report(model).splitlines() == [
        "fc1.weight           | nonzeros =       3 /      12 ( 25.00%) | total_pruned =       9 | shape = (3, 4)",
        "fc1.weight           | dim0 =       3 /       4 ( 75.00%) | dim1 =       2 /       3 ( 66.67%)",
        "fc1.bias             | nonzeros =       2 /       3 ( 66.67%) | total_pruned =       1 | shape = (3,)",
        "fc2.weight           | nonzeros =       6 /       6 (100.00%) | total_pruned =       0 | shape = (2, 3)",
        "fc2.weight           | dim0 =       3 /       3 (100.00%) | dim1 =       2 /       2 (100.00%)",
        "fc2.bias             | nonzeros =       2 /       2 (100.00%) | total_pruned =       0 | shape = (2,)",
        "fc3.weight           | nonzeros =       4 /       4 (100.00%) | total_pruned =       0 | shape = (2, 2)",
        "fc3.weight           | dim0 =       2 /       2 (100.00%) | dim1 =       2 /       2 (100.00%)",
        "fc3.bias             | nonzeros =       2 /       2 (100.00%) | total_pruned =       0 | shape = (2,)",
        "alive: 19, pruned : 10, total: 29, Compression rate :       1.53x  ( 34.48% pruned)",
        "weights alone, as papers count: 13 of 22 left (59.09%, 1.69x)"]


def test_the_report_counts_channels_and_filters_of_convolutions():
    model = models.build("lenet5")
    with torch.no_grad():
        model.conv2.weight[:, 3] = 0                         # an input channel
        model.conv2.weight[5:9] = 0                          # four filters
        model.conv2.weight[0, :, 1:] = 0                     # kernel positions, no group
    assert "conv2.weight         | dim0 =      19 /      20 ( 95.00%) | dim1 =      46 /      50 ( 92.00%)" in \
        sparsity_report(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert "Compression rate :        infx" in sparsity_report(model)
    model = models.build("vgg", depth=11, variant="head512", head=[20], widths=VGG)
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]     # no batch norms
    named = [line.split()[0] for line in sparsity_report(model).splitlines() if "nonzeros" in line]
    assert {name.rpartition(".")[0] for name in named} == set(layers)


# ---------------------------------------------------------------- compaction

def sparse_like(arch, **cfg):
    """(a float64 network with trained-looking batch norms, its masks): scattered zeros, dead inputs and outputs."""
    torch.manual_seed(0)
    model = like_trained(models.build(arch, **cfg).double())
    masks = {name: torch.rand(p.shape) < 0.5 for name, p in prune.prunable(model).items()}
    for mask in masks.values():
        if mask.dim() > 1 and mask.shape[1] > 3:
            mask[:, torch.rand(mask.shape[1]) < 0.3] = False
        if mask.shape[0] > 10:
            mask[torch.rand(mask.shape[0]) < 0.3] = False
    prune.apply(model, masks)
    return model.eval(), masks


def test_a_channel_without_gamma_is_taken_out():
    model = like_trained(models.build("vgg", depth=11, widths=WIDER[:-1]).double()).eval()
    norm = model.feature[1]
    with torch.no_grad():
        norm.weight[:3], norm.bias[:3] = 0, torch.tensor([-0.5, 0, 0.5])       # the last is not zero at the border
    small = take_out(model)
    assert small.feature[0].out_channels == model.feature[0].out_channels - 2
    assert_same_logits(model, small, 1e-9)


WIDER = [16, "M", 24, "M", 32, 32, "M", 40, 32, "M", 24, 40, "M"]
ZOO = {"lenet300": {}, "lenet5": {}, "alexnet": {}, "vgg-plain": dict(depth=11, variant="bearpaw", widths=WIDER),
       "vgg": dict(depth=11, variant="bearpaw_bn", widths=WIDER), "resnet": dict(depth=20, block="basic"),
       "resnet-bottleneck": dict(depth=20, block="bottleneck"), "preresnet": dict(depth=20, block="basic"),
       "preresnet-bottleneck": dict(depth=20, block="bottleneck"), "wideresnet": dict(depth=10, widen_factor=2),
       "densenet": dict(depth=16, block="bottleneck", compression=2)}


@pytest.mark.parametrize("key", ZOO)
def test_compacted_and_masked_networks_agree(key):
    model, masks = sparse_like(key.split("-")[0], **ZOO[key])
    before = [p.clone() for p in model.state_dict().values()]
    small, left = compact_masked(model, masks)
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert_same_logits(model, small, 1e-9)
    assert compute_flops.count(small).total.macs < compute_flops.count(model).total.macs
    assert not removable(small)
    for name, mask in left.items():                          # random weights: none is zero but those
        assert name in masks and torch.equal(mask, small.get_parameter(name).ne(0)), name


def test_whole_groups_of_a_resnext_go():
    torch.manual_seed(0)
    model = models.build("resnext", depth=11, cardinality=4, widen_factor=2).double().eval()
    with torch.no_grad():
        expand = model.stage_1.stage_1_bottleneck_0.conv_expand
        expand.weight[:, 64:128] = 0                         # the second group of 64 channels
        expand.weight[:, :30] = 0                            # part of the first, which therefore stays
    small = take_out(model)
    assert small.cfg["widths"][0] == model.cfg["widths"][0] - 64
    assert_same_logits(model, small, 1e-9)


def test_the_papers_mlp_353_45_11():
    """Neurons alive by hand: of those with inputs and readers only; the constants of the others go into biases."""
    torch.manual_seed(0)
    model = models.build("lenet300").double()
    with torch.no_grad():
        model.fc1.weight[:, 353:] = 0
        model.fc1.weight[45:60] = 0                          # constants: a bias, and readers
        model.fc2.weight[:, 60:] = 0                         # nobody reads them
        model.fc2.weight[11:40] = 0
        model.fc2.weight[40:50, :45] = 0                     # these read constants only
        model.fc3.weight[:, 50:] = 0
    small = take_out(model)
    assert architecture(small) == "353-45-11"
    assert_same_logits(model, small, 1e-9)
    assert compute_flops.count(small).total.macs == 353 * 45 + 45 * 11 + 11 * 10       # 16.5k, the paper's 6.19 %


def test_the_papers_cnn_5_12_139_13():
    torch.manual_seed(0)
    model = models.build("lenet5").double()
    with torch.no_grad():
        model.conv1.weight[5:] = 0                           # their biases stay, conv2 reads them
        model.conv2.weight[12:30] = 0
        model.fc1.weight[:, 30 * 16:] = 0
        position = torch.arange(800)
        model.fc1.weight[:, (position % 16 >= 12) | (position < 5)] = 0      # nothing reads these of living filters
        model.fc1.weight[13:] = 0
    small = take_out(model)
    assert architecture(small) == "5-12-139-13"
    assert_same_logits(model, small, 1e-9)
    assert compute_flops.count(small).total.macs == 576 * 25 * 5 + 64 * 25 * 5 * 12 + 139 * 13 + 10 * 13     # 169.9k


@pytest.mark.parametrize("arch", ["lenet300", "lenet5"])
def test_a_network_without_weights_keeps_one_of_everything(arch):
    model = models.build(arch).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("weight"):
                p.zero_()
    small = take_out(model)
    assert set(small.cfg["widths"]) == {1}
    assert_same_logits(model, small, 1e-9)
    model = narrow(model, {"select": torch.arange(model.select.width) >= 5})      # where the first was gone
    small = take_out(model)
    assert set(small.cfg["widths"]) == {1}
    assert_same_logits(model, small, 1e-9)


def test_compact_as_a_command(tmp_path, capsys):
    model = sparse_like("lenet300")[0].float()
    dense = compute_flops.summary(models.build("lenet300", widths=[784, 400, 200]))      # what the file says
    facts = dict(epoch=7, prec1=50.0, best_prec1=60.0, args={"lr": 0.5}, dense=dense, run={"minutes": 3.0})
    save(tmp_path / "m.pth", model, "magnitude", "finetuned", **facts)
    compact.main(["--model", str(tmp_path / "m")])
    ckpt = checkpoint.load(tmp_path / "m_compact.pth")
    small = checkpoint.to_model(ckpt)
    total, out = compute_flops.count(small).total, capsys.readouterr().out
    assert sparsity_report(model) in out and total.params < 266_610
    assert (f"\ncompacted: {architecture(small)}, {total.params:,} parameters of {dense['params']:,} "
            f"({100 * total.params / dense['params']:.2f}%), {total.macs:,} MACs of {dense['macs']:,} "
            f"({100 * total.macs / dense['macs']:.2f}%); its logits differ by ") in out
    expected = dict(method="hoyer", stage="finetuned", dataset="shapes10", **facts)
    assert expected == {key: ckpt[key] for key in expected}
    assert_same_logits(model, small)
    with pytest.raises(UserError, match="there already"):
        compact.main(["--model", str(tmp_path / "m")])
    with pytest.raises(UserError, match="not --arch cnn"):
        compact.main(["--model", str(tmp_path / "m"), "--arch", "cnn", "--overwrite"])
    save(tmp_path / "m.pth", model, "hoyer", "pruned")
    for flags, name in (["--overwrite"], "m_compact"), (["--save", str(tmp_path / "x.pth")], "x"):
        compact.main(["--model", str(tmp_path / "m"), *flags])
        ckpt = checkpoint.load(tmp_path / f"{name}.pth")
        assert ckpt["stage"] == "pruned" and ckpt["dense"]["params"] == 266_610          # the file's own, now


def test_the_report_on_compaction_compares_the_logits():
    """Of 2, 2, ... against 1.5, 1.5, ...: a quarter, refused; of zeros against zeros nothing; in evaluation mode."""
    big, small = (models.build("lenet300", widths=[784, 2, 2]) for _ in range(2))
    dense = compute_flops.summary(big)
    for values in ((2.0, 1.5), (0.0, 0.0)):
        for model, value in zip((big, small), values, strict=True):
            for p in model.parameters():
                nn.init.zeros_(p)
            nn.init.constant_(model.fc3.bias, value)
        if values[0] != values[1]:
            with pytest.raises(UserError, match="logits differ by 2.5e-01 of the largest. Nothing was written"):
                compaction_report(big, small, dense)
    assert compaction_report(big, small, dense).endswith("; its logits differ by 0.0e+00 of the largest")
    wide = models.build("vgg", depth=11, widths=VGG)
    for m in wide.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.constant_(m.running_mean, 0.5)
    report = compaction_report(wide.train(), take_out(wide).train(), compute_flops.summary(wide))
    assert report.endswith("; its logits differ by 0.0e+00 of the largest")
    assert architecture(wide) == "6 M 8 M 9 8 M 7 8 M 9 10"


# ---------------------------------------------------------------- fine-tuning

def test_defaults_of_prune_and_tune(tmp_path, settings_of):
    """The seed's 100 epochs at 1e-4 for both rules of the LeNets; weight decay by the rule that the file names."""
    saved(tmp_path / "m.pth.tar")
    saved(tmp_path / "r.pth.tar", "resnet", depth=8)
    for rule in "TV":
        cut(tmp_path / "m.pth.tar", tmp_path / rule, "--sensitivity", "0.01", "--rule", rule)
    cut(tmp_path / "r.pth.tar", tmp_path / "C", "--sensitivity", "0.01")
    prune_too = ["--model", str(tmp_path / "m"), "--overwrite"]
    for script, flags, expected, sensitivity in (
            (prun_tune_T, prune_too, (100, 1e-4, 0.0, 100, []), 1e-3),
            (prun_tune_V, [*prune_too, "--epochs", "7", "--wd", "0"], (7, 1e-4, 0.0, 100, []), 0.25),
            (cifar_prun_tune, ["--model", str(tmp_path / "r")], (300, 0.1, 5e-4, 128, [150, 225]), 1e-4),
            (finetune, ["--model", str(tmp_path / "T/pruned.pth.tar")], (100, 1e-4, 0.0, 100, []), 0.01),
            (finetune, ["--model", str(tmp_path / "V/pruned.pth.tar")], (100, 1e-4, 1e-4, 100, []), 0.01),
            (finetune, ["--model", str(tmp_path / "C/pruned.pth.tar")], (300, 0.1, 5e-4, 128, [150, 225]), 0.01)):
        found = settings_of(script, *QUICK, "--subset", "20", *flags)
        assert tuple(found[name] for name in ("epochs", "lr", "weight_decay", "batch_size", "schedule")) == expected
        assert checkpoint.load(found["model"])["args"]["sensitivity"] == sensitivity


def test_two_stages_are_the_same_run_as_prun_tune(tmp_path):
    """With weight decay 1e-4 both: the pruned file names its rule. It is not continued with another threshold."""
    saved(tmp_path / "m.pth.tar")
    shared = [*QUICK, "--subset", "20", "--epochs", "2", "--lr", "0.01"]
    once = ["--model", str(tmp_path / "m"), *shared, "--save", str(tmp_path / "at once"), "--sensitivity"]
    prun_tune_V.main([*once, "0.5"])
    cut(tmp_path / "m.pth.tar", tmp_path / "p", "--rule", "V", "--sensitivity", "0.5")
    finetune.main(["--model", str(tmp_path / "p/pruned.pth.tar"), *shared, "--save", str(tmp_path / "after")])
    at_once, after = (checkpoint.load(tmp_path / name / "finetuned.pth.tar") for name in ("at once", "after"))
    for ckpt in (at_once, after):
        assert ckpt["args"]["weight_decay"] == 1e-4 and ckpt["args"]["rule"] == "V"
    assert same(at_once["state_dict"], after["state_dict"])
    before = {path: path.read_bytes() for path in (tmp_path / "at once").iterdir()}
    with pytest.raises(UserError, match="pruned with --sensitivity 0.5; give the same"):
        prun_tune_V.main([*once, "0.6", "--resume", "auto"])
    assert before == {path: path.read_bytes() for path in (tmp_path / "at once").iterdir()}
    once[1] += ".pth.tar"                                    # the same file
    prun_tune_V.main([*once, "0.5", "--resume", "auto"])


def test_prun_tune_stops_after_pruning_into_a_folder_named_by_how(tmp_path):
    saved(tmp_path / "m.pth.tar")
    for script, *flags in ([prun_tune_T], [prun_tune_V], [prun_tune_T, "--granularity", "group"],
                           [cifar_prun_tune, "--granularity", "group"], [prun_tune_T, "--criterion", "random"]):
        script.main([*QUICK, "--subset", "20", "--model", str(tmp_path / "m"), "-e", *flags])
    assert {p.name for p in tmp_path.iterdir()} == {"m.pth.tar", "m_T_0.001", "m_V_0.25", "m_T_0.001_group",
                                                    "finetune_0.0001_group", "m_T_0.001_random"}
    assert {p.name for p in (tmp_path / "m_T_0.001").iterdir()} == {"pruned.pth.tar", "prune.txt", "prune.png"}


@pytest.mark.parametrize("script, flags, written", [
    (structure, ["--reg", "2", "--pretrained", "m.pth.tar"], "saves/str_0.001_2.pth"),
    (prun_tune_T, ["--model", "m", "--sensitivity", "0.02"], "m_T_0.02.pth")])
def test_of_two_processes_one_prunes_prints_and_writes(script, flags, written, tmp_path, two_processes):
    model = saved(tmp_path / "m.pth.tar")
    if script is structure:                                  # of a pruned network: a note is printed
        save(tmp_path / "m.pth.tar", model, "hoyer", "pruned", dense=compute_flops.summary(model),
             masks={"fc1.weight": torch.ones(300, 784, dtype=torch.bool)})

    def work(rank, prune_network=prune.prune):
        prune.prune = lambda args: (open(f"pruned by {rank}", "x").close(), prune_network(args))
        script.main([*flags, *QUICK, "--subset", "40", "--epochs", "2", "--batch-size", "10"])
    out, silent = two_processes(work)
    assert silent == "" and out.count("epoch   2/2") == 1 and out.endswith(f"wrote {written}\n")
    assert [p.name for p in tmp_path.glob("pruned by *")] == ["pruned by 0"] * (script is prun_tune_T)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    kept = checkpoint.load(tmp_path / written)
    assert "resume" not in kept and bool(kept.get("masks")) == (script is prun_tune_T)
    for a, b, c in zip(first, second, checkpoint.to_model(kept).parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_what_the_commands_of_the_readme_write_is_ignored_by_git():
    if subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("no git repository")
    names = ("log.csv", "curve.png", "prune.png", "prune.txt", "sweep.csv", "sweep.png", "checkpoint.pth.tar", "x.pth",
             "model.onnx", "model.c", "predictions.csv")
    paths = [f"{folder}/{name}" for folder in ("mlp", "hoyer/mlp/hs/0.03", "hoyer/saves", "anywhere") for name in names]
    ignored = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert ignored == paths


# ---------------------------------------------------------------- the sweep

SHARED = ["--dataset", "shapes10", "--subset", "60", "--device", "cpu"]
SWEEP = [*SHARED, "--epochs", "1", "--tune-epochs", "1", "--holdout", "20", "--decays", "1e-4", "--save", "s"]


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """(network trained with --holdout 20, on all images): files."""
    folder = tmp_path_factory.mktemp("dense")
    for held in ("20", "0"):
        main.main(["--epochs", "1", "--save", str(folder / held), "--holdout", held, *SHARED])
    return tuple(str(folder / held / "checkpoint.pth.tar") for held in ("20", "0"))


@pytest.fixture(scope="module")
def begun(dense, tmp_path_factory):
    """A folder with a sweep in s, of Hoyer-Square at a threshold of 0.01."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        swept(dense[0], "0.01")
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path("s")


@pytest.fixture
def a_begun_sweep(begun, folder):
    shutil.copytree(begun / "s", folder)


def swept(pretrained, *thresholds_and_flags):
    """The rows of a sweep of Hoyer-Square."""
    sweep.main([*SWEEP, "--regs", "hs", "--pretrained", pretrained, "--sensitivities", *thresholds_and_flags])
    return rows_of("s/sweep.csv")


def test_the_figure_of_a_sweep(dense, a_begun_sweep, folder, rendered):
    swept(dense[0], "0.01")
    assert (folder / "sweep.png").stat().st_size > 5000


def test_a_sweep_measures_every_setting_once(folder, capsys, monkeypatch):
    flags = [*SWEEP, "--target", "1"]
    sweep.main([*flags, "--regs", "hs", "group-hs", "--sensitivities", "0.01", "0.03"])
    rows = rows_of("s/sweep.csv")
    assert [(row["reg"], row["sensitivity"]) for row in rows] == [("hs", "0.01"), ("hs", "0.03"), ("group-hs", "0.01"),
                                                                  ("group-hs", "0.03")]
    for row in rows:
        assert row["folder"] == f"{row['reg']}-0.0001-epochs1/element-{row['sensitivity']}-epochs1"
        ckpt = checkpoint.load(folder / row["folder"] / "finetuned.pth.tar")
        left = sum(int(w.count_nonzero()) for w in ckpt["state_dict"].values() if w.dim() > 1) / 266_200
        assert float(row["weights_left"]) == pytest.approx(100 * left, abs=1e-3) and 0 < float(row["macs_left"]) <= 100
        assert float(row["accuracy"]) == pytest.approx(ckpt["prec1"]) and ckpt["args"]["holdout"] == 20
        assert row["epochs"] == "2" and ckpt["args"]["model"].startswith("s/")

    # all are that good: the sparsest of each penalty is kept, with its test accuracy
    test = data.Loader(data.load("shapes10", channels=1, subset=60), "test", 500)
    for reg, size in (("hs", "weights_left"), ("group-hs", "macs_left")):
        chosen, small = (checkpoint.load(folder / f"chosen/{reg}{kind}.pth.tar") for kind in ("", "-compact"))
        best = min((row for row in rows if row["reg"] == reg), key=lambda row: float(row[size]))
        source = checkpoint.load(folder / best["folder"] / "finetuned.pth.tar")
        assert same(chosen["state_dict"], source["state_dict"])
        for ckpt in (chosen, small):
            assert ckpt["prec1"] == evaluate(checkpoint.to_model(ckpt), test)["top1"] and ckpt["epoch"] == 2
    assert checkpoint.load(folder / "chosen/dense.pth.tar")["stage"] == "dense"
    capsys.readouterr()
    before = (folder / "sweep.csv").read_text()
    monkeypatch.setattr("common.device.hardware", lambda device: "another")
    flags[flags.index("s")] = "s/"                           # the same folder; the other penalty's rows are kept
    sweep.main([*flags, "--regs", "group-hs", "--sensitivities", "0.01", "0.03"])        # trains nothing again
    assert checkpoint.load(folder / "chosen/group-hs.pth.tar")["run"]["hardware"] != "another"
    assert "epoch   1/1" not in capsys.readouterr().out and (folder / "sweep.csv").read_text() == before

    # whole rows and columns below 0.0206, about half of a fresh first layer's: fewer MACs than any element threshold
    sweep.main([*flags, "--regs", "group-hs", "--sensitivities", "0.0206", "--granularity", "group"])
    groups = rows_of("s/sweep.csv")[-1]
    assert groups["granularity"] == "group" and groups["folder"].endswith("group-0.0206-epochs1")
    assert float(groups["macs_left"]) < 60
    chosen = checkpoint.load(folder / "chosen/group-hs-compact.pth.tar")
    expected = dict(reg="group-hs", decay=1e-4, wd=1e-4, granularity="group", sensitivity=0.0206, target=1.0,
                    refit=False, tune_epochs=1, tune_wd=0.0, tune_lr=1e-3, holdout=20, seed=12345678, iterate=False,
                    pretrained="s/dense/checkpoint.pth.tar", epochs=1, sensitivities=[0.0206],
                    decays=[1e-4], regs=["group-hs"], subset=60, dataset="shapes10")
    assert expected == {name: chosen["args"][name] for name in expected}
    assert "data_dir" not in chosen["args"] and "setting" not in chosen["run"]


def test_an_iterated_sweep_prunes_what_the_threshold_before_left(dense, folder, capsys):
    flags = [dense[0], "0.01", "0.03", "--iterate"]
    swept(*flags, "--tune-wd", "1e-4", "--target", "100")
    assert "no network reaches 100.0 % on" in capsys.readouterr().out and not list(folder.glob("chosen/hs*"))
    first, second = (checkpoint.load(folder / f"hs-0.0001-epochs1/element-{t}-wd0.0001-epochs1/finetuned.pth.tar")
                     for t in ("0.01", "0.01-0.03"))
    for name, mask in first["masks"].items():
        assert not (second["masks"][name] & ~mask).any() and second["masks"][name].sum() < mask.sum()
    pruned = checkpoint.load(Path(second["path"]).with_name("pruned.pth.tar"))
    assert pruned["args"]["model"] == first["path"]
    assert [row["epochs"] for row in rows_of("s/sweep.csv")] == ["2", "3"]
    between = [dense[0], "0.01", "0.02", "0.03", "--iterate", "--tune-wd", "1e-4", "--wd", "0.1"]        # one more, and
    rows = swept(*between, "--target", "1")                  # another sparse training
    assert [(row["wd"], row["sensitivity"]) for row in rows] == [("0.0", "0.01"), ("0.0", "0.03"), ("0.1", "0.01"),
                                                                 ("0.1", "0.02"), ("0.1", "0.03")]
    best = min(rows, key=lambda row: float(row["weights_left"]))
    chosen = checkpoint.load(folder / "chosen/hs.pth.tar")["args"]
    assert chosen["wd"] == float(best["wd"]) and chosen["sensitivity"] == float(best["sensitivity"])
    assert chosen["iterate"] and chosen["tune_wd"] == 1e-4 and chosen["pretrained"] == dense[0]
    for more, message in ((["--holdout", "10"], "trained with --holdout 20, not 10"),
                          (["--subset", "50"], "trained with --subset 60, not 50"),
                          (["--arch", "cnn"], "holds a lenet300"),
                          (["--pretrained", "s/hs-0.0001-epochs1/checkpoint.pth.tar"], "is a sparse network"),
                          (["--refit", dense[0], "--target", "1"], "trained on all images")):
        with pytest.raises(UserError, match=message):
            swept(*flags, *more)
    swept(*flags, "--tune-wd", "1e-4", "--target", "100")    # none is that good: nothing old stays
    assert not list(folder.glob("chosen/hs*"))


@pytest.mark.parametrize("more", [[], ["--iterate"]])
def test_a_sweep_leaves_out_a_threshold_that_prunes_everything(more, dense, a_begun_sweep, capsys):
    rows = swept(dense[0], "0.01", "9", "0.02", *more)
    assert "hs, coefficient 0.0001: skipped, as --sensitivity 9 prunes every weight" in capsys.readouterr().out
    assert [row["sensitivity"] for row in rows] == ["0.01", "0.02"]
    assert rows[1]["folder"].endswith(f"element-{'0.01-' if more else ''}0.02-epochs1")


def test_a_refit_that_prunes_everything_is_not_tested(dense, a_begun_sweep, folder, capsys, monkeypatch):
    once = sweep.prune_once

    def nothing_left_of_the_refit(args, resume, save, **changes):
        if "s/refit/" in save:
            raise prune.NothingLeft("--sensitivity 0.01 prunes every weight")
        return once(args, resume, save=save, **changes)
    monkeypatch.setattr(sweep, "prune_once", nothing_left_of_the_refit)
    swept(dense[0], "0.01", "--target", "0", "--refit", dense[1])
    assert "is not tested" in capsys.readouterr().out
    assert [p.name for p in (folder / "chosen").iterdir()] == ["dense.pth.tar"]


def test_a_refit_trains_the_chosen_setting_on_all_images(dense, a_begun_sweep, folder):
    flags = ["0.01", "0.03", "--target", "1", "--refit", dense[1]]
    rows = swept(dense[0], *flags)                           # 0.03 leaves the fewest
    refit = folder / "refit/hs-0.0001-epochs1"
    tuned = checkpoint.load(refit / "element-0.03-epochs1/finetuned.pth.tar")
    chosen = checkpoint.load(folder / "chosen/hs.pth.tar")
    assert tuned["args"]["holdout"] == 0
    assert chosen["args"]["refit"] is True and chosen["args"]["pretrained"] == dense[1]
    assert (chosen["args"]["sensitivity"], chosen["args"]["holdout"]) == (0.03, 20)
    assert same(chosen["state_dict"], tuned["state_dict"])
    assert [path.name for path in refit.glob("element*")] == ["element-0.03-epochs1"]    # only what was chosen
    assert same(checkpoint.load(folder / "chosen/dense.pth.tar")["state_dict"],
                checkpoint.load(dense[1])["state_dict"])
    assert not any("refit" in row["folder"] for row in rows)
    swept(dense[0], *flags, "--iterate")                     # step by step up to the chosen one
    assert (refit / "element-0.01-0.03-epochs1/finetuned.pth.tar").is_file()


def test_compacted_files_have_the_masks_of_what_is_left(tmp_path):
    """compact.py's file and the compact.pth.tar of fine-tuning."""
    model = like_trained(models.build("resnet", depth=8))
    masks, _ = prune.choose(model, "T", 0.05)
    masks["layer1.0.conv1.weight"][:2] = False
    prune.apply(model, masks)
    model.layer1[0].bn1.bias.data[:2] = -1                   # a channel that is zero, also at the border
    path = str(save(tmp_path / "pruned.pth.tar", model, "hoyer", "pruned", masks=masks))
    compact.main(["--model", path, "--save", str(tmp_path / "small.pth.tar")])
    train(tmp_path / "tuned", "--model", path, script=finetune)
    assert_same_logits(tmp_path / "tuned/finetuned.pth.tar", tmp_path / "tuned/compact.pth.tar")
    for file in ("small.pth.tar", "tuned/compact.pth.tar"):
        ckpt = checkpoint.load(tmp_path / file)
        assert ckpt["cfg"]["widths"] == [14, 32, 64] and ckpt["masks"].keys() == masks.keys()
        for name, mask in ckpt["masks"].items():
            assert torch.equal(mask, ckpt["state_dict"][name] != 0), name
