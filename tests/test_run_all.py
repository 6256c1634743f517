"""run_all.sh with a stand-in for Python that notes the commands, and the table of results/summary.py."""
import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from by_hand import parsed, save

from common import UserError, models
from common.models.narrow import narrow
from magnitude import main as magnitude
from results import estimate, summary

ROOT = Path(__file__).resolve().parent.parent
METHODS = [line.split("(")[1].rstrip(")").split() for line in (ROOT / "run_all.sh").read_text().splitlines()
           if line.startswith("all=(")][0]
STAND_IN = """#!/bin/sh
if [ "$1" = -c ]; then                 # environment.sh asks what is missing, and whether this is a .venv
    case "$2" in *find_spec*) echo {absent} ;; *base_prefix*) exit 1 ;; esac
    exit 0
fi
echo "$@" >> commands.txt
case "$*" in results/estimate.py) sed "s/^/7 min\t/" ;; *{failing}*) exit 1 ;; esac
"""


@pytest.fixture
def run_all(tmp_path):
    """run_all(*words, failing=text, absent=modules) -> (CompletedProcess, commands that Python got, word by word)."""
    for name in ("run_all.sh", "environment.sh", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def run_all(*words, failing="nothing fails", absent=""):
        (tmp_path / "commands.txt").write_text("")
        python = tmp_path / "python"
        python.write_text(STAND_IN.format(failing=f"'{failing}'", absent=absent))
        python.chmod(0o755)
        done = subprocess.run(["bash", tmp_path / "run_all.sh", *words], capture_output=True, text=True,
                              env={**os.environ, "PYTHON": str(python)})
        return done, [line.split() for line in (tmp_path / "commands.txt").read_text().splitlines()]
    return run_all


@pytest.mark.parametrize("words", [(), ("full",)])
def test_every_stage_has_flags_that_its_script_takes_and_a_row_in_the_table(words, run_all):
    done, commands = run_all(*words)
    assert done.returncode == 0, done.stderr
    *stages, table = commands if words else commands[1:]
    assert words or commands[0] == ["results/estimate.py"]
    assert done.stdout.count(" (7 min left, ") == (0 if words else len(stages))
    assert words or f"{len(stages)} stages, about 7 min on this machine" in done.stdout
    written = set()
    for script, *flags in stages:
        args = parsed(script, flags)
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
    done, (_, *stages, table) = run_all(method)
    assert done.returncode == 0
    assert {script.split("/")[0] for script, *_ in stages} == {method}
    assert table[-1] == f"logs/demo/{method}.png"            # the plot of all methods is kept
    prunes = [" ".join(stage) for stage in stages if stage[0].endswith("/prune.py")]
    if any("--criterion random" in prune for prune in prunes):           # the same but for the criterion and the folder
        control, chosen = sorted((prune.split(" --save ")[0] for prune in prunes), key=len, reverse=True)
        assert control.replace(" --criterion random", "") == chosen


def test_a_failed_stage_ends_its_method_and_is_named_at_the_end(run_all):
    done, commands = run_all("slimming", "magnitude", failing="slimming/prune.py")
    assert done.returncode == 1
    assert "slimming/prune.py --percent" in done.stdout.split("failed:\n")[1]
    assert not any("--refine" in command for command in commands)
    assert commands[-1][0] == "results/summary.py" and all("slimming" not in file for file in commands[-1][1:-1])
    assert any(command[0] == "magnitude/finetune.py" for command in commands)


def test_an_unknown_word_is_refused_before_anything_runs(run_all):
    done, commands = run_all("slimming", "ful")
    assert done.returncode == 2 and done.stderr.startswith("usage:") and not commands


def test_the_estimate_counts_images_epochs_done_and_what_every_command_takes(tmp_path, monkeypatch, capsys, run_all):
    done, (_, *stages, table) = run_all("magnitude")
    commands = [" ".join(stage) for stage in stages]
    trained = [command for command in commands if "--resume auto" in command]
    assert trained == [command for command in commands if "/prune.py" not in command]
    settings = magnitude.parse(trained[0].split()[1:])
    dense = settings.epochs * settings.subset
    tuned = int(trained[1].split("--epochs ")[1].split()[0]) * settings.subset
    assert "--epochs" not in trained[2]                       # rewound: as long as the dense training
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimate, "timed", lambda script, flags: 0.06)
    monkeypatch.setattr(estimate, "began", estimate.time.time() - 600)

    def minutes():
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(commands)))
        estimate.main()
        lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert [command for _, command in lines] == commands
        return [int(left.removesuffix(" min")) for left, _ in lines]
    images = (2 * dense + tuned, dense + tuned, dense + tuned, dense + tuned, dense)
    assert minutes() == [round(count / 1000 + 10 * (5 - i)) for i, count in enumerate(images)]
    Path(settings.save).mkdir(parents=True)
    (Path(settings.save) / "log.csv").write_text("epoch\n" + "".join(f"{i}\n" for i in range(settings.epochs)))
    assert minutes()[0] == round((dense + tuned) / 1000 + 50)


