"""A network deployed gives torch's logits: as plain operations, as ONNX in fp32 and int8, and as C."""
import ctypes
import json
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from by_hand import call, like_trained, save
from conftest import EXPORTS
from test_narrow import NETS, choose, images_for, network, zeroed
from test_trace import EVERYTHING, half

from common import UserError, compute_flops, data, models
from common.files import checkpoint
from common.models import own
from common.models.layers import ChannelSelection, select
from common.models.narrow import narrow, silence
from deploy import benchmark, latency, measure, runtime, to_c, to_onnx
from deploy.graph import logits_of, operations
from deploy.spread import spread

ONNX = pytest.mark.skipif(not (measure.installed("onnx") and measure.installed("onnxruntime")),
                          reason="onnx and onnxruntime are not installed (requirements-deploy.txt)")
ONNXSCRIPT = pytest.mark.skipif(not (EXPORTS and measure.installed("onnxscript")), reason="no onnxscript, or torch 2.6")
CC = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler here")
CPU = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
X86 = platform.machine().lower() in ("x86_64", "amd64")
WIDTHS = ["-march=native", *["-msse2", "-mavx2"] * X86]      # vectors of every width, whatever the machine


def selecting(name, dtype=torch.float64):
    """The network without a part of its channels, and of what each selection passes on."""
    model = network(name, dtype)
    keep = choose(model, lambda record: True)
    return narrow(zeroed(model, keep), keep).eval()


@pytest.mark.parametrize("name", NETS)
def test_plain_operations_give_the_logits(name):
    for model in (network(name), selecting(name)):
        images = images_for(model)
        with torch.no_grad():
            expected = model(images)
            assert (logits_of(operations(model), images) - expected).abs().max() < 1e-9 * expected.abs().max()
    ops = [node.op for node in operations(model)]
    if name == "vgg":
        assert "norm" not in ops                             # all folded
    assert ("gather" in ops) == ("select" in name or name.startswith("lenet"))


@pytest.mark.parametrize("name", [name for name in NETS if "select" in name or name.startswith("lenet")])
def test_every_form_of_a_selection_gives_the_same_logits(name):
    model = selecting(name)
    images = images_for(model)
    with torch.no_grad():
        expected = model(images)
        for where in (lambda layer: True, lambda layer: False, lambda layer: layer.weight.shape[2:] == (1, 1)):
            wide = spread(model, where)
            assert (wide(images) - expected).abs().max() < 1e-9 * expected.abs().max()
    wide = spread(model)
    assert all(m.indices.numel() == m.width for m in wide.modules() if isinstance(m, ChannelSelection))
    assert not all(m.indices.numel() == m.width for m in model.modules() if isinstance(m, ChannelSelection))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 10, 5, 4), (3, 10)])
def test_a_selection_takes_channels_in_either_memory_order(shape, dtype):
    x = torch.randn(shape).to(dtype)
    indices = torch.tensor([7, 0, 3])
    for layout in (torch.contiguous_format, torch.channels_last)[:1 + (len(shape) == 4)]:
        a, b = (x.clone(memory_format=layout).requires_grad_() for _ in range(2))
        chosen = select(a, indices)
        assert torch.equal(chosen, b[:, indices]) and chosen.is_contiguous(memory_format=layout)
        weight = torch.randn_like(chosen)
        (chosen * weight).sum().backward()
        (b[:, indices] * weight).sum().backward()
        assert torch.equal(a.grad, b.grad)


def test_the_template_of_the_c_files_is_not_written_over():
    template, net = to_c.TEMPLATE.read_bytes(), models.build("lenet5")
    with pytest.raises(UserError, match="is the template of all C files"):
        to_c.export(net, to_c.TEMPLATE)
    assert to_c.TEMPLATE.read_bytes() == template


