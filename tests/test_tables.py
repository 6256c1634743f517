"""The tables in the READMEs: they are the ledger's, seeds stand together, and what differs stands apart."""
import ast

import pytest
from conftest import ROOT

from results import ledger, make_tables, tables, tables_hoyer
from results.comparison import public
from results.comparison import tables as comparison


def test_tables_in_readmes_are_the_ledgers():
    assert make_tables.main(["--check"]) == 0


def test_what_the_front_page_says_of_the_comparison_is_in_its_rows():
    def means(path, column="accuracy"):
        return {key: comparison.mean(rows, column) for key, rows in comparison.groups(comparison.read(path)).items()}
    rows, short = means(comparison.PATH), {key[:3]: value for key, value in means(comparison.SHORT).items()}
    text = " ".join((ROOT / "README.md").read_text().split())
    weights = {(name, left): rows[name, left, 0, 0.1] for left in (10, 5) for name in
               ("magnitude", "reweighted L1", "Hoyer-Square", "random masks", "soft mask")}
    ahead = {key: f"{value - weights['magnitude', key[1]]:.1f}" for key, value in weights.items()}
    channels = {(name, left, peak): f"{value:.2f}" for (name, _, left, peak), value in rows.items() if left}
    both, bits = (short[f"slimming, then magnitude{more}", 10, 50] for more in ("", ", then 8 bits"))
    faster = [ms["dense, same extra training", 0, 0, 0.1] / ms["slimming, then magnitude", 10, 50, 0.1]
              for ms in (means(comparison.SHORT, column) for column in ("ms_1", "ms_128"))]
    assert abs(both - short["magnitude", 10, 0]) < 0.5
    assert all(-5.5 < float(ahead["random masks", left]) < -4.5 for left in (10, 5))
    assert abs(weights["soft mask", 10] - weights["random masks", 10]) < 0.5
    for left in (50, 73):
        assert channels["random channels", left, 0.1] == max(value for key, value in channels.items() if left in key)
    behind = short["magnitude", 10, 0] - short["reweighted L1", 10, 0]
    for said in (f"reweighted L1 is {ahead['reweighted L1', 10]} and Hoyer-Square {ahead['Hoyer-Square', 10]} points "
                 f"ahead of magnitude, at 5 % {ahead['reweighted L1', 5]} and {ahead['Hoyer-Square', 5]} points",
                 f"the penalties are {behind:.1f} points behind magnitude at 10 %",
                 f"{channels['random channels', 50, 0.1]} % at half the MACs, "
                 f"{channels['random channels', 73, 0.1]} % at 73 %",
                 f"{channels['network slimming', 50, 0.01]} against {channels['random channels', 50, 0.01]} %",
                 f"{faster[0]:.1f} to {faster[1]:.1f} times as fast", f"8 bits then cost {both - bits:.1f} points"):
        assert said in text, said
    measured = (ROOT / "results/deploy.md").read_text()
    assert "35 times" in text and "| 35.32 |" in measured
    assert "3.1 times" in text and "| 0.562 (" in measured and "| 0.183 (" in measured           # 3.07
    for file, said in (("resnet20-cifar10-macs10", "({} %) is {} times as fast there as the dense network in ONNX "
                        "Runtime fp32 and {} times"), ("resnet56-cifar10-90", "({} %) is {} and {} times")):
        cells, = (line.strip("| ").split(" | ") for line in
                  (ROOT / "results/deploy-sparse.md").read_text().splitlines() if f"magnitude-{file} " in line)
        assert said.format(cells[3], *cells[5:]) in text


def test_a_table_that_drifted_is_named_and_mended(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_tables, "ROOT", tmp_path)
    monkeypatch.setattr(make_tables, "READMES", [tmp_path / "README.md"])
    table = make_tables.make("magnitude_precision", ledger.read())
    whole = f"a\n<!-- table magnitude_precision -->\n{table}<!-- end -->\n"
    (tmp_path / "README.md").write_text(whole.replace("57.21", "75.21"))
    assert make_tables.main(["--check"]) == 1 and "README.md" in capsys.readouterr().out
    make_tables.main([])
    assert (tmp_path / "README.md").read_text() == whole


def test_no_table_reads_a_command_or_parses_text():
    """Regular expressions are for the marks in the READMEs, in make_tables.py alone."""
    for path in sorted((ROOT / "results").rglob("*.py")):
        tree = ast.parse(path.read_text())
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert "re" not in imported or path.name == "make_tables.py", path
        if path.name.startswith("tables"):
            read = [node.slice.value for node in ast.walk(tree)
                    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)]
            assert "command" not in read or path.name == "tables_hoyer.py", path       # there in an error message


