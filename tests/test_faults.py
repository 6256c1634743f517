"""Files that are damaged, or made to harm, end in one line, soon and in little memory; nothing is lost by it."""
import errno
import hashlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from by_hand import call
from conftest import ROOT
from mutations import npy

from common import FULL, UserError, cli, data, models, plots
from common.files import archive, checkpoint, packing
from slimming.networks import network

SMALL = dict(depth=11, widths=[4, "M", 4, "M", 4, 4, "M", 4, 4, "M", 4, 4])


def small(**more):
    torch.manual_seed(0)
    return checkpoint.of(models.build("vgg", **SMALL), "slimming", "dense", "shapes10", prec1=50.0, **more)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """(bytes, folder) of a file that save wrote, with a mask and an optimizer's state."""
    folder = tmp_path_factory.mktemp("sealed")
    weight = small()["state_dict"]["feature.0.weight"]
    path = checkpoint.save(folder / "c.pth.tar", small(masks={"feature.0.weight": weight > -9}, resume={
        "optimizer": {"state": {0: {"step": 3.0}}}, "rows": [{"epoch": 1, "lr": 0.1}]}))
    return path.read_bytes(), folder


@pytest.fixture
def quick():
    """The test takes less than a minute of computing and less than a gigabyte more than there was."""
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.process_time() - began < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 ** 20               # KiB


def crafted(path, content):
    """A file of our format with whatever content, and a right checksum."""
    torch.save({"format": 1, **content}, path)
    archive.seal(path)
    return path


# The checksum


def test_every_flipped_bit_and_every_cut_is_noticed(sealed):
    content, folder = sealed
    path = folder / "damaged.pth.tar"
    whole = checkpoint.load(folder / "c.pth.tar")
    assert whole["resume"]["rows"] and whole["masks"]

    def refused(damaged):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged.pth.tar (is damaged|is truncated)"):
            checkpoint.load(path)
    step = max(len(content) // 300, 1)
    ends = {*range(60), *range(len(content) - 150, len(content))}            # headers, and the sum itself
    for place in sorted({*range(0, len(content), step)} | ends):
        for bit in (place % 8, (place + 3) % 8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            refused(flipped)
    for kept in (0, 1, 70, 71, 72, 500, -72, -71, -10, -1):
        refused(content[:kept])


def test_anyone_can_read_a_file_with_a_checksum(sealed):
    content, folder = sealed
    theirs = torch.load(folder / "c.pth.tar", weights_only=True)
    assert theirs["method"] == "slimming" and zipfile.ZipFile(folder / "c.pth.tar").testzip() is None
    assert content[-71:].startswith(b"sha256 ")


def test_a_file_without_a_checksum_loads_and_its_records_are_checked(tmp_path):
    path = tmp_path / "early.pth.tar"
    torch.save({"format": 1, **small()}, path)
    state = checkpoint.load(path)["state_dict"]
    content = bytearray(path.read_bytes())
    place = content.index(state["classifier.weight"].numpy().tobytes())
    content[place + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="early.pth.tar is damaged: the CRC-32 of .*data/"):
        checkpoint.load(path)


def test_a_large_checksum_costs_little(tmp_path):
    """40 MB: hardly more than hashing it twice."""
    path = tmp_path / "large.pth.tar"
    torch.save({"w": torch.rand(10_000_000)}, path)
    times = [time.process_time()]
    for step in (lambda: hashlib.sha256(path.read_bytes()), lambda: (archive.seal(path), archive.check_bytes(path))):
        step()
        times.append(time.process_time())
    assert times[2] - times[1] < 10 * (times[1] - times[0]) + 1


@pytest.mark.parametrize("name, fits", [("/写真\u3000集/caf\xe9\xa0.npz", True), ("a\x1b[2J", False), ("a\nb", False)])
def test_what_a_file_calls_its_data_is_text_of_one_line(name, fits, tmp_path):
    path = checkpoint.save(tmp_path / "a.pth.tar", small() | {"dataset": name})
    if fits:
        assert checkpoint.load(path)["dataset"] == name
    else:
        with pytest.raises(UserError, match="its dataset is not text of one line"):
            checkpoint.load(path)


# A file's declared sizes


def test_an_archive_that_declares_more_than_it_has(tmp_path, quick):
    path = tmp_path / "bomb.pth.tar"
    torch.save({"format": 1, **small()}, path)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "b.pth.tar", "w", zipfile.ZIP_DEFLATED) as packed:
        for record in whole.infolist():
            packed.writestr(record.filename, whole.read(record))
        packed.writestr("archive/data/99", bytes(2 ** 28))
    with pytest.raises(UserError, match="b.pth.tar declares more bytes than it has"):
        checkpoint.load(tmp_path / "b.pth.tar")


def test_a_foreign_file_with_a_repeated_bias_is_refused(tmp_path, quick):
    state = {**small()["state_dict"], "classifier.bias": torch.zeros(1).expand(10 ** 9)}
    torch.save(state, tmp_path / "bare.pth")
    with pytest.raises(UserError, match="bare.pth: .* declare"):
        checkpoint.load(tmp_path / "bare.pth", network, "vgg", 11)


def test_lists_in_lists_are_refused(tmp_path, quick):
    """Thirty lists of ten: few bytes, and 10^30 numbers."""
    nest = [0]
    for _ in range(30):
        nest = [nest] * 10
    path = crafted(tmp_path / "nest.pth.tar", {**small(), "args": {"lr": nest}})
    with pytest.raises(UserError, match="nest.pth.tar holds more than 5,000,000 values"):
        checkpoint.load(path)


def test_a_dictionary_that_holds_itself_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "NODES", 1000)
    content = {"epoch": 1}
    content["model"] = content
    torch.save(content, tmp_path / "loop.pth")
    with pytest.raises(UserError, match="loop.pth holds more than 1,000 values"):
        checkpoint.load(tmp_path / "loop.pth")


