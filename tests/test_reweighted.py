"""Reweighted L1: coefficients, schedules, counts of the original, pruning, retraining, quantization, the launcher."""
import math
import random
import subprocess
import sys
from functools import partial

import by_hand
import pytest
import torch
import torch.nn.functional as F
from by_hand import STEPS, assert_same_logits, assert_same_network, column, like_trained, pruned_by, train_by_hand
from reliability import same
from torch import nn

from common import UserError, cli, compute_flops, models, scores
from common import keep as keeping
from common.evaluate import evaluate_file
from common.files import checkpoint, packing
from reweighted import check_model_operations as operations
from reweighted import finetune, main, penalties, prune, quantize_model, quantizers, recipe, testers
from reweighted.networks import network
from reweighted.training import main as launcher

pytestmark = pytest.mark.usefixtures("undrawn")
TINY = ["--subset", "20", "--batch-size", "10", "--device", "cpu", "--precision", "fp32"]
VGG = dict(depth=11, widths=[6, "M", 8, "M", 9, 8, "M", 7, 8, "M", 9, 10])
RESNET8 = ["--arch", "resnet8", "--dataset", "shapes10", *TINY]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def mobilenet():
    """The paper's network, no weight of which is zero."""
    model = models.build("mobilenetv2")
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1)
    return model


def save(path, model, stage="dense", **more):
    return by_hand.save(path, model, "reweighted", stage, **more)


# the penalty

def test_coefficients_of_signed_weights_by_hand():
    w = torch.tensor([0.0, 0.5, -0.5, 0.009, -0.001]).view(5, 1, 1, 1)
    expected = [1000.0, 1 / 0.501, 1 / 0.501, 100.0, 500.0]              # finite at -eps, the same for both signs
    gamma, = penalties.coefficients([w])
    assert torch.allclose(gamma.flatten(), torch.tensor(expected))
    gamma, = penalties.coefficients([w], faithful=True)                  # the original's: 1 / (w + eps)
    assert gamma.flatten()[2] == 1 / (torch.tensor(-0.5) + 1e-3) and gamma.flatten()[4].isinf()
    assert penalties.value([w[2:3]], [gamma[2:3]]) == pytest.approx(0.5 / 0.499)         # the size of a negative one
    gamma, = penalties.coefficients([w], eps=0.5)
    assert torch.allclose(gamma.flatten()[:2], torch.tensor([2.0, 1.0]))


@pytest.mark.parametrize("kind,shape,norms", [
    ("filter", (2, 1, 1, 1), [5.0, 12.0]), ("column", (1, 1, 1, 2), [3.0, 160 ** 0.5]),
    ("kernel", (2, 1, 1, 1), [5.0, 12.0]), ("channel", (1, 1, 1, 1), [13.0])])
def test_group_coefficients_by_hand(kind, shape, norms):
    w = torch.tensor([[3.0, 4.0], [0.0, 12.0]]).view(2, 1, 1, 2)
    gamma, = penalties.coefficients([w], kind)
    assert gamma.shape == shape and torch.allclose(gamma.flatten(), 1 / (torch.tensor(norms) + 1e-3))
    assert penalties.value([w], [gamma], kind) == pytest.approx(sum(n / (n + 1e-3) for n in norms))
    assert torch.equal(penalties.coefficients([w], kind, faithful=True)[0], gamma)       # norms have no sign


def test_a_column_is_one_place_of_one_input():
    gamma, = penalties.coefficients([torch.ones(4, 2, 3, 3)], "column", eps=0.0)
    assert torch.equal(gamma, torch.full((1, 2, 3, 3), 0.5))


@pytest.mark.parametrize("kind", penalties.GROUPS)
def test_the_gradient_is_the_penaltys(kind):
    w = torch.randn(4, 3, 3, 3).requires_grad_()
    gamma, = penalties.coefficients([w.detach() + 0.1], kind)
    norms = w.abs() if kind == "irregular" else w.pow(2).sum(penalties.GROUPS[kind], keepdim=True).sqrt()
    total = (gamma * norms).sum()
    total.backward()
    assert penalties.value([w], [gamma], kind) == pytest.approx(total.item(), rel=1e-5)
    assert torch.allclose(penalties.gradient(w, gamma, kind), w.grad, rtol=1e-5)
    if kind == "irregular":                                              # the original's gammas can be negative
        faithful, = penalties.coefficients([w.detach()], kind, eps=0.5, faithful=True)
        w.grad = None
        (faithful * w).abs().sum().backward()
        assert (faithful < 0).any() and torch.equal(penalties.gradient(w, faithful, kind), w.grad)
    zero = torch.zeros(4, 3, 3, 3)                                       # a group of zeros has none
    assert not penalties.gradient(zero, gamma, kind).any()


@pytest.mark.parametrize("kind", ["filter", "kernel", "column"])
@pytest.mark.parametrize("eps", [penalties.EPS, penalties.SMALLEST])
def test_a_group_of_zeros_has_no_gradient_though_its_own_coefficient_is_the_largest(kind, eps):
    w = torch.randn(4, 3, 3, 3)
    w[0] = w[:, 1] = w[:, :, 2] = 0
    gamma, = penalties.coefficients([w], kind, eps)
    gradient = penalties.gradient(w, gamma, kind)
    assert gamma.max() == pytest.approx(1 / eps) and gamma.isfinite().all()
    assert gradient.isfinite().all() and torch.equal(gradient.ne(0), w.ne(0))


def test_coefficients_lie_as_the_weights_do():
    w = torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    gamma, = penalties.coefficients([w])
    assert gamma.stride() == w.stride() == penalties.gradient(w, gamma).stride()


# schedules

def test_coefficients_are_renewed_behind_each_fifth():
    assert main.refreshes(300) == [61, 121, 181, 241]
    assert main.refreshes(10) == [3, 5, 7, 9] and main.refreshes(5) == [2, 3, 4, 5] and main.refreshes(1) == []
    assert main.refreshes(100, faithful=True) == [61] and main.refreshes(100) == [21, 41, 61, 81]


def test_learning_rate_of_the_reweighted_phase():
    factor = main.reweighted_schedule(300, batches=7)
    for epoch, expected in {1: 9.8e-4, 60: 2.98e-4, 61: 4.76e-4, 120: 1.45e-4, 121: 2.31e-4, 180: 7.02e-5,
                            181: 1.12e-4, 240: 3.41e-5, 241: 5.46e-5, 300: 1.66e-5}.items():
        for batch in (0, 6):
            assert 1e-3 * factor((epoch - 1) * 7 + batch) == pytest.approx(expected, rel=5e-3)
    short = main.reweighted_schedule(10, batches=300)                    # the same rates, 10 batches for each
    assert all(short(10 * epoch + 9) == factor(7 * epoch) for epoch in range(300))
    assert main.reweighted_schedule(10, 7, faithful=True)(69) == pytest.approx(0.98 ** 10)


