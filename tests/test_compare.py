"""What makes methods comparable: one schedule, a dense network to start from, a budget; and the comparison."""
import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from by_hand import call, column, like_trained, parsed, rows_of, save
from conftest import ROOT
from torch import nn

from common import UserError, compute_flops, keep, models, schedule
from common.files import checkpoint
from deploy import measure
from hoyer import prune as hoyer_prune
from results import ledger, summary
from results.comparison import choose, compare, stages, tables

TINY = ["--dataset", "shapes10", "--subset", "40", "--device", "cpu"]
TRAIN = [*TINY, "--precision", "fp32", "--batch-size", "20"]


@pytest.fixture
def dense(tmp_path):
    """A ResNet-8 with random batch norms, as a dense network of magnitude."""
    torch.manual_seed(0)
    model = like_trained(models.build("resnet", depth=8, shortcut="pad"))
    return save(tmp_path / "dense" / "checkpoint.pth.tar", model, "magnitude", prec1=10.0, best_prec1=10.0,
                dense=compute_flops.summary(model))


# the schedule

def test_one_cycle_by_hand():
    assert [round(schedule.onecycle(10)(e), 2) for e in range(10)] == [
        0.5, 1, 0.97, 0.88, 0.75, 0.59, 0.41, 0.25, 0.12, 0.03]
    assert [round(schedule.onecycle(4)(e), 3) for e in range(4)] == [1, 0.854, 0.5, 0.146]
    assert schedule.onecycle(1)(0) == 1


@pytest.mark.parametrize("words, expected", [
    (["onecycle"], [1.0, 0.8536, 0.5, 0.1464]), (["cosine"], [1.0, 0.8536, 0.5, 0.1464]), ([1, 3], [1, 0.5, 0.5, 0.25]),
    ([], [1, 1, 1, 1])])
def test_the_words_and_the_epochs_of_a_schedule(words, expected):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1.0)
    scheduler, rates = schedule.make_scheduler(optimizer, words, 0.5, 4), []
    for _ in range(4):
        rates.append(round(optimizer.param_groups[0]["lr"], 4))
        optimizer.step()
        scheduler.step()
    assert rates == expected
    with pytest.raises(UserError, match="not both"):
        schedule.make_scheduler(optimizer, [*words, "cosine", 7], 0.5, 4)
    assert [schedule.epoch_or_word(word) for word in ("81", "cosine")] == [81, "cosine"]
    with pytest.raises(argparse.ArgumentTypeError, match="not an epoch number"):
        schedule.epoch_or_word("1.5")


def test_every_training_script_has_the_same_cycle(dense, tmp_path):
    """And every one of them starts from the dense network of another method."""
    masks = tmp_path / "m/pruned.pth.tar"
    call("magnitude.prune", "--model", dense, "--percent", 0.5, "--save", tmp_path / "m", *TINY)
    short = ["--subset", 10, "--batch-size", 10, "--epochs", 8, "--lr", 0.1]
    sgd = ["--optmzr", "sgd", "--lr-scheduler", "onecycle"]
    cycle = ["--schedule", "onecycle"]
    scripts = [
        ("magnitude.main", ["--pretrained", dense, *cycle]), ("magnitude.finetune", ["--model", masks, *cycle]),
        ("slimming.main", ["--pretrained", dense, "-sr", *cycle]), ("slimming.finetune", ["--refine", masks, *cycle]),
        ("hoyer.main", ["--pretrained", dense, "--reg", "hs", *cycle]), ("hoyer.finetune", ["--model", masks, *cycle]),
        ("softmask.main", ["--pretrained", dense, "--target", 0.5, *cycle]),
        ("softmask.finetune", ["--pruned", masks, *cycle]),
        ("reweighted.main", ["--pretrained", dense, "--rew", *sgd]), ("reweighted.finetune", ["--model", masks, *sgd])]
    for number, (script, flags) in enumerate(scripts):
        folder = tmp_path / str(number)
        call(script, *flags, *TRAIN, *short, "--save", folder)
        rates = [round(rate, 4) for rate in column(folder)]
        assert rates == [0.05, 0.1, 0.095, 0.0812, 0.0611, 0.0389, 0.0188, 0.005], script    # not a cosine
        ckpt = checkpoint.load(folder / "checkpoint.pth.tar")
        assert ckpt["cfg"]["depth"] == 8 and ckpt["dense"] == checkpoint.load(dense)["dense"]