# Wrong types and numbers


def put(name, place, value):
    state = small()["state_dict"]
    state[name].view(-1)[place] = value
    return {"state_dict": state}


WEIGHT = "feature.0.weight"
ENTRY = {"bits": 8, "shape": [10 ** 5, 10 ** 5], "codes": torch.zeros(9).byte(), "scale": torch.ones(()),
         "zero": torch.zeros(()).int()}
GOOD = packing.quantized(torch.arange(108).view(4, 3, 3, 3) % 16, 4, torch.tensor(0.1), torch.tensor(8))
CODES = GOOD["codes"]
REST = {name: tensor for name, tensor in small()["state_dict"].items() if name != WEIGHT}
WRONG = [  # what is changed in a file, and the message
    (dict(cfg={"depth": 11, "num_classes": 10 ** 9}), "the largest has"),
    (dict(cfg=SMALL | {"widths": [10 ** 9, *SMALL["widths"][1:]]}), "the largest|cannot be"),
    (dict(cfg=SMALL | {"widths": [10 ** 18, "M", 10 ** 18, *SMALL["widths"][3:]]}), "cannot be built"),
    (dict(cfg={"depth": 11, "widths": [1.5] * 12}), "cannot be built"),
    (dict(arch="densenet", cfg={"depth": 40, "growth": 10 ** 8}), "cannot be built"),
    (dict(arch="lenet300", cfg={"widths": [784, 10 ** 9, 100]}), "the largest has"),
    (dict(arch="resnet", cfg={"depth": 60002}), "60002; the deepest"), (dict(cfg={"depth": 13}), "feature"),
    *[(dict(cfg=SMALL | {key: value}), message) for key, value, message in (
        ("colour", "red", "colour"), ("depth", 12, "depth"), ("depth", 13, "widths"), ("num_classes", -1, "built"),
        ("widths", [1], "widths"), ("num_classes", 7, "another depth, width"))],
    (dict(arch="transformer"), "unknown arch 'transformer'"), (dict(arch="resnet", cfg={"depth": 20}), "conv1"),
    (dict(state_dict={WEIGHT: torch.zeros(1).expand(10 ** 5, 10 ** 5)}), "declare 40,000,000,000 bytes, the file has"),
    (dict(packed={"bits": torch.zeros(10).byte(), "values": torch.zeros(1)}, masks={WEIGHT: [10 ** 5, 10 ** 5]}),
     "10 bytes are not 10,000,000,000 bits"),
    (dict(quant={WEIGHT: ENTRY}), "9 bytes are not"),
    (dict(quant={WEIGHT: ENTRY | {"kept": torch.zeros(9).byte()}}), "9 bytes are not"),
    (dict(quant={WEIGHT: ENTRY | {"shape": [1000, 100], "codes": torch.zeros(100000).byte(),
                                  "scale": torch.ones(100000, 1, 1)}}), "scales that do not fit"),
    *[(dict(quant=quant), "do not match") for quant in ([1], {WEIGHT: 3}, {WEIGHT: []})],
    *[(dict(state_dict=REST, quant={WEIGHT: {k: v for k, v in (GOOD | change).items() if v is not None}}),
       "its masks and its packed weights do not match") for change in (
        {"codes": None}, {"scale": None}, {"zero": None}, {"bits": 5}, {"bits": 0}, {"bits": "4"},
        {"codes": CODES[:-1]}, {"codes": CODES.float()}, {"shape": [4, 3, 3]}, {"shape": "no"},
        {"scale": torch.ones(5)}, {"scale": torch.tensor(float("nan"))}, {"codebook": torch.zeros(3)},
        {"codebook": torch.zeros(2, 16)}, {"codebook": [1.0]}, {"kept": CODES})],
    (dict(activations={"classifier": {"bits": 10 ** 9, "scale": 1.0, "zero": 0}}), "activations"),
    (dict(activations={"conv9": {"bits": 8, "scale": 1.0, "zero": 0}}), "conv9"),
    (dict(dense={"params": 9, "macs": 9, "cfg": {"depth": 11, "widths": [10 ** 9] * 12}}),
     "its dense describes a network that cannot be built"),
    (put("feature.4.weight", 7, float("nan")), r"feature.4.weight\[.*\] is nan \(1 such"),
    (put("feature.1.running_var", 2, float("inf")), r"feature.1.running_var\[2\] is inf"),
    (dict(state_dict=small()["state_dict"] | {"ghost": torch.ones(1)}), "has ghost, which a vgg"),
    *[(dict(state_dict=small()["state_dict"] | {"classifier.bias": bias}), message) for bias, message in (
        (torch.ones(10).long(), "torch.int64"), (torch.ones(10) * 1j, "complex"),
        (torch.ones(10).to_sparse(), "not a dense tensor"), (torch.ones(10, device="meta"), "not a dense tensor"))],
    *[(dict(masks={name: mask}), f"mask of {name}") for name, mask in (
        (WEIGHT, torch.ones(4, 3, 3, 3)), (WEIGHT, "all"), ("ghost", torch.ones(2).bool()),
        ("classifier.bias", torch.ones(2).bool()))],
    (dict(soft_masks={"feature.0": [1]}), "soft mask of feature.0"),
    (dict(prec1="high"), "its prec1 is not a percentage"), (dict(dataset="a\nb"), "dataset is not text of one line"),
    *[({field: value}, f"its {field} is not") for field, values in {
        "masks": ([1], None, {3: torch.ones(4, 3, 3, 3).bool()}), "dense": ("large", {}, {"params": 0, "macs": 1,
        "cfg": {}}), "prec1": (float("nan"), 101), "best_prec1": ([1],), "epoch": (-1, "3"), "args": (3,),
        "method": (None,), "dataset": (3,), "run": ([],), "arch": (["vgg"],), "activations": (3,), "recipe": (3,),
        "resume": (3,), "cfg": ([1],)}.items() for value in values],
    *[({field: value}, field) for field, value in (("stage", []), ("stage", "half"), ("state_dict", [1]))],
]


