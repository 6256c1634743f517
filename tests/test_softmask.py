"""Soft-binary masks: each formula by hand, counts from masks, exact pruning, averaging, quantizers and the score."""
import copy
import re
from functools import partial

import pytest
import test_narrow
import torch
import torch.nn.functional as F
from by_hand import STEPS, assert_same_network, column, like_trained, pruned_by, save, shapes, train_by_hand
from reliability import same
from test_narrow import images_for
from torch import nn

from common import UserError, compute_flops, models
from common import keep as keeping
from common.files import checkpoint, packing
from common.models import own
from common.models.narrow import compare, narrow, silence
from common.run import Run
from common.teacher import distillation
from softmask import eval as evaluation
from softmask import finetune, main, prune, quantize_model, quantizers
from softmask.cost import legacy_flops
from softmask.mask import SoftMask, penalty
from softmask.networks import network

pytestmark = pytest.mark.usefixtures("undrawn")
NETS = {name: test_narrow.NETS[name] for name in (
    "resnet-pad", "preresnet-basic", "preresnet-basic-select", "vgg", "vgg-bearpaw", "vgg-head512", "densenet-bc",
    "mobilenetv2", "lenet5")} | {
    "wrn-16-2": ("wideresnet", dict(depth=16, widen_factor=2, variant="softmask")),
    "wrn-usual": ("wideresnet", dict(depth=16, widen_factor=2, variant="usual")),
    "resnet20": ("resnet", dict(depth=20)),
    "resnet-bottleneck": ("resnet", dict(depth=20, block="bottleneck")),
    "preresnet-bottleneck": ("preresnet", dict(depth=20, block="bottleneck")),
    "resnext": ("resnext", dict(depth=11, cardinality=2, widen_factor=1)),
}
STAGE_MASKS = ("mobilenetv2",)                               # whose streams' widths are no multiples of one another


def trained_like(name, seed=0, **more):
    """A network in evaluation mode whose batch norms look trained."""
    torch.manual_seed(seed)
    arch, cfg = NETS[name]
    return like_trained(models.build(arch, **{**cfg, **more})).eval()


def masked(name, seed=0, dead=0.4, **options):
    """The same under random masks, a fraction of them at 0 and some at 1."""
    net = SoftMask(trained_like(name, seed), stage_masks=name in STAGE_MASKS, **options).eval()
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        net.m.uniform_(-0.4, 0.8)
        net.m[torch.rand(len(net.m)) < dead] = -0.7
    return net


def narrowed(net):
    soft = dict(zip(net.names, net.masks(), strict=True))
    return narrow(net.folded(), prune.choose(net.model, soft))


# The mask and its loss


def test_the_mask_and_its_gradient_by_hand():
    """A half at the start; the gradient is one inside and zero where a mask is saturated."""
    net = SoftMask(trained_like("vgg"))
    assert net.entries().eq(0.5).all()
    net.m.data[:6] = torch.tensor([-0.6, -0.5, -0.25, 0.0, 0.5, 0.7])
    torch.testing.assert_close(net.entries()[:6], torch.tensor([0, 0, 0.25, 0.5, 1, 1]))
    net.entries().sum().backward()
    assert net.m.grad[[0, 2, 3, 5]].tolist() == [0, 1, 1, 0]


def test_the_loss_on_a_hand_made_vector():
    """It turns round when more is gone than the target."""
    v = torch.tensor([0.0, 0.5, 1.0, 0.5], dtype=torch.float64, requires_grad=True)  # mean 1/2, unbiased variance 1/6
    for delta in (0.4, -0.4):
        assert float(penalty(v, delta, 30, 10).detach()) == pytest.approx(delta * (30 / 2 - 10 / 6 / 0.5))
        assert float(penalty(v, delta, 3, 0).detach()) == pytest.approx(delta * 3 / 2)
        assert penalty(v, delta, 0, 3).item() == pytest.approx(-delta)
    assert torch.autograd.gradcheck(lambda v: penalty(v, 0.4, 30, 10), v)


def test_the_mask_parameters_of_the_paper():
    arch, cfg = network("wideresnet")
    model = models.build(arch, num_classes=100, **cfg)
    net = SoftMask(model)
    assert (net.m.numel(), net.counted.numel()) == (5616, 15984)
    assert (net.cost.all_params, net.cost.all_flops) == (37_446_900, 11_941_966_436)
    net = SoftMask(model, stage_masks=True)
    assert net.m.numel() == net.counted.numel() == 5616 + 16 + 144 + 288


def test_what_a_mask_scales_in_a_wide_block():
    net = masked("wrn-16-2")
    model, masks = net.model, dict(zip(net.names, net.masks(), strict=True))
    got = dict(net.folded().named_parameters())
    inner, stream = masks["block2.layer.1.conv1"], masks["block2.layer.0.convShortcut"]
    block = model.block2.layer[1]
    for name, p, mask in [("conv1.weight", block.conv1.weight, inner), ("bn2.weight", block.bn2.weight, inner),
                          ("bn2.bias", block.bn2.bias, inner), ("conv2.weight", block.conv2.weight, stream),
                          ("bn1.weight", block.bn1.weight, stream), ("bn1.bias", block.bn1.bias, stream)]:
        assert torch.equal(got[f"block2.layer.1.{name}"], p * mask.view(-1, *[1] * (p.dim() - 1))), name
    assert torch.equal(got["fc.weight"], model.fc.weight) and torch.equal(got["fc.bias"], model.fc.bias)
    torch.testing.assert_close(net.folded()(images_for(model)), net(images_for(model)))


