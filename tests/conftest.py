"""What several test files need: the synthetic data sets, made once, and a script run as a user runs it."""
import importlib
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import pytest
import torch

from common import data, plots
from common.device import has_bf16

ROOT = Path(__file__).resolve().parent.parent
NATIVE_BF16 = has_bf16(torch.device("cpu"))                  # emulated it takes 20 times as long
PRECISIONS = ["fp32", pytest.param("bf16", marks=pytest.mark.skipif(not NATIVE_BF16, reason="no native bf16"))]


@pytest.fixture(scope="session", autouse=True)
def data_folder(tmp_path_factory):
    """DATA_DIR for this process and for scripts it starts; holds shapes10 from the start, others when asked for."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("data")
    before = os.environ.get("DATA_DIR")
    os.environ["DATA_DIR"] = str(folder)
    data.load("shapes10")
    yield folder
    os.environ.pop("DATA_DIR")
    if before:
        os.environ["DATA_DIR"] = before


@pytest.fixture(scope="session", autouse=True)
def unrendered():
    """Figures are made, but only tests that ask for `rendered` turn them into pixels: that takes longer than a run."""
    plots.pyplot()
    from matplotlib.figure import Figure
    savefig = Figure.savefig
    Figure.savefig = lambda figure, path, **_: Path(path).write_bytes(b"")
    yield savefig
    Figure.savefig = savefig


@pytest.fixture
def rendered(unrendered, monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", unrendered)


@pytest.fixture
def run():
    """run("slimming/main.py", "--epochs", 1, cwd=folder) -> CompletedProcess, with text output.

    In a fork, which saves the import of torch, most of what a small command takes; `before` is called in it first.
    """
    if not hasattr(os, "fork"):
        pytest.skip("scripts run in forks")
    importlib.import_module("torch._dynamo")                 # once, before the forks
    return run_script


def run_script(script, *args, cwd=None, before=None):
    command = [str(ROOT / script), *map(str, args)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.chdir(cwd or ".")
                sys.stdout, sys.stderr = out, err
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.argv = command
                if before:
                    before()
                runpy.run_path(command[0], run_name="__main__")
                code = 0
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                traceback.print_exc()
            finally:
                out.flush()
                err.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, code, out.read(), err.read())
