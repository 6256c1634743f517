"""What several test files need: the synthetic data sets, made once, and a script run as a user runs it."""
import importlib
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import traceback
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import torch

from common import data, plots
from common.device import has_bf16
from common.run import Run

ROOT = Path(__file__).resolve().parent.parent
EXPORTS = tuple(map(int, torch.__version__.split(".")[:2])) > (2, 6)      # networks of other people's code, as ONNX
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
def plt(monkeypatch, rendered):
    """pyplot whose figures stay open to be looked at."""
    plt = plots.pyplot()
    with monkeypatch.context() as patch:
        patch.setattr(plt, "close", lambda figure: None)
        yield plt
    plt.close("all")


class Blank:
    """In the place of pyplot, its figures and axes: draws nothing."""

    def __getattr__(self, name):
        return self

    def __call__(self, *_, **__):
        return self

    def subplots(self, rows=1, columns=1, **_):
        return self, [self] * columns if columns > 1 else self

    def savefig(self, path, **_):
        Path(path).write_bytes(b"")


@pytest.fixture
def undrawn(request, monkeypatch):
    """Not even figures, which take half the time of a small command; tests that ask for `rendered` have them."""
    if "rendered" not in request.fixturenames:
        monkeypatch.setattr(plots, "pyplot", Blank)


@pytest.fixture
def stopped(monkeypatch):
    """stopped(2, work, *args): Ctrl-C after work has saved its second epoch; the exception that ended it."""
    def stop(saves, work, *args):
        left, save = iter(range(1, saves)), Run.save

        def save_and_stop(*run, **more):
            save(*run, **more)
            if next(left, None) is None:
                raise KeyboardInterrupt
        with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, SystemExit)) as end:
            patch.setattr(Run, "save", save_and_stop)
            work(*args)
        return end.value
    return stop


class BegunError(Exception):
    pass


@pytest.fixture
def settings_of():
    """settings_of(main, "--epochs", "2"): the settings with which this script begins to train, and its stage."""
    def begin(run, method, stage, network, dense=None, /, **settings):
        raise BegunError({**settings, "stage": stage})

    def settings_of(script, *flags):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(BegunError) as begun:
            patch.setattr(Run, "__init__", begin)
            script.main([*flags])
        return begun.value.args[0]
    return settings_of


@pytest.fixture
def run():
    """run("slimming/main.py", "--epochs", 1, cwd=folder) -> CompletedProcess, with text output.

    In a fork, which saves the import of torch, most of what a small command takes; `before` is called in it first.
    """
    if not hasattr(os, "fork"):
        pytest.skip("scripts run in forks")
    importlib.import_module("torch._dynamo")                 # once, before the forks
    return run_script


@pytest.fixture
def ran(run):
    """As `run`, of a script that ends well: what it has printed."""
    def ran(*args, **more):
        done = run(*args, **more)
        assert done.returncode == 0, f"{args}\n{done.stderr}"
        return done.stdout
    return ran


def run_script(script, *args, cwd=None, before=None):
    command = [str(ROOT / script), *map(str, args)]

    def work():
        sys.argv = command
        if before:
            before()
        runpy.run_path(command[0], run_name="__main__")
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        code = os.waitstatus_to_exitcode(os.waitpid(forked(work, cwd or ".", out, err), 0)[1])
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, code, out.read(), err.read())


def forked(work, cwd, out, err):
    """The id of a process that does this work."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.chdir(cwd)
            sys.stdout, sys.stderr = out, err
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            work()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            out.flush()
            err.flush()
            os._exit(code)
    return pid


@pytest.fixture
def two_processes(tmp_path):
    """two_processes(work): work(rank) in two processes that train together, in tmp_path; what each has printed.

    Run.finish writes rank0.pt and rank1.pt: the parameters that they end with.
    """
    port = local_port()

    def run(work):
        def ranked(rank):
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost",
                              MASTER_PORT=str(port))
            finish = Run.finish

            def keep(self, model, *args, **more):
                torch.save([p.detach().clone() for p in model.parameters()], f"rank{rank}.pt")
                finish(self, model, *args, **more)
            Run.finish = keep
            work(rank)
        with ExitStack() as stack:
            files = [[stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)] for _ in range(2)]
            pids = [forked(partial(ranked, rank), tmp_path, *files[rank]) for rank in (0, 1)]
            codes = [os.waitpid(pid, 0)[1] for pid in pids]
            for file in (*files[0], *files[1]):
                file.seek(0)
            assert codes == [0, 0], files[0][1].read() + files[1][1].read()
            return [out.read() for out, _ in files]
    return run


def local_port():
    """A free one; skips the test where processes cannot speak to each other."""
    if not hasattr(os, "fork") or not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("no forks, or a torch without gloo")
    try:
        with socket.create_server(("localhost", 0)) as server:
            return server.getsockname()[1]
    except OSError as error:
        pytest.skip(f"no local sockets: {error}")
