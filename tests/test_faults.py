"""Files that are damaged, or made to harm, end in one line, soon and in little memory; nothing is lost by it."""
import hashlib
import io
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch
from conftest import ROOT

from common import UserError, cli, data, models, plots
from common.files import archive, checkpoint
from hoyer import finetune as hoyer_finetune
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


def test_every_flipped_bit_is_noticed(sealed):
    content, folder = sealed
    path = folder / "flipped.pth.tar"
    whole = checkpoint.load(folder / "c.pth.tar")
    assert whole["resume"]["rows"] and whole["masks"]
    step = max(len(content) // 300, 1)
    ends = {*range(60), *range(len(content) - 150, len(content))}            # headers, and the sum itself
    for place in sorted({*range(0, len(content), step)} | ends):
        for bit in (place % 8, (place + 3) % 8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            with pytest.raises(UserError, match="flipped.pth.tar (is damaged|is truncated)"):
                checkpoint.load(path)


@pytest.mark.parametrize("keep", [0, 1, 70, 71, 72, 500, -72, -71, -10, -1])
def test_every_cut_is_noticed(keep, sealed):
    content, folder = sealed
    (folder / "cut.pth.tar").write_bytes(content[:keep])
    with pytest.raises(UserError, match="cut.pth.tar (is damaged|is truncated)"):
        checkpoint.load(folder / "cut.pth.tar")


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


# What a file promises


def test_an_archive_that_declares_more_than_it_has(tmp_path, quick):
    path = tmp_path / "bomb.pth.tar"
    torch.save({"format": 1, **small()}, path)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "b.pth.tar", "w", zipfile.ZIP_DEFLATED) as packed:
        for record in whole.infolist():
            packed.writestr(record.filename, whole.read(record))
        packed.writestr("archive/data/99", bytes(2 ** 28))
    with pytest.raises(UserError, match="b.pth.tar declares more bytes than it has"):
        checkpoint.load(tmp_path / "b.pth.tar")


def bare(shape):
    """A state_dict whose first weight is one number repeated to this shape."""
    return {"feature.0.weight": torch.zeros(1).expand(shape)}


LARGE = {
    "depth": (dict(cfg={"depth": 60002}, arch="resnet"), "depth 60002; the deepest"),
    "default widths": (dict(cfg={"depth": 11, "num_classes": 10 ** 9}), "the largest has"),
    "widths": (dict(cfg={**SMALL, "widths": [10 ** 9, *SMALL["widths"][1:]]}), "the largest|cannot be"),
    "huge widths": (dict(cfg={**SMALL, "widths": [10 ** 18, "M", 10 ** 18, *SMALL["widths"][3:]]}), "cannot be built"),
    "no widths": (dict(cfg={"depth": 11, "widths": [1.5] * 12}), "cannot be built"),
    "growth": (dict(arch="densenet", cfg={"depth": 40, "growth": 10 ** 8}), "cannot be built"),
    "selection": (dict(arch="lenet300", cfg={"widths": [784, 10 ** 9, 100]}), "the largest has"),
    "repeated weight": (dict(state_dict=bare((10 ** 5, 10 ** 5))), "declare 40,000,000,000 bytes, the file has"),
    "masks": (dict(packed={"bits": torch.zeros(10).byte(), "values": torch.zeros(1)},
                   masks={"feature.0.weight": [10 ** 5, 10 ** 5]}), "10 bytes are not 10,000,000,000 bits"),
    "quantized": (dict(quant={"feature.0.weight": {"bits": 8, "shape": [10 ** 5, 10 ** 5], "codes": torch.zeros(
        9).byte(), "scale": torch.ones(()), "zero": torch.zeros(()).int()}}), "9 bytes are not"),
    "quantized, kept": (dict(quant={"feature.0.weight": {
        "bits": 8, "shape": [10 ** 5, 10 ** 5], "codes": torch.zeros(9).byte(), "kept": torch.zeros(9).byte(),
        "scale": torch.ones(()), "zero": torch.zeros(()).int()}}), "9 bytes are not"),
    "scales": (dict(quant={"feature.0.weight": {"bits": 8, "shape": [1000, 100], "codes": torch.zeros(100000).byte(),
                    "scale": torch.ones(100000, 1, 1), "zero": torch.zeros(()).int()}}), "scales that do not fit"),
    "activations": (dict(activations={"classifier": {"bits": 10 ** 9, "scale": 1.0, "zero": 0}}), "activations"),
}


@pytest.mark.parametrize("what", LARGE)
def test_what_is_too_large_is_refused_before_it_is_built(what, tmp_path, quick):
    change, message = LARGE[what]
    path = crafted(tmp_path / "large.pth.tar", {**small(), **change})
    with pytest.raises(UserError, match=f"large.pth.tar.*{message}"):
        checkpoint.to_model(checkpoint.load(path, quantized=True))


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


@pytest.mark.parametrize("flags", [["--depth", "60002"], ["--depth", "110", "--width", "1000"]])
def test_a_network_too_large_to_build_is_refused_on_the_command_line_too(flags, quick):
    cfg = {"depth": int(flags[1])} if len(flags) == 2 else {"depth": 28, "widen_factor": 1000}
    with pytest.raises(UserError, match="60002; the deepest|the largest has"):
        models.build("resnet" if len(flags) == 2 else "wideresnet", **cfg)


# Wrong types and numbers


def with_weight(change):
    ckpt = small()
    change(ckpt["state_dict"])
    return {"state_dict": ckpt["state_dict"]}


def put(name, place, value):
    return with_weight(lambda state: state[name].view(-1).__setitem__(place, value))


ONES = torch.ones(4, 3, 3, 3)
WRONG = {
    "nan": (put("feature.4.weight", 7, float("nan")), r"feature.4.weight\[.*\] is nan \(1 such"),
    "inf": (put("feature.1.running_var", 2, float("inf")), r"feature.1.running_var\[2\] is inf"),
    "integer weights": (with_weight(lambda s: s.update({"classifier.bias": torch.ones(10).long()})), "torch.int64"),
    "complex": (with_weight(lambda s: s.update({"classifier.bias": torch.ones(10) * 1j})), "complex"),
    "sparse": (with_weight(lambda s: s.update({"classifier.bias": torch.ones(10).to_sparse()})), "not a dense tensor"),
    "meta": (with_weight(lambda s: s.update({"classifier.bias": torch.ones(10, device="meta")})), "not a dense tensor"),
    "masks: a list": (dict(masks=[1]), "its masks is not a dictionary"),
    "masks: None": (dict(masks=None), "its masks is not a dictionary"),
    "masks: numbers": (dict(masks={"feature.0.weight": ONES}), "mask of feature.0.weight"),
    "masks: text": (dict(masks={"feature.0.weight": "all"}), "mask of feature.0.weight"),
    "masks: keys": (dict(masks={3: ONES.bool()}), "its masks is not a dictionary"),
    "soft masks": (dict(soft_masks={"feature.0": [1]}), "soft mask of feature.0"),
    "dense: text": (dict(dense="large"), "its dense is not"), "dense: empty": (dict(dense={}), "its dense is not"),
    "dense: zero": (dict(dense={"params": 0, "macs": 1, "cfg": {}}), "its dense is not"),
    "prec1: text": (dict(prec1="high"), "its prec1 is not a percentage"),
    "prec1: nan": (dict(prec1=float("nan")), "its prec1 is not"), "prec1: 101": (dict(prec1=101), "its prec1 is not"),
    "best": (dict(best_prec1=[1]), "its best_prec1 is not"), "epoch": (dict(epoch=-1), "its epoch is not"),
    "epoch: text": (dict(epoch="3"), "its epoch is not"), "args": (dict(args=3), "its args is not"),
    "method": (dict(method=None), "its method is not"), "dataset": (dict(dataset=3), "its dataset is not"),
    "lines": (dict(dataset="a\nb"), "its dataset is not text of one line"), "run": (dict(run=[]), "its run is not"),
    "stage": (dict(stage=[]), "stage"), "arch": (dict(arch=["vgg"]), "its arch is not"),
    "quant": (dict(quant=[1]), "do not match"), "activations": (dict(activations=3), "its activations is not"),
    "recipe": (dict(recipe=3), "its recipe is not"), "resume": (dict(resume=3), "its resume is not"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_types_and_numbers_are_named(what, tmp_path):
    change, message = WRONG[what]
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


def arrays(**change):
    images = np.zeros((20, 8, 8, 3), np.uint8)
    return {"x_train": images, "y_train": np.arange(20) % 2, "x_test": images, "y_test": np.arange(20) % 2, **change}


def header(shape, descr="|u1"):
    """An .npy that promises this shape and has nothing."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize("labels, message", [
    (np.full(20, 2 ** 64 - 1, np.uint64), "a label 18446744073709551615 in y_train, but 20 training images"),
    (np.arange(20) * 10 ** 9, "a label 19000000000 in y_train, but 20"),
    (np.full(20, -2 ** 63), "class numbers from 0")])
def test_labels_far_above_the_number_of_images_are_refused(labels, message, tmp_path, quick):
    np.savez(tmp_path / "labels.npz", **arrays(y_train=labels))
    with pytest.raises(UserError, match=f"labels: .*{message}"):
        data.load("labels", tmp_path)
    np.savez(tmp_path / "more.npz", **arrays(y_train=np.arange(20) * 10, y_test=np.arange(20) * 10))
    assert data.load("more", tmp_path).num_classes == 191    # classes without an image are no fault


@pytest.mark.parametrize("shape", [(10 ** 12, 32, 32, 3), (2 ** 40, 2 ** 40), (2 ** 62, 4, 1, 1), (10 ** 30, 8, 8, 3)])
@pytest.mark.parametrize("key", ["x_train", "y_test"])
def test_a_header_that_promises_more_than_there_is(shape, key, tmp_path, quick):
    with zipfile.ZipFile(tmp_path / "promise.npz", "w") as file:
        for name, array in arrays().items():
            with file.open(f"{name}.npy", "w") as record:
                if name == key:
                    record.write(header(shape) + bytes(1000))
                else:
                    np.save(record, array)
    with pytest.raises(UserError, match=rf"promise.npz is not .*{key} is to be uint8 \({shape[0]}.*has 1,000 bytes"):
        data.load("promise", tmp_path)


def test_a_zip_bomb_is_refused(tmp_path, quick):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        for name, array in arrays().items():
            with file.open(f"{name}.npy", "w") as record:
                if name == "x_train":
                    record.write(header((100_000, 64, 64, 1)))
                    for _ in range(100):
                        record.write(bytes(1000 * 64 * 64))
                else:
                    np.save(record, array)
    assert (tmp_path / "bomb.npz").stat().st_size < 2 ** 20
    with pytest.raises(UserError, match="bomb.npz is not .* that unpack to 409,6.*, as a zip bomb does"):
        data.load("bomb", tmp_path)


def test_a_compressed_set_is_read_as_ever(tmp_path):
    np.savez_compressed(tmp_path / "small.npz", **arrays())
    assert len(data.load("small", tmp_path).y_train) == 20


# A full disk


def limited(size):
    """This process can write no file beyond `size` bytes, which torch.save sees as it sees a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_a_full_disk_is_said_and_what_was_there_stays(tmp_path):
    path = checkpoint.save(tmp_path / "c.pth.tar", small())
    before = path.read_bytes()
    for size in (1000, 5000, len(before) - 80, len(before) - 1):
        try:
            limited(size)
            with pytest.raises(UserError, match="cannot write .*c.pth.tar .the disk is full; make room"):
                checkpoint.save(path, small(epoch=3))
        finally:
            limited(resource.RLIM_INFINITY)
        assert path.read_bytes() == before and os.listdir(tmp_path) == ["c.pth.tar"], size


def test_a_log_that_cannot_be_written_leaves_the_one_before(tmp_path, capsys):
    plots.write_log(tmp_path / "log.csv", [{"epoch": 1}])
    try:
        limited(1000)
        with pytest.raises(SystemExit) as end:
            cli.script(lambda: plots.write_log(tmp_path / "log.csv", [{"epoch": i} for i in range(10000)]))
    finally:
        limited(resource.RLIM_INFINITY)
    said = capsys.readouterr().err
    assert end.value.code == 2 and "the disk is full" in said and said.count("\n") == 1
    assert (tmp_path / "log.csv").read_text() == "epoch\n1\n" and os.listdir(tmp_path) == ["log.csv"]


FULL = """
mount -t tmpfs -o size=600k tmpfs {folder} || exit 77
cd {folder}
run() {{ {python} {root}/slimming/main.py -sr --arch densenet --depth 7 --dataset shapes10 --subset 32 \\
    --batch-size 16 --precision fp32 --device cpu --save run "$@"; }}
run --epochs 4 > /dev/null || exit 78
cp run/checkpoint.pth.tar {before}
head -c 10m /dev/zero > filler 2> /dev/null
run --epochs 5 --resume auto > /dev/null
echo "status $?" >&2
rm filler
cmp run/checkpoint.pth.tar {before} || exit 79
run --epochs 5 --resume auto > {before} || exit 80
grep -q "resumed .* after epoch 4" {before} || exit 81
"""


def test_a_run_on_a_full_disk_ends_in_one_line_and_can_go_on(tmp_path):
    (tmp_path / "disk").mkdir()
    script = FULL.format(folder=tmp_path / "disk", python=sys.executable, root=ROOT, before=tmp_path / "before")
    done = subprocess.run(["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True)
    if done.returncode in (1, 77) and "status" not in done.stderr:
        pytest.skip("no small disk can be mounted here")
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 0 and lines[-1] == "status 2" and len(lines) == 2, done.stderr
    assert "the disk is full" in lines[0] and lines[0].startswith("main.py: error: ")


def test_a_dense_network_that_cannot_be_built_is_refused(tmp_path):
    ckpt = small(dense={"params": 9, "macs": 9, "cfg": {"depth": 11, "widths": [10 ** 9] * 12}})
    with pytest.raises(UserError, match="d.pth.tar: its dense describes a network that cannot be built"):
        checkpoint.load(crafted(tmp_path / "d.pth.tar", ckpt))


def test_hoyer_fine_tunes_what_softmask_has_quantized(tmp_path, data_folder):
    """Both methods have a --rule, and not the same: one is a list."""
    weight = "feature.0.weight"
    path = checkpoint.save(tmp_path / "q.pth.tar", small(masks={weight: small()["state_dict"][weight] > -9},
                                                         args={"rule": [["conv", "linear", "8"]]}))
    hoyer_finetune.main(["--model", str(path), "--subset", "20", "--batch-size", "10", "--epochs", "1", "--save",
                         str(tmp_path / "run"), "--device", "cpu"])
    assert checkpoint.load(tmp_path / "run" / "finetuned.pth.tar")["args"]["rule"] is None
