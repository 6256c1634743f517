"""DeepHoyer: the penalties and their gradients, the pruning rules, the report, and compaction that changes nothing."""
import csv
import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from by_hand import assert_same_logits, column, like_trained, save
from torch import nn

from common import UserError, cli, compute_flops, data, models
from common.compact import architecture, compact_masked, compaction_report, removable, sparsity_report
from common.compact import compact as take_out
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

ALL = regularizers.PENALTIES
INVARIANT = ("hoyer", "hs", "group-hoyer", "group-hs")
ROOT = Path(__file__).resolve().parent.parent
TRUTH = json.loads(Path(__file__).with_name("ground_truth.json").read_text())
REAL = ROOT / "data" / "mnist.npz"
VGG = [6, "M", 8, "M", 9, 8, "M", 7, 8, "M", 9, 10]
QUICK = ["--dataset", "shapes10", "--device", "cpu", "--precision", "fp32"]


# ---------------------------------------------------------------- the penalties

@pytest.mark.parametrize("name, value", [("l1", 7), ("hoyer", 1.4), ("hs", 1.96), ("tl1", 3.1), ("group-lasso", 12),
                                         ("group-hoyer", 2.4), ("group-hs", 2.96)])
def test_values_by_hand(name, value):
    w = torch.tensor([[3.0, 4.0], [0.0, 0.0]])               # columns 3 and 4, rows 5 and 0
    assert float(ALL[name](w)) == pytest.approx(value, abs=1e-5)
    assert float(ALL[name](-w)) == pytest.approx(value, abs=1e-5)


def test_group_hs_of_ones_with_an_empty_row():
    w = torch.ones(3, 3)
    w[0] = 0                                                 # ((2 sqrt 3)^2 + (3 sqrt 2)^2) / 6
    assert float(regularizers.group_hs(w)) == pytest.approx(5)


def test_groups_of_a_convolution_are_whole_filters_and_channels():
    w = torch.zeros(2, 3, 2, 2)
    w[0, 0] = torch.tensor([[1.0, 2.0], [2.0, 4.0]])         # norm 5
    w[1, 0, 0, 0] = 12
    filters, channels, everything = regularizers.group_norms(w)
    assert filters.tolist() == pytest.approx([5, 12]) and channels.tolist() == pytest.approx([13, 0, 0])
    assert float(everything) == pytest.approx(13)
    assert float(regularizers.group_lasso(w)) == pytest.approx(30)
    assert float(regularizers.group_hs(w)) == pytest.approx((17 ** 2 + 13 ** 2) / 169)


@pytest.mark.parametrize("name", INVARIANT)
@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 2, 2)])
def test_hoyer_measures_do_not_change_with_scale(name, shape):
    torch.manual_seed(0)
    w = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    value = ALL[name](w)
    assert ALL[name](7.5 * w).item() == pytest.approx(value.item())
    value.backward()
    assert (w * w.grad).sum().item() == pytest.approx(0, abs=1e-10)


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


@pytest.mark.parametrize("name", ALL)
def test_nan_is_not_taken_for_zero(name):
    w = torch.ones(3, 4)
    w[1, 2] = torch.nan
    assert ALL[name](w).isnan()


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
    element_reg, structure_reg, cifar_reg = (launchers.penalty(script.PENALTIES)
                                             for script in (element, structure, cifar_group))
    assert [element_reg(n) for n in "01234"] == ["none", "l1", "hoyer", "hs", "tl1"]
    assert [structure_reg(n) for n in "012"] == ["none", "group-lasso", "group-hs"]
    assert [cifar_reg(n) for n in "0123"] == ["none", "group-lasso", "group-hoyer", "group-hs"]
    assert element_reg("hs") == main.parse(["--reg", "hs"]).reg == "hs"


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
        (element, "", 0), (element, "1", 0), (element, "0", 0), (structure, "", 1e-4), (structure, "1", 1e-4),
        (structure, "0", 1e-4), (main, "", 0), (main, "group-hs", 1e-4), (main, "hs", 0))],
    (cifar, [], ("cifar10", 300, 128, 0.1, [150, 225], 5e-4)),
    (main, ["--arch", "vgg11_bn"], ("cifar10", 300, 128, 0.1, [150, 225], 5e-4)),
    (main, ["--arch", "vgg11_bn", "--epochs", "9", "--batch-size", "8", "--lr", "0", "--schedule", "--wd", "0"],
     ("cifar10", 9, 8, 0.0, [], 0.0))])
def test_defaults_of_training(script, flags, expected, monkeypatch):
    class Stop(Exception):
        pass

    def start(*_, **settings):
        raise Stop(settings)
    monkeypatch.setattr(main, "Run", start)
    with pytest.raises(Stop) as stop:
        script.main(flags)
    names = ("dataset", "epochs", "batch_size", "lr", "schedule", "weight_decay")
    assert tuple(stop.value.args[0][name] for name in names) == expected


