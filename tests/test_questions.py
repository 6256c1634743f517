"""Questions that people ask about pruning, alike in all methods: batch norms recalibrated, a teacher, ratios of layers,
2:4 masks."""
import importlib
import re
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from by_hand import FILE, METHODS, call, save
from reliability import same
from torch import nn

from common import UserError, compute_flops, data, models, pruning, teacher
from common.compact import compact
from common.data.arrays import balanced
from common.files import checkpoint
from deploy import latency
from magnitude import sensitivity
from magnitude.prune import keep_n_of_m

TINY = ["--dataset", "shapes10", "--subset", "40", "--device", "cpu"]
FILTERS = ["--sparsity-type", "filter"]
CHANNELS = {"slimming": [], "hoyer": ["--granularity", "channel"], "reweighted": FILTERS}


def file_of(folder, method, model, **more):
    if method == "softmask":                                 # prune.py there reads what its main.py has trained
        masks = {name: torch.ones(len(model.get_submodule(name).weight)) for name in ("layer1.0.conv1",)}
        masks["layer1.0.conv1"][:3] = 0
        more = {"soft_masks": masks, "args": {"nfp": False}} | more
    stage = "sparse" if method == "softmask" else "dense"
    return save(folder / "dense.pth.tar", model, method, stage, **more)


def pruned(folder, method, file, *flags):
    """The checkpoint that the method's prune.py makes, by a rule of its own unless the flags say one."""
    rule = {"magnitude": ["--percent", "0.3"], "hoyer": ["--sensitivity", "0.01"],
            "reweighted": ["--ratio", "0.3"]}.get(method, [])
    rule = rule if not {"--ratios", "--pattern"} & set(flags) else []
    call(f"{method}.prune", "--model", file, *rule, *TINY, "--save", folder, *flags)
    return checkpoint.load(folder / ("pruned_model.pth.tar" if method == "softmask" else "pruned.pth.tar"))


EVALUATED = {  # by prune.py of each method, as it prints and writes it
    "slimming": ["10.00 % before, 20.00 % masked, 30.00 % narrowed; their logits differ by 2.5e-01"],
    "softmask": ["10.00 % masked, 20.00 % pruned; their logits differ by 2.5e-01"],
    "reweighted": ["10.00 % before, 20.00 % pruned", "the logits differ by 2.5e-01"],
    "magnitude": ["Before pruning: Test Loss:  1.00000000, Test Acc:  10.00\n",
                  "After Pruning: Test Loss:  2.00000000, Test Acc:  20.00\n"],
    "hoyer": ["accuracy on shapes10: 10.00 %\n"]}


@pytest.mark.parametrize("method", METHODS)
def test_the_accuracies_are_those_of_the_networks(method, tmp_path, monkeypatch, capsys):
    """On the test images. The logits compared are those of the masked and the narrow network; where they differ,
    nothing is written."""
    prune, seen, compared = importlib.import_module(f"{method}.prune"), [], []
    file, flags = file_of(tmp_path, method, models.build("resnet", depth=8)), CHANNELS.get(method, [])
    labels = data.load("shapes10", subset=40).y_test

    def evaluate(model, loader):
        assert torch.equal(loader.labels, labels)
        seen.append(model)
        return {"loss": float(len(seen)), "top1": 10.0 * len(seen)}

    def differ(masked, small):
        raise UserError("their logits differ")
    monkeypatch.setattr(prune, "evaluate", evaluate)
    narrows = hasattr(prune, "prove")
    if narrows:
        monkeypatch.setattr(prune, "prove", differ)
        with pytest.raises(UserError, match="their logits differ"):
            pruned(tmp_path / "p", method, file, *flags)
        assert not (tmp_path / "p").exists()
        seen.clear()
        monkeypatch.setattr(prune, "prove", lambda *networks: compared.append(networks) or 0.25)
    ckpt = pruned(tmp_path / "p", method, file, *flags)
    out = capsys.readouterr().out
    assert "accuracies are those on 40 images (--subset)\n" in out
    for report in (out, (tmp_path / "p/prune.txt").read_text()):
        assert all(line in report for line in EVALUATED[method])
    assert ckpt["prec1"] == ckpt["best_prec1"] == 10 * len(seen) and same(ckpt["state_dict"], seen[-1].state_dict())
    before = checkpoint.load(file)["state_dict"]
    assert "before" not in EVALUATED[method][0].lower() or same(before, seen[0].state_dict())
    assert narrows == (method in ("slimming", "softmask", "reweighted"))
    if narrows:
        (masked, small), = compared
        assert small is seen[-1] and masked.cfg["widths"][0] == 16 > small.cfg["widths"][0]
        assert not same(before, masked.state_dict()) and (method == "reweighted" or masked is seen[-2])


