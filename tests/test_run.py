"""Training runs: they repeat, resume, refuse and fail as DESIGN.md says. slimming/main.py stands for all of them."""
import importlib
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from by_hand import column, rows_of
from conftest import ROOT, local_port
from reliability import differences, same

from common import UserError, cli, data
from common.evaluate import evaluate
from common.files import checkpoint, lock, resume
from slimming import eval as slimming_eval
from slimming import main

TINY = ["-sr", "--arch", "densenet", "--depth", "7", "--dataset", "shapes10", "--subset", "64", "--epochs", "4",
        "--batch-size", "32", "--precision", "fp32", "--device", "cpu"]


def train(folder, *flags):
    """A tiny run in this process; its last checkpoint."""
    main.main([*TINY, "--save", str(folder), *flags])
    return checkpoint.load(folder / "checkpoint.pth.tar")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# What a run leaves


def test_a_run_leaves_its_log_its_curve_and_its_checkpoints(whole, capsys):
    assert sorted(p.name for p in whole.iterdir()) == ["checkpoint.pth.tar", "curve.png", "log.csv",
                                                       "model_best.pth.tar"]
    rows = rows_of(whole / "log.csv")
    assert list(rows[0]) == ["epoch", "lr", "train_loss", "test_loss", "top1", "top5", "seconds"]
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.1, 0.1, 0.01, 0.001])
    ckpt, best = (checkpoint.load(whole / name) for name in ("checkpoint.pth.tar", "model_best.pth.tar"))
    assert (ckpt["stage"], ckpt["dataset"], ckpt["epoch"]) == ("sparse", "shapes10", 4)
    assert ckpt["prec1"] == pytest.approx(float(rows[-1]["top1"]), abs=1e-6)
    assert best["prec1"] == max(float(row["top1"]) for row in rows) == ckpt["best_prec1"]
    assert "resume" in ckpt and "resume" not in best
    slimming_eval.main([str(whole / "checkpoint.pth.tar"), "--subset", "64", "--device", "cpu"])
    assert f"top-1 {ckpt['prec1']:.2f} %" in capsys.readouterr().out


# Stopping and going on


@pytest.mark.parametrize("function, call", [("torch.save", 1), ("torch.save", 2), ("torch.save", 3), ("torch.save", 5),
                                            ("common.plots.draw_curve", 2)])
def test_stopped_at_any_write_it_resumes(function, call, whole, tmp_path, monkeypatch):
    """Ctrl-C within a write; in epoch 1 (two files) that leaves nothing to resume, and it repeats the whole run. The
    curve is drawn in the first and the last epoch."""
    owner, _, name = function.rpartition(".")
    count, write = [0], getattr(sys.modules[owner], name)

    def dying(*args, **more):
        count[0] += 1
        write(*args, **more)
        if count[0] == call:
            raise KeyboardInterrupt
    monkeypatch.setattr(function, dying)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    assert not list(tmp_path.rglob("*.partial"))
    monkeypatch.undo()
    (tmp_path / "curve.png").unlink(missing_ok=True)
    train(tmp_path, "--resume", "auto")
    assert not differences(whole, tmp_path)


def test_resuming_a_finished_run_changes_nothing(whole, monkeypatch, capsys):
    """What does not matter may change."""
    before = files(whole)
    train(whole, "--resume", "auto", "--test-batch-size", "7", "--data-dir", str(data.directory_of()))
    assert "after epoch 4" in capsys.readouterr().out
    monkeypatch.chdir(whole.parent)
    main.main([*TINY, "--save", whole.name, "--resume", f"{whole.name}/checkpoint.pth.tar"])
    assert files(whole) == before


def test_a_folder_that_holds_a_run_is_not_written_to(whole, tmp_path, capsys):
    before = files(whole)
    other = train(tmp_path / "other", "--epochs", "1", "--seed", "3")
    for flags in ([], ["--resume", str(tmp_path / "other" / "checkpoint.pth.tar")]):     # the run of another folder
        with pytest.raises(UserError, match="already holds a run; --resume auto .* --overwrite"):
            train(whole, *flags)
        assert files(whole) == before
    anew = train(tmp_path / "other", "--epochs", "1", "--overwrite")
    assert anew["epoch"] == 1 and anew["args"]["seed"] == 1 and not same(anew["state_dict"], other["state_dict"])
    assert len(column(tmp_path / "other")) == 1


@pytest.mark.parametrize("flags", [
    ["--epochs", "3"], ["--lr", "0.2"], ["--seed", "2"], ["--batch-size", "16"], ["--s", "0.01"], ["--momentum", "0"],
    ["--subset", "32"], ["--wd", "0"], ["--faithful"], ["--depth", "10"], ["--precision", "bf16"]])