def session_of(path):
    import onnxruntime
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@ONNX
@pytest.mark.parametrize("name", NETS)
def test_onnx_gives_the_logits(name, tmp_path):
    for i, model in enumerate((network(name, torch.float32), selecting(name, torch.float32))):
        to_onnx.write(to_onnx.deployable(model), tmp_path / f"{i}.onnx", {"mean": "[0.5]"})
        assert to_onnx.check(tmp_path / f"{i}.onnx", model, images_for(model)) < 1e-5
    assert session_of(tmp_path / "0.onnx").get_modelmeta().custom_metadata_map["mean"] == "[0.5]"
    wrong = network(name, torch.float32, seed=5)
    with pytest.raises(UserError, match="differ from torch's"):
        to_onnx.check(tmp_path / "0.onnx", wrong, images_for(wrong))


@pytest.fixture(scope="module")
def trained(data_folder, tmp_path_factory):
    """The path of a small VGG's checkpoint, trained for a moment on shapes10 (well above chance), some weights zero."""
    torch.manual_seed(0)
    model = models.build("vgg", depth=11, widths=[16, "M", 24, "M", 32, 32, "M", 32, 32, "M", 32, 32])
    dataset = data.load("shapes10", subset=2000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for epoch in range(6):
        for images, labels in data.Loader(dataset, "train", 50, flip=True).epoch(epoch):
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    weight = model.feature[8].weight.data
    mask = weight.abs() > weight.abs().median()
    weight.mul_(mask)
    path = tmp_path_factory.mktemp("trained") / "finetuned.pth.tar"
    return save(path, model, "magnitude", "finetuned", masks={"feature.8.weight": mask})


def read_by_convolutions(path):
    """What makes the images and weights that an ONNX file's convolutions read."""
    nodes = to_onnx.packages()[0].load(path).graph.node
    makers = {name: node.op_type for node in nodes for name in node.output}
    return {makers.get(name) for node in nodes if node.op_type == "Conv" for name in node.input[:2]}


def top1(text, what):
    return float(text.partition(what)[2].partition("top-1 ")[2].split()[0])


@ONNX
def test_the_exported_file_runs_without_torch(trained, ran, tmp_path):
    said = {}
    for kind, flags in (("fp32", ()), ("int8", ("--int8",))):
        out = ran("deploy/export.py", trained, f"{kind}.onnx", "--subset", 1000, *flags, cwd=tmp_path)
        said[kind] = top1(out, f"ONNX Runtime {kind}")
    torchs = top1(out, "torch fp32")
    assert torchs > 50 and said["fp32"] == torchs and abs(said["int8"] - torchs) <= 1
    assert read_by_convolutions(tmp_path / "int8.onnx") == {"DequantizeLinear"}          # of bytes

    dataset = data.load("shapes10", subset=1000)
    np.savez(tmp_path / "test.npz", x=dataset.x_test.numpy(), y=dataset.y_test.numpy())
    code = """
import json, sys
sys.modules.update(torch=None, onnx=None, torchvision=None)
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("int8.onnx")
facts, test = session.get_modelmeta().custom_metadata_map, np.load("test.npz")
mean, std = (np.array(json.loads(facts[name]), np.float32) for name in ("mean", "std"))
images = ((test["x"] / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
print(100 * (session.run(None, {"images": images})[0].argmax(1) == test["y"]).mean())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert abs(float(done.stdout) - said["int8"]) < 0.31     # rounding at the border of two integers


@pytest.fixture
def a_file_of_ones_own(tmp_path):
    """nets.py with a class that has squeeze-excite, concatenation and depthwise convolutions, and one that branches on
    numbers; the class narrowed in own.pth.tar."""
    branch = ("class Branching(Everything):\n    def forward(self, x):\n"
              "        return super().forward(-x if x.sum() > 0 else x)\n")
    (tmp_path / "nets.py").write_text(f"{EVERYTHING}\n\n{branch}")
    own.NAMED.clear()
    spec = own.name(f"{tmp_path}/nets.py:Everything")
    model = like_trained(models.build(spec, num_classes=10, input=[3, 32, 32])).eval()
    keep = half(model)
    silence(model, keep)
    small = narrow(model, keep)
    save(tmp_path / "own.pth.tar", small)
    return small


@ONNX
@ONNXSCRIPT
def test_a_network_of_ones_own_is_exported(a_file_of_ones_own, ran, tmp_path):
    command = ["deploy/export.py", "own.pth.tar"]
    for kind, flags in (("fp32", ()), ("int8", ("--int8",))):
        out = ran(*command, f"{kind}.onnx", "--network", "nets.py:Everything", "--subset", 100, *flags, cwd=tmp_path)
        assert float(re.search(r"differ from torch's by (\S+)", out)[1]) < 1e-5
        assert abs(top1(out, f"ONNX Runtime {kind}") - top1(out, "torch fp32")) <= (5 if kind == "int8" else 0)
    assert read_by_convolutions(tmp_path / "int8.onnx") == {"DequantizeLinear"}          # of bytes
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        expected = a_file_of_ones_own(images).numpy()
    for kind, tolerance in (("fp32", 1e-5), ("int8", 0.2)):
        session = session_of(tmp_path / f"{kind}.onnx")
        assert len(json.loads(session.get_modelmeta().custom_metadata_map["mean"])) == 3
        logits, = session.run(["logits"], {"images": images.numpy()})
        assert np.abs(logits - expected).max() < tolerance * np.abs(expected).max()


@ONNX
def test_what_of_ones_own_cannot_be_exported_is_said(a_file_of_ones_own, run, tmp_path):
    done = run("deploy/export.py", "own.pth.tar", "x.onnx", cwd=tmp_path, before=own.NAMED.clear)
    assert done.returncode == 2 and "name it with --network" in done.stderr and not (tmp_path / "x.onnx").exists()
    with pytest.raises(UserError, match="cannot export this .*nets.py:Everything: prelu from.*; a C file has convol"):
        to_c.export(a_file_of_ones_own, tmp_path / "x.c")
    branching = models.build(own.name(f"{tmp_path}/nets.py:Branching"), num_classes=10, input=[3, 32, 32])
    with pytest.raises(UserError, match="torch.onnx cannot export .*nets.py:Branching: "):
        to_onnx.write(branching, tmp_path / "x.onnx")
    assert not list(tmp_path.glob("x.*"))


@pytest.fixture
def one_round(monkeypatch):
    monkeypatch.setattr(measure, "measure", partial(measure.measure, rounds=1, seconds=0))


@ONNX
def test_latency_compares_the_runtimes(trained, ran, one_round):
    out = ran("deploy/latency.py", trained, "--subset", 100)
    table = out.partition("runtime")[2].splitlines()
    for what in ("torch fp32", "ONNX Runtime fp32", "ONNX Runtime int8"):
        for which in ("dense  ", "this   "):
            assert any(line.startswith(f"{which}  {what}") for line in table), out
    assert "1.00" in table[1]


def test_the_benchmark_normalizes_images_as_the_file_says(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "installed", lambda package: False)                         # torch alone
    monkeypatch.setattr(benchmark, "TRAINED", {"this": "magnitude-resnet20-cifar10-90"})
    model = checkpoint.to_model(checkpoint.load("chkpt/magnitude-resnet20-cifar10-90.pth.tar")).eval()
    x = torch.randint(0, 256, (100, 4, 4, 3), dtype=torch.uint8).repeat(1, 8, 8, 1)
    images = (x / 255 - torch.tensor(model.images["mean"])) / torch.tensor(model.images["std"])
    labels = {"y_train": np.arange(100) % 10, "y_test": model(images.movedim(3, 1)).argmax(1).numpy()}
    np.savez(tmp_path / "cifar10.npz", x_train=x.numpy(), x_test=x.numpy(), **labels)
    _, ((name, top1, *_),) = benchmark.trained(tmp_path, tmp_path, None)
    assert (name, top1) == ("this", "100.00")


def test_latency_without_the_runtimes_measures_torch(trained, one_round, monkeypatch, capsys):
    monkeypatch.setattr(measure, "installed", lambda package: False)
    ckpt = checkpoint.load(trained)
    dataset = data.load("shapes10", subset=100)
    train, test = (data.Loader(dataset, split, 50) for split in ("train", "test"))
    latency.compare(ckpt, checkpoint.to_model(ckpt), train, test)
    said = capsys.readouterr().out
    assert "torch fp32" in said and "ONNX Runtime fp32" not in said and "requirements-deploy.txt" in said


def test_latency_has_both_networks_at_the_size_of_the_images(one_round, monkeypatch, capsys):
    """The file has the dense one at the usual 32 x 32."""
    model = models.build("resnet", depth=8, image_size=64)
    dense = compute_flops.summary(models.build("resnet", depth=8))
    monkeypatch.setattr(measure, "cells_of", lambda name, model, folder, train: [measure.torch_cell(
        name, model, compute_flops.count(model).total.macs)])
    monkeypatch.setattr(measure, "score", lambda cells, test: None)
    ckpt, dataset = checkpoint.of(model, "hoyer", "pruned", "x", dense=dense), data.load("shapes10", subset=100)
    latency.compare(ckpt, model, data.Loader(dataset, "train", 50), data.Loader(dataset, "test", 50))
    macs = f"{4 * dense['macs'] / 1e6:.1f} M"
    assert capsys.readouterr().out.count(macs) == 2


def test_without_onnx_it_is_said_what_to_install(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="onnx is not installed; pip install -r requirements-deploy.txt"):
        call("deploy.export", trained, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@ONNX
def test_a_runtime_that_fails_is_an_error_of_its_cell(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    cell, = [c for c in measure.file_cells("x", tmp_path / "bad.onnx", 1) if c.runtime == "ONNX Runtime fp32"]
    assert cell.error.startswith("ONNX Runtime failed: ") and "\n" not in cell.error

    model = network("lenet300", torch.float32)
    to_onnx.write(model, tmp_path / "good.onnx")
    worker = runtime.Worker("onnxruntime", tmp_path / "good.onnx")
    cells = [measure.torch_cell("y", model, 1), measure.Cell("x", "ONNX Runtime fp32", 1, worker.milliseconds, worker)]
    images = images_for(model)
    assert torch.allclose(torch.from_numpy(worker(images.numpy())), model(images).detach(), atol=1e-5)
    worker.process.kill()
    worker.process.wait()                                    # so that the pipe is broken
    measure.measure(cells, batches=(1,), rounds=2, seconds=0)
    measure.close(cells)
    assert cells[1].error == "ONNX Runtime crashed (signal 9)" and len(cells[0].times[1]) == 2
    lines = measure.rows(cells)[1]
    assert "crashed" in lines[1][-1] and lines[0][-2] == "1.00"


def compiled(text, folder, *words, cc="cc"):
    """The path of the C file's program; its warnings are errors."""
    (folder / "model.c").write_text(text)
    subprocess.run([cc, *words, "-Wall", "-Wextra", "-Werror", "-o", "model", "model.c", "-lm"], cwd=folder, check=True)
    return folder / "model"


def assert_same(given, expected):
    assert np.abs(given - expected).max() < 1e-5 * np.abs(expected).max()


def run_c(program, images, *emulator):
    out = subprocess.run([*emulator, program], input=images.numpy().tobytes(), capture_output=True, check=True)
    return np.frombuffer(out.stdout, np.float32).reshape(len(images), -1)


@torch.no_grad()
def half_zero(name):
    model = selecting(name, torch.float32)
    for m in model.modules():
        if isinstance(m, torch.nn.Conv2d):
            m.weight.mul_(torch.rand_like(m.weight) > 0.5)
    return model


@CC
@pytest.mark.parametrize("name", NETS)
def test_c_gives_the_logits(name, tmp_path):
    model = half_zero(name)
    images, text = images_for(model), to_c.source(model)
    for flag in WIDTHS if len(text) < 12_000_000 else WIDTHS[:1]:                            # it takes 7 s to compile
        program = compiled(text, tmp_path, "-O1", flag)
        if flag != "-mavx2" or "avx2" in CPU:
            assert_same(run_c(program, images), model(images).detach().numpy())


class Branches(torch.nn.Module):
    """3 x 11 x 11: strides at odd sizes; the same size made by a convolution without padding and by a pool; outputs of
    two sizes, and an auxiliary one."""

    def __init__(self):
        super().__init__()
        conv, linear = torch.nn.Conv2d, torch.nn.Linear
        self.a, self.a2, self.corner = conv(3, 16, 3, 2, 1), conv(16, 4, 3, 1, 1), conv(3, 3, 2, groups=3, bias=False)
        self.b, self.b2, self.c, self.d = conv(3, 4, 3, 1, 1), conv(4, 4, 3, 2, 2), conv(8, 4, 3, 2), conv(12, 6, 1)
        self.norm, self.last, self.aux = torch.nn.BatchNorm2d(12, affine=False), linear(14, 10), linear(10, 3)
        self.corner.weight.data.zero_()[:, :, 0, 0] = 1      # the images without their last row and column

    def forward(self, x):
        b = F.relu(self.b2(F.relu(self.b(self.corner(x)))))
        a = torch.cat([F.relu(self.a2(F.relu(self.a(x)))), b], 1)
        c = self.d(self.norm(torch.cat([F.relu(self.c(a)), F.max_pool2d(a, 3, 2)], 1)))
        out = self.last(torch.cat([F.adaptive_avg_pool2d(x, 1) for x in (a, c)], 1).view(len(x), -1))
        return 0 + out, self.aux(out)


class Changed(torch.nn.Module):
    """3 x 11 x 11, with `middle` between a convolution and the mean."""

    def __init__(self, middle):
        super().__init__()
        self.first, self.middle, self.last = torch.nn.Conv2d(3, 8, 3, 1, 1), middle, torch.nn.Linear(8, 10)

    def forward(self, x):
        return self.last(F.adaptive_avg_pool2d(self.middle(F.relu(self.first(x))), 1).flatten(1))


def of_ones_own(monkeypatch, net):
    monkeypatch.setitem(own.NAMED, "nets.py:Net", lambda num_classes: net)
    torch.manual_seed(0)
    return models.build("nets.py:Net", num_classes=10, input=[3, 11, 11]).eval()


@CC
def test_c_of_odd_sizes_and_branches(monkeypatch, tmp_path):
    for model in (of_ones_own(monkeypatch, Branches()),
                  like_trained(models.build("preresnet", depth=11, image_size=13)).eval()):
        images = torch.cat([images_for(model), images_for(model)])                           # what the last image left
        given = run_c(compiled(to_c.source(model), tmp_path, "-O1"), images)
        assert_same(given, model(images).detach().numpy())


@pytest.mark.parametrize("middle, what", [
    (torch.nn.Conv2d(8, 8, 3, padding=2, dilation=2), "conv2d from (1, 8, 11, 11) to (1, 8, 11, 11)"),
    (torch.nn.Conv2d(8, 8, 3, (2, 1), 1), "conv2d from (1, 8, 11, 11) to (1, 8, 6, 11)"),
    (torch.nn.BatchNorm2d(8, track_running_stats=False), "batch_norm from (1, 8, 11, 11) to (1, 8, 11, 11)"),
    (lambda x: F.max_pool2d(x, 2, ceil_mode=True), "max_pool2d from (1, 8, 11, 11) to (1, 8, 6, 6)"),
    (lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), "avg_pool2d from (1, 8, 11, 11) to (1, 8, 11, 11)"),
    (lambda x: F.adaptive_max_pool2d(x, 1), "adaptive_max_pool2d from (1, 8, 11, 11) to (1, 8, 1, 1)"),
    (lambda x: torch.add(x, x, alpha=2), "add from (1, 8, 11, 11) to (1, 8, 11, 11)"),
    (lambda x: x + 1, "add from (1, 8, 11, 11) to (1, 8, 11, 11)"),
    (lambda x: x + F.adaptive_avg_pool2d(x, 1), "add from (1, 8, 11, 11) to (1, 8, 11, 11)"),
    (lambda x: torch.cat([x, x], 2), "cat from (1, 8, 11, 11) to (1, 8, 22, 11)"),
    (lambda x: torch.cat(x[:, :, 1::2, 1::2].chunk(2, 1), 1), "getitem from (1, 8, 11, 11) to (1, 8, 5, 5)"),
    (lambda x: torch.cat(x.chunk(2, 1), 1), "chunk from (1, 8, 11, 11) to (1, 4, 11, 11)"),
    (lambda x: [x[:, :, ::1, ::1], x.add_(x)][0], "something in place changes what other operations read")])