def steps_by_hand(model, penalty, masks, adam, lr, weight_decay, epochs, batches):
    """Adam (beta 0.9 and 0.999) or SGD with momentum 0.7, L2 weight decay in the gradient, the rate falling as a cosine
    over all epochs; after every step the masks."""
    first, second = ({name: torch.zeros_like(w) for name, w in model.named_parameters()} for _ in range(2))
    step = 0
    for epoch in range(epochs):
        rate = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for images, labels in batches(epoch):
            step += 1
            named = dict(model.named_parameters())
            loss = nn.functional.cross_entropy(model(images), labels) + penalty(model)
            gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
            with torch.no_grad():
                for name, w in named.items():
                    gradient = gradients[name] + weight_decay * w
                    if adam:
                        first[name] = 0.9 * first[name] + 0.1 * gradient
                        second[name] = 0.999 * second[name] + 0.001 * gradient ** 2
                        root = (second[name] / (1 - 0.999 ** step)).sqrt()
                        w -= rate * first[name] / (1 - 0.9 ** step) / (root + 1e-8)
                    else:
                        first[name] = 0.7 * first[name] + gradient
                        w -= rate * first[name]
                    w *= masks.get(name, torch.ones(()))


@pytest.mark.parametrize("script", [main, finetune])
@pytest.mark.parametrize("arch, cfg", [("lenet300", {}), ("resnet", {"depth": 8, "block": "basic"})])
def test_training_step_by_step_by_hand(script, arch, cfg, tmp_path):
    model, lenet, masks = saved(tmp_path / "m.pth.tar", arch, **cfg), arch == "lenet300", {}
    lr = 1e-3 if lenet else 0.05
    flags = ["--lr", str(lr), "--wd", "0.01", "--momentum", "0.7", "--batch-size", "10", "--epochs", "3", "--schedule",
             "cosine", "--seed", "3", "--holdout", "20", "--subset", "40"]
    if script is main:
        reg = "hs" if lenet else "group-hs"
        ckpt = train(tmp_path / "f", "--pretrained", str(tmp_path / "m"), "--reg", reg, "--decay", "1e-4", *flags)

        def penalty(model):
            return sum(1e-4 * ALL[reg](w) for w in model.parameters() if lenet or w.dim() > 1)
    else:
        masks = cut(tmp_path / "m.pth.tar", tmp_path / "p", "--sensitivity", "0.02")["masks"]
        model = checkpoint.to_model(checkpoint.load(tmp_path / "p/pruned.pth.tar"))
        ckpt = train(tmp_path / "f", "--model", str(tmp_path / "p/pruned.pth.tar"), *flags, script=finetune)

        def penalty(model):
            return 0
    whole = data.load("shapes10", channels=1 if lenet else 3, subset=40)
    dataset = replace(whole, x_train=whole.x_train[:20], y_train=whole.y_train[:20])
    loader = data.Loader(dataset, "train", 10, seed=3, **({} if lenet else {"crop": 4, "flip": True}))
    model.train()
    steps_by_hand(model, penalty, masks, lenet, lr, 0.01, 3, loader.epoch)
    for name, w in model.state_dict().items():
        torch.testing.assert_close(ckpt["state_dict"][name], w, rtol=2e-3, atol=2e-5)


def test_names_of_files_and_pretrained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [*QUICK, "--subset", "20", "--epochs", "1"]
    element.main([*flags, "--reg", "0", "--decay", "0.0"])
    element.main([*flags, "--reg", "3", "--decay", "0.00001", "--pretrained"])
    structure.main([*flags, "--reg", "group-hs", "--decay", "1e-3", "--pretrained"])
    structure.main([*flags, "--reg", "0", "--arch", "cnn"])
    assert sorted(str(p) for p in Path("saves").rglob("*.pth")) == [
        "saves/cnn/str_0.0_0.pth", "saves/elt_0.0_0.pth", "saves/elt_1e-05_3.pth", "saves/str_0.001_2.pth"]
    assert "Test set: Average loss: " in capsys.readouterr().out
    assert checkpoint.load("saves/elt_1e-05_3.pth")["stage"] == "sparse"
    with pytest.raises(UserError, match="already holds a run"):
        element.main([*flags, "--reg", "0", "--decay", "0.0"])
    prun_tune_T.main([*flags, "--model", "saves/elt_1e-05_3"])             # without its suffix
    prun_tune_V.main([*flags, "--model", "saves/str_0.001_2.pth", "--sensitivity", "0.5"])
    again = ["--model", "saves/elt_1e-05_3_T_0.001", "--sensitivity", "0.01"]
    prun_tune_T.main([*flags, *again])           # pruned further
    first, second = (checkpoint.load(f"saves/elt_1e-05_3_T_0.001{more}.pth") for more in ("", "_T_0.01"))
    assert Path("saves/str_0.001_2_V_0.5.pth").is_file() and first["stage"] == "finetuned"
    for name, mask in second["masks"].items():
        assert not (mask & ~first["masks"][name]).any()
    assert sum(int(m.sum()) for m in second["masks"].values()) < sum(int(m.sum()) for m in first["masks"].values())


@pytest.mark.skipif(not REAL.is_file(), reason="no data/mnist.npz")
def test_real_mnist_as_it_is(tmp_path):
    """Pixels are the bytes / 255, without mean and std; 5 epochs on 500 images are far above chance."""
    dataset = data.load("mnist", str(REAL.parent))
    assert dataset.shape == (1, 28, 28) and dataset.mean == (0.0,) and dataset.std == (1.0,)
    element.main(["--data-dir", str(REAL.parent), "--subset", "500", "--epochs", "5", "--batch-size", "20", "--device",
               "cpu", "--save", str(tmp_path / "m")])
    assert checkpoint.load(tmp_path / "m/checkpoint.pth.tar")["prec1"] > 70


