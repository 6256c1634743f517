"""What several test files need: the synthetic data sets, made once, and a script run as a user runs it."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import data
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


@pytest.fixture
def run():
    """run("slimming/main.py", "--epochs", 1, cwd=folder) -> CompletedProcess, with text output."""
    def run(script, *args, cwd=None, **options):
        command = [sys.executable, str(ROOT / script), *map(str, args)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=3600, **options)    # a hang
    return run