def test_an_operation_that_would_be_another_is_refused(middle, what, monkeypatch):
    with pytest.raises(UserError, match=re.escape(f"cannot export this nets.py:Net: {what}")):
        operations(of_ones_own(monkeypatch, Changed(middle)))


def test_no_c_file_of_growing_rows(monkeypatch):
    with pytest.raises(UserError, match="no C file of a network in which a convolution makes rows of 17 pixels"):
        to_c.source(of_ones_own(monkeypatch, Changed(torch.nn.Conv2d(8, 8, 1, padding=3))))


SANITIZERS = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover"]             # it stays inside its arrays


@pytest.mark.parametrize("cc, flags, emulator, name", [
    *[("cc", SANITIZERS, [], name) for name in ("lenet5", "resnet-pad", "densenet-select", "mobilenetv2",
                                                "resnet18-imagenet")],
    ("clang", ["-O3"], [], "resnet-pad"), ("clang", ["-O3", "-march=native"], [], "resnet-pad"),
    ("aarch64-linux-gnu-gcc", ["-O3", "-static"], ["qemu-aarch64-static"], "resnet-pad")])                   # NEON
def test_c_under_sanitizers_and_other_compilers(cc, flags, emulator, name, tmp_path):
    if missing := [program for program in (cc, *emulator) if not shutil.which(program)]:
        pytest.skip(f"no {missing[0]} here")
    model = half_zero(name)
    images = images_for(model)
    try:
        program = compiled(to_c.source(model), tmp_path, *flags, cc=cc)
    except subprocess.CalledProcessError:
        if flags is not SANITIZERS:
            raise
        pytest.skip("this compiler has no sanitizers")
    assert_same(run_c(program, images, *emulator), model(images).detach().numpy())