class Parallel(nn.Module):
    """3 x 8 x 8: a RepVGG block, with a batch norm beside its convolutions; a gate; a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.start = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.a, self.b, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 10)
        self.a_norm, self.b_norm, self.same = (nn.BatchNorm2d(8) for _ in range(3))
        self.squeeze, self.excite, self.shift = nn.Linear(8, 8), nn.Linear(8, 8), nn.Parameter(torch.zeros(3, 8, 8))

    def forward(self, x):
        x = F.relu(self.start(self.first(x + self.shift)))
        x = F.relu(self.a_norm(self.a(x)) + self.b_norm(self.b(x)) + self.same(x))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))[:, :, None, None]
        return self.fc(x.mean((2, 3)))


def test_a_closed_channel_of_a_traced_network_is_closed_in_parallel_norms_and_counted_exactly(monkeypatch):
    monkeypatch.setitem(own.NAMED, "nets.py:Net", lambda num_classes: Parallel())
    torch.manual_seed(0)
    net = SoftMask(like_trained(models.build("nets.py:Net", num_classes=10, input=[3, 8, 8])), stage_masks=True).eval()
    with torch.no_grad():
        net.m[torch.rand(len(net.m)) < 0.4] = -0.7
    folded, small = net.folded(), narrowed(net)
    params = [compute_flops.count(m).total.params for m in (net.model, small)]
    assert compare(folded, small)[0] < 1e-12 and float(net.sparsity()) == pytest.approx(1 - params[1] / params[0]) != 0


def test_streams_take_every_fth_entry_of_one_mask():
    net = masked("wrn-16-2")
    masks = dict(zip(net.names, net.masks(), strict=True))
    whole = masks["block3.layer.0.convShortcut"]
    assert torch.equal(whole, net.entries()[:128])
    for name, step in (("block2.layer.0.convShortcut", 2), ("block1.layer.0.convShortcut", 4), ("conv1", 8)):
        assert torch.equal(masks[name], whole[::step])
    # 1 + 3 x 3 layers add to a stream, so the loss counts that mask ten times, and each inner mask once
    assert net.counted.bincount().tolist() == [10] * 128 + [1] * 448
    torch.testing.assert_close(net.counted_masks().sum(), 10 * whole.sum() + net.entries()[128:].sum())


def test_streams_that_cannot_share_a_mask_name_the_way_out():
    with pytest.raises(UserError, match="--stage-masks"):
        SoftMask(trained_like("mobilenetv2"))
    model = narrow(trained_like("preresnet-basic-select"), {"bn": torch.arange(64) < 32})
    with pytest.raises(UserError, match="all channels of this densenet are concatenated, .*; give --nfp"):
        SoftMask(models.build("densenet", depth=7))
    assert SoftMask(models.build("densenet", depth=7), unstructured=True).m.numel()
    with pytest.raises(UserError, match="reads only some"):
        SoftMask(model)


# Counting and pruning


@pytest.mark.parametrize("name, dead", [("wrn-16-2", 0.0), *[(name, 0.4) for name in NETS], ("resnet-bottleneck", 0.9),
                                        ("preresnet-basic-select", 0.9), ("mobilenetv2", 0.9)])
def test_masked_and_pruned_networks_agree_and_the_sparsity_is_exact(name, dead):
    net = masked(name, dead=dead).double()
    small, images = narrowed(net), images_for(net.model)
    with torch.no_grad():
        difference = (net(images) - small(images)).abs().max()
        if dead and name not in ("resnext", "lenet5"):
            assert (net.model(images) - small(images)).abs().max() > 100 * difference
    assert difference <= 1e-9
    after, modules = compute_flops.count(small), dict(small.named_modules())
    assert float(net.sparsity()) == pytest.approx(1 - after.total.params / net.cost.all_params, abs=1e-7)
    biases = sum(m.bias.numel() * row.macs // m.weight.numel() for row in after.rows if row.macs
                 for m in [modules[row.name]] if m.bias is not None)
    flops = sum(2 * row.macs + row.norm_elements for row in after.rows) + biases
    assert float(net.sparsity(flops=True)) == pytest.approx(1 - flops / net.cost.all_flops, abs=1e-7)
    if not dead:
        assert (net.cost.all_params, net.cost.all_flops) == (after.total.params, flops)


@pytest.mark.parametrize("name, first, branch", [
    ("wrn-16-2", "block1.layer.1.conv1", "block1.layer.1"), ("wrn-16-2", "block2.layer.0.conv1", "block2.layer.0"),
    ("wrn-usual", "block2.layer.0.conv1", "block2.layer.0"), ("resnet20", "layer2.0.conv1", "layer2.0"),
    ("resnet-pad", "layer2.0.conv1", "layer2.0"), ("resnet-bottleneck", "layer2.0.conv2", "layer2.0"),
    ("preresnet-bottleneck", "layer1.1.conv1", "layer1.1")])
def test_an_empty_branch_becomes_its_shortcut_and_counts_as_nothing(name, first, branch, tmp_path):
    net = masked(name, dead=0.2).double()
    index = net.used.split(net.sizes)[net.names.index(first)]
    net.m.data[index] = -0.9
    small, images = narrowed(net), images_for(net.model)
    with torch.no_grad():
        assert (net(images) - small(images)).abs().max() <= 1e-9
    left = [n for n, _ in small.get_submodule(branch).named_parameters()]
    assert not any(n.startswith("conv") and not n.startswith("convShortcut") for n in left)
    params = sum(p.numel() for p in small.parameters())
    assert float(net.sparsity()) == pytest.approx(1 - params / net.cost.all_params, abs=1e-7)
    assert 0 in small.cfg["widths"]
    path = save(tmp_path / "c.pth.tar", small.float(), "softmask", "pruned")
    again = checkpoint.to_model(checkpoint.load(path))
    assert torch.equal(again(images.float()), small(images.float()))
    layers = [record.producers[0][0] for record in small.channels()]
    whole = {layer: torch.ones(len(small.get_submodule(layer).weight), dtype=torch.bool) for layer in layers}
    assert narrow(small, whole).cfg == small.cfg      # and can be narrowed again


def test_a_layer_that_nothing_stands_in_for_keeps_a_channel(capsys):
    net = masked("vgg").double()
    net.m.data[net.used.split(net.sizes)[2]] = -0.9
    small, images = narrowed(net), images_for(net.model)
    assert "feature.8: all its masks are 0; it keeps one channel" in capsys.readouterr().out
    assert small.cfg["widths"][4] == 1
    assert (net(images) - small(images)).abs().max() <= 1e-9
    params = sum(p.numel() for p in small.parameters())
    assert float(net.sparsity()) == pytest.approx(1 - params / net.cost.all_params, abs=1e-7)


def test_single_weight_masks_count_weights():
    net = masked("vgg", unstructured=True)
    layers = [m for m in net.model.modules() if isinstance(m, nn.Conv2d)]
    assert net.m.numel() == sum(m.weight.numel() for m in layers)        # all but the classifier
    zeros = sum(int((dict(net.folded().named_parameters())[name] == 0).sum()) for name in net.names)
    total = sum(p.numel() for p in net.model.parameters())
    assert zeros and float(net.sparsity()) == pytest.approx(zeros / total, abs=1e-7)
    macs = compute_flops.count(net.folded()).total
    assert float(net.sparsity(flops=True)) == pytest.approx(2 * (macs.macs - macs.sparse_macs) / net.cost.all_flops,
                                                            abs=1e-7)


@pytest.mark.parametrize("name", ["wrn-16-2", "vgg-bearpaw", "resnet20"])
def test_a_pretrained_network_begins_under_its_masks_as_it_was(name):
    model = trained_like(name)
    before = model(images_for(model)).detach()
    for start in (0.0, 0.2):                                 # masks of 0.5, and of 0.7
        net = SoftMask(copy.deepcopy(model)).eval()
        net.m.data.fill_(start)
        assert not torch.allclose(net(images_for(model)), before, rtol=1e-3)
        net.absorb()
        torch.testing.assert_close(net(images_for(model)), before, rtol=1e-4, atol=1e-4)
    closed = SoftMask(copy.deepcopy(model))
    closed.m.data.fill_(-0.6)                                # masks of 0, by which nothing can be divided
    closed.absorb()
    assert all(torch.equal(p, q) for p, q in zip(closed.model.parameters(), model.parameters(), strict=True))


# The rest of the loss, the schedule


def test_distillation_and_confidence_by_hand():
    logits, told = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    p, q = F.softmax(logits, 1)[0], F.softmax(told, 1)[0]
    assert float(distillation(logits, told)) == pytest.approx(float(-sum(q[i] * p[i].log() for i in range(3))))
    assert float(main.confidence(logits)) == pytest.approx(float(sum(p[i] * p[i].log() for i in range(3))))
    assert float(main.confidence(torch.zeros(4, 10))) == pytest.approx(-2.302585)     # mean over images of -entropy


@pytest.mark.parametrize("flags, factors", [
    ([], [1, 1, 1, 1, 1]), (["--schedule", "cosine"], [1, 0.9045, 0.5, 0.0955, 0.0245]),
    # constant to 50 % of 8 epochs, linear to 0.3 at 90 %
    (["--schedule", "swa", "--swa-start", "8", "--swa-lr", "0.03", "--lr", "0.1"], [1, 1, 0.78125, 0.3, 0.3]),
    (["--schedule", "swa", "--swa-start", "8"], [1, 1, 0.84375, 0.5, 0.5]),
    (["--schedule", "swa", "--swa-start", "8", "--swa-lr", "0"], [1, 1, 0.6875, 0, 0]),
    (["--schedule", "swa", "--swa-start", "0"], [1, 0.5, 0.5, 0.5, 0.5])])
def test_schedules(flags, factors):
    args = main.parse(["--epochs", "10", *flags])
    at = (0, 2, 5, 8, 9)
    assert [main.factor(args, epoch) for epoch in at] == pytest.approx(factors, abs=1e-4)


def test_the_defaults_are_the_published_run():
    args = main.parse([])
    main.check(args)
    assert (args.epochs, args.batch_size, args.lr, args.weight_decay, args.momentum, args.test_batch_size) == (
        300, 64, 0.01, 1e-4, 0.9, 64)
    assert (args.wg, args.tw, args.wme, args.mwd, args.swa_start, args.schedule) == (
        30, 10, 50, 5e-4, 161, "constant")
    assert (args.ltea, args.lseps, args.confp, args.d) == (0.5, 0, 0, 0)
    args = finetune.parse(["--pruned", "m.pth.tar"])
    assert (args.epochs, args.batch_size, args.lr, args.momentum, args.weight_decay, args.schedule) == (
        20, 64, 0.01, 0.9, 1e-4, "cosine")


# main.py

TINY = ["--depth", "10", "--wf", "1", "--dataset", "shapes10", "--subset", "60", "--batch-size", "20", "--device",
        "cpu", "--precision", "fp32", "--lr", "0.05"]        # network, data set, how
MASKS = ["--target", "0.4", "--wme", "1", "--wg", "3", "--tw", "10"]


def train(folder, *flags, tiny=TINY):
    main.main([*tiny, "--save", str(folder), *map(str, flags)])
    return torch.load(folder / "checkpoint.pth.tar", weights_only=True)


def test_training_saves_settings_masks_and_the_pruned_network(tmp_path, capsys, monkeypatch, rendered):
    asked, sparsity = [], SoftMask.sparsity
    monkeypatch.setattr(SoftMask, "sparsity", lambda self, flops=False: asked.append(flops) or sparsity(self, flops))
    ckpt = train(tmp_path, *MASKS, "--epochs", 2, "--pflops", "--stage-masks", "--d", 0.3)
    pruned, out = checkpoint.load(tmp_path / "pruned_model.pth.tar"), capsys.readouterr().out
    assert (pruned["stage"], pruned["method"], pruned["args"]["target"]) == ("pruned", "softmask", 0.4)
    assert pruned["dense"]["params"] == ckpt["dense"]["params"] and pruned["prec1"] == ckpt["prec1"]
    assert ckpt["cfg"]["dropout"] == 0.3 and asked.count(False) == 2     # only where both are logged
    assert "  mask loss: from epoch 2; weights averaged: never\n" in out
    assert "\nthe target was 40.00 % of the FLOPs" in out
    text = (tmp_path / "prune.txt").read_text()
    assert "masked" in text and (tmp_path / "prune.png").stat().st_size > 5000
    layers = [line.split()[0] for line in text[text.rindex(" kept\n"):].splitlines()[1:] if len(line.split()) == 3]
    in_order = [name for name, _ in checkpoint.to_model(pruned).named_modules() if name in layers]
    assert layers == in_order and layers[0] == "conv1"

    # the checkpoint is the masked network
    net = SoftMask(models.build(ckpt["arch"], **ckpt["cfg"]), stage_masks=True)
    net.load_state_dict(ckpt["resume"]["net"])
    images = torch.randn(4, 3, 32, 32)
    plain = checkpoint.to_model(checkpoint.load(tmp_path / "checkpoint.pth.tar"))
    assert ckpt["stage"] == "sparse" and torch.equal(net.eval()(images), plain(images))
    assert same(ckpt["soft_masks"], dict(zip(net.names, net.masks(), strict=True)))


@pytest.mark.parametrize("target, flops", [(0.5, False), (0.8, True)])
def test_the_loss_drives_the_masks_to_the_target_and_leaves_them_there(target, flops):
    net = SoftMask(trained_like("wrn-16-2"), stage_masks=True)
    torch.manual_seed(0)
    net.m.data.normal_(0, 0.2)
    optimizer, reached = torch.optim.SGD([net.m], lr=0.5), []
    for _ in range(400):
        reached.append(float(net.sparsity(flops)))
        loss = penalty(net.counted_masks(), target - net.sparsity(flops), 3, 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert reached[0] < 0.1 and reached[-1] == pytest.approx(target, abs=0.03) == reached[-100], reached[::20]


def test_four_steps_by_hand(tmp_path, monkeypatch):
    """The whole loss and SGD, written out, with --mwd for the masks; above one target and below the other."""
    train(tmp_path / "t", "--epochs", 1)
    evaluated = []
    monkeypatch.setattr(main, "evaluate", lambda model, loader: evaluated.append(copy.deepcopy(model)) or {
        "loss": 1.0, "top1": 90.0 - len(evaluated)})         # the first epoch is the best
    monkeypatch.setattr(SoftMask, "sparsity", lambda self, flops=False: (
        self.entries().detach().mean() * (0.1 if flops else 1.0)))
    ckpt = train(tmp_path / "run", "--target", 0.4, "--wme", 1, "--wg", 8, "--tw", 20, "--ftarget", 0.6,
                 "--epochs", 2, "--lr", 0.1, "--subset", 40, "--momentum", 0.7, "--wd", 0.1, "--mwd", 0.2, "--confp",
                 0.3, "--lseps", 0.2, "--schedule", "cosine", "--teacher", tmp_path / "t/checkpoint.pth.tar", "--ltea",
                 0.25)
    groups = ckpt["resume"]["optimizer"]["param_groups"]     # of masks of about 0, on which decay hardly shows
    assert [group["weight_decay"] for group in groups] == [0.1, 0.2] and len(groups[1]["params"]) == 1
    torch.manual_seed(1)
    arch, cfg = network("wideresnet", 10, 1)
    net = SoftMask(models.build(arch, num_classes=10, **cfg))
    teacher = checkpoint.to_model(checkpoint.load(tmp_path / "t/checkpoint.pth.tar"))
    seen, gone = [], []

    def by_hand(logits, images, labels, epoch):
        smooth, told = 0.8 * F.one_hot(labels, 10) + 0.02, teacher(images).softmax(1).detach()
        loss = 0.75 * -(smooth * logits.log_softmax(1)).sum(1).mean()
        loss = loss + 0.25 * -(told * logits.log_softmax(1)).sum(1).mean() + 0.3 * main.confidence(logits)
        entries = net.counted_masks()
        seen.append(float(entries.detach().mean()))
        gone.append(float(net.sparsity()))
        if epoch == 1:
            term = 8 * entries.mean() - 20 * entries.var() / entries.mean()
            loss = loss + (0.4 - net.sparsity()) * term + (0.6 - net.sparsity(flops=True)) * term
        return loss + 0.05 * net.m.square().sum()            # beside the decay of 0.1 for all
    train_by_hand(net, [0.1, 0.05], 0.7, 0.1, by_hand, loader=shapes(40, 20, 1))
    assert_same_network(ckpt["resume"]["net"], net)
    assert column(tmp_path / "run", "train_mask")[-1] == pytest.approx(sum(seen[2:]) / 2, rel=1e-3)
    assert column(tmp_path / "run", "train_sparsity")[-1] == pytest.approx(sum(gone[2:]) / 2, abs=1e-3)
    # what is evaluated and saved is the masked network; what is pruned is the last one, not the best
    assert torch.equal(evaluated[1].conv1.weight, ckpt["state_dict"]["conv1.weight"])
    pruned = checkpoint.load(tmp_path / "run/pruned_model.pth.tar")
    assert pruned["epoch"] == 2 and pruned["args"]["model"] == str(tmp_path / "run/checkpoint.pth.tar")
    torch.testing.assert_close(pruned["state_dict"]["fc.bias"], ckpt["state_dict"]["fc.bias"])


def test_a_network_of_another_method_is_the_start(tmp_path):
    """With masks that prune nothing. With --lr 0 only the statistics of batch norms change, because it trains."""
    model = trained_like("vgg")
    masks = {"feature.0.weight": torch.ones_like(model.feature[0].weight, dtype=torch.bool)}
    path = save(tmp_path / "m.pth.tar", model, "hoyer", "finetuned", masks=masks)
    ckpt = train(tmp_path / "run", *MASKS, "--epochs", 1, "--lr", 0, "--pretrained", path, tiny=TINY[6:])
    assert (ckpt["arch"], ckpt["dataset"], ckpt["stage"]) == ("vgg", "shapes10", "sparse")
    assert ckpt["cfg"] == model.cfg and ckpt["dense"] == compute_flops.summary(model)
    for name, w in model.named_parameters():                 # divided by the masks of a half that they begin with
        torch.testing.assert_close(ckpt["state_dict"][name], w.detach())
    assert not torch.allclose(ckpt["state_dict"]["feature.1.running_mean"], model.feature[1].running_mean, rtol=1e-2)


@pytest.mark.parametrize("method, per_channel", [("", False), ("linear", False), ("linear", True),
                                                 ("fixed_point", False), ("kmeans", True)])
def test_fine_tuning_is_sgd_with_the_masks_after_every_step(method, per_channel, tmp_path, monkeypatch):
    """With --wbit from w + (q(w) - w).detach(): then finetuned.pth.tar is the network that was evaluated, and
    quantize_model.py makes the same one."""
    model = trained_like("vgg")
    masks = {name: torch.rand(p.shape) > 0.5 for name, p in model.named_parameters() if p.dim() == 4}
    dense = {"params": 1, "macs": 2, "cfg": model.cfg}
    path = save(tmp_path / "m.pth.tar", pruned_by(masks, model), "hoyer", "pruned", masks=masks, dense=dense)
    images, logits = torch.randn(9, 3, 32, 32), []

    def looking(net, loader, real=finetune.evaluate):
        with torch.no_grad():
            logits.append(net.eval()(images))
        return real(net, loader)
    monkeypatch.setattr(finetune, "evaluate", looking)
    flags = ["--wbit", "3", "--method", method, *["--per-channel"] * per_channel] if method else []
    finetune.main(["--pruned", str(path), *STEPS, "--epochs", "2", "--save", str(tmp_path / "run"), *flags])
    train_by_hand(model, [0.02, 0.01], 0.8, 0.1, masks=masks, q=method and (lambda w: (     # half a cosine
        packing.dequantize(quantizers.quantize(w, method, 3, per_channel)))))
    assert_same_network(checkpoint.load(tmp_path / "run/checkpoint.pth.tar")["state_dict"], model)
    files = ["finetuned", "checkpoint"]
    if method:
        files = ["finetuned", "quantized_model"]
        quantize_model.main(["--pruned", str(tmp_path / "run/finetuned.pth.tar"), *QUANTIZE, "--abit", "32", *flags])
    for name in files:
        ckpt = checkpoint.load(tmp_path / f"run/{name}.pth.tar", quantized=True)
        assert len(ckpt["state_dict"]["classifier.weight"][0].unique()) <= 8 or not method
        assert same(ckpt["masks"], masks) and ckpt["dense"] == dense
        assert all(not ckpt["state_dict"][name][~mask].any() for name, mask in masks.items())
        with torch.no_grad():
            torch.testing.assert_close(checkpoint.to_model(ckpt).eval()(images), logits[-1])


def averaged_run(folder, monkeypatch, *flags):
    """(checkpoint, [state of the trained network after each epoch]) of three epochs, averaged from the second on."""
    states, save = [], Run.save

    def saving(self, *args, **kwargs):
        states.append({k: v.clone() for k, v in kwargs["resume"]["net"].state_dict().items()})
        save(self, *args, **kwargs)
    monkeypatch.setattr(Run, "save", saving)
    return train(folder, "--epochs", 3, "--swa-start", 1, *flags), states


@pytest.mark.parametrize("flags", [                         # 170: the last masks are closed, their average is open
    [], [*MASKS, "--wg", 170, "--tw", 0], [*MASKS, "--wg", 200, "--tw", 0]], ids=["dense", "open", "closed"])
def test_the_average_is_the_mean_of_the_epochs_with_statistics_of_its_own(flags, tmp_path, monkeypatch):
    ckpt, states = averaged_run(tmp_path, monkeypatch, *flags)
    averaged = ckpt["resume"]["averaged"]
    assert int(averaged["n_averaged"]) == 2
    for name, tensor in states[0].items():
        if tensor.is_floating_point() and "running" not in name:
            torch.testing.assert_close(averaged[f"module.{name}"], (states[1][name] + states[2][name]) / 2)

    # The statistics of the first batch norm over all batches of the last epoch: the mean of their means and variances.
    prefix = "model." if flags else ""
    net = SoftMask(models.build(ckpt["arch"], **ckpt["cfg"])) if flags else models.build(ckpt["arch"], **ckpt["cfg"])
    net.load_state_dict({name.removeprefix("module."): v for name, v in averaged.items() if name != "n_averaged"})
    stem = net.folded().conv1 if flags else net.conv1
    seen = [stem(images).transpose(0, 1).flatten(1) for images, _ in shapes(60, 20, 1).epoch(2)]
    first = f"module.{prefix}block1.layer.0.bn1.running_"
    torch.testing.assert_close(averaged[f"{first}mean"], torch.stack([x.mean(1) for x in seen]).mean(0))
    torch.testing.assert_close(averaged[f"{first}var"], torch.stack([x.var(1) for x in seen]).mean(0))

    # It is the averaged network that is saved, evaluated and pruned.
    if flags:
        trained = ckpt["resume"]["net"]["m"]
        assert (trained <= -0.5).any() and (0.9 < float(net.sparsity()) < 1 if "200" in map(str, flags) else
                                            net.sparsity() == 0)
        assert column(tmp_path, "sparsity")[-1] == pytest.approx(float(net.sparsity()))
        assert column(tmp_path, "flops_gone")[-1] == pytest.approx(float(net.sparsity(flops=True)))
        assert torch.equal(ckpt["state_dict"]["conv1.weight"], stem.weight)
        assert torch.equal(ckpt["soft_masks"]["conv1"], net.masks()[net.names.index("conv1")])
    else:
        assert torch.equal(ckpt["state_dict"]["conv1.weight"], averaged["module.conv1.weight"])


def test_single_weight_masks_are_stored_as_masks(tmp_path):
    train(tmp_path, *MASKS, "--epochs", 2, "--nfp", "--wg", 400000, "--tw", 0, "--lr", 0.2)
    ckpt, pruned = (checkpoint.load(tmp_path / f"{name}.pth.tar") for name in ("checkpoint", "pruned_model"))
    assert same(ckpt["masks"], {name: mask > 0 for name, mask in ckpt["soft_masks"].items()})
    assert same(pruned["masks"], ckpt["masks"]) and sum(int((~mask).sum()) for mask in ckpt["masks"].values()) > 100
    assert all(pruned["state_dict"][name][~mask].eq(0).all() for name, mask in pruned["masks"].items())


def pruned_by_hand(folder, *flags):
    """What prune.py makes of a WideResNet-10-1 whose masks are 0, 0.001, 0.3, 1, 0.6, 0, ..."""
    model = trained_like("wrn-16-2", depth=10, widen_factor=1)
    with torch.no_grad():
        model.block1.layer[0].bn2.weight[2] = 0              # this channel, with a mask of 0.001, is a constant
        model.fc.weight[0, 3] = 0                            # a parameter nevertheless
    net = SoftMask(model).eval()
    net.m.data = torch.tensor([-0.7, -0.499, -0.2, 0.6, 0.1]).repeat(len(net.m) // 5 + 1)[:len(net.m)]
    soft = {name: mask.detach() for name, mask in zip(net.names, net.masks(), strict=True)}
    path = save(folder / "m.pth.tar", net.folded(), "softmask", "sparse", soft_masks=soft,
                dense=compute_flops.summary(model), args={"nfp": False, "pflops": True, "target": 0.37})
    prune.main(["--model", str(path), "--subset", "20", "--device", "cpu", "--save", str(folder), *flags])
    return checkpoint.load(folder / "pruned_model.pth.tar"), soft


def test_prune_takes_the_masks_of_zero_and_reports_what_is_gone(tmp_path, capsys):
    ckpt, soft = pruned_by_hand(tmp_path)
    assert ckpt["args"]["target"] == 0.37 and ckpt["args"]["model"] == str(tmp_path / "m.pth.tar")
    assert ckpt["state_dict"]["block1.layer.0.conv1.weight"].shape[0] == int((soft["block1.layer.0.conv1"] > 0).sum())
    before, after = (compute_flops.count(checkpoint.to_model(checkpoint.load(tmp_path / f"{name}.pth.tar")))
                     for name in ("m", "pruned_model"))
    a, b = before.total, after.total
    for report in ((tmp_path / "prune.txt").read_text(), capsys.readouterr().out):
        for name, x, y in (("parameters", a.params, b.params), ("MACs", a.macs, b.sparse_macs),
                           ("FLOPs (2 x MACs)", 2 * a.macs, 2 * b.sparse_macs)):
            assert f"\n{name:34} {x:15,} {y:15,} {100 * (1 - y / x):8.2f} % removed" in report
        kept = ckpt["cfg"]["streams"][0]
        assert compute_flops.table(after, before) in report and f"\n{'conv1':34} {16:9,} {kept:9,}\n" in report
        assert "the target was 37.00 % of the FLOPs" in report


def test_filters_before_a_batch_norm_have_their_size_without_masks_and_the_network_computes_the_same(tmp_path):
    ckpt, soft = pruned_by_hand(tmp_path)
    dense = trained_like("wrn-16-2", depth=10, widen_factor=1)
    kept, stem = soft["block1.layer.0.conv1"] > 0, soft["conv1"] > 0
    weight = dense.block1.layer[0].conv1.weight[kept][:, stem]
    assert 0 < soft["block1.layer.0.conv1"][kept].min() < 0.01                # a filter of a thousandth of its size
    assert torch.allclose(ckpt["state_dict"]["block1.layer.0.conv1.weight"], weight, rtol=1e-4)
    masked, small = (checkpoint.to_model(checkpoint.load(tmp_path / f"{name}.pth.tar"))
                     for name in ("m", "pruned_model"))
    images = images_for(masked)
    with torch.no_grad():
        logits, now = masked(images), small(images)
    assert (logits - now).abs().max() < 1e-4 * logits.abs().max()


def test_masks_of_one_close_by_the_size_of_their_weights(tmp_path, capsys):
    """No threshold on the mask tells them apart, so pruning below what is open once took everything."""
    model = trained_like("wrn-16-2", depth=10, widen_factor=1)
    net = SoftMask(model, unstructured=True)
    net.m.data = torch.tensor([-0.7, 0.6, 0.6, 0.1]).repeat(len(net.m) // 4 + 1)[:len(net.m)]
    soft = {name: mask.detach().view(model.get_parameter(name).shape)
            for name, mask in zip(net.names, net.masks(), strict=True)}
    path = save(tmp_path / "m.pth.tar", net.folded(), "softmask", "sparse", soft_masks=soft,
                dense=compute_flops.summary(model), args={"nfp": True, "pflops": False, "target": 0.5})
    prune.main(["--model", str(path), "--save", str(tmp_path), "--subset", "20", "--device", "cpu",
                "--keep-weights", "0.3"])
    out = capsys.readouterr().out
    ckpt = checkpoint.load(tmp_path / "pruned_model.pth.tar")
    total = compute_flops.count(checkpoint.to_model(ckpt)).total
    assert "masks of 1 with weights above 0." in out
    assert f"\n{'parameters':34} {compute_flops.count(model).total.params:15,} {total.nonzeros:15,} " in out
    for flags in (["--keep-macs", "0.5"], ["--round-to", "8"]):
        with pytest.raises(UserError, match=f"{flags[0]}.*for (masks|those) of channels"):
            prune.main(["--model", str(path), "--overwrite", *flags])
    assert 0.299 < total.weights / compute_flops.count(model).total.weights <= 0.3
    sizes = {kept: torch.cat([model.get_parameter(name).abs()[(mask == 1) & (ckpt["masks"][name] == kept)]
                              for name, mask in soft.items()]) for kept in (True, False)}
    assert len(sizes[False]) > 100 and sizes[False].max() <= sizes[True].min()
    assert all(not ckpt["masks"][name][mask < 1].any() for name, mask in soft.items())


def test_channels_with_masks_of_one_close_by_the_size_of_their_filters():
    model = trained_like("wrn-16-2", depth=10, widen_factor=1)
    names = [record.producers[0][0] for record in model.channels()]
    soft = {name: torch.ones(model.get_submodule(name).out_channels) for name in names}
    soft[names[0]][3] = 0.25
    order = prune.scores(model, soft)
    norms = {name: model.get_submodule(name).weight.flatten(1).norm(dim=1) for name in names}
    largest = max(norm.max() for norm in norms.values())
    assert order[names[0]][3] == 0.25
    assert all(torch.allclose(order[name][soft[name] == 1], (1 + norms[name] / largest)[soft[name] == 1])
               for name in names)


@pytest.mark.parametrize("kept, says", [("0.6", "masks above "), ("0.05", "masks of 1 with weights above ")])
def test_keep_macs_of_masks_counts_what_is_left_in_multiples(kept, says, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(keeping, "bisect", partial(keeping.bisect, steps=15))
    ckpt, soft = pruned_by_hand(tmp_path, "--keep-macs", kept, "--round-to", "4")
    out, small = capsys.readouterr().out, checkpoint.to_model(ckpt).eval()
    left = compute_flops.count(small).total.macs / ckpt["dense"]["macs"]
    assert f"keep {left:.4f} of the MACs\n" in out and f"\n{says}" in out
    assert "the target was" not in out                       # something else was asked for
    assert all(width % 4 == 0 for width in ckpt["cfg"]["widths"])
    # the trials of other thresholds leave no trace in what is kept
    model = checkpoint.to_model(checkpoint.load(tmp_path / "m.pth.tar")).eval()
    t = float(out.split("above ")[1].split()[0]) + says.startswith("masks of 1") + 1e-6      # printed in few digits
    silence(model, prune.choose(model, prune.scores(model, soft), t, True, 4))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert (model(images) - small(images)).abs().max() < 1e-4 * model(images).abs().max()


def test_keep_weights_is_not_for_masks_of_channels(tmp_path):
    with pytest.raises(UserError, match="--keep-weights is for masks of single weights"):
        pruned_by_hand(tmp_path, "--keep-weights", "0.6")


# Quantizers


def weights(n=4000, channels=8):
    w = torch.randn(channels, n // channels, generator=torch.Generator().manual_seed(0)) * 0.1
    w[torch.rand(w.shape, generator=torch.Generator().manual_seed(1)) < 0.3] = 0
    return w


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("method", quantizers.METHODS)
def test_levels_zeros_and_quantizing_twice(method, per_channel, bits):
    w = weights()
    entry = quantizers.quantize(w, method, bits, per_channel)
    value = packing.dequantize(entry)
    assert value[w == 0].eq(0).all()
    for row in value if per_channel else [value]:
        assert len(row.unique()) <= 2 ** bits
    assert len(entry["codes"]) == w.numel() * bits // 8
    again = packing.dequantize(quantizers.quantize(value, method, bits, per_channel))
    torch.testing.assert_close(again, value, rtol=1e-5, atol=1e-7)
    error = (value - w).abs().mean() / w.abs().mean()
    assert error < {2: 1, 3: 0.6, 4: 0.3, 8: 0.03, 12: 0.01}[bits] * (2 if method == "fixed_point" else 1)


def test_linear_by_hand():
    """2 bits between -1 and 2: step 1, and 0 is the second level."""
    entry = quantizers.quantize(torch.tensor([-1.0, -0.4, 0.0, 0.6, 1.4, 2.0]), "linear", 2)
    assert (float(entry["scale"]), int(entry["zero"])) == (1.0, 1)
    assert packing.codes_of(entry).tolist() == [0, 1, 1, 2, 2, 3]
    assert packing.dequantize(entry).tolist() == [-1, 0, 0, 1, 1, 2]


def test_linear_clips_a_thousandth_at_either_end():
    w = torch.cat([torch.linspace(-1, 1, 1998), torch.tensor([-50.0, 50.0])])        # ceil(0.001 N) = 2: the second
    value = packing.dequantize(quantizers.quantize(w, "linear", 8, clip=0.001))
    assert value.abs().max() == pytest.approx(1, abs=0.01)
    value = packing.dequantize(quantizers.quantize(w, "linear", 8))      # and nothing unless told to
    assert value.abs().max() == pytest.approx(50, abs=0.2)


def test_fixed_point_by_hand():
    """4 bits, largest value 0.9: no integer bits, steps of 1/8, rounded down; -1 may be reached, 1 may not."""
    w = torch.tensor([0.9, 0.3, -0.3, 0.0, -1.0])
    entry = quantizers.quantize(w, "fixed_point", 4)
    assert packing.dequantize(entry).tolist() == [0.875, 0.25, -0.375, 0, -1]
    assert float(entry["scale"]) == 0.125
    assert float(quantizers.quantize(torch.tensor([1.0]), "fixed_point", 4)["scale"]) == 0.25
    assert float(quantizers.quantize(torch.tensor([0.1]), "fixed_point", 4)["scale"]) == 2 ** -6


def test_kmeans_finds_the_clusters():
    w = torch.cat([c + 0.01 * torch.randn(50, generator=torch.Generator().manual_seed(3)) for c in (-2.0, 1.0, 3.0)])
    value = packing.dequantize(quantizers.quantize(torch.cat([w, torch.zeros(9)]), "kmeans", 2))
    assert value.unique().tolist() == pytest.approx([-2, 0, 1, 3], abs=0.01) and value[-9:].eq(0).all()
    for part, centre in zip(value[:150].split(50), w.split(50), strict=True):
        assert part.unique().item() == pytest.approx(float(centre.mean()), abs=1e-6)


def test_a_mask_survives_quantization():
    w, mask = weights(), weights() != 0
    entry = quantizers.quantize(w, "linear", 4, mask=mask)
    assert "kept" in entry and len(entry["codes"]) < w.numel() / 2 and packing.dequantize(entry)[~mask].eq(0).all()


def test_rounding_what_a_layer_reads():
    layer = nn.Sequential(nn.Linear(3, 3, bias=False))
    layer[0].weight.data = torch.eye(3)
    batches = [(torch.tensor([[0.0, 1.0, 3.0]]), None), (torch.tensor([[-2.0, 0.5, 1.0]]), None)]
    found = quantizers.calibrate(layer, batches, ["0"], 2)["0"]          # mean ends: -1 and 2
    assert found == {"bits": 2, "scale": pytest.approx(1.0), "zero": 1}
    packing.quantize_inputs(layer, {"0": {"bits": 2, "scale": 0.5, "zero": 1}}, "made.pth.tar")
    assert layer(torch.tensor([[-3.0, 0.3, 9.0]])).tolist() == [[-0.5, 0.5, 1.0]]    # levels -0.5, 0, 0.5, 1


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A pruned network of some thousand parameters in pruned_model.pth.tar, as any method may have written it."""
    folder = tmp_path_factory.mktemp("bundle")
    model, dense = (trained_like("vgg", widths=[first, "M", 24, "M", 32, 32, "M", 48, 48, "M", 64, 64])
                    for first in (16, 20))
    save(folder / "pruned_model.pth.tar", model, stage="pruned", dense=compute_flops.summary(dense))
    return folder