def test_resuming_with_other_flags_is_refused(flags, whole):
    before = files(whole)
    with pytest.raises(UserError, match="another run"):
        train(whole, "--resume", "auto", *flags)
    assert files(whole) == before


def test_a_run_does_not_change_its_precision_with_the_machine(whole, monkeypatch):
    monkeypatch.setattr("common.run.has_bf16", lambda device: False)
    train(whole, "--resume", "auto", "--precision", "auto")
    monkeypatch.setattr("common.run.has_bf16", lambda device: True)
    with pytest.raises(UserError, match="had --precision fp32"):
        train(whole, "--resume", "auto", "--precision", "auto")


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_epoch_before(tmp_path, monkeypatch):
    evaluate, losses = main.evaluate, iter([None, None, float("nan")])

    def bad(*args):
        result, loss = evaluate(*args), next(losses)
        return result if loss is None else result | {"loss": loss}
    monkeypatch.setattr(main, "evaluate", bad)
    with pytest.raises(UserError, match="nan in epoch 3; the files of epoch 2 are kept in .*smaller --lr"):
        train(tmp_path)
    ckpt = checkpoint.load(tmp_path / "checkpoint.pth.tar")
    assert ckpt["epoch"] == 2 and len(column(tmp_path)) == 2
    assert all(t.isfinite().all() for t in checkpoint.to_model(ckpt).state_dict().values())


def test_evaluation_by_hand():
    class Fixed(torch.nn.Module):
        def forward(self, x):
            assert not self.training
            return x[:, 0, 0, :7]

    logits = torch.zeros(3, 7)
    logits[0, 2], logits[1, :5], logits[2, 6] = 5, torch.arange(1.0, 6), 5   # right; 5th best; outside the 5 best
    labels = torch.tensor([2, 0, 1])
    logits[2, 2:7] = torch.arange(1.0, 6)
    model = Fixed().train()
    result = evaluate(model, [(logits[:2, None, None], labels[:2]), (logits[2:, None, None], labels[2:])])
    assert result["top1"] == pytest.approx(100 / 3) and result["top5"] == pytest.approx(200 / 3)
    assert result["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels))) and model.training


# Several processes

def torchrun(*words, cwd):
    """torchrun on this machine, as a CompletedProcess."""
    local_port()
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", *map(str, words)], cwd=cwd, timeout=3600,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


DYING = """
import os, signal, sys
sys.path.insert(0, {root!r})
from common import cli
from common.run import Run
from slimming import main
log = Run.log
def die(self, epoch, **scalars):
    open(os.path.join(os.path.dirname(__file__), f"pid{{self.rank}}"), "w").write(str(os.getpid()))
    if epoch == 1 and self.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    log(self, epoch, **scalars)
Run.log = die
cli.script(main.main)
"""


def test_a_process_that_dies_ends_the_job_which_one_process_can_continue(tmp_path, capsys):
    (tmp_path / "worker.py").write_text(DYING.format(root=str(ROOT)))
    flags = [*TINY, "--batch-size", "16"]
    done = torchrun("--standalone", "--nproc-per-node", 2, "worker.py", *flags, "--save", "run", cwd=tmp_path)
    assert done.returncode != 0
    for rank in (0, 1):                                      # none is left
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / f"pid{rank}").read_text()), 0)
    ckpt = checkpoint.load(tmp_path / "run" / "checkpoint.pth.tar")
    assert ckpt["epoch"] in (1, 2) and ckpt["run"]["processes"] == 2

    shutil.copytree(tmp_path / "run", tmp_path / "other")
    for size, folder, says in ((16, "run", "16 images where they had 32: --batch-size 32 keeps them"),
                               (32, "other", "32 images as before; batch norms see 32 at a time")):
        capsys.readouterr()
        main.main([*flags, "--batch-size", str(size), "--save", str(tmp_path / folder), "--resume", "auto"])
        said = capsys.readouterr().out
        assert f"note: this run had 2 processes and has 1 now; its steps have {says}" in said
        assert checkpoint.load(tmp_path / folder / "checkpoint.pth.tar")["epoch"] == 4
    with pytest.raises(UserError, match="had --batch-size 32"):
        main.main([*flags, "--batch-size", "8", "--save", str(tmp_path / "other"), "--resume", "auto"])


def test_the_command_for_several_gpus_runs_as_docs_have_it(tmp_path):
    """With two processes for its four, on a small network."""
    command, = re.findall(r"^torchrun (--standalone .*)$", (ROOT / "docs/several-gpus.md").read_text(), re.M)
    words = command.replace("--nproc-per-node 4", "--nproc-per-node 2").replace("slimming", f"{ROOT}/slimming").split()
    done = torchrun(*words, *TINY, "--epochs", "1", "--save", "run", "--batch-size", "16", cwd=tmp_path)
    assert done.returncode == 0 and checkpoint.load(tmp_path / "run" / "checkpoint.pth.tar")["run"]["processes"] == 2