def test_holdout_takes_the_last_training_images(tmp_path, capsys):
    whole, part = (data.load("shapes10", channels=1, holdout=n) for n in (0, 100))
    assert torch.equal(part.x_test, whole.x_train[-100:]) and torch.equal(part.x_train, whole.x_train[:-100])
    assert torch.equal(part.y_test, whole.y_train[-100:]) and torch.equal(part.y_train, whole.y_train[:-100])
    train(tmp_path / "x", "--subset", "60", "--holdout", "20", "--lr", "0")
    line = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Validation set: Average loss: ")]
    model = checkpoint.to_model(checkpoint.load(tmp_path / "x/checkpoint.pth.tar"))
    held_out = data.Loader(data.load("shapes10", channels=1, subset=60, holdout=20), "test", 500)
    result = evaluate(model, held_out)
    assert line == [f"Validation set: Average loss: {result['loss']:.4f}, Accuracy: {round(result['top1'] / 5)}/20 "
                    f"({result['top1']:.2f}%)"]
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
    (["-a", "alexnet"], "alexnet"), (["-a", "vgg19_bn"], "vgg19_bn"), (["-a", "resnet", "--depth", "110"],
                                                                       "resnet110-basic"),
    (["-a", "preresnet", "--depth", "164", "--block-name", "Bottleneck"], "preresnet164-bottleneck"),
    (["-a", "wrn", "--depth", "28", "--widen-factor", "10", "--drop", "0.3"], "wrn-28-10"),
    (["-a", "resnext", "--cardinality", "8", "--widen-factor", "4"], "resnext29-8x64"),
    (["-a", "resnext", "--depth", "29", "--cardinality", "16"], "resnext29-16x64"),
    (["-a", "densenet", "--depth", "100", "--growthRate", "12"], "densenet-bc-100-12"),
    (["-a", "densenet", "--depth", "190", "--growthRate", "40"], "densenet-bc-190-40")])
def test_the_nine_networks_of_the_trainer(flags, truth):
    _, arch, cfg = main.starting_point(main.parse(flags))
    with torch.device("meta"):
        model = models.build(arch, **cfg)
    assert sum(p.numel() for p in model.parameters()) == TRUTH[f"bearpaw:{truth}|c10"]["params"]
    if "--drop" in flags:
        assert any(isinstance(m, nn.Dropout) and m.p == 0.3 for m in model.modules())


def test_a_name_that_says_depth_and_width_leaves_the_dropout_to_choose():
    long, short = (main.starting_point(cli.settings(main, arch=arch, **sizes, dropout=0.3)) for arch, sizes in (
        ("wrn", dict(depth=28, widen_factor=10)), ("wrn_28_10", {})))
    assert long == short and short[2] == {"depth": 28, "widen_factor": 10, "dropout": 0.3}
    with pytest.raises(UserError, match="wrn_28_10 has no widen factor to choose; leave out 4"):
        networks.network("wrn_28_10", widen_factor=4)


def test_a_file_of_the_original_trainer_is_the_start(tmp_path, monkeypatch, capsys):
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
    monkeypatch.setattr(data, "load", lambda name, *args, **how: pytest.fail(name))
    with pytest.raises(pytest.fail.Exception, match="shapes10"):       # the file's own
        main.main(["--model", str(tmp_path / "x/checkpoint"), "--save", str(tmp_path / "y")])


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