QUANTIZE = ["--subset", "60", "--device", "cpu", "--calibrate", "20"]


@pytest.mark.parametrize("bits, ratio", [(8, 4), (4, 8)])
def test_the_quantized_file_is_small_and_is_what_was_evaluated(bits, ratio, bundle, tmp_path, capsys):
    quantize_model.main(["--pruned", str(bundle / "pruned_model.pth.tar"), "--wbit", str(bits), "--save",
                         str(tmp_path), *QUANTIZE])
    ckpt = checkpoint.load(tmp_path / "quantized_model.pth.tar", quantized=True)
    model = checkpoint.to_model(ckpt)
    assert ckpt["stage"] == "quantized" and ckpt["quant"]["classifier.weight"]["bits"] == bits
    assert set(ckpt["activations"]) == {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    weights = sum(len(entry["codes"]) for entry in ckpt["quant"].values())
    assert weights == sum(p.numel() for p in model.parameters() if p.dim() > 1) * bits // 8
    for name, p in model.named_parameters():
        assert (name in ckpt["quant"]) == (p.dim() > 1)
        if name in ckpt["quant"]:
            assert len(p.unique()) <= 2 ** bits
    out = capsys.readouterr().out
    result = evaluation.main(["--pruned", str(tmp_path / "quantized_model.pth.tar"), "--subset", "60", "--device",
                              "cpu", "--nbit", str(bits)])
    assert result["top1"] == pytest.approx(ckpt["prec1"]) and f"{ckpt['prec1']:.2f} % at {bits} bits" in out


def test_layers_at_bits_of_their_own(bundle, tmp_path):
    quantize_model.main(["--pruned", str(bundle / "pruned_model.pth.tar"), "--wbit", "4", "--method", "kmeans",
                         "--rule", "classifier|feature.0", "linear", "8", "--rule", "feature.1\\d", "linear", "32",
                         "--abit", "32", "--per-channel", "--save", str(tmp_path), *QUANTIZE])
    ckpt = checkpoint.load(tmp_path / "quantized_model.pth.tar", quantized=True)
    bits = {name: (entry["bits"], "codebook" in entry) for name, entry in ckpt["quant"].items()}
    assert bits["classifier.weight"] == bits["feature.0.weight"] == (8, False)
    assert bits["feature.4.weight"] == (4, True) and "feature.11.weight" not in bits and "activations" not in ckpt
    assert ckpt["quant"]["classifier.weight"]["scale"].shape == (10, 1)


# The score


def test_the_original_counter_on_the_dense_network_and_on_a_pruned_one():
    arch, cfg = network("wideresnet")
    dense = models.sketch(arch, num_classes=100, **cfg)
    assert sum(p.numel() for p in dense.parameters()) == 37_446_900
    assert legacy_flops(dense, dense.cfg) == 11_950_752_356
    widths = [141, 144, 144, 143, 143, 277, 254, 254, 255, 255, 557, 294, 294, 294, 295]
    pruned = models.sketch(arch, num_classes=100, **cfg, widths=widths, streams=[16, 136, 278, 527])
    assert sum(p.numel() for p in pruned.parameters()) == 23_181_353
    assert legacy_flops(pruned, dense.cfg) == 10_625_795_100
    assert legacy_flops(pruned, dense.cfg, halve=True) == 5_318_413_340
    assert legacy_flops(pruned, pruned.cfg) == 9_465_458_076             # with the inputs that are really there


EIGHT_BITS = """\
--------------------------------------------------------------------------------
Freebie 16-bit is False
Pytorch half-precision is True
Weight-bit is 8
params count /  4
original param count 23181353 @ 23.18 M
quantized param count 5795338 @ 5.80 M
original FLOPs count 10625795100.0 @ 10.63 GFLOPs
FLOPs count 5318413340.0 @ 5.32 GFLOPs
--------------------------------------------------------------------------------
Reference param count 36500000.0 @ 36.50 M
Reference FLOPs count 10490000000.0 @ 10.49 GFLOPs
--------------------------------------------------------------------------------
Score = Param/refParam + FLOPs/refFLOPs = 0.15878 + 0.50700 = 0.66577
--------------------------------------------------------------------------------"""
FREEBIE = [("Freebie 16-bit is False", "Freebie 16-bit is True"), ("Weight-bit is 8", "Weight-bit is 32"),
           ("params count /  4", "params count /  2"),
           ("quantized param count 5795338 @ 5.80 M", "quantized param count 11590676 @ 11.59 M"),
           ("0.15878 + 0.50700 = 0.66577", "0.31755 + 0.50700 = 0.82455")]


def test_the_printouts_of_the_original_readme():
    counts = 23_181_353, 10_625_795_100.0, 5_318_413_340.0
    assert evaluation.describe(*counts, nbit=8, freebie=False, half=True) == EIGHT_BITS
    expected = EIGHT_BITS
    for old, new in FREEBIE:
        expected = expected.replace(old, new)
    assert evaluation.describe(*counts, nbit=32, freebie=True, half=True) == expected
    whole = evaluation.describe(*counts, nbit=32, freebie=False, half=False)
    assert "params count /  1\n" in whole and "\nFLOPs count 10625795100.0" in whole
    six = evaluation.describe(*counts, 6, freebie=False, half=True)      # 32 / 6
    assert "quantized param count 4346503" in six


def test_eval_prints_both_tallies(bundle, tmp_path, capsys):
    path = bundle / "pruned_model.pth.tar"
    flags = ["--subset", "60", "--device", "cpu"]
    evaluation.main(["--pruned", str(path), "--freebie", "--half", *flags])
    out = capsys.readouterr().out
    lines = out.splitlines()
    ckpt = checkpoint.load(path)
    model = checkpoint.to_model(ckpt)
    params = sum(p.numel() for p in model.parameters())
    assert f"original FLOPs count {legacy_flops(model, ckpt['dense']['cfg'])} @" in out
    assert lines[5] == f"original param count {params} @ 0.{params // 10000:02d} M" and "/60 (" in out
    score = next(line for line in lines if line.startswith("Score"))
    assert lines[-2] == "published: " + score.partition("FLOPs = ")[2] and lines[-1].startswith("rules: ")
    with pytest.raises(UserError, match="freebie"):
        evaluation.main(["--pruned", str(path), "--freebie", "--nbit", "8", *flags])
    quantize_model.main(["--pruned", str(path), "--save", str(tmp_path), *QUANTIZE])
    capsys.readouterr()
    evaluation.main([str(tmp_path / "quantized_model.pth.tar"), "--half", "--nbit", "8", *flags])
    small = capsys.readouterr().out.splitlines()[-1]
    assert "(layers read 8 bits)" in small and float(small.split()[-1]) < float(lines[-1].split()[-1])
    with pytest.raises(UserError, match="freebie"):
        evaluation.main([str(tmp_path / "quantized_model.pth.tar"), "--freebie", *flags])
    ckpt = checkpoint.load(tmp_path / "quantized_model.pth.tar", quantized=True)
    rounded = {k: v for k, v in ckpt.items() if k not in ("quant", "path")}      # whole weights, but layers read 8 bits
    with pytest.raises(UserError, match="freebie"):
        evaluation.main([str(checkpoint.save(tmp_path / "rounded.pth.tar", rounded)), "--freebie", *flags])


# Files of the original


def as_original(net):
    """The state_dict of the original's masked network: all layers of the residual stream hold the widest mask."""
    mask, state = dict(zip(net.names, net.masks(), strict=True)), dict(net.model.state_dict())
    shared = net.m[:max(len(mask[record.producers[0][0]]) for record in net.records if record.stream)].detach()
    for record, used in zip(net.records, net.used.split(net.sizes), strict=True):
        for layer, _ in record.producers:
            state[f"{layer}.mweight"] = (shared if record.stream else net.m[used].detach()).view(-1, 1, 1, 1)
    return renamed(state)


def renamed(state):
    return {re.sub(r"^block(\d)\.layer", r"layer\1", name).replace("convShortcut", "downsample"): tensor
            for name, tensor in state.items()}


def random_masks(wf=3):
    torch.manual_seed(0)
    net = SoftMask(like_trained(models.build("wideresnet", depth=10, widen_factor=wf, variant="softmask")))
    net.m.data.uniform_(-1, 1)
    return net.eval()


@torch.no_grad()
def test_a_file_with_mask_parameters_loads_folded_and_is_pruned_on(tmp_path, capsys):
    net, x = random_masks(), torch.randn(3, 3, 32, 32)
    torch.save({"state_dict": as_original(net), "epoch": 2, "best_prec1": 0.1}, tmp_path / "theirs.pth")
    ckpt = checkpoint.load(tmp_path / "theirs.pth", network)
    torch.testing.assert_close(checkpoint.to_model(ckpt)(x), net(x))
    assert ckpt["stage"] == "sparse" and ckpt["soft_masks"].keys() == set(net.names)
    assert all(torch.equal(ckpt["soft_masks"][name], mask) for name, mask in zip(net.names, net.masks(), strict=True))
    flags = ["--dataset", "shapes10", "--subset", "20", "--device", "cpu", "--save", str(tmp_path / "p")]
    prune.main(["--model", str(tmp_path / "theirs.pth"), *flags])
    pruned = checkpoint.load(tmp_path / "p/pruned_model.pth.tar")
    torch.testing.assert_close(checkpoint.to_model(pruned)(x), net(x), rtol=1e-4, atol=1e-4)
    assert pruned["dense"]["cfg"]["widen_factor"] == 3 and pruned["cfg"]["widths"] != pruned["dense"]["cfg"]["widths"]
    assert "masks clamp(m + 0.5, 0, 1) inside the weights" in capsys.readouterr().out


def test_masks_that_the_network_has_not_are_named(tmp_path):
    state = as_original(random_masks())
    for change, message in (({"fc.mweight": torch.zeros(10, 1)}, "of fc"),
                            ({"layer1.0.conv1.mweight": torch.zeros(48, 16, 3, 3)}, "each output channel of block1"),
                            ({"layer1.0.conv1.mweight": torch.zeros(47, 1, 1, 1)}, "each output channel of block1")):
        torch.save({**state, **change}, tmp_path / "theirs.pth")
        with pytest.raises(UserError, match=f"theirs.pth: its mask.*{message}"):
            checkpoint.load(tmp_path / "theirs.pth", network)


@torch.no_grad()
def test_a_narrowed_wide_resnet_of_the_original(tmp_path):
    """Its widen factor is the smallest that holds all widths, or what --arch says; the dense network is known."""
    net, x = random_masks(), torch.randn(3, 3, 32, 32)
    small = narrowed(net)
    assert not any(width == 0 for width in small.cfg["widths"])
    torch.save(renamed(small.state_dict()), tmp_path / "small.pth")
    for arch, factor in ((None, None), ("wrn_10_3", 3), ("wrn_10_5", 5), ("wideresnet", None)):
        ckpt = checkpoint.load(tmp_path / "small.pth", network, arch)
        stages = zip(small.cfg["streams"][1:], small.cfg["widths"], strict=True)
        least = max(-(-width // (16 * 2 ** i)) for i, pair in enumerate(stages) for width in pair)
        assert ckpt["cfg"] == {**small.cfg, "widen_factor": factor or least} and ckpt["stage"] == "pruned"
        torch.testing.assert_close(checkpoint.to_model(ckpt)(x), small(x))
        dense = models.build("wideresnet", depth=10, widen_factor=factor or least, variant="softmask")
        assert ckpt["dense"] == compute_flops.summary(dense)
    with pytest.raises(UserError, match=r"holds a wideresnet \(depth 10 widen_factor .*not --arch wrn_10_1"):
        checkpoint.load(tmp_path / "small.pth", network, "wrn_10_1")


@torch.no_grad()
def test_the_pruned_network_of_a_file_is_the_one_that_is_read(tmp_path):
    net, x = random_masks(wf=4), torch.randn(3, 3, 32, 32)
    net.m.data[net.m.data.abs() < 0.9] = -1                  # so narrow that its widths do not show the widen factor
    net.m.data[::16] = 1
    small = narrowed(net)
    torch.save({"state_dict": as_original(net), "pruned_state_dict": renamed(small.state_dict()), "epoch": 3},
               tmp_path / "theirs.pth")
    ckpt = checkpoint.load(tmp_path / "theirs.pth", network)
    torch.testing.assert_close(checkpoint.to_model(ckpt)(x), small(x))
    assert ckpt["stage"] == "pruned" and ckpt["cfg"]["widen_factor"] == ckpt["dense"]["cfg"]["widen_factor"] == 4
    assert "soft_masks" not in ckpt
