"""What the scripts of all five methods have in common, as commands: pruned weights stay zero, a stopped run continues
bit for bit, default folders."""
import importlib
from pathlib import Path

import pytest
import torch
from conftest import PRECISIONS
from reliability import same

from common import UserError, models
from common.files import checkpoint
from common.run import Run

TINY = ["--dataset", "shapes10", "--subset", "20", "--device", "cpu"]
TRAIN = [*TINY, "--epochs", "2", "--batch-size", "10"]
FILE = {"slimming": "--refine", "softmask": "--pruned"}                  # of finetune.py; --model in the others
RETRAIN = [("slimming", "resnet", ["--weight-decay", "0.1"]), ("softmask", "resnet", ["--wd", "0.1"]),
           ("hoyer", "resnet", ["--wd", "0.1"]), ("hoyer", "lenet300", ["--wd", "0.1"]),
           ("magnitude", "resnet", ["--weight-decay", "0.1"]),
           ("reweighted", "resnet", ["--warmup-epochs", "0", "--optmzr", "adam"]),
           ("reweighted", "resnet", ["--warmup-epochs", "0", "--optmzr", "sgd", "--momentum", "0.9", "--wd", "0.1"])]


def call(method, script, *flags):
    importlib.import_module(f"{method}.{script}").main([*map(str, flags)])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method, arch, flags", RETRAIN)
def test_pruned_weights_stay_zero(method, arch, flags, precision, tmp_path):
    """Under Adam and SGD with momentum and weight decay, at a large learning rate; the others do learn."""
    torch.manual_seed(0)
    model = models.build(arch, **({"depth": 8} if arch == "resnet" else {}))
    masks = {name: torch.rand(p.shape) < 0.4 for name, p in model.named_parameters() if "fc" in name or "conv" in name
             or "bn" in name}
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    path = checkpoint.save(tmp_path / "p.pth.tar", checkpoint.of(model, method, "pruned", "shapes10", masks=masks))
    before = checkpoint.load(path)["state_dict"]
    call(method, "finetune", FILE.get(method, "--model"), path, *TRAIN, "--lr", 0.05, "--precision", precision, *flags,
         "--save", tmp_path / "f")
    tuned = checkpoint.load(tmp_path / "f/finetuned.pth.tar")
    assert tuned["stage"] == "finetuned" and tuned["masks"].keys() == masks.keys() and len(masks) > 5
    for name, mask in masks.items():
        now = tuned["state_dict"][name]
        assert torch.equal(tuned["masks"][name], mask) and not now[~mask].any(), name
        assert name.endswith("bias") or not torch.equal(now[mask], before[name][mask]), name
    if "adam" in flags:                                                  # the optimizer never saw them
        moment = checkpoint.load(tmp_path / "f/checkpoint.pth.tar")["resume"]["optimizer"]["state"][0]["exp_avg"]
        assert not moment[~masks["conv1.weight"]].any()


SPARSE = {"slimming": ["-sr"], "hoyer": ["--reg", "hs", "--schedule", "cosine"], "magnitude": [], "reweighted": [],
          "softmask": ["--target", "0.4", "--schedule", "cosine"]}       # flags of main.py


@pytest.mark.parametrize("stop", [1, 2])                                 # after the first a schedule has steps to take
@pytest.mark.parametrize("script", ["main", "finetune"])
@pytest.mark.parametrize("method", SPARSE)
def test_a_stopped_run_continues_bit_for_bit(method, script, stop, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = models.build("resnet", depth=8)
    masks = {"conv1.weight": torch.rand(model.conv1.weight.shape) < 0.4}
    file = checkpoint.save(tmp_path / "p.pth.tar", checkpoint.of(model, method, "pruned", "shapes10", masks=masks))
    flags = {"main": ["--arch", {"slimming": "resnet20", "hoyer": "cnn"}.get(method, "resnet8"), *SPARSE[method]],
             "finetune": [FILE.get(method, "--model"), file]}[script]
    flags = [*flags, *TINY, "--batch-size", "10", "--epochs", "3", "--lr", "0.02"]
    flags += ["--warmup-epochs", "1"] * (method == "reweighted")
    call(method, script, *flags, "--save", tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", stopping(stop))
        with pytest.raises(KeyboardInterrupt):
            call(method, script, *flags, "--save", tmp_path / "parts")
    call(method, script, *flags, "--save", tmp_path / "parts", "--resume", "auto")
    whole, parts = (checkpoint.load(tmp_path / name / "checkpoint.pth.tar") for name in ("whole", "parts"))
    assert parts["epoch"] == 3 and same(whole["resume"], parts["resume"])
    assert all(torch.equal(w, parts["state_dict"][name]) for name, w in whole["state_dict"].items())


def stopping(epochs):
    """Run.save, and then Ctrl-C after so many epochs."""
    def save(self, epoch, *args, real=Run.save, **more):
        real(self, epoch, *args, **more)
        if epoch + 1 == epochs:
            raise KeyboardInterrupt
    return save


FOLDERS = {  # the flags of main.py and of prune.py, and the folders' names
    "slimming": (["--arch", "resnet", "--depth", "20", "-sr"], ["--percent", "0.4"], "resnet20-sparse",
                 "preresnet20-pruned", "preresnet20-finetuned"),
    "hoyer": (["--arch", "wrn", "--depth", "10", "--widen-factor", "1", "--reg", "hs", "--decay", "1e-4"],
              ["--sensitivity", "0.01"], "wrn_10_1-hs-0.0001", "wrn_10_1-pruned", "wrn_10_1-finetuned"),
    "magnitude": (["--arch", "wrn_10_1"], ["--percent", "0.5"], "wrn_10_1-dense", "wrn_10_1-pruned",
                  "wrn_10_1-finetuned-small"),
    "softmask": (["--arch", "resnet8", "--target", "0.4"], ["--keep-macs", "0.5"], "resnet8-sparse", "resnet8-sparse",
                 "resnet8-finetuned"),
    "reweighted": (["--arch", "resnet8"], ["--ratio", "0.5"], "resnet8-dense", "resnet8-pruned", "resnet8-finetuned")}


@pytest.mark.parametrize("method", FOLDERS)
def test_without_save_folders_are_named_after_network_and_stage_and_not_written_twice(method, tmp_path, monkeypatch):
    train, prune, *folders = FOLDERS[method]
    first, pruned, tuned = (f"logs/shapes10-{name}" for name in folders)
    monkeypatch.chdir(tmp_path)
    call(method, "main", *train, *TRAIN)
    prune = ["--model", f"{first}/checkpoint.pth.tar", *prune, *TINY]
    if method != "softmask":                                             # whose training ends with it
        call(method, "prune", *prune)
    file, = Path(pruned).glob("pruned*.pth.tar")
    with pytest.raises(UserError, match=f"{pruned} already holds a {file.name}.*--overwrite"):
        call(method, "prune", *prune)
    call(method, "prune", *prune, "--overwrite")
    tune = [FILE.get(method, "--model"), file, *TRAIN]
    call(method, "finetune", *tune)
    for script, flags, folder in (("finetune", tune, tuned), ("main", [*train, *TRAIN], first)):
        with pytest.raises(UserError, match=f"{folder} already holds a run; --resume auto continues it, --overwrite"):
            call(method, script, *flags)
    assert {str(path) for path in Path("logs").iterdir()} == {first, pruned, tuned}