@pytest.mark.parametrize("script", ["magnitude.main", "slimming.main"])
def test_pretrained_begins_with_the_weights_of_the_file(script, dense, tmp_path, monkeypatch, capsys):
    """On the data set of the file, in a folder named after its network; that pruned weights are trained is said."""
    monkeypatch.chdir(tmp_path)
    call("magnitude.prune", "--model", dense, "--percent", 0.5, "--save", "m", *TINY)
    call(script, "--pretrained", "m/pruned.pth.tar", *TRAIN[2:], "--epochs", 1, "--lr", 0)
    assert "are trained, pruned ones too" in capsys.readouterr().out
    run = f"logs/shapes10-resnet8-{script.partition('.')[0]}-dense"
    files = [checkpoint.load(path) for path in ("m/pruned.pth.tar", f"{run}/checkpoint.pth.tar")]
    assert len(files[1]["images"]["mean"]) == 3                               # of the images it saw
    before, after = (file["state_dict"] for file in files)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items() if "running" not in name
               and "num_batches" not in name)
    assert not torch.equal(before["bn1.running_mean"], after["bn1.running_mean"])        # it has been trained


@pytest.mark.parametrize("script", ["magnitude.main", "slimming.main", "softmask.main"])
def test_a_narrowed_network_trained_on_is_counted_by_the_one_it_was_narrowed_from(script, dense, tmp_path):
    whole, flags = checkpoint.load(dense)["dense"], [*TRAIN, "--epochs", 1, "--save", tmp_path / "m"]
    call("slimming.prune", "--model", dense, "--keep-macs", 0.5, "--save", tmp_path / "s", *TINY)
    call(script, "--pretrained", tmp_path / "s/pruned.pth.tar", *flags)
    trained = checkpoint.load(tmp_path / "m/checkpoint.pth.tar")
    assert trained["cfg"] != whole["cfg"] and trained["dense"] == whole


def test_a_rewound_cycle_is_repeated_whole(dense, tmp_path):
    call("magnitude.main", "--pretrained", dense, *TRAIN, "--epochs", 2, "--schedule", "onecycle", "--save",
         tmp_path / "d")
    call("magnitude.prune", "--model", tmp_path / "d/checkpoint.pth.tar", "--save", tmp_path / "p", *TINY)
    again = ["--model", tmp_path / "p/pruned.pth.tar", *TRAIN]
    with pytest.raises(UserError, match="repeated whole or not at all"):
        call("magnitude.rewind", *again, "--epochs", 1, "--save", tmp_path / "f")
    call("magnitude.rewind", *again, "--save", tmp_path / "f")
    assert checkpoint.load(tmp_path / "f/checkpoint.pth.tar")["args"]["schedule"] == ["onecycle"]


# the budget

def test_bisection_by_hand():
    assert keep.bisect(lambda t: 1 - t, 0.3, 1.0) == pytest.approx(0.7, abs=1e-9)
    assert keep.bisect(lambda t: 0.5 if t < 3 else 0.2, 0.4, 8) == pytest.approx(3, abs=1e-9)
    assert keep.bisect(lambda t: 1 if t < 2 else 0.5 if t < 3 else 0.2, 0.5, 8) == pytest.approx(2, abs=1e-9)
    assert keep.bisect(lambda t: 0.2, 0.4, 8) == keep.bisect(lambda t: 0.4 if t < 3 else 0.2, 0.4, 8) == 0
    with pytest.raises(UserError, match="keeps 1.0000, more than 0.5 .*prune single weights"):
        keep.bisect(lambda t: 1.0, 0.5, 1.0)
    with pytest.raises(UserError, match="keeps 0.6000, more than 0.5"):
        keep.bisect(lambda t: 0.6, 0.5, 1)


def weights_left(path):
    ckpt = checkpoint.load(path)
    model = checkpoint.to_model(ckpt)
    return compute_flops.count(model).total.weights, compute_flops.dense_total(ckpt, model).weights