def test_the_estimate_times_a_command_in_a_folder_of_its_own(tmp_path, monkeypatch, run_all, capsys):
    monkeypatch.setattr(estimate, "IMAGES", 20)
    monkeypatch.chdir(tmp_path)
    done, (_, (script, *flags), *stages) = run_all("hoyer")
    assert 0 < estimate.timed(script, flags) < float("inf")
    assert not (tmp_path / "logs").exists() and not capsys.readouterr().out


def test_what_is_missing_is_named_first_and_a_dry_run_installs_nothing(run_all):
    done, commands = run_all("slimming", absent="tqdm matplotlib")
    assert done.stdout.startswith("not installed: tqdm matplotlib; pip installs")
    assert commands[0][:3] == ["-m", "pip", "install"]
    done, commands = run_all("compare", "--dry-run", absent="tqdm matplotlib")
    assert done.returncode == 0 and "not installed: tqdm matplotlib" in done.stderr
    assert commands == [["results/comparison/compare.py", "--dry-run"]]
    done, commands = run_all("compare", "--dry-run", absent="torch tqdm")
    assert done.returncode == 2 and "not installed: torch tqdm" in done.stderr and not commands


def test_the_table_tells_the_random_control_from_the_rule_and_fits_a_terminal(ran, tmp_path):
    model = models.build("vgg", depth=11, widths=[8, "M", 8, "M", 8, 8, "M", 8, 8, "M", 8, 8])
    small = narrow(model, {"feature.0": torch.arange(8) < 4})
    params = f"{sum(p.numel() for p in model.parameters()):,}"
    made = [("slimming", "dense", model, {}, 80.0), ("slimming", "pruned", small, {"criterion": "gamma"}, 70.0),
            ("slimming", "pruned", small, {"criterion": "random"}, 10.0),
            ("magnitude", "finetuned", model, {"retrain": "lr-rewind"}, 79.5)]
    files = [save(tmp_path / f"{i}.pth.tar", network, method, stage, epoch=4, prec1=accuracy, best_prec1=accuracy,
                  args=args) for i, (method, stage, network, args, accuracy) in enumerate(made)]
    lines = ran("results/summary.py", *files).splitlines()
    _, dense, chosen, random, tuned = lines
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) <= 140
    assert random.split()[1:3] == ["pruned", "random"] and " 10.00 " in random
    assert "pruned " in chosen and "random" not in chosen and " 70.00 " in chosen
    assert tuned.split()[1:3] == ["finetuned", "lr-rewind"] and params in dense and "vgg11" in dense
    assert dense.split()[-2:] == tuned.split()[-2:]              # one shape, one measurement


def test_the_plot_says_what_every_line_is_and_a_method_has_one_colour(tmp_path, plt):
    def row(method, stage, macs, way=""):
        return {"method": method, "stage": stage, "way": way, "accuracy": 90.0, "weights_left": 30.0, "macs_left": 40.0,
                "dense_macs_left": macs}
    rows = [row("slimming", "dense", 100), row("slimming", "pruned", 40, "random"), row("slimming", "pruned", 40),
            row("magnitude", "dense", 100), row("magnitude", "pruned", 100), row("magnitude", "finetuned", 100)]
    summary.draw(tmp_path / "plot.png", rows, "all")
    found = [{line.get_label(): line.get_color() for line in axis.get_lines()} for axis in plt.gcf().axes]
    assert found == [{"magnitude": "C1", "magnitude, dense": "C1"},
                     {"slimming, random": "C0", "slimming": "C0", "slimming, dense": "C0"}]
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    summary.draw(tmp_path / "plot.png", rows[:3], "channels alone")
    assert [axis.get_xlabel() for axis in plt.gcf().axes] == ["MACs left (%)"]
    with pytest.raises(UserError, match="none of these networks is pruned"):
        summary.draw(tmp_path / "plot.png", rows[:1], "dense")