def test_what_is_chosen_depends_on_granularity_and_seed():
    torch.manual_seed(0)
    model = models.build("lenet5")
    groups, _ = prune.choose(model, "T", 0.02, granularity="group")
    for name, w in model.named_parameters():
        assert torch.equal(groups[name], prune.group_mask(w, 0.02)), name
    assert not torch.equal(groups["fc1.weight"], prune.element_mask(model.fc1.weight, 0.02))
    first, again, other = (prune.choose(model, "T", 0.02, criterion="random", seed=seed)[0]["fc1.weight"]
                           for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_what_is_prunable():
    assert len(prune.prunable(models.build("lenet5"))) == 8
    names = set(prune.prunable(models.build("resnet", depth=20)))
    assert {"bn1.weight", "conv1.weight", "fc.weight"} <= names and not any("bias" in name for name in names)


def test_the_random_control_keeps_as_many_of_each_tensor(monkeypatch):
    torch.manual_seed(0)
    model = models.build("lenet300")
    by_size, _ = prune.choose(model, "V", 0.5)
    at_random, _ = prune.choose(model, "V", 0.5, criterion="random")
    for name in by_size:
        assert by_size[name].sum() == at_random[name].sum()
    assert not torch.equal(by_size["fc1.weight"], at_random["fc1.weight"])
    again = prune.choose(model, "V", 0.6, criterion="random", previous_masks=at_random)[0]
    as_many = prune.choose(model, "V", 0.6, previous_masks=at_random)[0]
    for name, mask in again.items():                         # of those that are there, and none of the others
        assert mask.sum() == as_many[name].sum() < at_random[name].sum() and not (mask & ~at_random[name]).any()
    monkeypatch.setattr(torch, "rand", lambda shape, generator: torch.zeros(shape))      # the lowest number there is
    for name, mask in prune.choose(model, "V", 0.6, criterion="random", previous_masks=at_random)[0].items():
        assert mask.sum() == as_many[name].sum() and not (mask & ~at_random[name]).any()


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
    """At threshold 0 every |w| is high enough, a pruned one's too; the first masks still hold."""
    saved(tmp_path / "m.pth.tar")
    first = cut(tmp_path / "m.pth.tar", tmp_path / "p", "--sensitivity", "0.05")
    second = cut(tmp_path / "p/pruned.pth.tar", tmp_path / "q", "--sensitivity", "0")
    assert all(torch.equal(mask, second["masks"][name]) for name, mask in first["masks"].items())


def test_masks_of_tensors_that_are_not_pruned_here_stay(tmp_path):
    """slimming/mask.py has masks of batch norms' biases; without them fine-tuning revives those."""
    model, masks = models.build("vgg", depth=11, widths=[64, *VGG[1:]]), {}
    for name in ("feature.1.weight", "feature.1.bias"):
        masks[name] = torch.arange(64) > 9
        model.get_parameter(name).data.fill_(0.3).mul_(masks[name])
    save(tmp_path / "m.pth.tar", model, stage="pruned", masks=masks)
    pruned = cut(tmp_path / "m.pth.tar", tmp_path / "p", "--sensitivity", "0.01")["masks"]
    assert torch.equal(pruned["feature.1.bias"], masks["feature.1.bias"])
    assert not (pruned["feature.1.weight"] & ~masks["feature.1.weight"]).any() and "feature.0.weight" in pruned


def test_a_bare_state_dict_of_the_original_prunes(tmp_path):
    model = models.build("lenet5")
    state = {name: w for name, w in model.state_dict().items() if "indices" not in name}
    torch.save(state, tmp_path / "elt_0.0_0.pth")
    ckpt = cut(tmp_path / "elt_0.0_0", tmp_path / "p", "--sensitivity", "0.01", "--arch", "cnn", "--dataset",
               "shapes10")
    assert ckpt["arch"] == "lenet5" and not ckpt["masks"]["fc1.weight"].all()


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
    """A float64 network with trained-looking batch norms, scattered zeros, and dead inputs and outputs."""
    torch.manual_seed(0)
    model = like_trained(models.build(arch, **cfg).double())
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.Conv2d | nn.Linear):
                m.weight.mul_(torch.rand_like(m.weight) < 0.5)
                if m.weight.shape[1] > 3:
                    m.weight[:, torch.rand(m.weight.shape[1]) < 0.3] = 0
                if m.weight.shape[0] > 10:
                    m.weight[torch.rand(m.weight.shape[0]) < 0.3] = 0
    return model.eval()


WIDER = [16, "M", 24, "M", 32, 32, "M", 40, 32, "M", 24, 40, "M"]
ZOO = {"lenet300": {}, "lenet5": {}, "alexnet": {}, "vgg-plain": dict(depth=11, variant="bearpaw", widths=WIDER),
       "vgg": dict(depth=11, variant="bearpaw_bn", widths=WIDER), "resnet": dict(depth=20, block="basic"),
       "resnet-bottleneck": dict(depth=20, block="bottleneck"), "preresnet": dict(depth=20, block="basic"),
       "preresnet-bottleneck": dict(depth=20, block="bottleneck"), "wideresnet": dict(depth=10, widen_factor=2),
       "densenet": dict(depth=16, block="bottleneck", compression=2)}


