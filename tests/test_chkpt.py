"""The bundled networks: what their sums, the ledger and their own records say of them is so."""
import csv
import hashlib

import pytest
from conftest import ROOT

from common import checkpoint, compute_flops, data
from common.evaluate import evaluate

with open(ROOT / "results" / "ledger.csv", newline="") as file:
    LEDGER = list(csv.DictReader(file))
KEPT = [row for row in LEDGER if row["checkpoint"]]


def test_every_bundled_file_is_in_the_ledger_and_the_sums():
    files = {f"chkpt/{path.name}" for path in (ROOT / "chkpt").glob("*.pth.tar")}
    sums = dict(reversed(line.split("  ")) for line in (ROOT / "chkpt" / "SHA256SUMS").read_text().splitlines())
    assert files == {row["checkpoint"] for row in KEPT} == {f"chkpt/{name}" for name in sums}
    for row in KEPT:
        digest = hashlib.sha256((ROOT / row["checkpoint"]).read_bytes()).hexdigest()
        assert digest == row["sha256"] == sums[row["checkpoint"].removeprefix("chkpt/")], row["checkpoint"]
        assert (ROOT / row["checkpoint"]).stat().st_size == int(row["bytes"])


@pytest.mark.parametrize("row", KEPT, ids=lambda row: row["checkpoint"])
def test_a_bundled_network_is_what_the_ledger_says(row):
    ckpt = checkpoint.load(ROOT / row["checkpoint"])
    total = compute_flops.count(checkpoint.to_model(ckpt)).total
    for name in ("params", "nonzeros", "weights"):
        assert getattr(total, name) == int(row[name]), name
    assert total.sparse_macs == int(row["macs"])
    assert f"{ckpt['prec1']:.2f}" == row["accuracy"] and ckpt["dataset"] == row["dataset"]


@pytest.mark.parametrize("row", KEPT, ids=lambda row: row["checkpoint"])
def test_a_bundled_network_has_its_accuracy(row):
    """On 1,000 test pictures, whose accuracy is within three points of that on all of them."""
    if not (ROOT / "data" / f"{row['dataset']}.npz").is_file():
        pytest.skip(f"no data/{row['dataset']}.npz")
    d = data.load(row["dataset"], ROOT / "data", row["arch"].startswith("lenet"), subset=1000)
    model = checkpoint.to_model(checkpoint.load(ROOT / row["checkpoint"]))
    top1 = evaluate(model, data.Loader(d, "test", 250))["top1"]
    assert top1 == pytest.approx(float(row["accuracy"]), abs=3)


def test_the_ledger_has_all_columns():
    import sys
    sys.path.insert(0, str(ROOT / "results"))
    import add_run
    for row in LEDGER:
        assert list(row) == add_run.COLUMNS
        may_be_empty = ("checkpoint", "sha256", "seed", "setting", "widths")
        assert all(row[name] for name in add_run.COLUMNS if name not in may_be_empty), row