ROW = {"date": "2026-01-01", "command": "python x.py", "method": "magnitude", "stage": "finetuned", "arch": "resnet56",
       "dataset": "cifar10", "epochs": "160", "seed": "1", "precision": "bf16", "hardware": "H200", "minutes": "9.9",
       "accuracy": "90.00", "best_accuracy": "91.00", "params": "1000", "nonzeros": "105", "macs": "2000000",
       "bytes": "4000", "checkpoint": "", "sha256": "", "weights": "900", "widths": "", "args": {"subset": None}}


def row(args=None, **columns):
    return ROW | columns | {"args": ROW["args"] | (args or {})}


def tuned(seed, accuracy, rule="magnitude", **args):
    return row({"rule": rule, "retrain": "lr-rewind", "rewind_to": None} | args, seed=seed, accuracy=accuracy)


RUNS = [tuned("1", "93.00"), tuned("2", "94.00"), tuned("1", "92.00", retrain="small"),
        tuned("2", "92.00", retrain="small"), tuned("1", "91.00", "magnitude, per layer"),
        tuned("1", "80.00", "random"), tuned("1", "70.00", retrain="weight-rewind", rewind_to="d/init.pth.tar"),
        row(stage="dense", nonzeros="1000", accuracy="93.40"), row(stage="pruned", accuracy="10.00")]


def test_the_table_of_magnitude_keeps_rules_apart_and_seeds_together():
    header, rows = tables.magnitude_cifar10(RUNS)
    assert all(len(line) == len(header) for line in rows)
    assert [(line[2], line[3], line[4]) for line in rows] == [
        ("", "dense", "93.40 (1)"), ("magnitude", "lr-rewind", "93.50 ± 0.71 (2)"),
        ("magnitude", "small", "92.00 ± 0.00 (2)"), ("magnitude", "weight-rewind to init", "70.00 (1)"),
        ("magnitude, per layer", "lr-rewind", "91.00 (1)"), ("random", "lr-rewind", "80.00 (1)"),
        ("magnitude", "lr-rewind minus small, points", "+1.50 ± 0.71 (2)")]
    # published figures beside what was published, not beside random masks
    assert "93.56" in rows[1][5] and not rows[4][5] and not rows[5][5]


def test_the_table_of_costs_has_a_column_for_each_score_and_its_seeds_together():
    def pruned(name, exponent, accuracy, criterion="magnitude"):
        return row({"save": f"logs/cost/{name}", "resume": "data/resnet20-12fca82f.th", "keep_macs": 0.1,
                    "criterion": criterion, "cost_exponent": exponent}, stage="pruned", accuracy=accuracy)

    def tuned(seed, accuracy):
        return row({"save": f"logs/cost/b-{seed}", "model": "logs/cost/b/pruned.pth.tar", "lr": 0.1}, seed=seed,
                   accuracy=accuracy)
    rows = [pruned("a", 0, "10.00"), pruned("b", 0.25, "16.00"), pruned("c", 0, "12.00", "random"),
            tuned("1", "87.00"), tuned("2", "88.00")]
    assert public.cost_exponent([*rows, *RUNS])[1] == [
        ["public", "10 % of the MACs", "160, 0.1", "", "87.50 ± 0.71 (2)", "", ""],
        ["public", "10 % of the MACs", "", "10.00", "16.00", "", "12.00"]]


def test_rows_on_a_part_of_the_data_are_only_in_the_table_of_precisions():
    part = row({"subset": 10000}, stage="dense", arch="resnet20", epochs="8", minutes="4.6")
    assert tables.magnitude_cifar10([part])[1] == []
    assert tables.magnitude_precision([part, *RUNS])[1] == [
        ["resnet20", "90.00", "8 epochs of 10,000 images, bf16, H200, 5 min"]]


def slim(stage, accuracy, **args):
    return row(args, method="slimming", arch="vgg13", stage=stage, accuracy=accuracy, params="2430000",
               epochs="0" if stage == "pruned" else "16",
               widths="64-64-M-128-128-M-256-256-M-512-512-M-512-512")