@pytest.mark.parametrize("key", ZOO)
def test_compacted_and_masked_logits_agree(key):
    model = sparse_like(key.split("-")[0], **ZOO[key])
    before = [p.clone() for p in model.state_dict().values()]
    small = take_out(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert_same_logits(model, small, 1e-9)
    assert compute_flops.count(small).total.macs < compute_flops.count(model).total.macs
    assert not removable(small)


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
    model = sparse_like("lenet300").float()
    dense = compute_flops.summary(models.build("lenet300", widths=[784, 400, 200]))      # what the file says
    save(tmp_path / "m.pth", model, "magnitude", "finetuned", epoch=7, prec1=50.0, best_prec1=60.0, args={"lr": 0.5},
         dense=dense, run={"minutes": 3.0})
    compact.main(["--model", str(tmp_path / "m")])
    ckpt = checkpoint.load(tmp_path / "m_compact.pth")
    small = checkpoint.to_model(ckpt)
    total, out = compute_flops.count(small).total, capsys.readouterr().out
    assert sparsity_report(model) in out and total.params < 266_610
    assert (f"\ncompacted: {architecture(small)}, {total.params:,} parameters of {dense['params']:,} "
            f"({100 * total.params / dense['params']:.2f}%), {total.macs:,} MACs of {dense['macs']:,} "
            f"({100 * total.macs / dense['macs']:.2f}%); its logits differ by ") in out
    assert [ckpt[key] for key in ("method", "stage", "dataset", "epoch", "prec1", "best_prec1", "args", "dense", "run")
            ] == ["hoyer", "finetuned", "shapes10", 7, 50.0, 60.0, {"lr": 0.5}, dense, {"minutes": 3.0}]
    assert_same_logits(model, small)
    with pytest.raises(UserError, match="there already"):
        compact.main(["--model", str(tmp_path / "m")])
    with pytest.raises(UserError, match="not --arch cnn"):
        compact.main(["--model", str(tmp_path / "m"), "--arch", "cnn", "--overwrite"])
    save(tmp_path / "m.pth", model, "hoyer", "pruned")
    for flags, name in (["--overwrite"], "m_compact"), (["--save", str(tmp_path / "x.pth")], "x"):
        compact.main(["--model", str(tmp_path / "m"), *flags])
        assert checkpoint.load(tmp_path / f"{name}.pth")["stage"] == "pruned"
        assert checkpoint.load(tmp_path / f"{name}.pth")["dense"]["params"] == 266_610   # the file's own, now


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

def test_defaults_of_prune_and_tune(tmp_path, monkeypatch):
    """The seed's 100 epochs at 1e-4 for both rules of the LeNets; weight decay by the rule that the file names."""
    class Stop(Exception):
        pass

    def start(*_, **settings):
        raise Stop(settings)
    saved(tmp_path / "m.pth.tar")
    saved(tmp_path / "r.pth.tar", "resnet", depth=8)
    for rule in "TV":
        cut(tmp_path / "m.pth.tar", tmp_path / rule, "--sensitivity", "0.01", "--rule", rule)
    cut(tmp_path / "r.pth.tar", tmp_path / "C", "--sensitivity", "0.01")
    monkeypatch.setattr(finetune, "Run", start)
    prune_too = ["--model", str(tmp_path / "m"), "--overwrite"]
    for script, flags, expected in (
            (prun_tune_T, prune_too, (100, 1e-4, 0.0, 100, [], 1e-3)),
            (prun_tune_V, prune_too, (100, 1e-4, 1e-4, 100, [], 0.25)),
            (prun_tune_V, [*prune_too, "--epochs", "7", "--wd", "0"], (7, 1e-4, 0.0, 100, [], 0.25)),
            (cifar_prun_tune, ["--model", str(tmp_path / "r")], (300, 0.1, 5e-4, 128, [150, 225], 1e-4)),
            (finetune, ["--model", str(tmp_path / "T/pruned.pth.tar")], (100, 1e-4, 0.0, 100, [], None)),
            (finetune, ["--model", str(tmp_path / "V/pruned.pth.tar")], (100, 1e-4, 1e-4, 100, [], None)),
            (finetune, ["--model", str(tmp_path / "C/pruned.pth.tar")], (300, 0.1, 5e-4, 128, [150, 225], None))):
        with pytest.raises(Stop) as stop:
            script.main([*QUICK, "--subset", "20", *flags])
        names = ("epochs", "lr", "weight_decay", "batch_size", "schedule")
        assert tuple(stop.value.args[0][name] for name in names) == expected[:-1]
        if expected[-1]:
            pruned = checkpoint.load(stop.value.args[0]["model"])
            assert pruned["args"]["sensitivity"] == expected[-1]


def test_the_result_is_the_last_epochs_not_the_best(tmp_path):
    saved(tmp_path / "m.pth.tar")
    prun_tune_V.main([*QUICK, "--model", str(tmp_path / "m"), "--subset", "40", "--epochs", "4", "--lr", "0.02",
                      "--sensitivity", "0.1", "--save", str(tmp_path / "f")])
    result, last, best = (checkpoint.load(tmp_path / "f" / f"{name}.pth.tar")
                          for name in ("finetuned", "checkpoint", "model_best"))
    assert best["epoch"] < 4 and result["epoch"] == 4 and result["prec1"] == last["prec1"]
    assert all(torch.equal(w, last["state_dict"][name]) for name, w in result["state_dict"].items())
    assert not all(torch.equal(w, best["state_dict"][name]) for name, w in result["state_dict"].items())


def test_two_stages_are_the_same_run_as_prun_tune(tmp_path):
    """With weight decay 1e-4 both: the pruned file names its rule."""
    saved(tmp_path / "m.pth.tar")
    shared = [*QUICK, "--subset", "20", "--epochs", "2", "--lr", "0.01"]
    prun_tune_V.main(["--model", str(tmp_path / "m"), *shared, "--sensitivity", "0.5", "--save",
                      str(tmp_path / "at once")])
    cut(tmp_path / "m.pth.tar", tmp_path / "p", "--rule", "V", "--sensitivity", "0.5")
    finetune.main(["--model", str(tmp_path / "p/pruned.pth.tar"), *shared, "--save", str(tmp_path / "after")])
    at_once, after = (checkpoint.load(tmp_path / name / "finetuned.pth.tar") for name in ("at once", "after"))
    for ckpt in (at_once, after):
        assert ckpt["args"]["weight_decay"] == 1e-4 and ckpt["args"]["rule"] == "V"
    assert all(torch.equal(w, after["state_dict"][name]) for name, w in at_once["state_dict"].items())


def test_group_lasso_of_lenet5_has_whole_filters_as_groups(tmp_path):
    """About 761 over a fresh network; with a group for each kernel position it would be a third more."""
    ckpt = train(tmp_path / "x", "--reg", "1", "--arch", "cnn", "--decay", "0.01", script=structure)
    assert ckpt["resume"]["rows"][0]["train_reg"] == pytest.approx(760, rel=0.02)


def test_a_fine_tuning_is_not_continued_with_another_threshold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shared = [*QUICK, "--subset", "20", "--epochs", "1"]
    element.main([*shared, "--reg", "0", "--decay", "0.0"])
    flags = ["--model", "saves/elt_0.0_0", *shared, "--save", "tuned"]
    prun_tune_T.main([*flags, "--sensitivity", "0.02"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "tuned").iterdir()}
    with pytest.raises(UserError, match="pruned with --sensitivity 0.02; give the same"):
        prun_tune_T.main([*flags, "--sensitivity", "0.03", "--resume", "auto"])
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "tuned").iterdir()}
    prun_tune_T.main(["--model", "saves/elt_0.0_0.pth", *flags[2:], "--sensitivity", "0.02", "--resume", "auto"])