def test_keep_weights_leaves_that_many_in_every_method(dense, tmp_path):
    fraction = 0.1
    flags = ["--model", dense, "--keep-weights", fraction, *TINY]
    call("magnitude.prune", *flags, "--save", tmp_path / "a")
    call("magnitude.prune", *flags, "--save", tmp_path / "b", "--criterion", "random")
    call("hoyer.prune", *flags, "--save", tmp_path / "c")
    call("reweighted.prune", *flags, "--save", tmp_path / "d")
    call("softmask.main", "--pretrained", dense, "--target", 0.8, "--nfp", "--wg", 9e3, "--tw", 9e3, "--wme", 0,
         *TRAIN, "--epochs", 1, "--lr", 0.1, "--swa-start", 9, "--save", tmp_path / "m")
    call("softmask.prune", "--model", tmp_path / "m/checkpoint.pth.tar", *flags[2:], "--save", tmp_path / "e")
    for folder in "abcd":
        left, whole = weights_left(tmp_path / folder / "pruned.pth.tar")
        assert int(fraction * whole) - 3 * (folder == "c") <= left <= int(fraction * whole), folder
    left, whole = weights_left(tmp_path / "e/pruned_model.pth.tar")
    assert 0 < left <= fraction * whole
    counts = [sum(int(mask.sum()) for mask in checkpoint.load(tmp_path / folder / "pruned.pth.tar")["masks"].values())
              for folder in "abd"]
    assert counts[0] == counts[1] == counts[2]


def test_keep_macs_leaves_that_many_in_every_method(dense, tmp_path, capsys):
    fraction = 0.3
    flags = ["--model", dense, "--keep-macs", fraction, *TINY]
    call("slimming.prune", *flags, "--save", tmp_path / "a")
    call("slimming.prune", *flags, "--save", tmp_path / "b", "--criterion", "random")
    call("reweighted.prune", *flags, "--save", tmp_path / "c", "--sparsity-type", "filter")
    call("hoyer.prune", *flags, "--save", tmp_path / "h", "--granularity", "channel")
    call("hoyer.finetune", "--model", tmp_path / "h/pruned.pth.tar", *TRAIN, "--epochs", 1, "--save",
         tmp_path / "h2")
    call("softmask.main", "--pretrained", dense, "--target", 0.3, "--pflops", "--wme", 0, *TRAIN, "--epochs", 1,
         "--lr", 0.1, "--swa-start", 9, "--save", tmp_path / "m")
    capsys.readouterr()
    call("softmask.prune", "--model", tmp_path / "m/checkpoint.pth.tar", *flags[2:], "--save", tmp_path / "e")
    printed = capsys.readouterr().out
    assert float(printed.split("logits differ by ")[1].split()[0]) < 1e-4        # masked above t, and narrow
    for file in ("a/pruned", "b/pruned", "c/pruned", "h2/compact", "e/pruned_model"):
        ckpt = checkpoint.load(tmp_path / f"{file}.pth.tar")
        model = checkpoint.to_model(ckpt)
        left = compute_flops.count(model).total.macs / compute_flops.dense_total(ckpt, model).macs
        assert fraction - 0.09 < left <= fraction, file
        assert ckpt["cfg"]["streams"] == [16, 16, 32, 64]    # only inside the blocks


def test_a_channel_goes_with_the_weaker_of_its_filter_and_its_readers():
    model = models.build("resnet", depth=8, shortcut="pad")
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
        block = model.layer1[0]
        block.conv1.weight[3] = 0.1                          # the filter that makes channel 3
        block.conv2.weight[:, 5] = 0.1                       # what reads channel 5
        block.conv2.weight[7] = 0.1                          # makes a channel of the stream, which is not listed
    masks = hoyer_prune.channel_masks(model, 0.5)
    gone = ~masks["layer1.0.conv1.weight"].flatten(1).any(1)
    assert gone.nonzero().flatten().tolist() == [3, 5]
    assert torch.equal(~masks["layer1.0.conv2.weight"].transpose(0, 1).flatten(1).any(1), gone)
    assert masks["layer1.0.conv2.weight"][:, ~gone].all() and "conv1.weight" not in masks
    masks = hoyer_prune.channel_masks(model, 2.0)            # all are below: the strongest stays
    assert int(masks["layer1.0.conv1.weight"].flatten(1).any(1).sum()) == 1


# the comparison

def arguments(stage):
    """A stage's command as its script parses it."""
    _, script, *flags = shlex.split(stage.command)
    return parsed(script, flags)


