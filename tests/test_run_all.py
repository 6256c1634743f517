"""run_all.sh with a stand-in for Python that notes the commands, and the table of results/summary.py."""
import importlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from common import checkpoint, models, plots
from results import summary

ROOT = Path(__file__).resolve().parent.parent
METHODS = [line.split("(")[1].rstrip(")").split() for line in (ROOT / "run_all.sh").read_text().splitlines()
           if line.startswith("all=(")][0]
STAND_IN = """#!/bin/sh
[ "$1" = -c ] && exit 0                # environment.sh asks what can be imported
echo "$@" >> commands.txt
case "$*" in *{failing}*) exit 1 ;; esac
"""


@pytest.fixture
def run_all(tmp_path):
    """run_all(*words, failing=text) -> (CompletedProcess, commands that Python got, word by word)."""
    for name in ("run_all.sh", "environment.sh", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def run_all(*words, failing="nothing fails"):
        (tmp_path / "commands.txt").write_text("")
        python = tmp_path / "python"
        python.write_text(STAND_IN.format(failing=f"'{failing}'"))
        python.chmod(0o755)
        done = subprocess.run(["bash", tmp_path / "run_all.sh", *words], capture_output=True, text=True,
                              env={**os.environ, "PYTHON": str(python)})
        return done, [line.split() for line in (tmp_path / "commands.txt").read_text().splitlines()]
    return run_all


@pytest.mark.parametrize("words", [(), ("full",)])
def test_every_stage_has_flags_that_its_script_takes_and_a_row_in_the_table(words, run_all):
    done, (*stages, table) = run_all(*words)
    assert done.returncode == 0, done.stderr
    written = set()
    for script, *flags in stages:
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        args = module.parse(flags)
        assert Path(args.save).parts[:2] == ("logs", "full" if words else "demo")
        read = [getattr(args, name, None) for name in ("model", "pretrained", "refine")]
        assert all(str(Path(file).parent) in written for file in read if file), f"{script} reads what is not there yet"
        written.add(args.save)
    assert table[0] == "results/summary.py"
    *files, flag, plot = table[1:]
    assert (flag, plot) == ("--plot", f"logs/{'full' if words else 'demo'}/comparison.png")
    assert {str(Path(file).parent) for file in files} == written
    assert {script.split("/")[0] for script, *_ in stages} == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_alone_and_its_random_control(method, run_all):
    done, (*stages, table) = run_all(method)
    assert done.returncode == 0
    assert {script.split("/")[0] for script, *_ in stages} == {method}
    prunes = [" ".join(stage) for stage in stages if stage[0].endswith("/prune.py")]
    if any("--criterion random" in prune for prune in prunes):           # the same but for the criterion and the folder
        control, chosen = sorted((prune.split(" --save ")[0] for prune in prunes), key=len, reverse=True)
        assert control.replace(" --criterion random", "") == chosen


def test_a_failed_stage_ends_its_method_and_is_named_at_the_end(run_all):
    done, commands = run_all("slimming", "magnitude", failing="slimming/prune.py")
    assert done.returncode == 1
    assert "slimming/prune.py --percent" in done.stdout.split("failed:\n")[1]
    assert not any("--refine" in command for command in commands)
    assert commands[-1][0] == "results/summary.py" and all("slimming" not in file for file in commands[-1][1:])
    assert any(command[0] == "magnitude/finetune.py" for command in commands)


def test_an_unknown_word_is_refused_before_anything_runs(run_all):
    done, commands = run_all("slimming", "ful")
    assert done.returncode == 2 and done.stderr.startswith("usage:") and not commands


def test_the_table_tells_the_random_control_from_the_rule_and_fits_a_terminal(run, tmp_path):
    model = models.build("vgg", depth=11, widths=[8, "M", 8, "M", 8, 8, "M", 8, 8, "M", 8, 8])
    narrow = models.narrow(model, {"feature.0": torch.arange(8) < 4})
    params = f"{sum(p.numel() for p in model.parameters()):,}"
    made = [("slimming", "dense", model, {}, 80.0), ("slimming", "pruned", narrow, {"criterion": "gamma"}, 70.0),
            ("slimming", "pruned", narrow, {"criterion": "random"}, 10.0),
            ("magnitude", "finetuned", model, {"retrain": "lr-rewind"}, 79.5)]
    files = [checkpoint.save(tmp_path / f"{i}.pth.tar", checkpoint.of(network, method, stage, "shapes10", epoch=4,
                                                                      prec1=accuracy, best_prec1=accuracy, args=args))
             for i, (method, stage, network, args, accuracy) in enumerate(made)]
    done = run("results/summary.py", *files)
    assert done.returncode == 0, done.stderr
    header, dense, chosen, random, tuned = done.stdout.splitlines()
    assert max(map(len, done.stdout.splitlines())) <= 140
    assert len({len(line) for line in (header, dense, chosen, random, tuned)}) == 1
    assert random.split()[1:3] == ["pruned", "random"] and " 10.00 " in random
    assert "pruned " in chosen and "random" not in chosen and " 70.00 " in chosen
    assert tuned.split()[1:3] == ["finetuned", "lr-rewind"] and params in dense and "vgg11" in dense
    assert dense.split()[-2:] == tuned.split()[-2:]              # one shape, one measurement


def test_the_plot_says_what_every_line_is_and_a_method_has_one_colour(tmp_path, monkeypatch):
    def row(method, stage, macs, way=""):
        return {"method": method, "stage": stage, "way": way, "accuracy": 90.0, "weights_left": 30.0, "macs_left": 40.0,
                "dense_macs_left": macs}
    rows = [row("slimming", "dense", 100), row("slimming", "pruned", 40, "random"), row("slimming", "pruned", 40),
            row("magnitude", "dense", 100), row("magnitude", "pruned", 100), row("magnitude", "finetuned", 100)]
    plt = plots.pyplot()
    monkeypatch.setattr(plt, "close", lambda figure: None)
    summary.draw(tmp_path / "plot.png", rows, "all")
    found = [{line.get_label(): line.get_color() for line in axis.get_lines()} for axis in plt.gcf().axes]
    assert found == [{"magnitude": "C1", "magnitude, dense": "C1"},
                     {"slimming, random": "C0", "slimming": "C0", "slimming, dense": "C0"}]
    assert (tmp_path / "plot.png").stat().st_size > 10_000