@pytest.mark.parametrize("script, start", [(main, ["--arch", "resnet8"]), (finetune, ["--model"])])
def test_the_learning_rate_falls_where_the_schedule_says(script, start, tmp_path):
    if script is finetune:
        saved(tmp_path / "m.pth.tar", "resnet", depth=8)
        cut(tmp_path / "m.pth.tar", tmp_path / "p", "--sensitivity", "0.01")
        start = [*start, str(tmp_path / "p/pruned.pth.tar")]
    train(tmp_path / "f", *start, "--epochs", "3", "--schedule", "1", "2", "--gamma", "0.5", "--lr", "0.2",
          script=script)
    assert column(tmp_path / "f") == pytest.approx([0.2, 0.1, 0.05])


def test_prun_tune_stops_after_pruning(tmp_path):
    saved(tmp_path / "m.pth.tar")
    prun_tune_T.main([*QUICK, "--subset", "20", "--model", str(tmp_path / "m"), "-e"])
    assert {p.name for p in tmp_path.iterdir()} == {"m.pth.tar", "m_T_0.001"}
    assert {p.name for p in (tmp_path / "m_T_0.001").iterdir()} == {"pruned.pth.tar", "prune.txt", "prune.png"}


def test_files_of_other_ways_to_prune_bear_their_names(tmp_path):
    saved(tmp_path / "m.pth.tar")
    for flags in (["--granularity", "group"], ["--criterion", "random"]):
        for script in (prun_tune_T, cifar_prun_tune):
            script.main([*QUICK, "--subset", "20", "--model", str(tmp_path / "m"), "--sensitivity", "0.01", "-e",
                         *flags])
    assert {p.name for p in tmp_path.iterdir()} == {"m.pth.tar", "m_T_0.01_group", "m_T_0.01_random",
                                                    "finetune_0.01_group", "finetune_0.01_random"}


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


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """(network trained with --holdout 20, on all images): files."""
    folder = tmp_path_factory.mktemp("dense")
    for held in ("20", "0"):
        main.main(["--epochs", "1", "--save", str(folder / held), "--holdout", held, *SHARED])
    return tuple(str(folder / held / "checkpoint.pth.tar") for held in ("20", "0"))