def test_the_table_of_slimming_names_a_fine_tuned_network_by_the_pruning_in_its_folder():
    rows = [slim("dense", "90.00"), slim("sparse", "89.00", s=0.0001),
            slim("pruned", "20.00", percent=0.4, criterion="gamma", save="a/0.4"),
            slim("pruned", "10.00", percent=0.4, criterion="random", save="a/random"),
            slim("finetuned", "91.00", refine="./a/0.4/pruned.pth.tar"),
            slim("finetuned", "85.00", refine="a/random/pruned.pth.tar"),
            slim("sparse", "89.50", s=0.0001)]                                 # run again: the later one counts
    header, table = tables.slimming_cifar10(rows)
    assert all(len(line) == len(header) for line in table)
    assert [(line[0], line[1]) for line in table] == [
        ("baseline", "90.00 (89.82)"), ("sparsity, s = 0.0001", "89.50 (89.71)"), ("pruned 40 %", "20.00 (17.60)"),
        ("pruned 40 % at random", "10.00 (-)"), ("pruned 40 %, fine-tuned", "91.00 (90.08)"),
        ("pruned 40 % at random, fine-tuned", "85.00 (-)")]
    assert table[2][5] == "bf16, H200" and table[0][4] == "0.004G"


def lenet(accuracy="98.00", weights="2000", seed="1", **args):
    chosen = {"reg": "hs", "target": 98.4, "refit": False, "decay": 0.1, "wd": 0.0, "granularity": "element",
              "tune_epochs": 100, "sensitivity": 0.1, "holdout": 5000,
              "pretrained": "logs/dense/checkpoint.pth.tar"} | args
    return row(chosen, method="hoyer", dataset="mnist", arch="lenet300", accuracy=accuracy, weights=weights, seed=seed,
               widths="784-300-100")


def dense_lenet(accuracy, folder, epochs="250", seed="1"):
    return row({"save": folder, "holdout": 5000}, method="hoyer", dataset="mnist", arch="lenet300", stage="dense",
               accuracy=accuracy, weights="266200", epochs=epochs, widths="784-300-100", seed=seed)


def test_the_short_table_has_the_strictest_condition_of_each_penalty():
    rows = [dense_lenet("98.50", "logs/other"), dense_lenet("98.30", "logs/dense", "300"),
            dense_lenet("98.40", "logs/dense"), lenet("97.00", "900", target=98.2), lenet(),
            lenet("98.30", "3000", refit=True),
            lenet("98.10", "4000", reg="hoyer", target=98.2), lenet("98.10", "1000", reg="l1", target=98.2)]
    _, table = tables_hoyer.hoyer_mnist_short(rows)
    assert [(line[1], line[2], line[4], line[5]) for line in table] == [
        ("hoyer", "4,000 (1.50 %)", "98.10 (1)", "98.40"), ("hs", "2,000 (0.75 %)", "98.00 (1)", "98.40")]


def test_the_table_of_hoyer_keeps_settings_apart_and_says_them():
    apart = [lenet(), lenet(refit=True), lenet(decay=0.2), lenet(wd=1e-4),
             lenet(granularity="group"), lenet(tune_epochs=20), lenet(target=98.54)]
    header, table = tables_hoyer.hoyer_mnist([*apart, lenet("98.20", "3000", "2", sensitivity=0.05)])
    assert all(len(line) == len(header) for line in table)
    said = [line[5] for line in table]
    assert len(set(said)) == len(apart) and "98.54 % on the validation set" in said[0]
    assert said.count("98.4 % on the validation set, lambda 0.1, fine-tuning 100 epochs, thresholds 0.1, 0.05") == 1
    assert any("refit, " in text for text in said) and any("whole groups" in text for text in said)
    two, = (line for line in table if "(2)" in line[4])
    assert two[2] == "2,500 ± 707 (0.94 %)" and two[4] == "98.10 ± 0.14 (2)"


def test_of_groups_the_ledger_takes_the_compacted_network():
    with pytest.raises(ValueError, match="compacted"):
        tables_hoyer.hoyer_mnist_groups([lenet(reg="group-hs")])
    _, table = tables_hoyer.hoyer_mnist_groups([lenet(reg="group-hs") | {"widths": "353-45-11"}])
    assert table[0][2:4] == ["353-45-11", "16,490 (6.19 %)"]


def trial(stage, params, accuracy, **args):
    return row({"subset": 10000} | args, method="hoyer", arch="resnet20", stage=stage, params=params, accuracy=accuracy)


def test_the_table_of_hoyer_on_cifar10_names_stages_and_compacted_networks():
    _, table = tables.hoyer_cifar10([
        trial("dense", "1000", "50.00"), trial("sparse", "1000", "60.00", decay=0.01),
        trial("finetuned", "1000", "61.00", sensitivity=0.01), trial("finetuned", "200", "61.01", sensitivity=0.01)])
    assert [line[1] for line in table] == ["dense", "sparse, lambda 0.01", "threshold 0.01, fine-tuned",
                                           "threshold 0.01, fine-tuned, compacted"]