def test_of_two_that_prune_into_one_folder_the_second_is_refused(tmp_path, monkeypatch):
    prune = importlib.import_module("magnitude.prune")
    file, evaluate = file_of(tmp_path, "magnitude", models.build("resnet", depth=8)), prune.evaluate

    def meanwhile(*given):
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p/pruned.pth.tar").write_bytes(b"theirs")
        return evaluate(*given)
    monkeypatch.setattr(prune, "evaluate", meanwhile)
    with pytest.raises(UserError, match="p already holds a pruned.pth.tar"):
        pruned(tmp_path / "p", "magnitude", file)
    assert (tmp_path / "p/pruned.pth.tar").read_bytes() == b"theirs"


# --recalibrate


@pytest.mark.parametrize("method, flags", [*((method, []) for method in METHODS),
                                           ("reweighted", ["--sparsity-type", "filter"])])
def test_batch_norms_are_recalibrated_on_training_images(method, flags, tmp_path, capsys):
    """Mean and variance of what the first batch norm reads, over exactly these images; the accuracy printed last is
    the recalibrated network's, and recorded."""
    torch.manual_seed(0)
    model = models.build("resnet", depth=8)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):                    # useless statistics
            m.running_mean.fill_(5)
            m.running_var.fill_(1e4)
    file = file_of(tmp_path, method, model)
    before = pruned(tmp_path / "a", method, file, *flags)
    assert "recalibrated" not in capsys.readouterr().out
    ckpt = pruned(tmp_path / "b", method, file, *flags, "--recalibrate", "40", "--test-batch-size", "20")
    out = capsys.readouterr().out
    assert f"on 40 training images: accuracy {before['prec1']:.2f} % before, {ckpt['prec1']:.2f} % after" in out
    assert ckpt["args"]["recalibrate"] == 40
    small, images = checkpoint.to_model(ckpt), data.load("shapes10", subset=40)
    order = balanced(images.y_train, 40, 10)
    images = replace(images, x_train=images.x_train[order], y_train=images.y_train[order])
    with torch.no_grad():
        seen = torch.stack([small.conv1(x) for x, _ in data.Loader(images, "train", 20)])      # its two batches
    mean, var = seen.mean((1, 3, 4)).mean(0), seen.transpose(1, 2).flatten(2).var(2).mean(0)
    torch.testing.assert_close(small.bn1.running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(small.bn1.running_var, var, rtol=1e-4, atol=1e-5)
    for name, tensor in ckpt["state_dict"].items():          # nothing else has changed
        assert "running" in name or "tracked" in name or torch.equal(tensor, before["state_dict"][name]), name


def test_recalibrating_leaves_dropout_out_and_the_modes_as_they_were(tmp_path):
    model = models.build("wideresnet", depth=10, widen_factor=1, dropout=0.5)
    source = pruning.load(file_of(tmp_path, "magnitude", model), None, save=str(tmp_path), device="cpu", subset=40)
    pruning.recalibrate(source, source.model, 40)
    first = {name: tensor.clone() for name, tensor in source.model.state_dict().items()}
    pruning.recalibrate(source, source.model, 40)
    assert all(torch.equal(first[name], tensor) for name, tensor in source.model.state_dict().items())
    assert not any(m.training for m in source.model.modules())
    assert {m.momentum for m in source.model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_a_network_without_batch_norms_is_not_recalibrated(tmp_path, capsys):
    pruned(tmp_path / "a", "magnitude", file_of(tmp_path, "magnitude", models.build("lenet5")), "--recalibrate", "9")
    assert "note: --recalibrate changes nothing: a lenet5 has no batch norm" in capsys.readouterr().out


# --teacher


def finetuned(folder, method, file, *flags):
    """The checkpoint that the method's finetune.py makes in one epoch of SGD without weight decay."""
    more = ["--optmzr", "sgd", "--alpha", "0", "--warmup-epochs", "0"] * (method == "reweighted")
    call(f"{method}.finetune", FILE.get(method, "--model"), file, *TINY, "--epochs", 1, "--batch-size", 20, "--lr", 0.1,
         "--wd", 0, "--precision", "fp32", *more, "--save", folder, *flags)
    return checkpoint.load(folder / "finetuned.pth.tar")


def masked_file(path, arch, **cfg):
    torch.manual_seed(0)
    model = models.build(arch, **cfg)
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    return save(path, model, "magnitude", "pruned", masks=masks)


@pytest.mark.parametrize("method", METHODS)
def test_a_teacher_equal_to_the_student_adds_no_gradient(method, tmp_path):
    """With its loss alone nothing is learned; beside the labels' it halves the first step. (AlexNet has no batch norm,
    which computes otherwise in training.)"""
    file = masked_file(tmp_path / "p.pth.tar", "alexnet")
    start, alone, half, labels = (checkpoint.load(file)["state_dict"], *(
        finetuned(tmp_path / str(number), method, file, "--batch-size", "40", "--momentum", "0", *flags)["state_dict"]
        for number, flags in enumerate((["--teacher", file, "--ltea", "1"], ["--teacher", file], []))))
    for name in start:
        torch.testing.assert_close(alone[name], start[name], rtol=0, atol=1e-7)
        torch.testing.assert_close(half[name] - start[name], (labels[name] - start[name]) / 2, rtol=1e-3, atol=1e-6)
    assert not torch.equal(half["classifier.weight"], start["classifier.weight"])


def test_a_teacher_gets_images_normalized_as_its_file_says(tmp_path):
    torch.manual_seed(0)
    model, dataset = models.build("lenet5"), data.load("shapes10", subset=20, channels=1)
    model.images = {"classes": [], "mean": [0.3], "std": [0.7]}
    file = save(tmp_path / "t.pth.tar", model)
    run = SimpleNamespace(place=lambda m: m, autocast=nullcontext, device="cpu")
    taught, logits = teacher.load(run, str(file), 0.25, None, dataset), torch.randn(20, 10)
    (images, _), = data.Loader(dataset, "test", 20)
    (theirs, _), = data.Loader(replace(dataset, mean=(0.3,), std=(0.7,)), "test", 20)
    assert not torch.allclose(images, theirs, atol=0.1)
    loss = 0.75 * 2 + 0.25 * teacher.distillation(logits, model.eval()(theirs))
    torch.testing.assert_close(taught(2.0, logits, images), loss)


def test_a_run_is_not_continued_with_another_teacher(tmp_path):
    file = masked_file(tmp_path / "t.pth.tar", "resnet", depth=8)
    flags = ["--teacher", file, "--epochs", "1"]
    finetuned(tmp_path / "run", "slimming", file, *flags)
    for others in (["--epochs", "1"], [*flags, "--ltea", "0.4"]):
        with pytest.raises(UserError, match=r"is of another run \(it had --(teacher .*t.pth.tar|ltea 0.5)\)"):
            finetuned(tmp_path / "run", "slimming", file, *others, "--resume", "auto")


# --ratios


def ratios_file(path, **ratios):
    path.write_text("layer,fraction\n" + "".join(f"{layer.replace('__', '.')},{ratio}\n"
                                                 for layer, ratio in ratios.items()))
    return path


def small_of(ckpt):
    """The network of a checkpoint, without what masks have emptied."""
    return compact(checkpoint.to_model(ckpt))


@pytest.mark.parametrize("method", CHANNELS)
def test_channels_are_removed_by_the_ratio_of_their_layer(method, tmp_path, capsys):
    """To the exact count, the smallest of the layer; one that is left out, or has 0, is left alone."""
    torch.manual_seed(0)
    model = models.build("resnet", depth=8)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.weight.copy_(torch.linspace(0.1, 1, len(m.weight)))
            elif isinstance(m, nn.Conv2d):
                m.weight.mul_(torch.linspace(0.1, 1, len(m.weight))[:, None, None, None])
        model.layer1[0].bn1.weight[3] = 0.01                 # the smallest is one in the middle
        model.layer1[0].conv1.weight[3] *= 0.01
    file = file_of(tmp_path, method, model)
    ratios = ratios_file(tmp_path / "r.csv", layer1__0__conv1=0.47, layer2__0__conv1=0.999, layer3__0__conv1=0)
    ckpt = pruned(tmp_path / "p", method, file, *CHANNELS[method], "--ratios", ratios)
    assert small_of(ckpt).cfg["widths"] == [16 - 7, 1, 64]   # int(0.47 * 16) = 7, int(0.999 * 32) = 31
    name = {"slimming": "layer1.0.bn1.weight"}.get(method, "layer1.0.conv1.weight")
    kept = [i for i in range(16) if i not in (3, 0, 1, 2, 4, 5, 6)]
    before, after = model.get_parameter(name).detach(), small_of(ckpt).get_parameter(name).detach()
    torch.testing.assert_close(after, before[kept])
    assert "not pruned" not in capsys.readouterr().out


@pytest.mark.parametrize("method", CHANNELS)
def test_the_ratios_that_sensitivity_finds_are_read(method, tmp_path, capsys):
    """All of its layers are known; streams are kept, and the output says so (reweighted zeroes their filters)."""
    file = file_of(tmp_path, method, models.build("resnet", depth=8))
    sensitivity.main([str(file), *TINY, "--channels", "--floor", "100", "--save", str(tmp_path / "s")])
    ckpt = pruned(tmp_path / "p", method, file, *CHANNELS[method], "--ratios", tmp_path / "s/ratios.csv")
    assert small_of(ckpt).cfg["widths"] == [2, 4, 7]         # 16, 32, 64 without 90 %
    out = capsys.readouterr().out
    assert ("cannot prune them: conv1, layer2.0" in out) == (method != "reweighted")


def test_reweighted_reads_the_ratios_of_sensitivity_without_the_linear_layers(tmp_path, capsys):
    """It prunes convolutions alone, and says which lines of the file it leaves out."""
    torch.manual_seed(0)
    file = file_of(tmp_path, "reweighted", models.build("resnet", depth=8))
    sensitivity.main([str(file), *TINY, "--floor", "100", "--save", str(tmp_path / "s")])
    model = checkpoint.to_model(pruned(tmp_path / "p", "reweighted", file, "--ratios", tmp_path / "s/ratios.csv"))
    assert "cannot prune them: fc\n" in capsys.readouterr().out
    left = {name: int(w.count_nonzero()) / w.numel() for name, w in model.named_parameters() if w.dim() > 1}
    assert left == {name: pytest.approx(1.0 if name == "fc.weight" else 0.1, abs=0.003) for name in left}


def test_slimming_removes_streams_and_selections_by_ratio(tmp_path):
    """The batch norm before a selection has a line under its own name: its consumer reads fewer channels."""
    file = file_of(tmp_path, "slimming", models.build("preresnet", depth=11, selection=True))
    ratios = ratios_file(tmp_path / "r.csv", conv1=0.25, layer2__0__bn1=0.5)
    for flags, stream in (["--streams"], 12), ([], 16):
        model = checkpoint.to_model(pruned(tmp_path / str(stream), "slimming", file, "--ratios", ratios, *flags))
        assert (model.conv1.out_channels, model.layer2[0].conv1.in_channels) == (stream, 32)


@pytest.mark.parametrize("method, flags, what", [
    ("magnitude", ["--keep-weights", "0.9"], "weights"), ("magnitude", ["--keep-macs", "0.9"], "sparse_macs"),
    ("reweighted", ["--keep-weights", "0.9"], "weights"), ("reweighted", [*FILTERS, "--keep-macs", "0.8"], "macs"),
    ("slimming", ["--keep-macs", "0.8"], "macs"), ("hoyer", [*CHANNELS["hoyer"], "--keep-macs", "0.8"], "macs"),
    ("hoyer", [*CHANNELS["hoyer"], "--keep-weights", "0.8"], "weights")])
def test_ratios_are_scaled_to_the_budget(method, flags, what, tmp_path, capsys):
    """The fraction left is the largest that is not above the one asked for, and one layer keeps twice another's
    ratio."""
    torch.manual_seed(0)
    model, wanted = models.build("resnet", depth=8), float(flags[-1])
    ratios = ratios_file(tmp_path / "r.csv", layer2__0__conv1=0.2, layer3__0__conv1=0.1)
    ckpt = pruned(tmp_path / "p", method, file_of(tmp_path, method, model), *flags, "--ratios", ratios)
    small, dense, single = checkpoint.to_model(ckpt), compute_flops.count(model).total, len(flags) == 2
    small = small if single and method != "slimming" else compact(small)
    left = getattr(compute_flops.count(small).total, what) / (dense.weights if what == "weights" else dense.macs)
    gone = [1 - int(small.get_submodule(f"layer{i}.0.conv1").weight.count_nonzero())
            / model.get_submodule(f"layer{i}.0.conv1").weight.numel() for i in (2, 3)]
    factor, said = map(float, re.search(r"--ratios times ([\d.]+) leave ([\d.]+)", capsys.readouterr().out).groups())
    assert said == pytest.approx(left, abs=1e-4) and 0 <= wanted - left < (1e-3 if what != "macs" and single else 0.02)
    assert gone == pytest.approx([0.2 * factor, 0.1 * factor], abs=0.04) and factor > 1


# --pattern


def test_the_largest_of_each_group_of_input_channels_are_kept():
    scores = torch.tensor([[4.0, 1, 2, 3, 5, 5, 5, 5]])
    assert keep_n_of_m(scores, 2, 4).long().tolist() == [[1, 0, 0, 1, 0, 0, 1, 1]]       # ties: the earlier ones go
    assert keep_n_of_m(scores, 1, 8).long().tolist() == [[0] * 7 + [1]]
    scores = torch.rand(3, 8, 2, 5)                          # of a convolution: at each position on its own
    mask = keep_n_of_m(scores, 2, 4)
    assert torch.equal(mask[:, :, 1, 3], keep_n_of_m(scores[:, :, 1, 3], 2, 4)) and mask.shape == scores.shape


@pytest.mark.parametrize("pattern", ["2:4", "1:8"])
def test_two_of_four(pattern, tmp_path, capsys):
    """In every layer but the first, which reads three channels; what was pruned before stays pruned."""
    n, m = map(int, pattern.split(":"))
    file = file_of(tmp_path, "magnitude", models.build("resnet", depth=8))
    ckpt = pruned(tmp_path / "p", "magnitude", file, "--pattern", pattern, "--scope", "conv+linear")
    assert f"not pruned, since their input channels are not a multiple of {m}: conv1\n" in capsys.readouterr().out
    assert ckpt["rule"] == f"magnitude, conv+linear, {pattern}" and ckpt["args"]["percent"] is None
    masks, names = ckpt["masks"], {name for name, tensor in ckpt["state_dict"].items() if tensor.dim() > 1}
    assert masks.keys() == names - {"conv1.weight"}
    for name, mask in masks.items():
        assert (mask.movedim(1, -1).unflatten(-1, (-1, m)).sum(-1) == n).all()
        assert not ckpt["state_dict"][name][~mask].any()
    size = sum(mask.numel() for mask in masks.values())
    assert f"Total conv+linear params: {size}, Pruned conv+linear params: {size * (m - n) // m}," in (
        tmp_path / "p/prune.txt").read_text()
    first = pruned(tmp_path / "half", "magnitude", file, "--percent", "0.5", "--scope", "conv+linear")["masks"]
    again = pruned(tmp_path / "q", "magnitude", tmp_path / "half/pruned.pth.tar", "--pattern", pattern)["masks"]
    assert not any((mask & ~first[name]).any() for name, mask in again.items())
    assert pruned(tmp_path / "w", "magnitude", file, "--pattern", "2:64")["masks"]


def test_latency_says_that_two_of_four_needs_kernels(tmp_path, monkeypatch, capsys):
    model = models.build("resnet", depth=8)
    latency.measure_two_of_four(model)
    assert not capsys.readouterr().out                       # a dense network
    ckpt = pruned(tmp_path / "p", "magnitude", file_of(tmp_path, "magnitude", model), "--pattern", "2:4")
    model = checkpoint.to_model(ckpt)
    matrix = latency.two_of_four(model)["layer1.0.conv1"]
    weight = model.layer1[0].conv1.weight
    assert len(ckpt["masks"]) == 8 and torch.equal(matrix[3, :16], weight[3, :, 0, 0])   # channels of a position
    capsys.readouterr()
    latency.measure_two_of_four(model)
    assert capsys.readouterr().out == ("8 layers have 2:4 weights; there are no kernels for them on cpu, so they save "
                                       "bytes, not time\n")

    def kernels(weights):                                    # in the place of a device's
        if len(weights) < 32:
            raise RuntimeError("too small\nand more")
        return weights
    monkeypatch.setattr(latency, "has_kernels", lambda device: True)
    monkeypatch.setattr(latency, "to_sparse_semi_structured", kernels)
    latency.measure_two_of_four(model, batch=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["layer1.0.conv1: too small", "layer1.0.conv2: too small"] and len(lines) == 8
    timed = r"layer[23]\S+, 1 images as a product of matrices in fp16: [\d.e-]+ ms dense, [\d.e-]+ ms by 2:4 kernels"
    assert all(re.fullmatch(timed, line) for line in lines[2:])