@pytest.mark.parametrize("dense", [compare.DENSE, "", None])
def test_every_command_of_the_comparison_is_one_that_its_script_takes(dense, monkeypatch):
    """And of what chooses its coefficients."""
    monkeypatch.setattr(compare, "DENSE", dense)
    made = {dense}
    for stage in choose.stages() if dense is None else compare.stages(1)[bool(dense):]:
        args = arguments(stage)
        assert not stage.reads or stage.reads in made, f"{stage.command} reads what is not made yet"
        assert str(Path(stage.makes).parent) == args.save and stage.makes not in made
        made.add(stage.makes)
        if stage.epochs and dense is not None:
            assert (args.epochs, args.batch_size, args.weight_decay) == (stage.epochs, 128, 5e-4)
            peak = {"small": compare.SMALL_LR}.get(stage.group, compare.LR)
            assert "onecycle" in stage.command and args.lr == (compare.DENSE_LR if "dense" == stage.row else peak)


def test_the_small_learning_rate_is_the_only_difference_of_its_rows():
    everything = compare.stages(1)
    small = [stage for stage in everything if stage.group == "small"]
    assert [(stage.row, stage.weights, stage.macs) for stage in small] == [
        ("magnitude", 10, 0), ("random masks", 10, 0), ("network slimming", 0, 50), ("random channels", 0, 50),
        ("random channels, half fine-tuning", 0, 50)]
    for stage in small:
        same, = (other for other in everything if f"{other.folder}-small" == str(stage.folder))
        assert (same.row, same.reads, same.epochs) == (stage.row, stage.reads, stage.epochs)
        words = set(shlex.split(same.command)) ^ set(shlex.split(stage.command))
        assert words == {"0.1", "0.01", str(same.folder), str(stage.folder)}