# A loop may be edited

LOOP = """
import argparse, sys
sys.path.insert(0, {root!r})
import torch
import torch.nn.functional as F
from common import cli, data, models
from common.evaluate import evaluate
from common.run import Run
parser = cli.parser("an edited script")
cli.add_flags(parser, epochs=2, batch_size=16, lr=0.1)
args = parser.parse_args(["--dataset", "shapes10", "--subset", "32", "--save", "run"])
run = Run("slimming", "dense", "vgg11", **vars(args))
dataset = data.load(args.dataset, subset=args.subset)
train, test = run.loaders(dataset)
model = run.place(models.build("densenet", depth=7))
run.describe(model)
net = run.parallel(model)
optimizer = torch.optim.SGD(model.parameters(), args.lr)
run.resume(model, optimizer)
for epoch in run.epochs(args.epochs):
    for images, labels in run.bar(train.epoch(epoch)):
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.track(loss=loss)
    run.log(epoch, **evaluate(model, test))
    run.save(epoch, model, optimizer)
run.finish(model)
"""
EDITS = [("run.describe(model)", ""), ("run.parallel(model)", "model"), ("run.place(", "("),
         ("run.resume(model, optimizer)", ""), ("run.bar(train.epoch(epoch))", "train.epoch(epoch)"),
         ("run.track(loss=loss)", "pass"), ("run.log(epoch, **evaluate(model, test))", ""),
         ("run.save(epoch, model, optimizer)", ""), ("run.finish(model)", ""),
         ("run.epochs(args.epochs)", "range(args.epochs)")]


@pytest.mark.parametrize("edits", [*[[edit] for edit in EDITS], EDITS], ids=[*[a for a, _ in EDITS], "all of them"])
def test_a_loop_runs_without_any_of_its_lines(edits, tmp_path, monkeypatch, capsys):
    script = LOOP.format(root=str(ROOT))
    for old, new in edits:
        assert old in script
        script = script.replace(old, new)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    exec(compile(script, "edited.py", "exec"), {"__name__": "edited"})
    saved = "run.save" in script
    assert (tmp_path / "run" / "checkpoint.pth.tar").exists() == saved
    if saved:
        ckpt = checkpoint.load(tmp_path / "run" / "checkpoint.pth.tar")
        assert ckpt["epoch"] == 2 and (ckpt["prec1"] is None) == ("run.log" not in script)
    assert ("wrote" in capsys.readouterr().out) == (saved and "run.finish" in script)


def test_of_equally_good_epochs_the_first_is_the_best(tmp_path, monkeypatch):
    accuracies = iter([40.0, 60.0, 60.0, 50.0])
    monkeypatch.setattr(main, "evaluate", lambda *args: {"loss": 1.0, "top1": next(accuracies), "top5": 90.0})
    ckpt = train(tmp_path)
    best = checkpoint.load(tmp_path / "model_best.pth.tar")
    assert (best["epoch"], best["prec1"]) == (2, 60.0) and (ckpt["prec1"], ckpt["best_prec1"]) == (50.0, 60.0)


def test_what_a_killed_run_left_half_written_is_removed_by_the_next_save(tmp_path):
    left_over = tmp_path / ".checkpoint.pth.tar.12345.partial"
    left_over.write_bytes(b"half a file")
    other = tmp_path / ".notes.partial"
    other.write_bytes(b"not ours")
    train(tmp_path, "--epochs", "1")
    assert not left_over.exists() and other.exists()


@pytest.mark.parametrize("when", ["before", "after"])
def test_ctrl_c_offers_to_resume_only_what_can_be_resumed(when, tmp_path, monkeypatch, capsys):
    evaluate, calls = main.evaluate, []

    def stopped(*args):
        calls.append(args)
        if len(calls) == (1 if when == "before" else 2):
            raise KeyboardInterrupt
        return evaluate(*args)
    monkeypatch.setattr(main, "evaluate", stopped)
    monkeypatch.setattr(cli, "when_stopped", "stopped")
    with pytest.raises(SystemExit) as end:
        cli.script(lambda: train(tmp_path))
    said = capsys.readouterr().err
    assert end.value.code == 130 and said.count("\n") == 1 and "stopped" in said
    assert ("after epoch 1; the same command with --resume auto continues\n" in said) == (when == "after")


# More epochs than the run had


def test_more_epochs_continue_a_run_whose_learning_rates_stay_as_they_were(tmp_path):
    """Of 5 epochs they fall after the second and third, as of 4: the end is that of 5 epochs from the start."""
    train(tmp_path / "run")
    train(tmp_path / "run", "--resume", "auto", "--epochs", "5")
    train(tmp_path / "anew", "--epochs", "5")
    assert not differences(tmp_path / "run", tmp_path / "anew") and len(column(tmp_path / "run")) == 5