@CC
def test_c_takes_a_batch_and_threads_do_not_disturb_each_other(tmp_path):
    model = half_zero("resnet-slice")
    logits = ctypes.CDLL(str(compiled(to_c.source(model), tmp_path, "-O1", "-shared", "-fPIC"))).logits
    batches = torch.randn(8, 5, *models.input_shape(model.arch, model.cfg))
    given = np.zeros((8, 5, model.cfg["num_classes"]), np.float32)

    def call(i):
        for _ in range(20):
            logits(ctypes.c_void_p(batches[i].data_ptr()), 5, given[i].ctypes.data_as(ctypes.c_void_p))
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(call, range(8)))
    assert_same(given.reshape(40, -1), model(batches.flatten(0, 1)).detach().numpy())


PLAIN = """
#include <stdio.h>
#include <time.h>
struct tap { int o, c, i, j; float w; };
static float x[64][34][34], y[64][32][32];
#define LAYER(TAPS, SIZE, STRIDE) \\
    for (int k = 0; k < (int)(sizeof TAPS / sizeof *TAPS); k++) \\
        for (int i = 0; i < SIZE; i++) \\
            for (int j = 0; j < SIZE; j++) \\
                y[TAPS[k].o][i][j] += TAPS[k].w * x[TAPS[k].c][i * STRIDE + TAPS[k].i][j * STRIDE + TAPS[k].j];
TABLES
int main(void) {
    clock_t begin = clock();
    for (int pass = 0; pass < 50; pass++) { LAYERS }
    printf("%.6f %g", 1000.0 * (double)(clock() - begin) / CLOCKS_PER_SEC / 50, y[3][3][3]);
}
"""