@pytest.mark.parametrize("change, message", WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_named_before_memory_is_taken_for_it(change, message, tmp_path, quick):
    path = crafted(tmp_path / "wrong.pth.tar", {**small(), **change})
    with pytest.raises(UserError, match=f"wrong.pth.tar.*{message}"):
        checkpoint.to_model(checkpoint.load(path, quantized=True))


@pytest.mark.parametrize("indices", [[0, 1, 99], [-1, 0, 1]])
def test_indices_out_of_range_are_named(indices, tmp_path):
    model = models.build("densenet", depth=7, growth=4, selection=True)
    ckpt = checkpoint.of(model, "slimming", "dense", "shapes10")
    width = len(ckpt["state_dict"]["dense1.0.select.indices"])
    ckpt["state_dict"]["dense1.0.select.indices"] = torch.tensor((indices * width)[:width])
    with pytest.raises(UserError, match=f"dense1.0.select.indices selects channels {min(indices)} to"):
        checkpoint.load(crafted(tmp_path / "i.pth.tar", ckpt))
    torch.save(ckpt["state_dict"], tmp_path / "bare.pth")
    with pytest.raises(UserError, match="dense1.0.select.indices selects"):
        checkpoint.load(tmp_path / "bare.pth", lambda arch, depth: ("densenet", dict(model.cfg)), "densenet")


def test_output_that_nobody_reads_on_ends_the_script_quietly():
    """As in `eval.py FILE | head -1`: no traceback, and the status a shell gives to a broken pipe."""
    command = [sys.executable, ROOT / "hoyer" / "eval.py", ROOT / "chkpt" / "hoyer-lenet300-mnist-hs.pth.tar"]
    with subprocess.Popen([*command, "--dataset", "shapes10", "--subset", "100"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_long_message_is_cut(capsys):
    with pytest.raises(SystemExit):
        cli.script(lambda: (_ for _ in ()).throw(UserError("x" * 10 ** 6 + "the end")))
    said = capsys.readouterr().err
    assert len(said) < 2000 and said.endswith("the end\n")


# Data


def arrays():
    images = np.zeros((20, 8, 8, 3), np.uint8)
    return {"x_train": images, "y_train": np.arange(20) % 2, "x_test": images, "y_test": np.arange(20) % 2}


@pytest.mark.parametrize("shape", [(10 ** 12, 32, 32, 3), (2 ** 40, 2 ** 40), (2 ** 62, 4, 1, 1), (10 ** 30, 8, 8, 3)])
@pytest.mark.parametrize("key", ["x_train", "y_test"])
def test_a_header_that_promises_more_than_there_is(shape, key, tmp_path, quick):
    with zipfile.ZipFile(tmp_path / "promise.npz", "w") as file:
        for name, array in arrays().items():
            with file.open(f"{name}.npy", "w") as record:
                if name == key:
                    record.write(npy(np.zeros(1000, np.uint8), shape))
                else:
                    np.save(record, array)
    with pytest.raises(UserError, match=rf"promise.npz is not .*{key} is to be uint8 \({shape[0]}.*has 1,000 bytes"):
        data.load("promise", tmp_path)


def test_a_zip_bomb_is_refused(tmp_path, quick):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, array in arrays().items():
            with file.open(f"{name}.npy", "w") as record:
                if name == "x_train":
                    record.write(npy(np.zeros(0, np.uint8), (100_000, 64, 64, 1)))
                    for _ in range(100):
                        record.write(bytes(1000 * 64 * 64))
                else:
                    np.save(record, array)
    assert (tmp_path / "bomb.npz").stat().st_size < 2 ** 20
    with pytest.raises(UserError, match="bomb.npz is not .* that unpack to 409,6.*, as a zip bomb does"):
        data.load("bomb", tmp_path)


# A full disk


@contextmanager
def limited(size):
    """This process can write no file beyond `size` bytes, which torch.save sees as it sees a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


def test_a_full_disk_is_said_and_what_was_there_stays(tmp_path):
    path = checkpoint.save(tmp_path / "c.pth.tar", small())
    before = path.read_bytes()
    for size in (1000, 5000, len(before) - 80, len(before) - 1):
        with limited(size), pytest.raises(UserError, match="cannot write .*c.pth.tar .the disk is full; make room"):
            checkpoint.save(path, small(epoch=3))
        assert path.read_bytes() == before and os.listdir(tmp_path) == ["c.pth.tar"], size


def full(work, capsys):
    """A script that does this on a full disk ends in one line."""
    with limited(1000), pytest.raises(SystemExit) as end:
        cli.script(work)
    said = capsys.readouterr().err
    assert end.value.code == 2 and "the disk is full" in said and said.count("\n") == 1


def test_a_log_that_cannot_be_written_leaves_the_one_before(tmp_path, capsys):
    plots.write_csv(tmp_path / "log.csv", [{"epoch": 1}])
    full(lambda: plots.write_csv(tmp_path / "log.csv", [{"epoch": i} for i in range(10000)]), capsys)
    assert (tmp_path / "log.csv").read_text() == "epoch\n1\n" and os.listdir(tmp_path) == ["log.csv"]


def test_a_run_on_a_full_disk_ends_in_one_line_and_can_go_on(tmp_path, capsys):
    def train(epochs):
        call("slimming.main", "-sr", "--arch", "densenet", "--depth", 7, "--dataset", "shapes10", "--subset", 32,
             "--batch-size", 16, "--precision", "fp32", "--device", "cpu", "--resume", "auto", "--epochs", epochs,
             "--save", tmp_path / "run")
    train(4)
    before = (tmp_path / "run/checkpoint.pth.tar").read_bytes()
    full(lambda: train(5), capsys)
    assert (tmp_path / "run/checkpoint.pth.tar").read_bytes() == before
    train(5)
    assert re.search("resumed .* after epoch 4", capsys.readouterr().out) and {errno.ENOSPC, errno.EDQUOT} <= {*FULL}


def test_hoyer_fine_tunes_what_softmask_has_quantized(tmp_path):
    """Both methods have a --rule, and not the same: one is a list."""
    path = checkpoint.save(tmp_path / "q.pth.tar", small(masks={WEIGHT: small()["state_dict"][WEIGHT] > -9},
                                                         args={"rule": [["conv", "linear", "8"]]}))
    call("hoyer.finetune", "--model", path, "--subset", 20, "--batch-size", 10, "--epochs", 1, "--save",
         tmp_path / "run", "--device", "cpu")
    assert checkpoint.load(tmp_path / "run" / "finetuned.pth.tar")["args"]["rule"] is None