def swept(folder, dense, *flags):
    sweep.main(["--regs", "hs", "--decays", "1e-4", "--epochs", "1", "--tune-epochs", "1", "--holdout", "20",
                "--pretrained", dense[0], "--save", str(folder), *SHARED, *flags])
    with open(folder / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_measures_every_setting_once(tmp_path, capsys, monkeypatch, rendered):
    flags = ["--regs", "hs", "group-hs", "--decays", "1e-4", "--sensitivities", "0.01", "0.03", "--epochs", "1",
             "--tune-epochs", "1", "--dataset", "shapes10", "--subset", "60", "--holdout", "20", "--device", "cpu",
             "--target", "1", "--save", str(tmp_path / "s")]
    sweep.main(flags)
    with open(tmp_path / "s/sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["reg"], row["sensitivity"]) for row in rows] == [("hs", "0.01"), ("hs", "0.03"), ("group-hs", "0.01"),
                                                                  ("group-hs", "0.03")]
    for row in rows:
        assert row["folder"] == f"{row['reg']}-0.0001-epochs1/element-{row['sensitivity']}-epochs1"
        ckpt = checkpoint.load(tmp_path / "s" / row["folder"] / "finetuned.pth.tar")
        weights = [w for w in ckpt["state_dict"].values() if w.dim() > 1]
        left = sum(int(w.count_nonzero()) for w in weights) / 266_200
        assert float(row["weights_left"]) == pytest.approx(100 * left, abs=1e-3) and 0 < float(row["macs_left"]) <= 100
        assert float(row["accuracy"]) == pytest.approx(ckpt["prec1"]) and ckpt["args"]["holdout"] == 20
        assert row["epochs"] == "2" and ckpt["args"]["model"].startswith(str(tmp_path / "s"))
    assert (tmp_path / "s/sweep.png").stat().st_size > 5000

    # all are that good: the sparsest of each penalty is kept, with its test accuracy
    dataset = data.load("shapes10", channels=1, subset=60)
    test = data.Loader(dataset, "test", 500)
    for reg, size in (("hs", "weights_left"), ("group-hs", "macs_left")):
        chosen, small = (checkpoint.load(tmp_path / f"s/chosen/{reg}{kind}.pth.tar") for kind in ("", "-compact"))
        best = min((row for row in rows if row["reg"] == reg), key=lambda row: float(row[size]))
        source = checkpoint.load(tmp_path / "s" / best["folder"] / "finetuned.pth.tar")
        assert all(torch.equal(chosen["state_dict"][k], v) for k, v in source["state_dict"].items())
        for ckpt in (chosen, small):
            assert ckpt["prec1"] == evaluate(checkpoint.to_model(ckpt), test)["top1"] and ckpt["epoch"] == 2
    assert checkpoint.load(tmp_path / "s/chosen/dense.pth.tar")["stage"] == "dense"
    capsys.readouterr()
    before = (tmp_path / "s/sweep.csv").read_text()
    flags[-1] += "/"                                         # the same folder
    monkeypatch.setattr("common.device.hardware", lambda device: "another")
    sweep.main(["--regs", "group-hs", *flags[3:]])           # trains nothing again, and keeps the other penalty's rows
    assert checkpoint.load(tmp_path / "s/chosen/group-hs.pth.tar")["run"]["hardware"] != "another"
    assert "epoch   1/1" not in capsys.readouterr().out and (tmp_path / "s/sweep.csv").read_text() == before

    # whole rows and columns below 0.0206, about half of a fresh first layer's: fewer MACs than any element threshold
    flags[flags.index("0.01"):flags.index("0.03") + 1] = ["0.0206"]
    sweep.main(["--regs", "group-hs", *flags[3:], "--granularity", "group"])
    with open(tmp_path / "s/sweep.csv", newline="") as file:
        groups = list(csv.DictReader(file))[-1]
    assert groups["granularity"] == "group" and groups["folder"].endswith("group-0.0206-epochs1")
    assert float(groups["macs_left"]) < 60
    chosen = checkpoint.load(tmp_path / "s/chosen/group-hs-compact.pth.tar")
    expected = dict(reg="group-hs", decay=1e-4, wd=1e-4, granularity="group", sensitivity=0.0206, target=1.0,
                    refit=False, tune_epochs=1, tune_wd=0.0, tune_lr=1e-3, holdout=20, seed=12345678, iterate=False,
                    pretrained=f"{tmp_path}/s/dense/checkpoint.pth.tar", epochs=1, sensitivities=[0.0206],
                    decays=[1e-4], regs=["group-hs"], subset=60, dataset="shapes10")
    assert expected == {name: chosen["args"][name] for name in expected}
    assert "data_dir" not in chosen["args"] and "setting" not in chosen["run"]


def test_an_iterated_sweep_prunes_what_the_threshold_before_left(dense, tmp_path, capsys):
    flags = ["--regs", "hs", "--decays", "1e-4", "--sensitivities", "0.01", "0.03", "--epochs", "1", "--tune-epochs",
             "2", "--iterate", "--pretrained", dense[0], "--save", str(tmp_path / "s"), *SHARED, "--holdout", "20"]
    sweep.main([*flags, "--tune-wd", "1e-4", "--target", "100"])
    with pytest.raises(UserError, match="holds a lenet300"):
        sweep.main([*flags, "--arch", "cnn"])
    assert "no network reaches 100.0 % on" in capsys.readouterr().out and not list((tmp_path / "s/chosen").glob("hs*"))
    first, second = (checkpoint.load(tmp_path / f"s/hs-0.0001-epochs1/element-{t}-wd0.0001-epochs2/finetuned.pth.tar")
                     for t in ("0.01", "0.01-0.03"))
    for name, mask in first["masks"].items():
        assert not (second["masks"][name] & ~mask).any() and second["masks"][name].sum() < mask.sum()
    with open(tmp_path / "s/sweep.csv", newline="") as file:
        assert [row["epochs"] for row in csv.DictReader(file)] == ["3", "5"]
    between = [*flags, "--tune-wd", "1e-4", "--wd", "0.1"]   # a threshold more, and another sparse training
    between[between.index("0.03"):between.index("0.03")] = ["0.02"]
    sweep.main([*between, "--target", "1"])
    with open(tmp_path / "s/sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["wd"], row["sensitivity"]) for row in rows] == [("0.0", "0.01"), ("0.0", "0.03"), ("0.1", "0.01"),
                                                                 ("0.1", "0.02"), ("0.1", "0.03")]
    best = min(rows, key=lambda row: float(row["weights_left"]))
    chosen = checkpoint.load(tmp_path / "s/chosen/hs.pth.tar")["args"]
    assert chosen["wd"] == float(best["wd"]) and chosen["sensitivity"] == float(best["sensitivity"])
    assert chosen["iterate"] and chosen["tune_wd"] == 1e-4 and chosen["pretrained"] == dense[0]
    with pytest.raises(UserError, match="trained with --holdout 20, not 10"):
        sweep.main([*flags, "--holdout", "10"])
    with pytest.raises(UserError, match="trained with --subset 60, not 50"):
        sweep.main([*flags, "--subset", "50"])
    with pytest.raises(UserError, match="is a sparse network"):
        sweep.main([*flags, "--pretrained", str(tmp_path / "s/hs-0.0001-epochs1/checkpoint.pth.tar")])
    sweep.main([*flags, "--tune-wd", "1e-4", "--target", "100"])          # none is that good: nothing old stays
    assert not list((tmp_path / "s/chosen").glob("hs*"))


def test_a_sweep_runs_in_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        sweep.main(["--save", str(tmp_path / "s")])
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("more", [[], ["--iterate"]])
def test_a_sweep_leaves_out_a_threshold_that_prunes_everything(more, dense, tmp_path, capsys):
    rows = swept(tmp_path / "s", dense, "--sensitivities", "0.01", "9", "0.02", *more)
    assert "hs, coefficient 0.0001: skipped, as --sensitivity 9 prunes every weight" in capsys.readouterr().out
    assert [row["sensitivity"] for row in rows] == ["0.01", "0.02"]
    assert rows[1]["folder"].endswith(f"element-{'0.01-' if more else ''}0.02-epochs1")


def test_a_refit_that_prunes_everything_is_not_tested(dense, tmp_path, capsys, monkeypatch):
    once = sweep.prune_once

    def nothing_left_of_the_refit(args, resume, save, **changes):
        if "/s/refit/" in save:
            raise prune.NothingLeft("--sensitivity 0.01 prunes every weight")
        return once(args, resume, save=save, **changes)
    monkeypatch.setattr(sweep, "prune_once", nothing_left_of_the_refit)
    swept(tmp_path / "s", dense, "--sensitivities", "0.01", "--target", "0", "--refit", dense[1])
    assert "is not tested" in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "s/chosen").iterdir()] == ["dense.pth.tar"]