def test_choosing_runs_every_command_and_names_what_failed(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(choose, "ROOT", tmp_path)
    monkeypatch.setattr(choose.data, "load", lambda *_: None)
    monkeypatch.setattr(choose, "split", lambda _: None)
    monkeypatch.setattr(stages, "start", lambda *_: SimpleNamespace(poll=lambda: 1, returncode=1, wait=lambda: None))
    with pytest.raises(UserError, match="failed or left out: logs/search/dense, logs/search15/slim-0.0003, "):
        choose.main([])
    assert f"== 1 of {len(choose.stages())}: logs/search/dense, about 7 min" in capsys.readouterr().out


def keys(seed=1):
    return {(stage.row, stage.weights, stage.macs) for stage in compare.stages(seed) if stage.row}


def test_what_a_reader_edits_changes_the_commands_with_it(monkeypatch):
    """More of the one than of the other, none of one, an odd number of epochs."""
    monkeypatch.setattr(compare, "WEIGHTS", (0.2,))
    assert ("magnitude", 20, 0) in keys() and ("network slimming", 0, 73) in keys()
    monkeypatch.setattr(compare, "WEIGHTS", ())
    assert {weights for row, weights, _ in keys() if "then" not in row} == {0} and ("group-HS", 0, 50) in keys()
    monkeypatch.setattr(compare, "WEIGHTS", (0.1,))
    monkeypatch.setattr(compare, "MACS", ())
    with pytest.raises(UserError, match="CHAIN begins with 0.5 of the MACs"):
        compare.main(["--dry-run"])
    monkeypatch.setattr(compare, "CHAIN", ())
    assert {macs for *_, macs in keys()} == {0} and len({row for row, *_ in keys()}) == 7
    monkeypatch.setattr(compare, "EPOCHS", 1)
    with pytest.raises(UserError, match="EPOCHS = 1"):
        compare.main(["--dry-run"])


def test_a_group_brings_what_it_reads():
    everything = compare.stages(1)
    todo = compare.chosen(everything, ["chain"])
    assert [stage.folder.name for stage in todo] == ["data", "more", "slimming", "pruned", "slimming-50", "pruned",
                                                     "chain", "8bit"]
    assert compare.chosen(everything, []) == everything


def test_what_is_chosen_was_tried():
    tried = choose.VALUES
    for value, name in ((compare.SLIMMING, "slim"), (compare.HOYER_SQUARE, "hs"), (compare.GROUP_HS, "ghs"),
                        (compare.REWEIGHTED, "rew"), (compare.FILTERS, "rewf")):
        assert float(value) in [float(text) for text in tried[name][2]]
    for flags, name in ((compare.CHANNEL_MASKS, "soft"), (compare.WEIGHT_MASKS, "nfp")):
        assert ",".join(flags.split()[1:4:2]) in tried[name][2]


def test_the_validation_images_are_in_neither_part_that_is_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.arange(50_000, dtype=np.uint16).view(np.uint8).reshape(50_000, 2)
    choose.split(SimpleNamespace(x_train=x, y_train=np.arange(50_000)))
    for path, count in ((choose.ALL, 45_000), (choose.PART, 15_000)):
        with np.load(path) as arrays:
            assert arrays["y_train"].tolist() == list(range(count))
            assert arrays["y_test"].tolist() == list(range(45_000, 50_000))


@pytest.mark.parametrize("epochs, dense", [(20, compare.DENSE), (5, "")])
def test_every_row_has_the_same_epochs_after_the_dense_network(epochs, dense, monkeypatch):
    monkeypatch.setattr(compare, "EPOCHS", epochs)
    monkeypatch.setattr(compare, "DENSE", dense)
    makers = {stage.makes: stage for stage in compare.stages(1)}
    found = {}
    for stage in makers.values():
        if stage.row:
            found.setdefault(compare.further_epochs(stage, makers), set()).add(stage.row)
    assert found.pop(0) == {"dense"} and found.pop(2 * epochs) == {"slimming, then magnitude",
                                                                   "slimming, then magnitude, then 8 bits"}
    assert list(found) == [epochs] and len(found[epochs]) == 12


@pytest.fixture
def small(monkeypatch, tmp_path, run):
    """The comparison of one method, in seconds, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare.py"])
    for name, value in {"DATASET": "shapes10", "ARCH": "resnet20", "DENSE": "", "DENSE_EPOCHS": 1, "EPOCHS": 2,
                        "WEIGHTS": (0.1,), "MACS": (0.5,), "ROOT": tmp_path,
                        "RECIPE": "--dataset shapes10 --batch-size 20 --weight-decay 5e-4 --subset 40 "
                        "--precision fp32 --device cpu"}.items():
        monkeypatch.setattr(compare, name, value)
    monkeypatch.setattr(summary, "milliseconds", lambda networks, batch: measure.milliseconds(networks, batch, 1))

    def popen(words):
        done = run(*words[1:])
        print(done.stdout, done.stderr)
        return SimpleNamespace(returncode=done.returncode, poll=lambda: done.returncode)
    monkeypatch.setattr(stages, "subprocess", SimpleNamespace(Popen=popen, STDOUT=None))


def test_a_comparison_runs_continues_and_names_what_failed(small, capfd, monkeypatch):
    monkeypatch.setattr(compare, "ARCH", "resnet8")
    compare.main(["magnitude"])
    out = capfd.readouterr().out
    assert "magnitude" in out and "vs. dense, same extra" in out and Path("logs/compare/comparison.png").exists()
    rows = rows_of("logs/compare/comparison.csv")
    assert [row["name"] for row in rows] == ["dense", "dense, same extra training", "magnitude"]
    assert float(rows[2]["weights_left"]) == pytest.approx(10, abs=0.01)

    compare.main(["magnitude"])                              # nothing is done twice
    assert "==" not in capfd.readouterr().out
    Path("logs/compare/seed1/magnitude-10/pruned/pruned.pth.tar").unlink()
    failing = SimpleNamespace(returncode=1, poll=lambda: 1)
    with monkeypatch.context() as patch:
        patch.setattr(stages.subprocess, "Popen", lambda words: failing)
        with pytest.raises(UserError, match="2 of 4 commands failed or were left out"):
            compare.main(["magnitude"])
    out = capfd.readouterr().out
    assert "left out: logs/compare/seed1/magnitude-10/pruned/pruned.pth.tar is not finished" in out
    assert out.endswith("left out:\n  logs/compare/seed1/magnitude-10/pruned\n  logs/compare/seed1/magnitude-10\n")

    with pytest.raises(UserError, match="1 of 4"):           # pruned again; what was trained on the older stays
        compare.main(["magnitude"])
    out = capfd.readouterr().out
    assert "is older than logs/compare/seed1/magnitude-10/pruned/pruned.pth.tar; remove" in out
    assert "magnitude  " not in out

    monkeypatch.setattr(compare, "ARCH", "resnet56")         # nothing that began with another network is shown
    with pytest.raises(UserError, match="4 of 4"):
        compare.main(["magnitude"])
    out = capfd.readouterr().out
    assert "seed1/dense/checkpoint.pth.tar was made by another command" in out and "vs. dense, same" not in out


def test_a_stage_that_quantizes_is_finished_and_a_row(dense, small, monkeypatch, capsys):
    words = f"--pruned {dense} --wbit 8 --save logs/q {' '.join(TINY)}".split()
    monkeypatch.setattr(sys, "argv", [str(ROOT / "softmask/quantize_model.py"), *words])
    call("softmask.quantize_model", *words)
    stage = stages.Stage("chain", f"python softmask/quantize_model.py {' '.join(words)}", "",
                         "logs/q/quantized_model.pth.tar", row="8 bits")
    assert stages.finished(stage)
    monkeypatch.setattr(sys, "argv", ["compare.py"])
    monkeypatch.setattr(compare, "up_to_date", lambda everything: [stage])
    monkeypatch.setattr(compare, "further_epochs", lambda *given: 0)
    monkeypatch.setattr(compare, "tables", SimpleNamespace(
        draw=lambda *given: None, table=lambda rows: (["row"], [[row["name"]] for row in rows])))
    compare.main(["--table"])
    assert "8 bits" in capsys.readouterr().out


def test_commands_side_by_side_wait_for_what_they_read(small, monkeypatch, tmp_path):
    """a -> b -> c beside d, the first of which fails: two at once, b and c left out, in the order of the list."""
    a, b, c, d, e = (stages.Stage("", f"python {name}.py", reads, f"logs/compare/{name}/made")
                     for name, reads in (("a", ""), ("b", "logs/compare/a/made"), ("c", "logs/compare/b/made"),
                                         ("d", ""), ("e", "logs/compare/d/made")))
    events, polls = [], {}

    def popen(words, stdout, stderr):
        name = words[1]
        events.append(f"+{name}")
        assert stdout.name == f"logs/compare/{name[0]}.txt"

        def poll():
            polls[name] = polls.get(name, 0) + 1
            if polls[name] < 3:
                return None
            if name != "a.py":
                Path(f"logs/compare/{name[0]}").mkdir()
                Path(f"logs/compare/{name[0]}/made").touch()
            events.append(f"-{name}")
            return int(name == "a.py")
        return SimpleNamespace(poll=poll, returncode=int(name == "a.py"), wait=lambda: None)

    monkeypatch.setattr(stages.subprocess, "Popen", popen)
    monkeypatch.setattr(stages, "finished", lambda stage: False)
    failed = stages.run([a, b, c, d, e], None, 70, jobs=2)
    assert events == ["+a.py", "+d.py", "-a.py", "-d.py", "+e.py", "-e.py"]
    assert failed == [a, b, c]


def test_a_dry_run_says_how_long_it_takes_and_runs_nothing(small, capsys, monkeypatch):
    compare.main(["--dry-run", "random"])
    out = capsys.readouterr().out
    assert "9 commands, about 0.2 hours one after the other at 70 seconds an epoch" in out
    compare.main(["--table"])
    assert capsys.readouterr().out == "nothing is finished yet in logs/compare\n" and not Path("logs").exists()
    monkeypatch.setattr(compare, "ARCH", "resnet56")
    compare.main(["--dry-run", "random"])
    assert "at 217 seconds an epoch" in capsys.readouterr().out
    with pytest.raises(UserError, match="slimmming is not one of"):
        compare.main(["slimmming"])


def test_the_dense_network_may_be_a_file_of_another_repository(small, capsys, monkeypatch):
    """Its row has the accuracy measured here; without the file nothing begins."""
    monkeypatch.setattr(compare, "DENSE", "data/resnet20.th")
    with pytest.raises(UserError, match="data/resnet20.th is not there; https://github.com/akamaster"):
        compare.main(["magnitude"])
    compare.main(["--dry-run", "magnitude"])
    assert "3 commands, about " in capsys.readouterr().out
    torch.manual_seed(0)
    state = models.build("resnet", depth=20, shortcut="slice").state_dict()
    Path("data").mkdir()
    torch.save({"state_dict": {f"module.{name.replace('fc.', 'linear.')}": value for name, value in state.items()},
                "best_prec1": 99.0}, "data/resnet20.th")
    images = compare.data.load("shapes10", subset=40)
    monkeypatch.setattr(compare.data, "load", lambda *_, **__: images)
    monkeypatch.setattr(compare, "SEEDS", (1, 2))            # one file, one row
    compare.main(["--table"])
    dense, = (line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("dense "))
    assert dense[0] == "dense" and dense[2] == "269,722" and dense[-1] == "data/resnet20.th"
    loader = compare.data.Loader(replace(images, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)), "test", 40,
                                 "cpu")
    model = models.build("resnet", depth=20, shortcut="slice").eval()
    model.load_state_dict(state)
    assert float(dense[1]) == round(compare.evaluate(model, loader)["top1"], 2) != 99


def row(name, accuracy, seed=1, weights=0, macs=0, peak_lr=0.1, **more):
    return {"name": name, "weights_asked": weights, "macs_asked": macs, "accuracy": accuracy, "seed": str(seed),
            "start": "a file", "further_epochs": 20, "peak_lr": peak_lr, "trained_on": "bf16, a CPU",
            "params": 1000, "nonzeros": 900, "sparse_macs": 2e6, "kib": 4, "ms_1": 1, "ms_128": 9, "score": 0.5,
            "published_score": 0.6, "weights_left": 10, "macs_left": 50, "network": "net", "dataset": "cifar10", **more}


def test_the_table_gives_mean_and_deviation_over_seeds_and_the_difference_to_the_same_seed(tmp_path, plt):
    rows = [row("slimming, then magnitude", 70, 1, 10.0, 50.0), row("random masks", 80, 1, 10.0), row("dense", 90, ""),
            row("dense, same extra training", 92), row("dense, same extra training", 94, 2),
            row("magnitude", 91, 1, 10.0), row("magnitude", 92, 2, 10.0)]
    header, cells = tables.table(rows)
    assert [line[0] for line in cells] == ["dense", "dense, same extra training", "random masks", "magnitude",
                                           "slimming, then magnitude"]
    assert cells[3][1:4] == ["10 % of the weights", "91.50 ± 0.71", "-1.50"]
    assert cells[2][2:4] == ["80.00", "-12.00"] and cells[1][3] == ""
    assert cells[4][1] == "50 % of the MACs, 10 % of the weights"
    assert cells[0][3] == "-3.00" and cells[0][-2:] == ["a file", ""]          # one file, of no seed
    assert cells[3][-2:] == ["20, 0.1", "1, 2: bf16, a CPU"]
    small = row("magnitude", 60, 1, 10.0, peak_lr=0.01)
    assert [line[-2] for line in tables.table([*rows, small])[1] if line[0] == "magnitude"] == ["20, 0.1", "20, 0.01"]
    assert len(summary.text(*tables.table(rows), words=2).splitlines()) == 6
    rows += [small, row("network slimming", 88, 1, 0, 50.0), row("reweighted L1", 80, 1, 10.0),
             row("a sixth", 81, 1, 10.0), row("reweighted L1 of filters", 80, 1, 0, 50.0),
             row("a seventh", 81, 1, 10.0), *(row(f"random {i}", 70, 1, 10.0) for i in range(5))]
    tables.draw(tmp_path / "plot.png", rows)
    lines = plt.gcf().axes[0].containers
    colours = [{line.get_label(): line[0].get_color() for line in axis.containers} for axis in plt.gcf().axes]
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert colours[0]["reweighted L1"] == colours[1]["reweighted L1 of filters"]
    assert len(set(colours[0].values())) == len(colours[0])
    assert "slimming, then magnitude" not in colours[0] | colours[1]
    magnitude, = (line[0].get_ydata() for line in lines if line.get_label() == "magnitude")
    assert list(magnitude) == [91.5]                         # without the small learning rate


def test_every_row_of_the_published_comparison_is_a_run_of_the_ledger():
    runs = {(line["command"], f"{float(line['accuracy']):.2f}"): line for line in ledger.read()
            if not line["checkpoint"]}                       # which are in half precision
    rows = tables.read(tables.PATH) + tables.read(tables.SHORT)
    assert {"dense", "dense, same extra training", "magnitude", "random masks"} <= {line["name"] for line in rows}
    for line in rows:
        if not line["command"]:                              # a file of another repository
            assert line["name"] == "dense" and line["file"] == line["start"] == compare.DENSE
            continue
        run = runs[line["command"], f"{line['accuracy']:.2f}"]
        for ours, theirs in (("params", "params"), ("nonzeros", "nonzeros"), ("sparse_macs", "macs")):
            assert line[ours] == int(run[theirs]), line["file"]
        # paths and names inside the file, whose lengths differ, are a few KiB
        assert abs(1024 * line["kib"] - int(run["bytes"])) < 4096, line["file"]
        assert line["hardware"] and line["torch"] and line["trained_on"] == f"{run['precision']}, {run['hardware']}"