def test_warm_up_and_cosine_in_closed_form():
    args = main.flags().parse_args(["--epochs", "20"])
    lr = [1e-3 * main.schedule(args, batches=10)(step) for step in range(201)]
    assert lr[0] == pytest.approx(1e-4) and lr[25] == pytest.approx(5.5e-4) and lr[50] == pytest.approx(1e-3)
    assert lr[125] == pytest.approx(4e-8 + (1e-3 - 4e-8) / 2) and lr[200] == pytest.approx(4e-8)
    assert all(a < b for a, b in zip(lr[:50], lr[1:51], strict=True))
    assert all(a > b for a, b in zip(lr[50:], lr[51:], strict=False))
    for flags in (["--lr", "0"], ["--lr", "1e-9", "--warmup-epochs", "0"]):
        assert main.schedule(main.flags().parse_args(["--epochs", "9", *flags]), 2)(18) == 1  # not 1 / 0, no rise
    assert main.schedule(main.flags().parse_args(["--epochs", "2", "--warmup-epochs", "2"]), 2)(4) == pytest.approx(1)


def test_halvings_of_a_short_run_come_at_its_own_fractions():
    flags = ["--lr-scheduler", "default", "--epochs"]
    marks = [30, 65, 100, 130, 160, 190, 220, 250, 280]
    for epochs, batches in ((300, 1), (2, 150)):             # 300 batches each, as many as the original's epochs
        rate = main.schedule(main.flags().parse_args([*flags, str(epochs), "--warmup-epochs", "0"]), batches)
        assert [step for step in range(1, 300) if rate(step) != rate(step - 1)] == marks
        assert rate(0) == 1 and rate(299) == 0.5 ** 9
    halved = main.schedule(main.flags().parse_args([*flags, "30", "--warmup-epochs", "4"]), 2)
    assert [halved(2 * epoch) for epoch in (4, 6, 7, 28)] == [0.5, 0.5, 0.25, 0.5 ** 9]  # after 3, 6.5, ... 28


def test_the_recipe_in_words():
    for flags, words in (([], "adam, cosine, warm-up epochs 5 (all that the run has); mixup 0.3, label smoothing 0.1"),
                         (["--warmup-epochs", "0"], "adam, cosine, warm-up epochs 0; mixup 0.3, label smoothing 0.1"),
                         (["--lr-scheduler", "onecycle"], "adam, onecycle; mixup 0.3, label smoothing 0.1")):
        assert recipe.words(main.flags().parse_args(["--epochs", "1", *flags])) == f"  {words}"


def test_adam_has_no_weight_decay_and_sgd_what_the_flags_say():
    model = nn.Linear(2, 2)
    adam = main.make_optimizer(main.flags().parse_args(["--lr", "0.5", "--wd", "0.1"]), model)
    assert type(adam) is torch.optim.Adam and (adam.defaults["lr"], adam.defaults["weight_decay"]) == (0.5, 0)
    for flags, expected in (([], (0.001, 0.9, 1e-4)), (["--lr", "0.5", "--momentum", "0.7", "--wd", "0.1"],
                                                       (0.5, 0.7, 0.1))):
        sgd = main.make_optimizer(main.flags().parse_args(["--optmzr", "sgd", *flags]), model)
        assert type(sgd) is torch.optim.SGD
        assert tuple(sgd.defaults[name] for name in ("lr", "momentum", "weight_decay")) == expected


