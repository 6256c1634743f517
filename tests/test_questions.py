"""Questions that people ask about pruning, alike in all methods: batch norms recalibrated, a teacher, ratios of layers,
2:4 masks."""
import importlib
from dataclasses import replace

import pytest
import torch
from torch import nn

from common import UserError, data, models, pruning
from common.data.arrays import balanced
from common.files import checkpoint

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
