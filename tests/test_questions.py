"""Questions that people ask about pruning, alike in all methods: batch norms recalibrated, a teacher, ratios of layers,
2:4 masks."""
import importlib
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from common import UserError, data, models, pruning, teacher
from common.data.arrays import balanced
from common.files import checkpoint
from common.run import Run

METHODS = ("magnitude", "slimming", "hoyer", "softmask", "reweighted")
TINY = ["--dataset", "shapes10", "--subset", "40", "--device", "cpu"]


def call(method, script, *flags):
    importlib.import_module(f"{method}.{script}").main([*map(str, flags)])


def file_of(folder, method, model, **more):
    if method == "softmask":                                 # prune.py there reads what its main.py has trained
        masks = {name: torch.ones(len(model.get_submodule(name).weight)) for name in ("layer1.0.conv1",)}
        masks["layer1.0.conv1"][:3] = 0
        more = {"soft_masks": masks, "args": {"nfp": False}} | more
    stage = "sparse" if method == "softmask" else "dense"
    return checkpoint.save(folder / "dense.pth.tar", checkpoint.of(model, method, stage, "shapes10", **more))


def pruned(folder, method, file, *flags):
    """The checkpoint that the method's prune.py makes, by a rule of its own unless the flags say one."""
    rule = {"magnitude": ["--percent", "0.3"], "hoyer": ["--sensitivity", "0.01"],
            "reweighted": ["--ratio", "0.3"]}.get(method, [])
    call(method, "prune", "--resume" if method == "magnitude" else "--model", file, *rule, *TINY, "--save", folder,
         *flags)
    return checkpoint.load(folder / ("pruned_model.pth.tar" if method == "softmask" else "pruned.pth.tar"))


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


def test_what_cannot_be_recalibrated(tmp_path, capsys):
    pruned(tmp_path / "a", "magnitude", file_of(tmp_path, "magnitude", models.build("lenet5")), "--recalibrate", "9")
    assert "note: --recalibrate changes nothing: a lenet5 has no batch norm" in capsys.readouterr().out
    with pytest.raises(UserError, match="--recalibrate 1: one image"):
        pruned(tmp_path / "b", "magnitude", file_of(tmp_path, "magnitude", models.build("resnet", depth=8)),
               "--recalibrate", "1")
    assert not (tmp_path / "b").exists()


# --teacher


def finetuned(folder, method, file, *flags):
    """The checkpoint that the method's finetune.py makes in one epoch of SGD without weight decay."""
    name = {"slimming": "--refine", "softmask": "--pruned"}.get(method, "--model")
    more = ["--optmzr", "sgd", "--alpha", "0", "--warmup-epochs", "0"] * (method == "reweighted")
    call(method, "finetune", name, file, *TINY, "--epochs", "1", "--batch-size", "20", "--lr", "0.1", "--wd", "0",
         "--precision", "fp32", *more, "--save", folder, *flags)
    return checkpoint.load(folder / "finetuned.pth.tar")


def masked_file(path, arch, **cfg):
    torch.manual_seed(0)
    model = models.build(arch, **cfg)
    masks = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    return checkpoint.save(path, checkpoint.of(model, "magnitude", "pruned", "shapes10", masks=masks))


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
    file = checkpoint.save(tmp_path / "t.pth.tar", checkpoint.of(model, "magnitude", "dense", "shapes10"))
    run = SimpleNamespace(place=lambda m: m, autocast=nullcontext, device="cpu")
    taught, logits = teacher.load(run, str(file), 0.25, None, dataset), torch.randn(20, 10)
    (images, _), = data.Loader(dataset, "test", 20)
    (theirs, _), = data.Loader(replace(dataset, mean=(0.3,), std=(0.7,)), "test", 20)
    assert not torch.allclose(images, theirs, atol=0.1)
    loss = 0.75 * 2 + 0.25 * teacher.distillation(logits, model.eval()(theirs))
    torch.testing.assert_close(taught(2.0, logits, images), loss)


def test_a_run_with_a_teacher_continues_bit_for_bit(tmp_path, monkeypatch):
    file = masked_file(tmp_path / "p.pth.tar", "resnet", depth=8)
    flags = ["--teacher", masked_file(tmp_path / "t.pth.tar", "resnet", depth=14), "--epochs", "2"]
    whole = finetuned(tmp_path / "whole", "slimming", file, *flags)

    def stopping(self, *args, real=Run.save, **more):
        real(self, *args, **more)
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", stopping)
        with pytest.raises(KeyboardInterrupt):
            finetuned(tmp_path / "parts", "slimming", file, *flags)
    for others in (["--epochs", "2"], [*flags, "--ltea", "0.4"]):
        with pytest.raises(UserError, match=r"is of another run \(it had --(teacher .*t.pth.tar|ltea 0.5)\)"):
            finetuned(tmp_path / "parts", "slimming", file, *others, "--resume", "auto")
    parts = finetuned(tmp_path / "parts", "slimming", file, *flags, "--resume", "auto")
    assert all(torch.equal(tensor, parts["state_dict"][name]) for name, tensor in whole["state_dict"].items())


@pytest.mark.parametrize("method", METHODS)
def test_teachers_that_make_no_sense_are_refused(method, tmp_path):
    file, other = (masked_file(tmp_path / f"{classes}.pth.tar", "resnet", depth=8, num_classes=classes)
                   for classes in (10, 100))
    for flags, message in ((["--teacher", other], "100.pth.tar has 100 classes, shapes10 has 10"),
                           (["--ltea", "0.3"], "--ltea needs --teacher"),
                           (["--teacher", file, "--ltea", "1.5"], "--ltea 1.5 is more than 1"),
                           (["--teacher", tmp_path / "none"], "none")):
        with pytest.raises(UserError, match=message):
            finetuned(tmp_path / "f", method, file, *flags)
    assert not (tmp_path / "f").exists()


def test_slimming_s_main_has_a_teacher_for_fine_tuning_alone(tmp_path):
    for flags, message in ((["--teacher", "t"], "--teacher are for --refine"), (["--ltea", "0.3"], "--ltea needs")):
        with pytest.raises(UserError, match=message):
            call("slimming", "main", *TINY, *flags, "--save", tmp_path / "s")