@CC
@torch.no_grad()
def test_c_is_faster_than_a_plain_loop_over_the_same_weights(tmp_path):
    """The plain loops are the convolutions alone, without borders, batch norms, ReLU and additions. GCC compiles them
    best for AVX2, even where there is AVX-512."""
    model = models.build("resnet", depth=8).eval()
    tables, layers = [], []
    for m in model.modules():
        if isinstance(m, torch.nn.Conv2d):
            m.weight.mul_(torch.rand_like(m.weight) > 0.5)
            taps = [f"{{{', '.join(map(str, place))}, {m.weight[tuple(place)]:.9g}}}"
                    for place in m.weight.nonzero().tolist()]
            size = {16: 32, 32: 16, 64: 8}[m.out_channels]
            layers.append(f"LAYER(taps{len(tables)}, {size}, {m.stride[0]})")
            tables.append(f"static const struct tap taps{len(tables)}[] = {{{', '.join(taps)}}};")
    plain, programs = PLAIN.replace("TABLES", "\n".join(tables)).replace("LAYERS", "\n".join(layers)), {}
    for name, text, flags in (("ours", to_c.source(model), ["-march=native"]), ("plain", plain, ["-march=native"]),
                              *[("avx2", plain, ["-mavx2", "-mfma"])] * ("avx2" in CPU)):
        (tmp_path / name).mkdir()
        programs[name] = [compiled(text, tmp_path / name, "-O3", *flags), *["50"] * (name == "ours")]
    image, times = images_for(model)[:1].numpy().tobytes(), {name: [] for name in programs}
    for _ in range(5):                                       # processor time, taking turns
        for name, words in programs.items():
            done = subprocess.run(words, input=image, capture_output=True, check=True)
            times[name].append(float(done.stdout.split()[0]))
    assert min(times.pop("ours")) < min(map(min, times.values()))