def test_a_refit_trains_the_chosen_setting_on_all_images(dense, tmp_path):
    flags, refit = ["--target", "1", "--sensitivities", "0.01", "0.03"], ["--refit", dense[1]]
    rows = swept(tmp_path / "s", dense, *flags, "0.02", *refit)          # 0.03 leaves the fewest
    folder = tmp_path / "s/refit/hs-0.0001-epochs1/element-0.03-epochs1"
    tuned, chosen = checkpoint.load(folder / "finetuned.pth.tar"), checkpoint.load(tmp_path / "s/chosen/hs.pth.tar")
    assert tuned["args"]["holdout"] == 0
    assert chosen["args"]["refit"] is True and chosen["args"]["pretrained"] == dense[1]
    assert (chosen["args"]["sensitivity"], chosen["args"]["holdout"]) == (0.03, 20)
    assert all(torch.equal(chosen["state_dict"][k], v) for k, v in tuned["state_dict"].items())
    assert not list(folder.parent.glob("element-0.0[12]*"))  # only what was chosen
    first, full = (checkpoint.load(path) for path in (tmp_path / "s/chosen/dense.pth.tar", dense[1]))
    assert all(torch.equal(first["state_dict"][k], v) for k, v in full["state_dict"].items())
    assert not any("refit" in row["folder"] for row in rows)
    swept(tmp_path / "s", dense, *flags, "--iterate", *refit)            # step by step up to the chosen one
    assert (folder.parent / "element-0.01-0.03-epochs1/finetuned.pth.tar").is_file()
    with pytest.raises(UserError, match="trained on all images"):
        swept(tmp_path / "s", dense, *flags, "--refit", dense[0])


@pytest.mark.parametrize("arch,options", [("lenet300", {}), ("lenet5", {}), ("resnet", {"depth": 8}),
                                          ("wideresnet", {"depth": 10, "widen_factor": 1, "variant": "softmask"})])
@torch.no_grad()
def test_compacted_masks_are_those_of_what_is_left(arch, options):
    model = like_trained(models.build(arch, **options)).eval()
    masks = {name: torch.rand(p.shape) < 0.5 for name, p in prune.prunable(model).items()}
    for record in model.channels():                          # and some channels that nothing makes
        if record.producers and not record.stream:
            for kind in ("weight", "bias"):
                if f"{record.producers[0][0]}.{kind}" in masks:
                    masks[f"{record.producers[0][0]}.{kind}"][:3] = False
            if norm := record.producers[0][1]:
                model.get_submodule(norm).bias[:3] = -1
    prune.apply(model, masks)
    small, left = compact_masked(model, masks)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert left.keys() == masks.keys()
    x = torch.rand(4, *models.input_shape(arch, model.cfg))
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)
    for name, p in small.named_parameters():
        if name in left:
            assert torch.equal(left[name], p.ne(0)), name    # random weights: none is zero but those


def test_zeros_survive_compaction_and_further_training(tmp_path):
    """In compact.py's file and in the compact.pth.tar of fine-tuning."""
    flags = ["--dataset", "shapes10", "--subset", "20", "--batch-size", "10", "--epochs", "1", "--device", "cpu"]
    model = like_trained(models.build("resnet", depth=8))
    masks, _ = prune.choose(model, "T", 0.05)
    masks["layer1.0.conv1.weight"][:2] = False
    prune.apply(model, masks)
    model.layer1[0].bn1.bias.data[:2] = -1                   # a channel that is zero, also at the border
    ckpt = checkpoint.of(model, "hoyer", "pruned", "shapes10", masks=masks)
    path = checkpoint.save(tmp_path / "pruned.pth.tar", ckpt)
    compact.main(["--model", str(path), "--save", str(tmp_path / "small.pth.tar")])
    finetune.main(["--model", str(path), "--save", str(tmp_path / "tuned"), *flags])
    assert_same_logits(tmp_path / "tuned/finetuned.pth.tar", tmp_path / "tuned/compact.pth.tar")
    for file in ("small.pth.tar", "tuned/compact.pth.tar"):
        assert checkpoint.load(tmp_path / file)["cfg"]["widths"] == [14, 32, 64]
        finetune.main(["--model", str(tmp_path / file), "--save", str(tmp_path / "again"), "--overwrite", *flags])
        ckpt = checkpoint.load(tmp_path / "again/finetuned.pth.tar")
        assert ckpt["masks"] and all(not ckpt["state_dict"][name][~mask].any() for name, mask in ckpt["masks"].items())
        assert sum(int(mask.sum()) for mask in ckpt["masks"].values()) < 0.9 * sum(
            mask.numel() for mask in ckpt["masks"].values())
