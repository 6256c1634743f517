"""What the scripts of all five methods have in common, as commands: pruned weights stay zero, a stopped run continues
bit for bit, default folders, refusals."""
import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from by_hand import FILE, METHODS, pruned_by, save
from by_hand import call as by_name
from conftest import PRECISIONS
from reliability import same

from common import UserError, cli, models
from common.files import checkpoint
from common.run import Run

TINY = ["--dataset", "shapes10", "--subset", "20", "--device", "cpu"]
TRAIN = [*TINY, "--epochs", "2", "--batch-size", "10"]
RETRAIN = [("slimming", "resnet", ["--weight-decay", "0.1"]), ("softmask", "resnet", ["--wd", "0.1"]),
           ("hoyer", "resnet", ["--wd", "0.1"]), ("hoyer", "lenet300", ["--wd", "0.1"]),
           ("magnitude", "resnet", ["--weight-decay", "0.1"]),
           ("reweighted", "resnet", ["--warmup-epochs", "0", "--optmzr", "adam"]),
           ("reweighted", "resnet", ["--warmup-epochs", "0", "--optmzr", "sgd", "--momentum", "0.9", "--wd", "0.1"])]


def call(method, script, *flags):
    if script == "training.main":                                        # whose `main` is reweighted's
        module = importlib.import_module("reweighted.training.main")
        module.run(module.parse([*map(str, flags)]))
    else:
        by_name(f"{method}.{script}", *flags)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of files to begin with, and that somebody might give by mistake."""
    folder = tmp_path_factory.mktemp("files")
    net = models.build("resnet", depth=8)
    mask = {"conv1.weight": torch.arange(3 * 16 * 9).view(16, 3, 3, 3) % 2 == 0}
    recipe = {"epochs": 4, "batch_size": 10, "lr": 0.1, "schedule": [2, 3], "gamma": 0.1, "momentum": 0.9,
              "weight_decay": 1e-4}
    path = save(folder / "net.pth.tar", net, "magnitude", args=recipe, epoch=4)
    save(folder / "pruned.pth.tar", net, "magnitude", "pruned", masks=mask, recipe=recipe)
    save(folder / "quantized.pth.tar", net, "softmask", "quantized", masks=mask, activations={
        "conv1": {"bits": 8, "scale": 0.1, "zero": 128}})
    save(folder / "net7.pth.tar", models.build("resnet", depth=8, num_classes=7))
    save(folder / "vgg.pth.tar", models.build("vgg", depth=11, widths=[4, "M", 4, "M", 4, 4, "M", 4, 4, "M", 4, 4]))
    save(folder / "lenet300.pth.tar", models.build("lenet300"), "hoyer")
    save(folder / "lenet5.pth.tar", models.build("lenet5"), "hoyer", "pruned", masks={
        "conv1.weight": torch.ones(20, 1, 5, 5, dtype=torch.bool)})
    (folder / "cut.pth.tar").write_bytes(path.read_bytes()[:2000])
    torch.save({"model": net}, folder / "code.pth.tar")
    (folder / "file").write_text("")
    (folder / "ratios").write_text("conv1.weight: 0")
    (folder / "some").write_text("conv1.weight: 0.3")
    (folder / "unknown").write_text("conv9.weight: 0.3")
    (folder / "empty").mkdir()
    (folder / "junk").mkdir()
    (folder / "junk/x.png").write_bytes(b"hello")
    for name, size, classes in (("grey", (28, 28), 10), ("one", (32, 32, 3), 1)):
        images, labels = np.zeros((20, *size), np.uint8), np.arange(20) % classes
        np.savez(folder / f"{name}.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    return folder


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method, arch, flags", RETRAIN)
def test_pruned_weights_stay_zero(method, arch, flags, precision, tmp_path):
    """Under Adam and SGD with momentum and weight decay, at a large learning rate; the others do learn."""
    torch.manual_seed(0)
    model = models.build(arch, **({"depth": 8} if arch == "resnet" else {}))
    masks = {name: torch.rand(p.shape) < 0.4 for name, p in model.named_parameters() if "fc" in name or "conv" in name
             or "bn" in name}
    path = save(tmp_path / "p.pth.tar", pruned_by(masks, model), method, "pruned", masks=masks)
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


RUNS = [("slimming", "main", "--arch resnet11 -sr"), ("hoyer", "main", "--arch cnn --reg hs --schedule cosine"),
        ("magnitude", "main", "--arch resnet8"), ("reweighted", "main", "--arch resnet8 --warmup-epochs 1"),
        ("reweighted", "main", "--rew --lam 0.01 --pretrained {}"),
        # softmask: averaged from the second epoch on
        ("softmask", "main", "--arch resnet8 --target 0.4 --schedule cosine --swa-start 1"),
        ("softmask", "main", "--depth 10 --wf 1 --d 0.2 --schedule swa --swa-start 1"),
        *[(method, "finetune", f"{FILE.get(method, '--model')} {{}}") for method in (
            "slimming", "softmask", "hoyer", "magnitude")], ("reweighted", "finetune", "--model {} --warmup-epochs 1"),
        ("magnitude", "finetune", "--model {} --retrain onecycle"), ("softmask", "finetune", "--pruned {} --wbit 4"),
        ("magnitude", "rewind", "--model {} --retrain lr-rewind"),
        ("slimming", "finetune", "--refine {0} --teacher {0} --ltea 0.3")]


@pytest.mark.parametrize("method, script, flags", RUNS)
def test_a_stopped_run_continues_bit_for_bit(method, script, flags, files, tmp_path, stopped):
    epochs = 6 if "--rew" in flags else 3                                # the last of six has no new coefficients
    flags = [*flags.format(files / "pruned.pth.tar").split(), *TINY, "--batch-size", "10", "--epochs", epochs, "--lr",
             "0.02", "--save"]
    call(method, script, *flags, tmp_path / "whole")
    whole = checkpoint.load(tmp_path / "whole/checkpoint.pth.tar")
    for stop in (1, epochs - 1):                                         # after the first a schedule has steps to take
        folder = tmp_path / str(stop)
        stopped(stop, call, method, script, *flags, folder)
        call(method, script, *flags, folder, "--resume", "auto")
        parts = checkpoint.load(folder / "checkpoint.pth.tar")
        assert parts["epoch"] == epochs and same(whole["resume"], parts["resume"])
        assert same(whole["state_dict"], parts["state_dict"]) and same(whole.get("masks"), parts.get("masks"))


@pytest.mark.parametrize("method, script, flags", [run for run in RUNS if "{}" in run[2] and "retrain" not in run[2]])
def test_a_run_is_not_resumed_with_other_masks(method, script, flags, files, tmp_path):
    ckpt = checkpoint.load(files / "pruned.pth.tar")
    file = checkpoint.save(tmp_path / "p.pth.tar", ckpt)
    flags = [*flags.format(file).split(), *TRAIN, "--save", tmp_path / "f", "--resume", "auto"]
    call(method, script, *flags)
    call(method, script, *flags)                                         # the same: it is finished
    before = {path: path.read_bytes() for path in (tmp_path / "f").iterdir()}
    checkpoint.save(file, {**ckpt, "masks": {name: ~mask for name, mask in ckpt["masks"].items()}})
    with pytest.raises(UserError, match="refuses to resume with different masks"):
        call(method, script, *flags)
    assert before == {path: path.read_bytes() for path in (tmp_path / "f").iterdir()}


FOLDERS = {  # the flags of main.py and of prune.py, and the folders' names
    "slimming": (["--arch", "resnet", "--depth", "20", "-sr"], ["--percent", "0.4"], "resnet20-slimming-sparse",
                 "preresnet20-slimming-pruned", "preresnet20-slimming-finetuned"),
    "hoyer": (["--arch", "wrn", "--depth", "10", "--widen-factor", "1", "--reg", "hs", "--decay", "1e-4"],
              ["--sensitivity", "0.01"], "wrn_10_1-hoyer-hs-0.0001", "wrn_10_1-hoyer-pruned",
              "wrn_10_1-hoyer-finetuned"),
    "magnitude": (["--arch", "wrn_10_1"], ["--percent", "0.5"], "wrn_10_1-magnitude-dense", "wrn_10_1-magnitude-pruned",
                  "wrn_10_1-magnitude-finetuned-small"),
    "softmask": (["--arch", "resnet8", "--target", "0.4"], ["--keep-macs", "0.5"], "resnet8-softmask-sparse",
                 "resnet8-softmask-pruned", "resnet8-softmask-finetuned"),
    "reweighted": (["--arch", "resnet8"], ["--ratio", "0.5"], "resnet8-reweighted-dense",
                   "resnet8-reweighted-pruned", "resnet8-reweighted-finetuned")}


@pytest.mark.parametrize("method", FOLDERS)
def test_images_are_cropped_and_mirrored_but_not_digits(method, files, data_folder, tmp_path, monkeypatch):
    """From images of CIFAR-100 softmask cuts out squares, too."""
    seen = []

    def loaders(self, dataset, crop=0, flip=False, cutout=0):
        seen.append((crop, flip, cutout))
        raise KeyboardInterrupt
    monkeypatch.setattr(Run, "loaders", loaders)
    image, digit = {"slimming": "resnet20"}.get(method, "resnet8"), "cnn" if method == "hoyer" else "lenet5"
    cases = [(image, "pruned"), (digit, "lenet5")]
    if method == "softmask":
        cifar100 = tmp_path / "cifar100.npz"
        cifar100.write_bytes((data_folder / "shapes10.npz").read_bytes())
        cases += [(image, "pruned", *flags) for flags in (
            ["--dataset", cifar100], ["--length", "5"], ["--dataset", cifar100, "--length", "0"])]
    for arch, file, *more in cases:
        for script, start in (("main", ["--arch", arch]),
                              ("finetune", [FILE.get(method, "--model"), files / f"{file}.pth.tar"])):
            with pytest.raises(KeyboardInterrupt):
                call(method, script, *start, *TRAIN, *more, "--save", tmp_path / "x")
    squares = [(4, True, side) for side in (8, 5, 0) for _ in ("main", "finetune")] * (method == "softmask")
    assert seen == [(4, True, 0)] * 2 + [(0, False, 0)] * 2 + squares


@pytest.mark.parametrize("method", FOLDERS)
def test_a_quantized_network_is_evaluated(method, files):
    call(method, "eval", files / "quantized.pth.tar", *TINY)


@pytest.mark.parametrize("method", FOLDERS)
def test_without_save_folders_are_named_after_network_and_stage_and_not_written_twice(method, tmp_path, monkeypatch):
    train, prune, *folders = FOLDERS[method]
    first, pruned, tuned = (f"logs/shapes10-{name}" for name in folders)
    monkeypatch.chdir(tmp_path)
    call(method, "main", *train, *TRAIN)
    prune = ["--model", f"{first}/checkpoint.pth.tar", *prune, *TINY]
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
    more = ["logs/shapes10-wrn_10_1-magnitude-iterative-small"] * (method == "magnitude")
    if more:
        call(method, "iterative", "--model", f"{first}/checkpoint.pth.tar", *TRAIN, "--percent", "0.2")
    assert {str(path) for path in Path("logs").iterdir()} == {first, pruned, tuned, *more}


MAIN = "--arch densenet --depth 7 --epochs 1 --batch-size 10"            # of slimming
CHANNELS = {"slimming": "", "hoyer": " --granularity channel", "reweighted": " --sparsity-type filter"}
REFUSALS = [  # script, flags, message
    *[("slimming.main", flags, message) for flags, message in (
        (f"{MAIN} --dataset nowhere", "no data set 'nowhere'.*nowhere.npz"),
        (f"{MAIN} --dataset grey.npz", r"grey.npz has images of \(1, 28, 28\).*a densenet reads \(3, 32, 32\)"),
        (f"{MAIN} --dataset one.npz", "one.npz: 1 class; at least 2"),
        ("--arch transformer", "no --arch transformer; there are lenet300, lenet5"),
        (f"{MAIN} --depth 12", r"depths 3n\+4 .*got 12"), ("--arch vgg12 --depth 13", "vgg12 and --depth 13 disagree"),
        ("--epochs 0", "--epochs: '0' is not a positive integer"),
        ("--batch-size -3", "--batch-size: '-3' is not a positive"),
        ("--subset 0", "--subset: '0' is not a positive"), ("--lr fast", "--lr: 'fast' is not a number from 0 up"),
        (f"{MAIN} --lr 1e20", "the loss is .* in epoch 1; try a smaller --lr"),
        (f"{MAIN} --save file/run", "cannot write to file/run.*--save"),
        (f"{MAIN} --save file", "cannot write to file.*--save"),
        (f"{MAIN} --resume none.pth.tar", "no checkpoint none.pth.tar"),
        (f"{MAIN} --resume net.pth.tar", "net.pth.tar holds no optimizer state"))],
    *[("slimming.main", f"{MAIN} --device {device}", f"--device {device} is not available")
      for device in ("abacus", "cuda:99")],
    ("slimming.main", "--precision fp8", "--precision: invalid choice: 'fp8'"),
    ("slimming.main", "--epoch5 1", "--epoch5 1 .did you mean --epochs"),
    ("slimming.main", "--refine none.pth.tar", "no checkpoint none.pth.tar"),
    ("slimming.main", "--refine net.pth.tar --pretrained net.pth.tar", "not allowed with argument"),
    *[("slimming.main", f"{start} {flags}", message) for start in ("--arch lenet5", "--refine lenet5.pth.tar")
      for flags, message in (("--s 1e-4", "--s is the coefficient of the penalty; give -sr"),
                             ("--faithful --schedule 2", "--faithful only affects the default milestones"),
                             ("-sr", "has no batch norm, whose gammas"))],
    ("slimming.main", "--teacher t", "--teacher are for --refine"), ("slimming.main", "--ltea 0.3", "--ltea needs"),
    ("slimming.finetune", "", "are required: --refine"),
    ("slimming.finetune", "--refine cut.pth.tar", "cut.pth.tar is truncated"),
    ("slimming.finetune", "--refine net7.pth.tar", "net7.pth.tar has 7 classes, shapes10 has 10"),
    ("slimming.finetune", "--refine net.pth.tar --arch vgg", "net.pth.tar holds a resnet.*not --arch vgg"),
    *[("slimming.prune", flags, message) for flags, message in (
        ("", "--model"), ("--model none.pth.tar", "no checkpoint none.pth.tar"),
        ("--model .", r"\. is a folder; give a file in it"),
        ("--model net.pth.tar --datset shapes10", r"--datset shapes10 \(did you mean --dataset\?"),
        ("--model net7.pth.tar", "net7.pth.tar has 7 classes, shapes10 has 10"),
        ("--model net.pth.tar --save file/run", "cannot write to file/run"),
        ("--model net.pth.tar --dataset nowhere", "no data set 'nowhere'"),
        ("--model vgg.pth.tar --depth 13", "depth 11"),
        ("--model vgg.pth.tar --arch resnet", "not --arch resnet"), ("--model vgg.pth.tar --arch vgg13", "depth 11"),
        ("--model m --keep-macs 0.5 --percent 0.5", "--percent: not allowed with argument"),
        ("--model net.pth.tar --keep-macs 0.01", "keeps 0.*more than 0.01"))],
    *[(f"{method}.prune", f"--model net.pth.tar --percent {percent}",
       rf"--percent: '{percent}' is not a fraction in \[0, 1\)")
      for method in ("slimming", "magnitude") for percent in ("1", "-0.1", "nan")],
    *[(f"slimming.{script}", "--model lenet300.pth.tar", "has no batch norm")
      for script in ("prune", "mask", "compact")],
    ("slimming.prune", "--model vgg.pth.tar --streams --criterion random", "chosen at random; give --keep-macs"),
    ("slimming.compact", "--model vgg.pth.tar", "holds no masks of channels; give a network that mask.py pruned"),
    *[("slimming.eval", flags, message) for flags, message in (
        ("", "FILE --model.* is required"), ("none.pth.tar", "no checkpoint none.pth.tar"),
        ("code.pth.tar", "code.pth.tar .*run code"), ("net7.pth.tar", "net7.pth.tar has 7 classes, shapes10 has 10"),
        ("net.pth.tar --dataset nowhere", "no data set 'nowhere'"))],
    *[("slimming.eval", f"net.pth.tar {flags}", message) for flags, message in (
        ("--mean 0.5", "--mean 0.5: shapes10 has 3 channels"), ("--std 0,1,1", "above 0"),
        ("--mean 123,117,104", "list of numbers in"), ("--std a", "list of numbers in"))],

    *[("hoyer.main", flags, message) for flags, message in (
        ("--reg 9", "--reg: invalid choice: '9'"), ("--decay 0.1", "coefficient of a penalty"),
        ("--reg 3", "hs'?, '?tl1"), ("--decay -1", "number from 0 up"),
        ("--arch lenet", "no --arch lenet; .* lenet300"), ("--schedule soon", "cosine"),
        ("--schedule cosine 5", "not both"), ("--arch resnet --drop 0.3", "no dropout"), ("--arch resnet21", r"6n\+2"),
        ("--model nowhere", "no checkpoint nowhere"), ("--arch mlp --depth 3", "no depth"),
        ("--arch wrn --drop 1", "'1' is not a fraction in"))],
    *[("hoyer.main", f"--arch {arch} {flag} 0", f"{flag}: '0' is not a positive integer") for arch, flag in (
        ("wrn", "--widen-factor"), ("resnext", "--cardinality"), ("densenet", "--growthRate"),
        ("densenet", "--compressionRate"), ("resnet", "--depth"))],
    ("hoyer.element", "--arch resnet", "cifar_group"),
    ("hoyer.element", "--reg=5", "'5' .choose from .*tl1"),
    ("hoyer.element", "--reg 3 --pretrained", "no dense network saves/elt_0.0_0.pth"),
    ("hoyer.structure", "--reg=3", "'3' .choose from .*group-hs"),
    ("hoyer.structure", "--reg=hs", "'hs' .choose from .*group-lasso"),
    ("hoyer.cifar_group", "--reg=-1", "'-1' .choose from .*group-hs"),
    ("hoyer.cifar", "-e", "give it as"),
    ("hoyer.prune", "--model none --sensitivity 1", "no checkpoint"),
    *[("hoyer.prune", f"--model lenet300.pth.tar {flags}", message) for flags, message in (
        ("--sensitivity -1", "number from 0 up"), ("--sensitivity 9", "every weight"),
        ("", "give one of --sensitivity, --keep-weights and --keep-macs"),
        ("--keep-weights 0.1 --keep-macs 0.1", "not allowed with"), ("--keep-macs 0", "fraction in"),
        ("--keep-macs 0.5 --sensitivity 0.1", "not allowed with"),
        ("--keep-macs 0.5 --criterion random", "empties no channels, so MACs say little; give --keep-weights"),
        ("--granularity channel --rule V --sensitivity 1", "leave out --rule V"),
        ("--sensitivity 1 --rule X", "invalid choice"), ("--sensitivity 1 --arch cnn", "not --arch cnn"))],
    ("hoyer.finetune", "--model lenet300.pth.tar", "holds no masks"),
    *[(f"softmask.{script}", "--model vgg.pth.tar --arch resnet8", "holds a vgg .*not --arch resnet8; leave them out")
      for script in ("prune", "finetune")],
    ("reweighted.main", "--keep-zeros", "--keep-zeros has no effect without --rew"),
    *[("hoyer.prun_tune_T", f"--model lenet300.pth.tar --schedule {schedule}", message)
      for schedule, message in (("soon", "'soon' is not an epoch number"), ("cosine 5", "not both"))],
    *[("hoyer.sweep", flags, message) for flags, message in (
        ("--regs none", "invalid choice"), ("--decays -1", "number from 0 up"),
        ("--schedule cosine 3 --holdout 5", "not both"), ("--refit x", "--target PERCENT"),
        ("--pretrained nowhere", "no checkpoint nowhere"))],

    ("magnitude.main", "--arch resnet8 --epochs 2 --rewind-epoch 3", "not one of the 2 epochs"),
    *[("magnitude.main", f"--arch {arch}", "resnet with basic blocks has depths 6n") for arch in (
        "resnet101", "resnet29")],
    ("magnitude.main", "--arch transformer", "no --arch transformer; there are lenet300"),
    ("magnitude.main", "--pretrained net.pth.tar --arch resnet56", "leave them out"),
    ("magnitude.main", "--arch wrn_28_10 --depth 16", "wrn_28_10 and --depth 16 disagree"),
    ("magnitude.main", "--arch vgg11_0.25 --depth 13", "--arch vgg11 and --depth 13 disagree"),
    ("magnitude.main", "--arch mobilenetv2_1.4 --depth 99", "--arch mobilenetv2_1.4 has no --depth"),
    ("magnitude.main", "--arch resnet56 --depth 20", "resnet56 and --depth 20 disagree"),
    ("magnitude.prune", "--percent 0.3", "--resume"),
    ("magnitude.prune", "--model lenet300.pth.tar", r"--scope conv\+linear"),
    *[(f"{method}.prune", f"--model net.pth.tar --ratios {file}{CHANNELS[method]}", message) for method in CHANNELS
      for file, message in (("unknown", "line 1: the network has no layer conv9"), ("ratios", "prunes no layer"))],
    *[(f"{method}.prune", f"--model net.pth.tar --ratios some{CHANNELS[method]}",
       "prunes no layer; these can be pruned: layer1.0.conv1, layer2.0.conv1") for method in ("slimming", "hoyer")],
    *[(f"{method}.finetune", f"{FILE.get(method, '--model')} pruned.pth.tar {flags}", message) for method in METHODS
      for flags, message in (("--teacher net7.pth.tar", "net7.pth.tar has 7 classes, shapes10 has 10"),
                             ("--ltea 0.3", "--ltea needs --teacher"), ("--teacher none", "no checkpoint none"),
                             ("--teacher net.pth.tar --ltea 1.5", "--ltea 1.5 is more than 1"))],
    *[(f"{method}.eval", f"x.pth.tar {flags}", f"error: {message}$") for method in METHODS for flags, message in (
        ("--export model.c", "--export is a script now: python deploy/export.py FILE model.onnx"),
        ("--export=x.onnx --int8", "--export is a script now: python deploy/export.py FILE model.onnx"),
        ("--latency", "--latency is a script now: python deploy/latency.py FILE"),
        ("--predict new --csv x", "--predict is a script now: python deploy/predict.py FILE FOLDER"))],
    *[("deploy.export", f"net.pth.tar {flags}", message) for flags, message in (
        ("model.tflite", "model.tflite: the name of the file to write ends in .onnx or .c"),
        ("file/model.c", r"cannot write to file \(file is not a folder, or not writable\)"),
        ("model.c --int8", "--int8 is for .onnx files"))],
    *[("deploy.predict", f"net.pth.tar {folder} --csv p.csv", message) for folder, message in (
        ("none", "is not a folder"), ("empty", "holds no images; read are .png"),
        ("junk", "x.png is not a readable image"))],
    ("magnitude.prune", "--model net.pth.tar --percent 0.5 --recalibrate 1", "--recalibrate 1: one image"),
    *[(f"{method}.prune", f"--model net.pth.tar --ratios some {flags}", message) for method, flags, message in (
        ("slimming", "--percent 0.3", "leave out --percent"), ("slimming", "--faithful", "leave out --faithful"),
        ("hoyer", "", "--ratios is for --granularity channel"),
        ("hoyer", "--granularity channel --sensitivity 0.1", "no --sensitivity beside"),
        ("magnitude", "--percent 0.3", "--ratios is not allowed with --percent"),
        ("magnitude", "--per-layer", "not allowed with argument --"),
        ("reweighted", "--ratio 0.3", "--ratios is not allowed with --ratio:"),
        ("reweighted", "--percentile 0.3", "--ratios is not allowed with --percentile"))],
    *[("magnitude.prune", f"--model net.pth.tar --pattern {flags}", message) for flags, message in (
        ("4:2", "'4:2' is not a pattern such as 2:4"), ("2:5", "no layer can be pruned"),
        ("2:4 --percent 0.3", "not allowed with"), ("2:4 --keep-macs 0.3", "not allowed with"),
        ("2:4 --per-layer", "--pattern is not allowed with --per-layer"),
        ("2:4 --faithful", "--pattern is not allowed with --faithful"),
        ("2:4 --ratios some", "--ratios is not allowed with --pattern"),
        ("2:4 --criterion random", "--criterion random does not keep --pattern"))],
    *[("magnitude.prune", f"--model net.pth.tar {flags}", message) for flags, message in (
        ("--floor 3", "unrecognized arguments: --floor"), ("--depth 20", "depth 8"),
        ("--arch vgg16", "not --arch vgg16"), ("--arch resnet20", "depth 8"),
        ("--percent 0.5 --keep-weights 0.3", "--keep-weights: not allowed with"),
        ("--percent 0.6 --keep-weights 0.3", "--keep-weights: not allowed with"),
        ("--keep-weights 0.005", "are not pruned have"), ("--keep-weights 0", "fraction in"),
        ("--per-layer --keep-macs 0.3", "--per-layer is not allowed with --keep-macs"),
        ("--per-layer --cost-exponent 0.25", "--cost-exponent: not allowed with argument --per-layer"))],
    *[("magnitude.finetune", flags, message) for flags, message in (
        ("", "--resume FILE"), ("--resume auto", "folder"), ("--model net.pth.tar", "holds no masks"))],
    *[("magnitude.finetune", f"--model pruned.pth.tar {flags}", message) for flags, message in (
        ("--arch resnet20", "depth 8"), *[(flag, f"unrecognized arguments: {flag}") for flag in (
            "--faithful", "--percent 0.5", "--scope conv", "--criterion random")],
        *[(f"--retrain onecycle --{flag} 1", f"leave out --{flag}") for flag in ("schedule", "gamma", "momentum")])],
    *[("magnitude.rewind", f"--model pruned.pth.tar {flags}", message) for flags, message in (
        ("--retrain weight-rewind", "--rewind-to"), ("--retrain lr-rewind --epochs 5", "4 epochs"),
        ("--retrain scratch-e --rewind-to net.pth.tar", "go together"))],
    ("magnitude.iterative", "--resume auto --save x", "no rounds"),
    *[("magnitude.iterative", f"--model pruned.pth.tar {flags}", message) for flags, message in (
        ("", "pruned already"), ("--percent 1.5", "'1.5' is not a fraction"), ("--retrain scratch-b", "invalid choice"),
        ("--rewind-to net.pth.tar", "go together"))],

    *[("softmask.main", flags, message) for flags, message in (
        ("--nfp", "--nfp needs --target"), ("--ftarget 0.3", "--ftarget needs --target"),
        ("--pflops", "--pflops needs --target"), ("--stage-masks", "--stage-masks needs --target"),
        ("--wg 3", "--wg needs --target"), ("--tw 3", "--tw needs"), ("--wme 1", "--wme needs"),
        ("--mwd 0", "--mwd needs"), ("--pretrained m --wf 2", "leave out --wf and --d"),
        ("--pretrained m --d 0.3", "leave out --wf and --d"), ("--target 0.3 --nfp --stage-masks", "not allowed with"),
        ("--target 1.2", "'1.2' is not a fraction"), ("--ltea 0.3", "--ltea needs --teacher"),
        ("--teacher x --ltea 1.5", "--ltea 1.5 is more than 1"),
        ("--swa-lr 0.1", "--swa-lr is the last learning rate of --schedule swa"),
        ("--arch resnet20 --wf 2", "wideresnet"), ("--arch wrn_16_2 --wf 1", "--arch wrn_16_2 and --wf 1 disagree"),
        ("--arch cnn", "there is no --arch cnn"), ("--depth 11", r"6n\+4"),
        ("--target 0.3 --pretrained pruned.pth.tar", "pruned.pth.tar has pruned single weights"))],
    ("softmask.prune", "--model net.pth.tar", "no soft masks; .*--pretrained net.pth.tar trains some"),
    *[("softmask.finetune", f"--pruned net.pth.tar {flags}", message) for flags, message in (
        ("--per-channel", "need --wbit"), ("--method linear", "need --wbit"),
        ("--wbit 1", "'1' is not a number of bits"))],
    *[("softmask.quantize_model", f"--pruned net.pth.tar {flags}", message) for flags, message in (
        ("--wbit 1", "--wbit: '1' is not a number of bits from 2 to 16"),
        ("--abit 20", "--abit: '20' is not a number of bits"),
        ("--rule nothing linear 8", "nothing matches no layer"), ("--rule .* odd 8", "there are linear"),
        ("--rule ( linear 8", "unterminated"), ("--rule .* linear eight", "'eight' is not a number of bits"))],

    *[("reweighted.main", flags, message) for flags, message in (
        ("--rew", "--pretrained"), ("--pretrained x", "--rew"), ("--faithful", "--rew"),
        ("--arch nothing", "no --arch nothing"),
        ("--arch resnet8 --width 2", "a resnet has none"), ("--arch lenet5 --depth 3", "lenet5 has no --depth"),
        ("--warmup-epochs -1", "below 0"), ("--rew --pretrained lenet300.pth.tar", "no convolution"))],
    *[("reweighted.main", f"--rew --pretrained x {flags}", message) for flags, message in (
        ("--width 0.5", "--width has no effect with --rew"),
        ("--warmup-epochs 2", "--warmup-epochs has no effect with --rew"),
        ("--lr-scheduler default", "--lr-scheduler has no effect with --rew"),
        ("--eps 0", r"--eps 0: gamma = 1 / \(\|w\| \+ eps\) of a weight of zero"),
        ("--eps 1e-40", "would be infinite; give 1e-18 or more"))],
    *[("reweighted.main", flags, message) for flags, message in (
        ("--lam 1e-5", "--lam has no effect without --rew"), ("--eps 1", "--eps has no effect without --rew"),
        ("--sparsity-type filter", "--sparsity-type has no effect without --rew"),
        ("--arch resnet8 --epochs 9 --lr-scheduler onecycle --warmup-epochs 3",
         "--warmup-epochs 3: --lr-scheduler onecycle already has a warm-up"))],
    ("reweighted.prune", "", "--model"),
    ("reweighted.prune", "--model lenet300.pth.tar", "no convolution"),
    *[("reweighted.prune", f"--model net.pth.tar {flags}", message) for flags, message in (
        ("--ratio 0.5 --percentile 0.5", "not allowed with"), ("--ratio 0.5 --threshold 1", "not allowed with"),
        ("--ratios ratios", "prunes no layer"), ("--round-to 2", "--round-to is for channels"),
        ("--keep-weights 0.5 --sparsity-type filter", "--keep-weights is for --sparsity-type irregular"),
        ("--keep-weights 0.5 --percentile 0.1", "not allowed with"),
        ("--keep-macs 0.5 --threshold 0.1", "--threshold: not allowed with"),
        ("--keep-macs 0.5", "--keep-macs for filter"),
        ("--ratio 0", "error: --ratio 0 prunes no layer"))],
    ("reweighted.finetune", "", "required: --model"),
    ("reweighted.finetune", "--model net.pth.tar", "holds no masks"),
    ("reweighted.finetune", "--model pruned.pth.tar --warmup-epochs -1", "-1 is below 0"),
    *[(script, f"{flags} --smooth-eps 0.95", "--smooth-eps 0.95 .* of 10 classes it may have at most 0.9$")
      for script, flags in (("reweighted.main", "--arch resnet8"), ("reweighted.finetune", "--model pruned.pth.tar"))],
    ("reweighted.quantize_model", "", "required: --model"),
    *[("reweighted.quantize_model", f"--model net.pth.tar {flags}", message) for flags, message in (
        ("--param-bits 32", "'32' is not a number of bits from 2 to 16"),
        ("--param-bits 1 --bit-list 0=8", "'1' is not a number of bits from 2 to 16"),
        ("--bit-list nonsense", "nonsense: expected BITS, one of seed, .* below 10"),
        ("--fwd-bits 1", "'1' is not a number of bits"))],
    *[("reweighted.training.main", flags, message) for flags, message in (
        ("--multi-gpu", "torchrun"), ("--rew --masked-retrain", "not allowed with"),
        ("--sparsity-type threshold", "--masked-retrain"), ("--resume x", "auto"),
        ("--masked-retrain --sparsity-type filter --save none", "--config-file"),
        ("--rew --sparsity-type channel", "channel is for --masked-retrain"),
        ("--no-tricks --rew --pretrained none", "no checkpoint none"),
        ("--masked-retrain --sparsity-type irregular --config-file config_mobile_v2_0.7 --threshold 1e-3",
         "leave out --threshold"))],

    # else its input rounding would act in one run and be lost in the file that this run writes
    *[(script, f"{flags} quantized.pth.tar", "quantized already; give the network that it was made from")
      for script, flags in (
        ("slimming.prune", "--model"), ("slimming.finetune", "--refine"), ("slimming.main", "--pretrained"),
        ("hoyer.prune", "--sensitivity 0.1 --model"), ("hoyer.finetune", "--model"), ("hoyer.compact", "--model"),
        ("hoyer.main", "--pretrained"), ("magnitude.prune", "--model"), ("magnitude.finetune", "--model"),
        ("magnitude.main", "--pretrained"), ("magnitude.iterative", "--retrain small --model"),
        ("softmask.prune", "--model"), ("softmask.finetune", "--pruned"), ("softmask.main", "--pretrained"),
        ("softmask.quantize_model", "--pruned"), ("reweighted.prune", "--model"), ("reweighted.finetune", "--model"),
        ("reweighted.quantize_model", "--model"), ("reweighted.main", "--rew --pretrained"))],
]


@pytest.mark.parametrize("script, flags, message", REFUSALS, ids=[f"{s}-{f}"[:50] for s, f, _ in REFUSALS])
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(script, flags, message, files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    before = sorted(files.rglob("*"))
    with pytest.raises(SystemExit) as end:
        cli.script(lambda: call(*script.split(".", 1), *TINY * (script != "hoyer.compact"), *flags.split()))
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and re.search(message, said.strip()), said
    assert not re.search(message, flags), "the flags alone have this text"
    assert sorted(files.rglob("*")) == before                # not even an empty folder


@pytest.mark.parametrize("script, flags, message", [
    ("magnitude.iterative", "--model net.pth.tar", "without torchrun"), ("hoyer.sweep", "--save s", "one process"),
    ("reweighted.training.main", "--save s", "one phase at a time"),
    ("reweighted.training.main", "--masked-retrain --save s", "one phase at a time")])
def test_what_runs_in_one_process_alone(script, flags, message, files, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(script, flags, message, files, monkeypatch, capsys)
