"""The bundled networks: what their sums, the ledger and their own records say of them is so."""
import json
import shutil

import pytest
import torch
from conftest import ROOT

from common import UserError, compute_flops, data, models, scores
from common.evaluate import evaluate
from common.files import checkpoint, packing
from results import add_run, ledger

LEDGER = ledger.read()
KEPT = [row for row in LEDGER if row["checkpoint"]]
REAL = data.directory_of()                                       # conftest.py points DATA_DIR elsewhere later


def test_every_bundled_file_is_in_the_ledger_and_the_sums():
    files = {f"chkpt/{path.name}" for path in (ROOT / "chkpt").iterdir() if path.suffix in (".tar", ".pt")}
    sums = dict(reversed(line.split("  ")) for line in (ROOT / "chkpt" / "SHA256SUMS").read_text().splitlines())
    assert files == {row["checkpoint"] for row in KEPT} == {f"chkpt/{name}" for name in sums}
    for row in KEPT:
        digest = add_run.sha256(ROOT / row["checkpoint"])
        assert digest == row["sha256"] == sums[row["checkpoint"].removeprefix("chkpt/")], row["checkpoint"]
        assert (ROOT / row["checkpoint"]).stat().st_size == int(row["bytes"])


@pytest.mark.parametrize("row", KEPT, ids=lambda row: row["checkpoint"])
def test_a_bundled_network_is_what_the_ledger_says(row):
    """Where the data is, its accuracy too: the LeNets' on the whole test set, to two images; the others' on 1,000,
    which is within three points of it."""
    ckpt = checkpoint.load(ROOT / row["checkpoint"], quantized=True)
    model = checkpoint.to_model(ckpt)
    total = compute_flops.count(model).total
    for name in ("params", "nonzeros", "weights"):
        assert getattr(total, name) == int(row[name]), name
    assert total.sparse_macs == int(row["macs"])
    assert f"{ckpt['prec1']:.2f}" == row["accuracy"] and ckpt["dataset"] == row["dataset"]
    lenet = row["arch"].startswith("lenet")
    if not (REAL / f"{row['dataset']}.npz").is_file():
        pytest.skip(f"its accuracy: no {row['dataset']}.npz in {REAL}")
    d = data.load(row["dataset"], REAL, subset=None if lenet else 1000)
    top1 = evaluate(model, data.Loader(d, "test", 250))["top1"]
    assert top1 == pytest.approx(float(row["accuracy"]), abs=0.021 if lenet else 3)


@pytest.fixture
def run_file(tmp_path):
    """A finished run's file, whose own record of the accuracy is that of other weights."""
    model = models.build("resnet", depth=8, num_classes=10)
    dense = compute_flops.summary(model)
    made = {"date": "2026-01-01", "command": "python slimming/main.py", "precision": "bf16", "hardware": "a CPU",
            "minutes": 12.34}
    return checkpoint.save(tmp_path / "checkpoint.pth.tar", checkpoint.of(
        model, "slimming", "dense", "shapes10", epoch=3, prec1=99.9, best_prec1=99.95,
        args={"seed": 4, "s": 0.001, "subset": None}, dense=dense, run=made, resume={"optimizer": {}}))


def test_a_kept_file_and_its_row_have_the_accuracy_of_the_kept_weights(run_file, tmp_path, monkeypatch, capsys):
    seen = []

    def measured(model, loader):
        seen.append((len(loader.labels), next(model.parameters())[0, 0, 0, 0].item()))
        return {"top1": 12.34}
    monkeypatch.setattr(add_run, "evaluate", measured)
    monkeypatch.setattr(add_run, "ROOT", tmp_path)
    monkeypatch.setattr(ledger, "PATH", tmp_path / "ledger.csv")
    add_run.main([str(run_file), "--keep", "chkpt/kept.pth.tar"])
    row, = ledger.read(ledger.PATH)
    kept, first = checkpoint.load(tmp_path / row["checkpoint"], quantized=True), checkpoint.load(run_file)["state_dict"]
    weight = first["conv1.weight"][0, 0, 0, 0]
    whole = len(data.load("shapes10").y_test)
    assert seen == [(whole, weight.half().float().item())] and weight.half() != weight   # rounded, on all test images
    assert row["accuracy"] == "12.34" == f"{kept['prec1']:.2f}" and "resume" not in kept
    assert row["sha256"] == add_run.sha256(tmp_path / "chkpt" / "kept.pth.tar")
    assert (tmp_path / "chkpt" / "SHA256SUMS").read_text() == f"{row['sha256']}  kept.pth.tar\n"
    assert int(row["bytes"]) == (tmp_path / "chkpt" / "kept.pth.tar").stat().st_size
    assert row["args"] == {"seed": 4, "s": 0.001, "subset": None} and row["minutes"] == "12.3"