def soft(stage, accuracy, params, **args):
    return row({"target": 0.4, "score": 0.5} | args, method="softmask", dataset="cifar100", arch="wideresnet16",
               stage=stage, accuracy=accuracy, params=params, macs=params, nonzeros=params)


def test_the_table_of_softmask_names_stages_and_says_what_is_left():
    header, table = tables.softmask_cifar100([
        soft("dense", "75.00", "1000", target=None), soft("sparse", "74.00", "1000"), soft("pruned", "74.00", "600"),
        soft("finetuned", "74.50", "600"), soft("quantized", "73.90", "600", wbit=8, score=0.12345),
        soft("dense", "60.00", "1000") | {"dataset": "cifar10"}, tuned("1", "90.00")])
    assert all(len(line) == len(header) for line in table)
    assert [(line[1], line[2], line[3]) for line in table] == [
        ("dense", "75.00", "1,000"), ("soft masks, target 0.4", "74.00", "1,000 (100.0 %)"),
        ("pruned", "74.00", "600 (60.0 %)"), ("fine-tuned", "74.50", "600 (60.0 %)"),
        ("quantized, 8 bits", "73.90", "600 (60.0 %)")]
    assert table[4][6] == "0.12345" and "80.28" in table[4][7]


def mobile(stage, accuracy, nonzeros, save, model=None, method="reweighted", **args):
    return row({"lam": 1e-5, "score": 0.02, "save": save, "model": model} | args, method=method, dataset="cifar100",
               arch="mobilenetv2", stage=stage, accuracy=accuracy, nonzeros=nonzeros,
               checkpoint="chkpt/kept.pt" if save == "kept" else "")


def test_the_table_of_reweighted_has_its_stages_and_magnitude_as_the_control():
    header, table = tables.reweighted_cifar100([
        mobile("dense", "70.00", "1000", "dense"), mobile("sparse", "69.00", "1000", "rew"),
        mobile("pruned", "60.00", "230", "./cut", "rew/checkpoint.pth.tar", rule="irregular, percentile 0.77"),
        mobile("finetuned", "68.00", "230", "kept", "cut/pruned.pth.tar", rule="irregular, percentile 0.77"),
        mobile("finetuned", "66.00", "230", "small", "p/pruned.pth.tar", "magnitude", retrain="small"),
        mobile("pruned", "55.00", "230", "control", "dense/checkpoint.pth.tar"),
        mobile("finetuned", "65.00", "230", "tuned", "control/pruned.pth.tar"),
        mobile("quantized", "67.00", "230", "a", "chkpt/kept.pt", bits=[8, 6, 8]),
        mobile("quantized", "66.90", "230", "b", "kept/finetuned.pth.tar", bits=[8, 8]), tuned("1", "90.00")])
    assert all(len(line) == len(header) for line in table)
    assert [(line[1], line[2], line[3]) for line in table] == [
        ("dense", "70.00", "1,000"), ("reweighted, lambda 1e-05", "69.00", "1,000 (100.0 %)"),
        ("pruned", "60.00", "230 (23.0 %)"), ("retrained", "68.00", "230 (23.0 %)"),
        ("magnitude, retrained (small)", "66.00", "230 (23.0 %)"), ("magnitude, pruned", "55.00", "230 (23.0 %)"),
        ("magnitude, retrained", "65.00", "230 (23.0 %)"),
        ("quantized, 6 to 8 bits", "67.00", "230 (23.0 %)"), ("quantized, 8 bits", "66.90", "230 (23.0 %)")]
    assert "80.51" in table[3][7] and not table[4][7] and not table[6][7] and table[0][6] == "0.02000"
    assert "80.12" in table[7][7]


@pytest.mark.parametrize("table, first", [
    (tables.magnitude_cifar10, row(stage="dense")), (tables.magnitude_cifar10, tuned("1", "9")),
    (tables_hoyer.hoyer_mnist, lenet()), (tables_hoyer.hoyer_mnist, dense_lenet("98.40", "logs/dense"))])
def test_two_rows_of_one_seed_are_not_two_seeds(table, first):
    assert any("(2)" in cell for cell in table([first, first | {"seed": "2"}])[1][0])
    with pytest.raises(ValueError, match="one seed has several rows"):
        table([first, first | {"accuracy": "97.00"}])
