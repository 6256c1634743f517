"""The short version of tests/reliability.py: a few of each; and random widths under random masks, with hypothesis."""
import random

import mutations
import pytest
import reliability
import torch
from by_hand import like_trained
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_narrow import NETS, mask, network, random_keep, width_of

from common import UserError
from common.files import checkpoint
from common.models import ARCHS, build, input_shape
from common.models.narrow import narrow

needs_fork = pytest.mark.skipif(not hasattr(reliability.os, "fork"), reason="forked processes are measured")
FAMILIES = list(NETS)


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
        ckpt = {k: v for k, v in checkpoint.load(path).items() if k != "path"}
        change(ckpt)
        checkpoint.save(tmp_path / "run" / "checkpoint.pth.tar", ckpt)
        assert reliability.differences(base / "slimming-main", tmp_path / "run") == ["checkpoint.pth.tar"]
        checkpoint.save(path, {k: v for k, v in whole.items() if k != "path"})
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
    tally = reliability.networks(base, tmp_path, 12, scripts=scripts)
    assert tally.runs == 36 and tally.refused > 20 and not tally.faults, tally.faults


@needs_fork
@pytest.mark.parametrize("make", [mutations.arrays, mutations.images])
def test_damaged_data_end_in_one_line(make, base, tmp_path):
    tally = reliability.data_sets(base, tmp_path, 8, make, scripts=("slimming-eval", "magnitude-main"))
    assert tally.runs == 16 and tally.refused > 5 and not tally.faults, tally.faults


@needs_fork
def test_pickles_run_nothing(base, tmp_path):
    tally, ran = reliability.payloads(base, tmp_path, scripts=("slimming-eval",))
    assert tally.runs > 50 and tally.refused == tally.runs and not ran and not tally.faults, tally.faults


@needs_fork
def test_masked_weights_stay_zero(base, tmp_path):
    for method, (steps, masked, moved) in reliability.masked_steps(base, tmp_path, 60).items():
        assert steps == 60 and masked > 10 and moved == 0, method


@needs_fork
def test_memory_is_measured_after_each_epoch(base, tmp_path):
    taken = reliability.memory(base, tmp_path, 8)
    assert len(taken) == 8 and min(taken) > 50 and taken[-1] - taken[3] < 20


# Networks of random widths


def random_network(name, seed):
    """One of these, narrowed at random, with fresh weights and random batch norms: a network of random widths."""
    torch.manual_seed(seed)
    model = network(name, seed=seed)
    keep = {}
    for record in model.channels():
        if record.producers:
            layer = record.names()[0]
            width = width_of(dict(model.named_modules()), layer)
            keep[layer] = random_keep(record, width, share=float(torch.rand(())))
    try:
        cfg = narrow(zeroed(model, keep), keep).cfg
    except UserError:                                        # a selection was left with nothing to read
        cfg = model.cfg
    torch.manual_seed(seed + 1)
    return like_trained(build(model.arch, **cfg).double().eval())


def zeroed(model, keep):
    """The model with what `keep` drops made zero, by zeros in its weights alone."""
    for record in model.channels():
        if record.names()[0] in keep:
            mask(model, record, keep[record.names()[0]])
    return model


def check(name, seed, share, some):
    """narrow(masked) computes what masked does, for a random network and masks that keep `share` in `some` layers."""
    model = random_network(name, seed)
    rng, keep, modules = random.Random(seed), {}, dict(model.named_modules())
    for record in model.channels():
        if rng.random() < some:
            keep[record.names()[0]] = random_keep(record, width_of(modules, record.names()[0]), share)
    masked = zeroed(model, keep)
    try:
        slim = narrow(masked, keep)
    except UserError as error:
        assert "nothing is left" in str(error)
        return False
    images = torch.randn(2, *input_shape(model.arch), dtype=torch.float64)
    with torch.no_grad():
        expected, got = masked(images), slim(images)
    assert (got - expected).abs().max() <= 1e-9 * max(1, float(expected.abs().max()))
    assert all(int(kept.sum()) == slim.cfg[key][i] for r in model.channels() if r.producers
               for kept in [keep.get(r.names()[0])] if kept is not None for key, i in r.places)
    return True


def narrow_examples(name, count):
    """Runs `count` examples of a family; how many were compared."""
    compared = [0]

    @settings(max_examples=count, deadline=None, derandomize=True, database=None, print_blob=False,
              suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 10 ** 6), st.floats(0.05, 0.95), st.floats(0.1, 1))
    def examples(seed, share, some):
        compared[0] += check(name, seed, share, some)
    examples()
    return compared[0]


def test_every_family_has_random_widths():
    assert {NETS[name][0] for name in FAMILIES} == set(ARCHS)


@pytest.mark.parametrize("name", FAMILIES)
def test_narrow_is_masked_for_random_widths_and_masks(name):
    assert narrow_examples(name, 4)