def test_a_quantized_network_is_kept_as_its_integers_and_scored_at_its_bits(run_file, tmp_path, monkeypatch):
    ckpt = checkpoint.load(run_file)
    name, codes = "fc.weight", torch.randint(0, 16, ckpt["state_dict"]["fc.weight"].shape, dtype=torch.uint8)
    entry = packing.quantized(codes, 4, scale=torch.tensor(0.0123), zero=torch.tensor(8))
    ckpt["state_dict"][name] = packing.dequantize(entry)
    ckpt |= {"quant": {name: entry}, "stage": "quantized", "dataset": "shapes10"}
    monkeypatch.setattr(add_run, "evaluate", lambda model, loader: {"top1": 12.34})
    path = checkpoint.save(run_file, ckpt)
    ckpt = checkpoint.load(path, quantized=True)
    kept = add_run.keep(ckpt, tmp_path / "kept.pth.tar")
    assert torch.equal(kept["state_dict"][name], packing.dequantize(entry)) and name in kept["quant"]

    # on CIFAR-100 with a score: 28 bits less for each of these weights, and two words of scale and zero point
    model, bare = checkpoint.to_model(kept), {k: v for k, v in kept.items() if k != "quant"}
    assert "score" not in add_run.row_of(kept)["args"]
    scored = json.loads(add_run.row_of(kept | {"dataset": "cifar100"})["args"])["score"]
    whole = scores.of_checkpoint(bare, model).score
    expected = whole + (2 - codes.numel() * 28 / 32) / scores.PARAMETERS
    assert scores.of_checkpoint(kept, model).score == pytest.approx(expected)
    assert scored == round(scores.of_checkpoint(kept, model).score, 5) and whole == scores.rules(model).score
    eight = kept | {"activations": {"conv1": {"bits": 8, "scale": 1.0, "zero": 0}}}
    assert scores.of_checkpoint(eight, model).score < scores.of_checkpoint(kept, model).score


def test_a_row_without_a_kept_file_has_the_run_s_own_accuracy_and_its_rule(run_file, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "PATH", tmp_path / "ledger.csv")
    ckpt = checkpoint.load(run_file)
    checkpoint.save(run_file, ckpt | {"rule": "magnitude, per layer"})
    add_run.main([str(run_file)])
    add_run.main([str(run_file)])
    rows = ledger.read(ledger.PATH)
    assert [(row["accuracy"], row["best_accuracy"], row["checkpoint"]) for row in rows] == [("99.90", "99.95", "")] * 2
    assert rows[0]["args"]["rule"] == "magnitude, per layer"
    # pruned weights are stored as what is left of them, so the row has fewer bytes than 4 a parameter
    name = max(ckpt["state_dict"], key=lambda name: ckpt["state_dict"][name].numel())
    mask = torch.zeros_like(ckpt["state_dict"][name], dtype=torch.bool)
    ckpt["state_dict"][name] = torch.zeros_like(ckpt["state_dict"][name])
    checkpoint.save(run_file, ckpt | {"masks": {name: mask}})
    add_run.main([str(run_file)])
    assert int(rows[0]["bytes"]) - int(ledger.read(ledger.PATH)[-1]["bytes"]) > 3.5 * mask.numel()


def test_keeping_a_file_without_its_data_is_refused_before_anything_is_written(run_file, tmp_path, monkeypatch):
    ckpt = checkpoint.load(run_file)
    checkpoint.save(run_file, ckpt | {"dataset": str(tmp_path / "gone.npz")})
    monkeypatch.setattr(add_run, "ROOT", tmp_path)
    monkeypatch.setattr(ledger, "PATH", tmp_path / "ledger.csv")
    with pytest.raises(UserError, match=r"gone\.npz"):
        add_run.main([str(run_file), "--keep", "chkpt/kept.pth.tar"])
    assert not (tmp_path / "chkpt").exists() and not ledger.PATH.exists()


def test_a_file_that_does_not_say_how_it_was_made_is_no_row(run_file):
    ckpt = checkpoint.load(run_file)
    del ckpt["run"]
    with pytest.raises(UserError, match="does not say how it was made"):
        add_run.main([str(checkpoint.save(run_file, ckpt))])


NEEDED = {  # the settings that tables read, beside `subset`
    ("slimming", "dense"): (), ("slimming", "sparse"): ("s",), ("slimming", "pruned"): ("percent", "criterion", "save"),
    ("slimming", "finetuned"): ("refine",), ("magnitude", "dense"): (),
    ("magnitude", "finetuned"): ("retrain", "rule"),
    ("hoyer", "dense"): ("save", "holdout"), ("hoyer", "sparse"): ("reg", "decay"),
    ("softmask", "sparse"): ("target",), ("softmask", "quantized"): ("wbit",), ("reweighted", "sparse"): ("lam",)}
SWEEP = ("reg", "decay", "wd", "granularity", "sensitivity", "target", "refit", "tune_epochs", "tune_wd", "tune_lr",
         "holdout", "seed", "pretrained", "iterate")


def test_the_ledger_has_all_columns_and_the_settings_that_tables_read():
    for row in LEDGER:
        assert list(row) == ledger.COLUMNS
        may_be_empty = ("checkpoint", "sha256", "seed", "widths")
        assert all(row[name] for name in ledger.COLUMNS if name not in may_be_empty), row
        needed = ("subset", *NEEDED.get((row["method"], row["stage"]), ()))
        if row["method"] == "hoyer" and "target" in row["args"]:
            needed += SWEEP
        if row["dataset"] == "cifar100" and row["method"] in ("softmask", "reweighted"):
            needed += ("score",)
        if row["args"].get("retrain") == "weight-rewind":
            needed += ("rewind_to",)
        missing = [name for name in needed if name not in row["args"]]
        assert not missing, f"{row['command']}: no {', '.join(missing)} in args"
        assert str(row["args"].get("seed", "")) == row["seed"]


def test_the_ledger_is_one_line_a_run_and_its_args_are_plain_json(tmp_path):
    shutil.copy(ledger.PATH, tmp_path)
    lines = (tmp_path / "ledger.csv").read_text().splitlines()
    assert lines[0] == ",".join(ledger.COLUMNS) and len(lines) == len(LEDGER) + 1
    for row in LEDGER:
        assert json.loads(json.dumps(row["args"], allow_nan=False)) == row["args"]
