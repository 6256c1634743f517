"""Checkpoints come back as they went in; whatever else a user hands over is refused in one sentence, or translated."""
import os
import pickle
import warnings

import numpy as np
import pytest
import torch
from by_hand import as_original, save
from test_narrow import choose
from torch import nn

from common import UserError, compute_flops, data, models
from common.files import checkpoint
from common.models.layers import ChannelSelection
from common.models.narrow import narrow
from slimming.networks import network

SMALL = {"vgg": 11, "resnet": 20, "densenet": 10}


def make(arch="densenet", depth=None, num_classes=10, seed=0):
    """A network of the slimming folder whose every number is random."""
    torch.manual_seed(seed)
    name, cfg = network(arch, depth or SMALL[arch])
    model = models.build(name, num_classes=num_classes, **cfg)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.1, 1)
    return model.eval()


def equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


# There and back


@pytest.mark.parametrize("arch", SMALL)
def test_a_round_trip_is_bit_for_bit(arch, tmp_path):
    model = make(arch)
    name, weight = next(iter(model.state_dict().items()))
    mask = {name: torch.rand(weight.shape) < 0.5}            # its weight is not zero where it says so: no packing
    dense = compute_flops.summary(model)
    path = save(tmp_path / "deep" / "c.pth.tar", model, epoch=3, prec1=91.5, best_prec1=92.0, masks=mask,
                args={"lr": 0.1, "data_dir": "/secret", "object": object()}, dense=dense)
    ckpt = checkpoint.load(path)
    assert (ckpt["method"], ckpt["stage"], ckpt["dataset"], ckpt["epoch"]) == ("slimming", "dense", "shapes10", 3)
    assert (ckpt["prec1"], ckpt["best_prec1"], ckpt["args"], ckpt["dense"]) == (91.5, 92.0, {"lr": 0.1}, dense)
    assert equal(ckpt["masks"], mask)
    again = checkpoint.to_model(ckpt)
    assert equal(again.state_dict(), model.state_dict()) and again.cfg == model.cfg and not again.training
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), model(x))


def test_masked_weights_come_back_bit_for_bit_from_a_small_file(tmp_path):
    model = make("vgg")
    name, other = "feature.25.weight", "feature.22.weight"
    state = model.state_dict()
    assert state[name].numel() == state[other].numel() == 512 * 512 * 9
    masks = {name: torch.rand(512, 512, 3, 3) < 0.1, other: torch.rand(512, 512, 3, 3) < 0.5}
    state[name].mul_(masks[name])                            # the other's weights are not zero where its mask is
    plain, masked = save(tmp_path / "plain", model), save(tmp_path / "masked", model, masks=masks)
    ckpt = checkpoint.load(masked)
    assert equal(ckpt["state_dict"], state) and equal(ckpt["masks"], masks)
    n = masks[name].numel()
    saved = plain.stat().st_size - masked.stat().st_size
    assert saved == pytest.approx(4 * n - n / 8 - 4 * int(masks[name].sum()) - n, rel=0.01)   # a plain mask: n bytes


def test_a_checkpoint_does_not_follow_the_model():
    model = make()
    ckpt = checkpoint.of(model, "slimming", "dense", "shapes10")
    nn.init.zeros_(model.conv1.weight)
    assert ckpt["state_dict"]["conv1.weight"].all()


def test_a_half_file_is_half_as_large_and_loads_as_float32(tmp_path):
    model = make("vgg")
    whole = save(tmp_path / "whole.pth.tar", model)
    ckpt = checkpoint.of(model, "slimming", "dense", "shapes10")
    half = checkpoint.save(tmp_path / "half.pth.tar", ckpt, half=True)
    assert 0.49 < half.stat().st_size / whole.stat().st_size < 0.51
    state = checkpoint.load(half)["state_dict"]
    for name, tensor in model.state_dict().items():
        assert state[name].dtype == tensor.dtype
        whole = not tensor.is_floating_point() or f"{name.rpartition('.')[0]}.running_mean" in state
        assert torch.equal(state[name], tensor if whole else tensor.half().float())      # batch norms stay as they are
    assert ckpt["state_dict"]["classifier.weight"].dtype == torch.float32      # what was passed in stays as it was


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file/sub/c.pth.tar"):
        save(tmp_path / "file/sub/c.pth.tar", make())