def test_more_epochs_are_refused_where_the_schedule_goes_by_them(whole):
    before = files(whole)
    with pytest.raises(UserError, match="of 6 epochs number 3 would have had the learning rate 0.1, it had 0.01, for "
                                        "the schedule goes by --epochs"):
        train(whole, "--resume", "auto", "--epochs", "6")
    assert files(whole) == before


def test_more_epochs_are_refused_where_a_schedule_begins_as_flat(whole):
    optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.1) for _ in range(2)]
    before, now = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
                   for optimizer, epochs in zip(optimizers, (300, 320), strict=True)]
    optimizers[0].step()
    before.step()
    ckpt = {"epoch": 1, "resume": {"rows": [{"lr": 0.1}], "scheduler": before.state_dict(),
                                   "optimizer": optimizers[0].state_dict()}}
    with pytest.raises(UserError, match="x: the schedule goes by --epochs"):
        resume.replay("x", ckpt, 320, optimizers[1], now)


@pytest.mark.parametrize("script, flags, extends", [
    ("magnitude", ["--schedule", "1", "3"], True), ("magnitude", [], False), ("softmask", [], True),
    ("softmask", ["--schedule", "cosine"], False), ("hoyer", [], True), ("hoyer", ["--schedule", "cosine"], False),
    ("reweighted", ["--warmup-epochs", "0"], False)])
def test_which_methods_can_have_more_epochs(script, flags, extends, tmp_path):
    """Schedules at given epochs and constant ones can; what is stretched over the epochs cannot."""
    method = importlib.import_module(f"{script}.main")
    flags = ["--arch", "resnet20", *TINY[TINY.index("--dataset"):], "--subset", "32", *flags]

    def run(folder, epochs, *more):
        method.main([*flags, "--save", str(tmp_path / folder), "--epochs", epochs, *more])
    run("run", "2")
    if extends:
        run("run", "4", "--resume", "auto")
        run("anew", "4")
        ends = [checkpoint.load(tmp_path / name / "checkpoint.pth.tar") for name in ("run", "anew")]
        assert ends[0]["epoch"] == 4 and same(ends[0]["state_dict"], ends[1]["state_dict"])
        assert same(ends[0]["resume"]["optimizer"], ends[1]["resume"]["optimizer"])
    else:
        with pytest.raises(UserError, match="goes by --epochs|another run"):
            run("run", "4", "--resume", "auto")


def test_too_little_memory_is_said(capsys):
    with pytest.raises(SystemExit):
        cli.script(lambda: torch.empty(2 ** 60))
    assert "out of memory; give a smaller --batch-size" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="mat1"):
        cli.script(lambda: torch.ones(1, 2) @ torch.ones(1, 2))


# Two runs, one folder


@contextmanager
def held(folder):
    """The id of a process that holds the folder's lock, as a run does, and is killed at the end."""
    code = (f"import sys; sys.path.insert(0, {str(ROOT)!r}); from common.files import lock; "
            f"lock.take({str(folder)!r}); print('held', flush=True); sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process.pid
        process.kill()


def test_a_second_run_into_a_folder_is_refused_until_the_first_ends_or_is_killed(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    with held(tmp_path / "run") as first, held(tmp_path / "new"):
        before = files(tmp_path)
        for folder, *flags in (("run", "--resume", "auto"), ("run", "--overwrite"), ("new",)):
            with pytest.raises(UserError, match=f"another run is writing to .*{folder} .process .*; wait") as end:
                train(tmp_path / folder, *flags)
            assert (f"(process {first})" in str(end.value)) == (folder == "run")
        assert files(tmp_path) == before
    train(tmp_path / "run", "--resume", "auto")
    assert not (tmp_path / "run" / ".lock").exists() and not differences(whole, tmp_path / "run")


def test_a_folder_is_locked_before_the_data_is_read(tmp_path, monkeypatch):
    def load(*args, **flags):
        assert (tmp_path / "run" / ".lock").exists()
        raise UserError("no data")
    monkeypatch.setattr(data, "load", load)
    with pytest.raises(UserError, match="no data"):
        train(tmp_path / "run")
    lock.release()                                           # as cli.script does
    assert not list(tmp_path.iterdir())


def test_where_there_are_no_locks_a_note_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "fcntl", None)
    train(tmp_path, "--epochs", "1")
    assert "note: " in (said := capsys.readouterr().out) and "cannot be locked here; do not start a second" in said


def test_a_lock_leaves_nothing_of_what_it_made(tmp_path):
    lock.take(tmp_path / "a" / "b")
    lock.take(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / ".lock").exists()
    shutil.rmtree(tmp_path / "a")                            # by hand, and the process goes on, as in a notebook
    lock.take(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / ".lock").exists()
    lock.release()
    assert not list(tmp_path.iterdir())
