"""The short version of tests/reliability.py: a few of each. Random widths under random masks are in test_narrow.py."""
import mutations
import pytest
import reliability
import torch

from common.files import checkpoint

needs_fork = pytest.mark.skipif(not hasattr(reliability.os, "fork"), reason="forked processes are measured")


@pytest.fixture(scope="module")
def base(tmp_path_factory, data_folder):
    """What slimming and magnitude write, on tiny data."""
    folder = tmp_path_factory.mktemp("reliability") / "base"
    before = reliability.os.environ["DATA_DIR"]
    reliability.prepare(folder, ("slimming-main", "slimming-prune", "slimming-mask", "magnitude-main",
                                 "magnitude-prune"))
    yield folder
    reliability.os.environ["DATA_DIR"] = before


@needs_fork
def test_killed_scripts_finish_as_if_never_killed(base, tmp_path):
    killed, found = reliability.kills(base, tmp_path, 4, steps=("slimming-main", "magnitude-prune"))
    assert killed == 4 and not any(found.values()), found


@needs_fork
def test_a_result_that_differs_is_found(base, tmp_path):
    """The comparison itself: one bit of one weight, one accuracy, one file more."""
    reliability.shutil.copytree(base / "slimming-main", tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pth.tar"
    whole = checkpoint.load(path)
    assert not reliability.differences(base / "slimming-main", tmp_path / "run")
    for change in (lambda c: c["state_dict"]["fc.bias"].view(torch.int32)[:1].bitwise_xor_(1),
                   lambda c: c["resume"]["rows"][0].update(top1=0.5), lambda c: c["resume"].pop("random")):
        ckpt = checkpoint.load(path)
        change(ckpt)
        checkpoint.save(tmp_path / "run" / "checkpoint.pth.tar", ckpt)
        assert reliability.differences(base / "slimming-main", tmp_path / "run") == ["checkpoint.pth.tar"]
        checkpoint.save(path, whole)
    (tmp_path / "run" / "more").touch()
    assert reliability.differences(base / "slimming-main", tmp_path / "run")


@needs_fork
def test_faults_are_found(base, tmp_path):
    """A traceback, a hang, two gigabytes, two lines, an unknown status."""
    def outcome(code, **more):
        return reliability.run("slimming.eval", ["--help"], tmp_path, before=lambda: exec(code), **more).faults()
    assert outcome("raise KeyError('x')") == ["traceback"]
    assert outcome("import time; time.sleep(9)", limit=0.1) == ["hang"]
    assert outcome("bytearray(b'x') * (2100 * 2 ** 20)")[0].endswith(" MB")
    assert outcome("import sys; print('a\\nb', file=sys.stderr); sys.exit(2)") == ["more than one line"]
    assert outcome("import os; os._exit(3)") == ["traceback"] and not outcome("pass")


@needs_fork
def test_damaged_networks_end_in_one_line(base, tmp_path):
    scripts = ("slimming-eval", "magnitude-prune", "softmask-quantize")
    tally = reliability.through(base, tmp_path, reliability.networks(base, tmp_path, 12), scripts)
    assert tally.runs == 36 and tally.refused > 20 and not tally.faults, tally.faults


@needs_fork
@pytest.mark.parametrize("make", [mutations.arrays, mutations.images])
def test_damaged_data_end_in_one_line(make, base, tmp_path):
    cases = reliability.data_sets(base, tmp_path, 8, make)
    tally = reliability.through(base, tmp_path, cases, ("slimming-eval", "magnitude-main"))
    assert tally.runs == 16 and tally.refused > 5 and not tally.faults, tally.faults


@needs_fork
def test_pickles_run_nothing(base, tmp_path):
    tally = reliability.through(base, tmp_path, reliability.payloads(base, tmp_path), ("slimming-eval",))
    assert tally.runs > 50 and tally.refused == tally.runs and not tally.ran and not tally.faults, tally.faults


@needs_fork
def test_masked_weights_stay_zero(base, tmp_path):
    for method, (steps, masked, moved) in reliability.masked_steps(base, tmp_path, 60).items():
        assert steps == 60 and masked > 10 and moved == 0, method


@needs_fork
def test_memory_is_measured_after_each_epoch(base, tmp_path):
    taken = reliability.memory(base, tmp_path, 8)
    assert len(taken) == 8 and min(taken) > 50 and taken[-1] - taken[3] < 20