def test_the_usual_size_of_images_is_no_other_network(tmp_path):
    path = save(tmp_path / "a.pth.tar", make())
    assert checkpoint.load(path, image_size=32)["cfg"] == checkpoint.load(path)["cfg"]
    assert checkpoint.load(path, image_size=64)["cfg"] == {**checkpoint.load(path)["cfg"], "image_size": 64}


def test_chkpt_is_looked_up_in_the_repository(tmp_path, monkeypatch):
    root = tmp_path / "repository"
    bundled = save(root / "chkpt" / "x.pth.tar", make(seed=1))
    monkeypatch.setattr(checkpoint, "__file__", str(root / "common" / "files" / "checkpoint.py"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert checkpoint.load("chkpt/x.pth.tar")["path"] == str(bundled)
    own = save(tmp_path / "elsewhere" / "chkpt" / "x.pth.tar", make(seed=2))
    assert checkpoint.load("chkpt/x.pth.tar")["state_dict"]["fc.bias"].equal(
        checkpoint.load(own)["state_dict"]["fc.bias"])       # the user's own comes first
    with pytest.raises(UserError, match="no checkpoint chkpt/y.pth.tar"):
        checkpoint.load("chkpt/y.pth.tar")


# What is no checkpoint


class Evil:
    def __reduce__(self):
        return os.system, (f"touch {Evil.trace}",)


@pytest.mark.parametrize("form, message", [(form, "run code.*save its state_dict") for form in (
    "zip", "legacy", "pickle 2", "whole module")] + [("pickle 5", "not written by torch.save")])
def test_a_pickle_that_wants_to_run_code_is_refused(form, message, tmp_path):
    Evil.trace, path = tmp_path / "ran", tmp_path / "bad.pth.tar"
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps({"state_dict": Evil()}, protocol=int(form[-1])))
    elif form == "whole module":
        torch.save(nn.Linear(2, 2), path)
    else:
        torch.save({"state_dict": Evil()}, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UserError, match=f"bad.pth.tar .*{message}"):
        checkpoint.load(path, network, "vgg", 11)
    assert not Evil.trace.exists()


@pytest.mark.parametrize("content, message", [
    *[(junk, "is truncated, or was not written by torch.save; copy or ") for junk in (
        b"", b"hello", b"accuracy: 0.9\n", b"\0" * 1000, b"PK\x03\x04 no zip", b"\x80\x02}", bytes(range(128, 256)))],
    (b"\n<!DOCTYPE html>\n<html lang=en>", "is an HTML page"), (b"<html><body>404", "is an HTML page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "is a Git LFS pointer.*git lfs pull"),
    (b"\x50\0\0\0\0\0\0\0" + b'{"fc.weight":{"dtype":"F32"', "is a safetensors file.*torch.save"),
])
def test_files_of_other_kinds_are_called_what_they_are(content, message, tmp_path):
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises(UserError, match=f"other.pth {message}"):
        checkpoint.load(tmp_path / "other.pth", network, "vgg", 11)


def test_torchscript_is_called_what_it_is(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                      # torch advises against it
        torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(UserError, match="script.pt is a TorchScript archive.*torch.jit.load"):
        checkpoint.load(tmp_path / "script.pt", network)


@pytest.mark.parametrize("extra, best", [
    ({"acc": np.float16(91.5), "epoch": np.int64(7)}, 91.5), ({"best_acc": np.float32(0.915)}, 91.5),
    ({"best_acc1": torch.tensor(91.5)}, 91.5),
    ({"best_acc": 9150, "epoch": -1}, None), ({"best_prec1": -1, "acc": None}, None), ({"accuracy": "high"}, None),
    ({"prec1": torch.tensor(0.5), "improved": np.bool_(True)}, 50), ({"best_acc": 0}, None),
])
def test_what_an_intact_file_holds_besides_does_not_make_it_damaged(extra, best, tmp_path):
    torch.save({"net": make().state_dict(), **extra}, tmp_path / "theirs.pth")
    ckpt = checkpoint.load(tmp_path / "theirs.pth", network)
    assert ckpt["best_prec1"] == pytest.approx(best, rel=1e-3) if best else ckpt["best_prec1"] is None
    assert ckpt["epoch"] == (7 if extra.get("epoch", 0) > 0 else 0)


def test_numbers_of_numpy_1_load(tmp_path):
    torch.save({"net": make().state_dict(), "acc": np.float64(91.5)}, tmp_path / "new.pth",
               _use_new_zipfile_serialization=False)
    content = (tmp_path / "new.pth").read_bytes()
    assert b"numpy._core.multiarray" in content
    (tmp_path / "old.pth").write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert checkpoint.load(tmp_path / "old.pth", network)["best_prec1"] == 91.5


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_truncated_file_is_named(share, legacy, tmp_path):
    path = tmp_path / "bad.pth.tar"
    ckpt = {"format": 1, **checkpoint.of(make(), "slimming", "dense", "shapes10")}
    torch.save(ckpt, path, _use_new_zipfile_serialization=not legacy)
    assert equal(checkpoint.load(path)["state_dict"], ckpt["state_dict"])
    whole = path.read_bytes()
    path.write_bytes(whole[:int(len(whole) * share)])
    with pytest.raises(UserError, match="bad.pth.tar is truncated"):
        checkpoint.load(path)


def test_how_a_file_is_read_is_said_by_the_first_process_alone(tmp_path, monkeypatch, capsys):
    torch.save(make("vgg").state_dict(), tmp_path / "bare.pth")
    for rank, said in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        data.normalized(data.load("shapes10", subset=10), checkpoint.load(tmp_path / "bare.pth").get("images"))
        out = capsys.readouterr().out
        assert ("read as slimming" in out) == ("images normalized" in out) == said


STRANGE = {
    "list": ([1, 2], "holds a list"),
    "tensor": (torch.zeros(3), "holds a Tensor"),
    "no weights": ({"epoch": 3, "loss": 0.1}, "holds no weights.*epoch, loss"),
    "numbered": ({1: torch.zeros(3)}, "holds no weights"),
    "empty": ({}, "holds no weights"),
    "optimizer": ({"state_dict": {"state": {}, "param_groups": []}}, "holds no weights"),
    "other weights": ({"encoder.weight": torch.zeros(3)}, "none of the networks here. There are"),
    "odd cfg": ({"state_dict": {"w": torch.zeros(3)}, "cfg": 5}, "none of the networks here"),
    "later format": ({"format": 99}, "format 99.*reads format 1"),
    "half of ours": ({"format": 1, "arch": "vgg"}, "missing or wrong: method, stage, cfg, dataset, state_dict"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_strange_content_is_named(what, tmp_path):
    content, message = STRANGE[what]
    torch.save(content, tmp_path / "bad.pth.tar")
    with pytest.raises(UserError, match=f"bad.pth.tar.*{message}"):
        checkpoint.load(tmp_path / "bad.pth.tar", network, "vgg", 11)


def test_a_file_of_ours_without_the_optional_entries_loads(tmp_path):
    ckpt = checkpoint.of(make(), "slimming", "dense", "shapes10")
    for key in ("epoch", "prec1", "best_prec1", "args", "dense"):
        del ckpt[key]
    loaded = checkpoint.load(checkpoint.save(tmp_path / "c.pth.tar", ckpt))
    assert (loaded["epoch"], loaded["prec1"], loaded["args"], loaded["dense"]) == (0, None, {}, None)


# Files that others wrote


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("arch", SMALL)
def test_a_bare_state_dict_loads_with_arch_and_depth(arch, prefix, tmp_path):
    model = make(arch, num_classes=7)
    torch.save({prefix + k: v for k, v in model.state_dict().items()}, tmp_path / "bare.pth")
    ckpt = checkpoint.load(tmp_path / "bare.pth", network, arch, SMALL[arch])
    again = checkpoint.to_model(ckpt)
    assert again.cfg == model.cfg and equal(again.state_dict(), model.state_dict())
    assert (ckpt["method"], ckpt["stage"], ckpt["dataset"]) == ("original", "dense", None)
    with pytest.raises(UserError, match="bare.pth does not say which data set.*--dataset"):
        checkpoint.dataset_of(ckpt)
    alone = checkpoint.to_model(checkpoint.load(tmp_path / "bare.pth", network))
    x = torch.randn(2, 3, 32, 32)
    assert alone.arch == model.arch and torch.equal(alone(x), model(x))
    with pytest.raises(UserError, match=r"bare.pth holds a \w+ \(depth \d+\), not .*--depth"):
        checkpoint.load(tmp_path / "bare.pth", network, "vgg", 19)


@pytest.mark.parametrize("arch", SMALL)
def test_a_pruned_file_of_the_original_slimming_loads(arch, tmp_path):
    """{epoch, state_dict, best_prec1, optimizer, cfg}, `cfg` the list of widths, selections as 0/1 vectors."""
    small = narrow(make(arch), choose(make(arch), lambda record: not record.stream))
    state = {f"module.{name}": tensor for name, tensor in as_original(small).items() if "num_batches" not in name}
    if arch == "vgg":
        assert "M" in small.cfg["widths"]
    else:
        assert any(set(v.tolist()) == {0.0, 1.0} for k, v in state.items() if k.endswith("select.indexes"))
    torch.save({"epoch": 5, "state_dict": state, "best_prec1": torch.tensor(0.9376), "optimizer": {"state": {}},
                "cfg": small.cfg["widths"]}, tmp_path / "pruned.pth.tar")
    ckpt = checkpoint.load(tmp_path / "pruned.pth.tar", network, arch, SMALL[arch])
    assert (ckpt["stage"], ckpt["epoch"]) == ("pruned", 5) and ckpt["best_prec1"] == pytest.approx(93.76)
    again, x = checkpoint.to_model(ckpt), torch.randn(2, 3, 32, 32)
    assert again.cfg == small.cfg and torch.equal(again(x), small(x))


@pytest.mark.parametrize("arch", ["resnet", "densenet"])
@pytest.mark.parametrize("zero_widths", [False, True])
def test_a_mask_impl_file_has_no_selections(zero_widths, arch, tmp_path):
    """Its prune_mask.py writes the widths that would be left, zeros among them, beside weights of full size."""
    model = make(arch)
    state = {name: tensor for name, tensor in model.state_dict().items() if "select" not in name}
    widths = {"cfg": [0] * len(model.cfg["widths"])} if zero_widths else {}
    torch.save({"state_dict": state, **widths}, tmp_path / "m.pth.tar")
    again = checkpoint.to_model(checkpoint.load(tmp_path / "m.pth.tar", network, arch, SMALL[arch]))
    assert equal(again.state_dict(), model.state_dict())
    assert all(m.indices.numel() == m.width for m in again.modules() if isinstance(m, ChannelSelection))


def thop(state):
    """What thop leaves in a state_dict."""
    counts = {f"{name}{what}": torch.zeros(1, dtype=torch.float64) for what in ("total_ops", "total_params")
              for name in ["", *{key.rpartition(".")[0] + "." for key in state}]}
    return state | counts


def bearpaw(state):
    """Under DataParallel around its features, in a checkpoint."""
    return {"state_dict": {k.replace("feature.", "features.module."): v for k, v in state.items()}, "best_acc": 93.5}


@pytest.mark.parametrize("form, best", [(thop, None), (bearpaw, 93.5)])
def test_what_others_leave_and_name_otherwise(form, best, tmp_path):
    model = make("vgg")
    torch.save(form(model.state_dict()), tmp_path / "theirs.pth.tar")
    ckpt = checkpoint.load(tmp_path / "theirs.pth.tar", network, "vgg", 11)
    assert equal(checkpoint.to_model(ckpt).state_dict(), model.state_dict()) and ckpt["best_prec1"] == best