@CC
def test_a_c_file_holds_the_non_zero_weights(trained, ran, tmp_path):
    assert "cc -O3" in ran("deploy/export.py", trained, "new/model.c", cwd=tmp_path)
    nonzeros = int(checkpoint.load(trained)["state_dict"]["feature.8.weight"].count_nonzero())
    layers = re.findall(r"tap taps\d+\[\] = (.*);", (tmp_path / "new/model.c").read_text())
    assert layers[2].count("}, {") + 1 == nonzeros           # the zeros are not in the file
    (tmp_path / "own.c").write_text("int main(void) { return 7; }")                           # instead of model.c's
    subprocess.run(["cc", "-o", "own", "own.c", "new/model.c"], cwd=tmp_path, check=True)
    assert subprocess.run(["./own"], cwd=tmp_path).returncode == 7
    subprocess.run(["cc", "-O3", "-o", "model", "new/model.c"], cwd=tmp_path, check=True)
    image = np.zeros(3 * 32 * 32, np.float32).tobytes()
    done = subprocess.run(["./model", "3"], cwd=tmp_path, input=image, capture_output=True, text=False)
    assert 0 < float(done.stdout) < 1000
    for words, given, message in (([], image + bytes(100), b"an image has 3072 floats, not 25\n"),
                                  ([], b"", b"an image has 3072 floats, not 0\n"), (["abc"], image, b"usage: ./model")):
        done = subprocess.run(["./model", *words], cwd=tmp_path, input=given, capture_output=True)
        assert done.returncode == 1 and done.stderr.startswith(message), done


def test_what_cannot_be_exported_is_said():
    model = network("vgg-imagenet")
    model.classifier.insert(0, torch.nn.ReLU())
    with pytest.raises(UserError, match="cannot export this vgg: relu after an adaptive pooling"):
        operations(model)