def test_label_smoothing_and_mixup_by_hand():
    logits, a, b = torch.randn(2, 5), torch.tensor([1, 2]), torch.tensor([3, 2])

    def by_hand(labels):
        target = torch.full((2, 5), 0.1 / 4)                             # eps / (K - 1)
        target[range(2), labels] = 0.9
        return -(target * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(main.smoothed_loss(logits, a, a, 1.0, 0.1), by_hand(a))
    assert torch.allclose(main.smoothed_loss(logits, a, b, 0.3, 0.1), 0.3 * by_hand(a) + 0.7 * by_hand(b))
    assert torch.allclose(main.smoothed_loss(logits, a, b, 1.0, 0.0), F.cross_entropy(logits, a))
    assert main.smoothed_loss(torch.zeros(2, 10), a, a, 1, 0.9) > 0      # the most that ten classes can have
    recipe.check(main.flags().parse_args(["--smooth-eps", "0.9"]), 10)
    random.seed(1)
    images, labels = torch.rand(6, 3, 2, 2), torch.arange(6)
    mixed, first, second, lam = main.mixed(images, labels, 0.3)
    assert torch.allclose(mixed, lam * images + (1 - lam) * images[second]) and torch.equal(first, labels)
    random.seed(1)
    assert sorted(second.tolist()) == labels.tolist() and lam == random.betavariate(0.3, 0.3)
    assert main.mixed(images, labels, 0.0) == (images, labels, labels, 1.0)


# the counts of the original

def test_the_papers_network(mobilenet):
    assert mobilenet.cfg["streams"] == [40, 24, 32, 40, 80, 128, 208, 416] and mobilenet.cfg["widths"][-1] == 1664
    outs = [m.weight.shape[0] for name, m in mobilenet.named_modules() if name.endswith("conv3")]
    assert outs == [24, 32, 32, *[40] * 3, *[80] * 4, *[128] * 3, *[208] * 3, 416]
    found = testers.totals(mobilenet)
    assert (found.conv, found.linear, found.weights, found.norms) == (3_777_632, 166_400, 3_944_032, 91_072)
    old = testers.totals(mobilenet, legacy=True)
    assert old.weights == 3_905_632 and old.weights + old.norms == 3_996_704 and old.weights / 32 == 122_051
    with pytest.raises(UserError, match="mobilenetv2"):
        testers.totals(models.build("lenet5"), legacy=True)


def test_the_58_tensors_of_the_bit_lists(mobilenet):
    names = [name for name, tensor in mobilenet.state_dict().items() if tensor.dim() > 1]
    assert len(names) == 58
    for index, name in {0: "conv1", 3: "layers.0.conv3", 4: "layers.0.shortcut.0", 5: "layers.1.conv1",
                        8: "layers.1.shortcut.0", 10: "layers.2.conv2", 11: "layers.2.conv3", 14: "layers.3.conv3",
                        16: "layers.4.conv2", 19: "layers.5.conv2", 36: "layers.10.shortcut.0",
                        55: "layers.16.shortcut.0", 56: "conv2", 57: "linear"}.items():
        assert names[index] == f"{name}.weight"
    bits = quantizers.bit_list("seed", names)
    assert [i for i, b in enumerate(bits) if b == 6] == [3, 5, 8, 10, 11, 14, 16, 19, 55] and set(bits) == {6, 8}
    mixed = quantizers.bit_list("mixed", names)
    assert mixed[0] == 9 and mixed.count(6) == 13 and mixed.count(8) == 44
    assert quantizers.bit_list("0=9,-1=4,conv2.weight=3", names, 7)[-2:] == [3, 4]
    for wrong in ("58=6", "nothing=6", "0=1", "0", "x"):
        with pytest.raises(ValueError):
            quantizers.bit_list(wrong, names)


@pytest.mark.parametrize("sparsity,mults,adds", [
    (0.0, 155.691776, 153.407488), (0.5, 78.988032, 76.703744), (0.7695, 37.644714, 35.360426)])
def test_operations_as_the_original_counts(mobilenet, sparsity, mults, adds):
    lines = operations.legacy(mobilenet, sparsity)
    assert len(lines) == 58
    assert sum(x.mults for x in lines) / 1e6 == pytest.approx(mults, abs=1e-6)
    assert sum(x.adds for x in lines) / 1e6 == pytest.approx(adds, abs=1e-6)
    assert sum(x.mults for x in operations.blocks(lines)) == pytest.approx(sum(x.mults for x in lines))
    numel, out = 3_944_032, sum(x.out for x in lines)
    bits = numel * 16 * (1 - sparsity) + numel * (sparsity > 0) + out * 16
    assert sum(x.params for x in lines) == pytest.approx(bits)


def test_the_other_tools_figure_and_the_tree(mobilenet):
    assert operations.thop(mobilenet) == 325_421_880
    assert operations.tree_bits(8) / 32 == 0.541015625
    assert operations.tree_bits(16) == 32


def rule_line(shown, word):
    return next(line for line in shown.splitlines() if line.startswith(word))


def test_check_model_operations_prints_the_readmes_figures(mobilenet, tmp_path, capsys):
    pruned = models.build("mobilenetv2")
    pruned.load_state_dict(mobilenet.state_dict())
    mask = torch.ones_like(pruned.conv2.weight, dtype=torch.bool)
    mask[:1000] = False
    masks = {"conv2.weight": mask}
    path = save(tmp_path / "m.pth.tar", pruned_by(masks, pruned), "pruned", masks=masks,
                dense=compute_flops.summary(mobilenet))
    counted = operations.main([str(path), "--thop"])
    shown = capsys.readouterr().out
    assert ("in 32 bits: 155.691776M multiplications, 153.407488M additions; 77.845888M + 153.407488M = "
            "231.253376M operations") in shown
    assert "325.42188M" in shown and "617,641.5" in shown and "231.25M/10.49B = 0.0390" in shown
    assert "layers.16 " in shown and "layers.16.conv1" not in shown      # a line for each block
    left = 3_944_032 - 416_000
    assert f"{416_000:,} zero parameters and {left + 91_072:,} non-zero" in shown
    storage = (left + 91_072) / 2 + 3_944_032 / 32
    assert f"{storage:,.1f}/36.5M + 231.25M/10.49B" in shown
    # by the rules: 1,000 filters of 416 weights less at 16 positions, and no bias for them; the ReLUs stay
    rows = scores.operations(mobilenet)
    mults, adds = sum(row.mults for row in rows), sum(row.adds for row in rows)
    assert counted.mults == pytest.approx(mults - 416_000 * 16) and counted.adds == adds - 416_000 * 16
    kept = 3_989_668 + 45_536 - 416_000 - 276_224                        # statistics of batch norms too
    assert counted.storage == kept + 276_224 + 692_224 / 32
    ckpt = checkpoint.load(path)
    assert counted.score == scores.of_checkpoint(ckpt, checkpoint.to_model(ckpt)).score  # what tables and eval.py have
    halved = operations.main([str(path), "--input-bits", "16", "--param-bits", "16"])
    assert halved.mults == counted.mults / 2 and halved.storage == (kept + 276_224) / 2 + 692_224 / 32
    assert "freebie: " in capsys.readouterr().out
    rounds = {"conv1": {"bits": 8, "scale": 0.1, "zero": 128}}           # layers that read 8 bits: no freebie
    rounded = checkpoint.save(tmp_path / "a.pth.tar", {k: v for k, v in ckpt.items() if k != "path"} | {
        "activations": rounds})
    operations.main([str(rounded)])
    assert "freebie: " not in capsys.readouterr().out
    operations.main([str(path), "--input-bits", "8", "--param-bits", "8", "--adds", "tree", "--sparsity", "0.5",
                     "--legacy-count"])
    shown = capsys.readouterr().out
    assert "19.747008M + 41.497924M = 61.244932M operations" in shown    # the 61.25 M of the later submissions
    with pytest.raises(UserError, match="32 bits"):
        operations.main([str(path), "--input-bits", "33"])


def test_the_original_constant_for_the_linear_layer_counts_in_a_quantized_file_too(mobilenet, tmp_path, capsys):
    model = models.build("mobilenetv2")
    model.load_state_dict(mobilenet.state_dict())
    entry = packing.quantized(torch.full(model.linear.weight.shape, 3, dtype=torch.uint8), 8, scale=torch.tensor(0.1),
                              zero=torch.tensor(0))
    with torch.no_grad():
        model.linear.weight.copy_(packing.dequantize(entry))
    path = save(tmp_path / "q.pth.tar", model, "quantized", quant={"linear.weight": entry})
    operations.main([str(path), "--legacy-count"])
    weights = 3_777_632 + 128_000
    storage = weights + 91_072 + weights / 32 - 128_000 * 24 / 32
    assert f"{storage:,.1f}/36.5M" in capsys.readouterr().out


def test_batch_norms_of_a_quantized_file_count_at_the_bits_of_their_layer(mobilenet):
    bits = {f"{name}.weight": 8 for name, m in mobilenet.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    for legacy in (False, True):
        assert operations.quantized_storage(mobilenet, bits, legacy) == testers.totals(mobilenet, legacy).storage(8)
    nine = operations.quantized_storage(mobilenet, bits | {"conv1.weight": 9})           # 1,080 weights, 40 channels
    assert nine == testers.totals(mobilenet).storage(8) + (1_080 + 4 * 40) / 32


@pytest.mark.parametrize("nonzeros,bits,words", [
    (900_109, 16, 617_641.5), (900_109, 8, 369_846.25), (893_464, 8, 368_185), (798_462, 16, 566_818)])
def test_storage_of_the_submissions(nonzeros, bits, words):
    assert testers.Totals(3_777_632, nonzeros - 128_000, 128_000, 128_000, 91_072).storage(bits) == words


def test_testers_in_the_words_of_the_original(tmp_path, capsys):
    model = models.build("mobilenetv2", width_multiplier=0.1, num_classes=10)
    with torch.no_grad():
        model.conv2.weight.fill_(1)
        model.conv2.weight[:320] = 0
    path = save(tmp_path / "m.pth.tar", model)
    result = testers.main([str(path), "--subset", "20"])
    shown = capsys.readouterr().out
    assert rule_line(shown, "conv2.weight").split() == ["conv2.weight", "30720", "10240", "40960", "0.2500"]
    found = testers.totals(model)
    zeros = found.weights - found.nonzeros
    assert f"total weights: {found.weights}, total number of zeros: {zeros}, non-zeros: {found.nonzeros}" in shown
    assert f"only consider conv layers, compression rate is: {found.conv / found.conv_nonzeros:.4f}" in shown
    assert f"* Acc@1: {round(result['top1'] / 5)}/20" in shown


# pruning

def test_a_threshold_leaves_what_is_not_below():
    w = {"a": torch.tensor([1e-4, -1e-4, 9.9e-5, -2e-4, 0.0, 5.0]).view(6, 1, 1, 1)}
    assert prune.choose(w)["a"].flatten().tolist() == [True, True, False, True, False, True]
    assert prune.choose(w, threshold=1e-3)["a"].sum() == 1
    assert prune.choose(w, ratios={"a": 0.0}) == {} and prune.choose(w, ratios={}) == {}  # untouched
    assert prune.choose(w, ratios={"a": 0.5})["a"].sum() == 4            # by threshold, the number does not matter
    assert prune.choose(w, ratios={"a": 0.5}, threshold=None)["a"].sum() == 3
    assert prune.choose(w, ratios={"a": 0.45}, threshold=None)["a"].sum() == 4       # int(2.7) go


def test_one_percentile_for_all_layers_and_a_ratio_for_each():
    w = {"a": torch.arange(1.0, 9).view(2, 1, 2, 2), "b": -torch.arange(10.0, 18).view(2, 1, 2, 2)}
    keep = prune.choose(w, percentile=0.5)
    assert not keep["a"].any() and keep["b"].all()
    keep = prune.choose(w, ratios={"a": 0.25, "b": 0.5}, threshold=None)
    assert keep["a"].flatten().tolist() == [False] * 2 + [True] * 6
    assert keep["b"].flatten().tolist() == [False] * 4 + [True] * 4


def test_groups_go_by_their_root_mean_square():
    w = torch.zeros(2, 2, 1, 2)
    w[0, 0], w[1] = torch.tensor([0.03, 0.04]), 0.02
    for kind, expected in (("filter", [True, True]), ("kernel", [True, False, True, True])):
        keep = prune.choose({"a": w}, kind, threshold=0.0179)["a"]       # filter 0: sqrt(0.0025 / 4) = 0.025
        groups = keep.flatten(1) if kind == "filter" else keep.flatten(2).flatten(0, 1)
        assert groups.all(1).tolist() == groups.any(1).tolist() == expected
    assert prune.choose({"a": w}, "filter", threshold=0.0251)["a"].flatten(1).any(1).tolist() == [True, False]
    last = prune.choose({"a": w.flip(0)}, "filter", threshold=1.0)["a"]
    assert last.flatten(1).sum(1).tolist() == [0, 4]                     # the strongest stays


def trained(arch, **cfg):
    """A network with batch norms as after training, in double precision."""
    return like_trained(models.build(arch, **cfg)).double().eval()


@pytest.mark.parametrize("kind", ["filter", "column", "channel"])
@pytest.mark.parametrize("arch,cfg", [("mobilenetv2", {"width_multiplier": 0.2}), ("resnet", {"depth": 8}),
                                      ("vgg", VGG), ("densenet", {"depth": 10, "selection": True}),
                                      ("densenet", {"depth": 16, "block": "bottleneck"}),
                                      ("preresnet", {"depth": 14, "selection": True})])
def test_groups_that_are_gone_make_a_smaller_network(arch, cfg, kind):
    model = trained(arch, num_classes=10, **cfg)
    weights = {f"{name}.weight": m.weight for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    with torch.no_grad():
        for w in weights.values():                           # whole input and output channels that are near zero
            for dim in (0, 1):
                if w.shape[dim] > 3:
                    w.transpose(0, dim)[torch.randperm(w.shape[dim])[:w.shape[dim] // 3]] *= 1e-6
    masks = prune.choose(weights, kind)
    small, narrow = prune.narrowed(pruned_by(masks, model), masks)
    assert_same_logits(model, small, 1e-9)
    assert compute_flops.count(small).total.macs < 0.9 * compute_flops.count(model).total.macs
    state = small.state_dict()
    assert masks.keys() == narrow.keys()
    assert all(torch.equal(mask, state[name] != 0) for name, mask in narrow.items())


@pytest.mark.parametrize("arch, cfg", [
    ("resnet", dict(depth=8)), ("mobilenetv2", dict(width_multiplier=0.35)),
    ("resnext", dict(depth=11, cardinality=3, widen_factor=1, streams=[8, 8, 12, 14]))])
def test_channels_that_nothing_reads_go_and_no_other(arch, cfg):
    model = trained(arch, num_classes=10, **cfg)
    modules, expected = dict(model.named_modules()), {}
    with torch.no_grad():
        for record in model.channels():
            size, consumers = record.group_size, [modules[c.layer].weight for c in record.consumers]
            for weight in consumers:
                weight[:, :size] = 0                         # of the first group nothing is read,
            consumers[0][:, size:size + 1] = 0               # of the second one channel less, or by one layer less
            if size == 1 and len(consumers) == 1:
                consumers[0][0, 1] = 1
            last = modules[record.producers[0][0]].weight[-1]            # one weight makes a channel
            last.zero_()
            last[-1].fill_(0).view(-1)[0] = 1
            expected[record.producers[0][0]] = size
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    before = model(images)
    keep = prune.removable(model)
    assert {name: int((~mask).sum()) for name, mask in keep.items()} == expected
    largest = max(expected.values())                         # multiples are those of channels
    rounded = prune.removable(model, round_to=largest)
    assert all((~rounded[name]).sum() == size for name, size in expected.items() if size == largest)
    small, _ = prune.narrowed(model, {})
    assert torch.allclose(before, small(images), atol=1e-9)


@pytest.mark.parametrize("kind, flags, widths", [
    ("filter", [], [6, "M", 7, "M", 8, 7, "M", 6, 7, "M", 8, 9]),
    ("filter", ["--round-to", "4"], [6, "M", 8, "M", 8, 8, "M", 7, 8, "M", 8, 10]),
    ("column", [], [5, "M", 7, "M", 8, 7, "M", 6, 7, "M", 8, 10]),
    ("channel", [], [5, "M", 7, "M", 8, 7, "M", 6, 7, "M", 8, 10])])
def test_prune_takes_channels_out_for_every_kind_that_can_empty_them(kind, flags, widths, tmp_path):
    model = trained("vgg", num_classes=10, **VGG).float()
    with torch.no_grad():
        for conv in [m for m in model.modules() if isinstance(m, nn.Conv2d)][1:]:
            (conv.weight if kind == "filter" else conv.weight.transpose(0, 1))[0] *= 1e-6
    path = prune.main(["--model", str(save(tmp_path / "m.pth.tar", model)), "--sparsity-type", kind, "--threshold",
                       "1e-4", "--subset", "20", "--device", "cpu", "--save", str(tmp_path / "p"), *flags])
    assert checkpoint.load(path)["cfg"]["widths"] == widths


def test_a_network_without_channels_keeps_one(capsys):
    model = trained("resnet", depth=8, num_classes=10)
    with torch.no_grad():
        model.layer1[0].conv1.weight.zero_()
    assert prune.removable(model)["layer1.0.conv1"].sum() == 1
    assert capsys.readouterr().out == "layer1.0.conv1: no channel remains; 1 kept\n"
    assert prune.removable(model, round_to=8)["layer1.0.conv1"].sum() == 8 and "8 kept\n" in capsys.readouterr().out
    model = trained("resnext", depth=11, cardinality=2, widen_factor=1)
    with torch.no_grad():
        model.stage_1.stage_1_bottleneck_0.conv_conv.weight.zero_()      # two groups of 64 channels
    assert prune.removable(model, quiet=True)["stage_1.stage_1_bottleneck_0.conv_reduce"].sum() == 64
    assert not capsys.readouterr().out


def test_a_channel_goes_when_one_layer_of_its_chain_is_empty():
    model = trained("mobilenetv2", width_multiplier=0.2, num_classes=10)
    with torch.no_grad():
        model.layers[3].conv1.weight[5] = 0                  # of the three layers that the channel passes, the first
        model.layers[4].conv2.weight[6] = 0                  # the depthwise one
        model.layers[6].conv3.weight[:, 7] = 0               # the one that reads it
        model.layers[7].conv3.weight[2] = 0                  # one of four that add to a stream: the others make it
    keep = prune.removable(model)
    assert {name: vector.logical_not().nonzero().tolist() for name, vector in keep.items()} == {
        "layers.3.conv1": [[5]], "layers.4.conv1": [[6]], "layers.6.conv1": [[7]]}


def chosen_by(flags, model, kind="irregular"):
    """(what prune.py keeps with --keep-weights or --keep-macs, the arguments) of a network that is dense itself."""
    args = prune.flags().parse_args(["--model", "m", *flags])
    weights = {f"{name}.weight": m.weight for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    ckpt = {"arch": model.arch, "cfg": model.cfg, "dense": None}
    ratios = prune.threshold_for(args, kind, ckpt, model, weights)
    return prune.choose(weights, kind, args.threshold, args.percentile, ratios, True), args


def test_keep_weights_is_exact_whatever_is_zero_already(capsys):
    model = models.build("resnet", depth=8)
    total, linear = compute_flops.count(model).total.weights, 640
    for _ in range(2):                                       # the second time half of two layers is zero
        for fraction in (0.1, 0.77):
            keep, _ = chosen_by(["--keep-weights", str(fraction)], model)
            assert sum(int(mask.sum()) for mask in keep.values()) + linear == int(fraction * total)
            least = min(float(model.get_parameter(name).detach()[mask].abs().min()) for name, mask in keep.items())
            assert f"threshold {least:.4g}\n" in capsys.readouterr().out
        with torch.no_grad():
            model.conv1.weight[:8] = 0
            model.fc.weight[:5] = 0
        linear = 320
    keep, _ = chosen_by(["--keep-weights", "1"], model)      # the linear layer has room for them all
    assert all(mask.all() for mask in keep.values())
    chosen_by(["--keep-weights", str(321.5 / total)], model)
    with pytest.raises(UserError, match="are not pruned have 320 of the"):
        chosen_by(["--keep-weights", str(320.5 / total)], model)


def test_keep_macs_says_what_is_left(capsys, monkeypatch):
    monkeypatch.setattr(keeping, "bisect", partial(keeping.bisect, steps=15))
    model = trained("resnet", depth=8, num_classes=10)
    keep, args = chosen_by(["--keep-macs", "0.6", "--round-to", "4"], model, "filter")
    assert set(keep) == {f"layer{stage}.0.conv1.weight" for stage in (1, 2, 3)}  # inside blocks
    dense = compute_flops.count(model).total.macs
    small, _ = prune.narrowed(pruned_by(keep, model), {}, round_to=4)
    left = compute_flops.count(small).total.macs / dense
    assert left <= 0.6 and all(width % 4 == 0 for width in small.cfg["widths"])
    assert capsys.readouterr().out == f"--threshold {args.threshold:.6g} keeps {left:.4f} of the MACs\n"


@pytest.mark.parametrize("flags, rule", [
    ([], "irregular, threshold 0.0001"), (["--ratios", "f", "--threshold", "0.1"], "irregular, threshold 0.1"),
    (["--percentile", "0.5"], "irregular, percentile 0.5"), (["--ratios", "f"], "irregular, ratios f")])
def test_the_rule_in_words(flags, rule):
    args = prune.flags().parse_args(["--model", "m", "--sparsity-type", "irregular", *flags])
    prune.fill_in(args)
    assert prune.rule_of(args) == rule
    args.keep_weights, args.percentile, args.ratios = 0.1, 0.93, None        # which is how --keep-weights 0.1 was done
    assert prune.rule_of(args) == "irregular, keep_weights 0.1"
    args.keep_weights, args.keep_macs, args.threshold = None, 0.5, 0.0117
    assert prune.rule_of(args) == "irregular, keep_macs 0.5"


def test_pruning_again_by_less_gives_nothing_back(tmp_path, capsys):
    other = {"fc.weight": torch.rand(10, 64) > 0.5}          # of another method, which prunes linear layers too
    save(tmp_path / "m.pth.tar", models.build("resnet", depth=8), masks=other, best_prec1=99.0)
    masks = []
    for number, (source, ratio) in enumerate((("m", "0.5"), ("0/pruned", "0.2"))):
        prune.main(["--model", str(tmp_path / f"{source}.pth.tar"), "--ratio", ratio, "--subset", "20", "--device",
                    "cpu", "--save", str(tmp_path / str(number))])
        ckpt = checkpoint.load(tmp_path / f"{number}/pruned.pth.tar")
        masks.append(ckpt["masks"])
        assert ckpt["rule"] == f"irregular, ratio {ratio}" and ckpt["best_prec1"] == ckpt["prec1"] < 99
        assert ckpt["dense"]["params"] == 78_042
    assert same(*masks) and torch.equal(masks[0]["fc.weight"], other["fc.weight"])
    assert capsys.readouterr().out.count("0/pruned.pth.tar is pruned as far already; nothing more is pruned\n") == 1
    assert all(2 * int(mask.sum()) == mask.numel() for name, mask in masks[0].items() if name != "fc.weight")


def test_the_kind_is_that_of_the_reweighted_phase_unless_a_flag_says_another(tmp_path, capsys, rendered):
    path = save(tmp_path / "m.pth.tar", trained("vgg", **VGG).float(), args={"sparsity_type": "kernel"})
    for kind, flags in (("kernel", []), ("filter", ["--sparsity-type", "filter"])):
        file = prune.main(["--model", str(path), "--subset", "20", "--save", str(tmp_path / kind), *flags])
        assert checkpoint.load(file)["args"]["sparsity_type"] == kind
        assert ("logits differ" in capsys.readouterr().out) == (kind == "filter")        # where channels are taken out
        assert (tmp_path / kind / "prune.png").stat().st_size > 5000


# the loops

@pytest.mark.parametrize("flags, lam", [
    ([], 1e-6 * 50), (["--faithful"], 1e-6), (["--lam", "0"], 0), (["--sparsity-type", "filter"], 1e-3 * 50),
    (["--sparsity-type", "column"], 3e-4 * 50), (["--sparsity-type", "kernel"], 1e-5 * 50)])
def test_a_short_run_has_a_larger_lambda(flags, lam, tmp_path, settings_of):
    """The original's, times 300 / epochs."""
    path = str(save(tmp_path / "m.pth.tar", models.build("resnet", depth=8)))
    found = settings_of(main, "--rew", "--pretrained", path, *TINY, "--epochs", "6", *flags)
    assert found["stage"] == "sparse" and found["lam"] == pytest.approx(lam)
    assert settings_of(main, *RESNET8, "--epochs", "6")["stage"] == "dense"


def mixed_loss(logits, images, labels, epoch):
    return main.smoothed_loss(logits, labels, labels.flip(0), 0.3, 0.2)


BY_HAND = [*STEPS, "--epochs", "2", "--optmzr", "sgd", "--alpha", "0.3", "--smooth-eps", "0.2"]


@pytest.fixture
def half_pruned(tmp_path, monkeypatch):
    """(a ResNet-8, its masks, its file); mixup in place of whose random images come the labels in reverse."""
    for script in (main, finetune):
        monkeypatch.setattr(script, "mixed", lambda images, labels, alpha: (images, labels, labels.flip(0), alpha))
    model = models.build("resnet", depth=8)
    masks = {name: torch.rand(p.shape) > 0.3 for name, p in model.named_parameters() if p.dim() == 4}
    dense = {"params": 7, "macs": 8, "cfg": model.cfg}
    return model, masks, str(save(tmp_path / "m.pth.tar", pruned_by(masks, model), "pruned", masks=masks,
                                  rule="by hand", dense=dense))


def test_four_steps_of_the_reweighted_phase_by_hand(half_pruned, tmp_path):
    model, masks, path = half_pruned
    flags = ["--rew", "--pretrained", path, *BY_HAND, "--lam", "0.01", "--eps", "0.5", "--save", str(tmp_path / "r")]
    ckpt = checkpoint.load(main.main(flags))
    factor, weights = main.reweighted_schedule(2, 2), [w for w in model.parameters() if w.dim() == 4]
    assert main.refreshes(2) == [2]
    gammas = {}

    def penalty(epoch):
        gammas.setdefault(epoch, [1 / (w.detach().abs() + 0.5) for w in weights])        # new ones in the second
        return 0.01 * sum((gamma * w.abs()).sum() for gamma, w in zip(gammas[epoch], weights, strict=True))
    rates = [[0.02 * factor(step) for step in steps] for steps in ((0, 1), (2, 3))]
    train_by_hand(model, rates, 0.8, 0.1, lambda *batch: mixed_loss(*batch) + penalty(batch[-1]), masks)
    assert_same_network(ckpt["state_dict"], model)
    assert same(ckpt["masks"], masks) and ckpt["dense"]["params"] == 7   # the file's own
    assert column(tmp_path / "r", "penalty")[-1] == pytest.approx(float(penalty(1).detach()), rel=1e-3)
    small = float((torch.cat([w.flatten() for w in weights]).abs() < 1e-4).float().mean())
    assert column(tmp_path / "r", "below_1e-4")[-1] == pytest.approx(small, rel=1e-3)


def test_four_steps_of_masked_retraining_by_hand(half_pruned, tmp_path, capsys):
    model, masks, path = half_pruned
    with torch.no_grad():
        model.conv1.weight.fill_(0.1)                        # under the mask too: the first thing is to zero these
    dense = {"params": 7, "macs": 8, "cfg": model.cfg}
    save(path, model, "pruned", masks=masks, rule="by hand", dense=dense)
    finetune.main(["--model", path, *BY_HAND, "--warmup-epochs", "1", "--warmup-lr", "0.01", "--save",
                   str(tmp_path / "f")])
    pruned_by(masks, model)
    rates = [[0.01, 0.015], [0.02, 0.01 + 2e-8]]             # warm-up, and half of a cosine
    train_by_hand(model, rates, 0.8, 0.1, mixed_loss, masks)
    for name in ("finetuned", "checkpoint"):
        ckpt = checkpoint.load(tmp_path / f"f/{name}.pth.tar")
        assert_same_network(ckpt["state_dict"], model)
        assert same(ckpt["masks"], masks) and ckpt["rule"] == "by hand" and ckpt["dense"] == dense
    gone = sum(int((~mask).sum()) for mask in masks.values())
    assert f"  {gone:,} weights are masked\n" in capsys.readouterr().out


def test_a_masked_weight_that_has_moved_ends_the_run(half_pruned, tmp_path, monkeypatch):
    def spoil(model, loader):
        nn.init.ones_(model.conv1.weight)
        return {"loss": 1.0, "top1": 1.0}
    monkeypatch.setattr(finetune, "evaluate", spoil)
    with pytest.raises(AssertionError, match="masked weights are not zero any more"):
        finetune.main(["--model", half_pruned[2], *TINY, "--epochs", "1", "--save", str(tmp_path / "f")])


def test_the_mask_is_applied_again_after_a_step_that_moved_everything(half_pruned, tmp_path, monkeypatch):
    class Restless(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                torch._foreach_add_([w.data for w in group["params"]], 1e-3)
    monkeypatch.setattr(finetune, "make_optimizer", lambda args, model: Restless(model.parameters(), args.lr))
    _, masks, path = half_pruned
    out = finetune.main(["--model", path, *TINY, "--epochs", "1", "--save", str(tmp_path / "f")])
    assert all(torch.equal(checkpoint.load(out)["state_dict"][name] != 0, mask) for name, mask in masks.items())


@pytest.fixture
def gammas_seen(monkeypatch):
    """[(weight, coefficients, kind)] of the first convolution, of every step."""
    seen, real = [], penalties.gradient

    def gradient(w, gamma, kind):
        if w.shape[1] == 3:
            seen.append((w.detach().clone(), gamma.clone(), kind))
        return real(w, gamma, kind)
    monkeypatch.setattr(penalties, "gradient", gradient)
    return seen


@pytest.mark.parametrize("kind", ["irregular", "filter"])
def test_faithful_has_signed_coefficients_and_its_own_rates(kind, tmp_path, monkeypatch, gammas_seen):
    path = str(save(tmp_path / "m.pth.tar", models.build("resnet", depth=8)))
    flags = ["--rew", "--pretrained", path, *TINY, "--epochs", "2", "--faithful", "--eps", "0.5", "--lr", "0.01",
             "--optmzr", "sgd", "--sparsity-type", kind, "--save"]
    monkeypatch.setattr(main, "LENGTH", 2)                   # the original's fifths, in a run of two epochs
    main.main([*flags, str(tmp_path / "r")])
    for step in (0, 2):                                      # as the weights are when an epoch begins
        w, gammas, given = gammas_seen[step]
        size = w if kind == "irregular" else w.flatten(1).norm(dim=1)
        torch.testing.assert_close(gammas.flatten(), 1 / (size.flatten() + 0.5))
        assert torch.equal(gammas, gammas_seen[step + 1][1]) and given == kind
    assert column(tmp_path / "r") == pytest.approx([0.01 * 0.98, 0.01 * 0.98 ** 1 * 1.6], rel=1e-5)
    gammas_seen.clear()
    monkeypatch.setattr(main, "LENGTH", 20)                  # two epochs of twenty: no new coefficients, 0.98 for each
    main.main([*flags, str(tmp_path / "begun")])
    assert all(torch.equal(gammas_seen[0][1], gammas) for _, gammas, _ in gammas_seen)
    assert column(tmp_path / "begun") == pytest.approx([0.01 * 0.98, 0.01 * 0.98 ** 2], rel=1e-5)


def test_names_of_networks():
    assert network("mobilenetv2", 17) == network("mobilenetv2") == ("mobilenetv2", {"width_multiplier": 1.3})
    assert network("mobilenetv2_0.5")[1] == {"width_multiplier": 0.5} and network("resnet20")[1] == {"depth": 20}


# quantization

@pytest.mark.parametrize("method", quantizers.METHODS)
@pytest.mark.parametrize("bits", [2, 4, 6, 8, 9])
def test_quantizers_are_idempotent_and_keep_zeros(method, bits):
    w = torch.randn(64, 8, 3, 3) * 0.3
    w[torch.rand_like(w) < 0.7] = 0
    codes, scale, zero = quantizers.quantize(w, bits, method)
    value = packing.dequantize(packing.quantized(codes, bits, scale=scale, zero=zero))
    assert not value[w == 0].any() and len(value.unique()) <= 2 ** bits
    again, scale2, zero2 = quantizers.quantize(value, bits, method)
    if method == "linear" and value.abs().max() < w.abs().max() / 2:
        pytest.fail("the largest weight lost half its size")
    twice = packing.dequantize(packing.quantized(again, bits, scale=scale2, zero=zero2))
    assert torch.allclose(twice, value, atol=1e-6)
    if bits > 2:
        assert (value - w).abs().max() <= scale * 1.0001


def test_power_of_two_by_hand():
    w = torch.tensor([0.7, -0.3, 0.0, 0.126, -0.7])                      # I = 0, step 2^-7 at 8 bits
    codes, scale, zero = quantizers.quantize(w, 8)
    assert (float(scale), int(zero)) == (2.0 ** -7, 128)
    assert (codes - 128).tolist() == [90, -38, 0, 16, -90]               # 0.126 * 128 = 16.1, -0.3 * 128 + 0.5 = -37.9
    codes, scale, _ = quantizers.quantize(torch.tensor([0.99, -0.99, 0.5]), 4)   # 0.99 is nearly a step past the last
    assert float(scale) == 0.125 and (codes - 8).tolist() == [7, -8, 4]
    codes, scale, _ = quantizers.quantize(torch.tensor([0.5, -0.25]), 4)         # a power of two is not clamped
    assert float(scale) == 0.125 and (codes - 8).tolist() == [4, -2]
    codes, scale, _ = quantizers.quantize(torch.tensor([100.0, *[0.7] * 99]), 8, overflow_rate=0.01)
    assert float(scale) == 2.0 ** -7 and int(codes[0]) == 255            # the outlier is clamped
    assert quantizers.grid("linear", 8, 0.0, 3.0) == (2.0 ** -6, 0)      # activations without a sign
    with pytest.raises(ValueError, match="2 or more"):
        quantizers.quantize(w, 1)


def test_minmax_by_hand():
    codes, scale, zero = quantizers.quantize(torch.tensor([-1.0, 0.0, 0.5, 2.0]), 2, "minmax")
    assert (float(scale), int(zero)) == (1.0, 1) and codes.tolist() == [0, 1, 2, 3]      # 0.5 rounds up
    codes, scale, zero = quantizers.quantize(torch.tensor([1.0, 3.0]), 8, "minmax")      # the range holds zero
    assert float(scale) == pytest.approx(3 / 255) and int(zero) == 0 and codes.tolist() == [85, 255]


def test_quantize_model_end_to_end(tmp_path, capsys):
    model = trained("mobilenetv2", width_multiplier=0.1, num_classes=10).float()
    mask = torch.rand_like(model.conv2.weight) > 0.7
    masks = {"conv2.weight": mask}
    path = save(tmp_path / "m.pth.tar", pruned_by(masks, model), "finetuned", masks=masks)
    flags = ["--model", str(path), "--subset", "40", "--n-sample", "1", "--device", "cpu"]
    out = quantize_model.quantize(quantize_model.parse([*flags, "--bit-list", "4", "8", "--save", str(tmp_path / "q")]))
    shown = capsys.readouterr().out
    ckpt = checkpoint.load(out, quantized=True)
    assert ckpt["stage"] == "quantized" and ckpt["args"]["bits"] == [8] * len(ckpt["quant"])
    assert out.stat().st_size < 0.7 * path.stat().st_size
    assert {entry["bits"] for entry in ckpt["quant"].values()} == {8}
    assert torch.equal(ckpt["masks"]["conv2.weight"], mask) and not ckpt["state_dict"]["conv2.weight"][~mask].any()
    step = ckpt["quant"]["linear.weight"]["scale"]
    assert math.log2(float(step)).is_integer()
    assert (ckpt["state_dict"]["linear.weight"] - model.linear.weight).abs().max() <= step
    assert len(rule_line(shown, "               8").split()) == 4        # a line for each list
    # activations are rounded too, wherever the file is read
    layers = {name for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert ckpt["activations"].keys() == layers
    images = torch.randn(2, 3, 32, 32)
    rounded, plain = checkpoint.to_model(ckpt), checkpoint.to_model({**ckpt, "activations": None})
    assert not torch.equal(rounded(images), plain(images))
    entry, seen = ckpt["activations"]["linear"], []
    rounded.linear.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    rounded(images)
    on_grid = seen[0] / entry["scale"]
    assert torch.equal(on_grid, on_grid.round()) and on_grid.min() >= 0 and on_grid.max() <= 255
    again = evaluate_file([str(out), "--subset", "40", "--device", "cpu"], "", network)
    assert again["top1"] == ckpt["prec1"]
    counted = operations.main([str(out)])
    assert counted.score == pytest.approx(scores.rules(
        rounded, ckpt["masks"], dict.fromkeys(ckpt["quant"], 8), 8, scales=2 * len(layers) * 2).score)
    assert operations.main([str(out), "--adds", "tree"]).score == pytest.approx(scores.rules(
        rounded, ckpt["masks"], dict.fromkeys(ckpt["quant"], 8), 8, operations.tree_bits(8),
        scales=2 * len(layers) * 2).score)
    with pytest.raises(UserError, match="says how many bits additions have; leave out --accumulator-bits"):
        operations.main([str(out), "--adds", "tree", "--accumulator-bits", "16"])


# the original's launcher

def test_the_launcher_runs_four_phases_and_goes_on(tmp_path, capsys):
    flags = [*RESNET8, "--epochs", "1", "--warmup-epochs", "0", "--threshold", "0.05", "--save", str(tmp_path / "a")]
    launcher.run(launcher.parse(flags))
    whole = checkpoint.load(tmp_path / "a/retrained/finetuned.pth.tar")
    assert 0 < sum(int((~mask).sum()) for mask in whole["masks"].values())
    assert checkpoint.load(tmp_path / "a/reweighted/checkpoint.pth.tar")["stage"] == "sparse"
    words = "\n  adam, cosine, warm-up epochs 0; mixup 0.3, label smoothing 0.1\n"
    assert capsys.readouterr().out.count(words) == 2         # dense training and retraining
    with pytest.raises(UserError, match="already holds a run"):
        launcher.run(launcher.parse(flags))
    launcher.run(launcher.parse([*flags, "--resume", "auto"]))           # all of it is done
    assert "is there already" in capsys.readouterr().out
    with pytest.raises(UserError, match="pruned.pth.tar was made with threshold 0.05; give the same"):
        launcher.run(launcher.parse([*flags, "--resume", "auto", "--threshold", "0.1"]))
    # phase by phase the same
    for more in (["--rew", "--pretrained", str(tmp_path / "a/dense/checkpoint.pth.tar")], ["--masked-retrain"]):
        launcher.run(launcher.parse([*flags[:-2], *more, "--save", str(tmp_path / "b")]))
    assert same(checkpoint.load(tmp_path / "b/retrained/finetuned.pth.tar")["state_dict"], whole["state_dict"])


def test_the_published_flags(tmp_path):
    args = launcher.parse("--arch mobilenetv2 --depth 17 --batch-size 64 --rew --sparsity-type irregular --epoch 300 "
                          "--optmzr adam --lr 0.001 --lr-scheduler cosine --warmup --warmup-epochs 5 --mixup "
                          "--alpha 0.3 --smooth --smooth-eps 0.1 -j 4 --log-interval 10 --logger --verbose".split())
    for script, flags in ((main, []), (finetune, ["--model", "m"])):
        made, usual = cli.settings(script, args), script.flags().parse_args(flags)
        for name in ("epochs", "batch_size", "lr", "optmzr", "lr_scheduler", "warmup_epochs", "alpha", "smooth_eps"):
            assert getattr(made, name) == getattr(usual, name)           # the defaults are the published run
    masked = launcher.parse("--masked-retrain --sparsity-type threshold --config-file config_mobile_v2_0.7".split())
    assert launcher.rule(masked) == {"threshold": 1e-4, "sparsity_type": None,
                                     "ratios": str(launcher.PROFILES / "config_mobile_v2_0.7.yaml")}
    by_ratio = launcher.parse("--masked-retrain --sparsity-type filter --config-file config_mobile_v2_0.7".split())
    assert launcher.rule(by_ratio)["threshold"] is None and launcher.rule(by_ratio)["sparsity_type"] == "filter"
    tricks = launcher.parse(["--no-tricks", "--rew", "--pretrained", "none", "--save", str(tmp_path)])
    with pytest.raises(UserError, match="no checkpoint none"):
        launcher.run(tricks)
    assert (tricks.lr_scheduler, tricks.warmup_epochs, tricks.alpha, tricks.smooth_eps) == ("default", 0, 0.0, 0.0)


def test_run_sh(tmp_path):
    script = launcher.PROFILES.parent / "training/run.sh"
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; print(sys.argv[1:])" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    out = subprocess.run(["bash", str(script), "--resume", "auto"], env=env, capture_output=True, text=True, check=True)
    words = eval(out.stdout)
    args = launcher.parse(words[1:])
    assert words[0] == "training/main.py" and args.resume == "auto" and args.epochs == 300
    assert args.config_file == "config_mobile_v2_0.7" and not (args.rew or args.masked_retrain)


@pytest.mark.parametrize("flags", [["--rew"], ["--masked-retrain"], ["--rew", "--pretrained"]])
def test_the_launcher_s_single_phases_take_the_data_set_of_the_file(flags, tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(main, "train", lambda args: taken.append(args.dataset))
    monkeypatch.setattr(prune, "prune", lambda args: taken.append(args.dataset))
    monkeypatch.setattr(finetune, "retrain", lambda args: taken.append(args.dataset))
    flags = flags + ["dense.pth.tar"] * (flags[-1] == "--pretrained")
    launcher.run(launcher.parse([*flags, "--save", str(tmp_path)]))
    assert set(taken) == {None}                              # each script then takes its file's
    launcher.run(launcher.parse(["--save", str(tmp_path)]))
    assert taken[-1] == "cifar100"
