"""Which layers a network needs: magnitude/sensitivity.py on networks whose accuracies are known beforehand, and the
file of ratios."""
import numpy as np
import pytest
import torch
from by_hand import rows_of, save
from conftest import ROOT
from test_narrow import images_for, network
from test_trace import Everything, own
from torch import nn

from common import UserError, keep, models, plots
from common.files import checkpoint
from common.models.narrow import narrow
from magnitude import prune, sensitivity


@pytest.fixture(scope="module")
def lights(tmp_path_factory):
    """A data set (.npz) whose last 50 training images of class c are dark but for pixel c; all other labels are
    wrong."""
    labels = np.arange(200) % 10
    images = np.zeros((200, 28, 28), np.uint8)
    images.reshape(200, -1)[np.arange(200), labels] = 255
    wrong = (labels + 1) % 10
    path = tmp_path_factory.mktemp("lights") / "lights.npz"
    np.savez(path, x_train=images, y_train=np.where(np.arange(200) < 150, wrong, labels), x_test=images, y_test=wrong)
    return path


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A LeNet-300-100 (file) that passes pixel c through to logit c. In fc1 and fc3 the weights that do this are the
    only ones. In fc2 3,890 of 30,000 weights are zero, then these ten are the smallest, and the others read nothing."""
    model = models.build("lenet300")
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    c = torch.arange(10)
    with torch.no_grad():
        model.fc2.weight[10:, 10:] = 2
        for layer in (model.fc1, model.fc2, model.fc3):
            layer.weight[c, c] = 1
    return save(tmp_path_factory.mktemp("dense") / "checkpoint.pth.tar", model, "magnitude")


def analyse(dense, lights, folder, *flags):
    sensitivity.main([str(dense), "--dataset", str(lights), "--mean", "0", "--std", "1", "--device", "cpu", "--holdout",
                      "50", "--save", str(folder), *flags])
    return {row["layer"]: row for row in rows_of(folder / "sensitivity.csv")}, {
        row["layer"]: float(row["fraction"]) for row in rows_of(folder / "ratios.csv")}


FLAT, CHANCE = ["100.00"] * 9, ["10.00"] * 9


@pytest.mark.parametrize("channels,needed,expected", [(False, ["100.00", *CHANCE[1:]], 0.1), (True, CHANCE, 0)])
def test_curves_of_a_network_that_needs_little(channels, needed, expected, dense, lights, tmp_path, capsys):
    """Only the last 50 training images are right, and fc2 loses what they need at 20 % of its weights or 10 % of its
    channels."""
    rows, ratios = analyse(dense, lights, tmp_path, *["--channels"] * channels)
    curves = {name: list(row.values())[4:] for name, row in rows.items()}
    assert curves.pop("fc2") == needed and set(map(tuple, curves.values())) == {tuple(FLAT)}
    assert {row["0"] for row in rows.values()} == {"100.00"} and list(rows)[0] == "fc1"
    assert ratios == dict.fromkeys(rows, 0.9) | {"fc2": expected}
    assert (tmp_path / "sensitivity.png").exists()
    out = capsys.readouterr().out
    assert "has 100.00 % on the last 50 training images" in out and out.count("100.00" + " 100.00" * 8) == len(curves)


def test_a_floor_allows_what_it_says(dense, lights, tmp_path):
    assert analyse(dense, lights, tmp_path / "a", "--floor", "89.9")[1]["fc2"] == 0.1
    assert analyse(dense, lights, tmp_path / "b", "--floor", "90")[1]["fc2"] == 0.9


def test_what_a_mask_has_pruned_already_is_no_ratio():
    group = sensitivity.Group(size=100, pruned=35, others=[], remove=None)
    assert sensitivity.ratio(group, 90, [90] * 4 + [80] * 5, floor=1) == 0.4
    assert sensitivity.ratio(group, 90, [90] * 3 + [80] * 6, floor=1) == 0
    assert sensitivity.ratio(group._replace(pruned=0), 90, [90] * 3 + [80] * 6, floor=1) == 0.3


@pytest.mark.parametrize("name", ["lenet5", "resnet-basic", "preresnet-basic", "resnet-pad", "densenet", "resnext-1",
                                  "mobilenetv2", "own"])
def test_removing_channels_is_what_narrowing_does(name, monkeypatch):
    """Every group of channels once, with the exact count, and the logits are those of the narrow network."""
    model, kept = own(Everything()) if name == "own" else network(name), []
    silence = sensitivity.silence
    monkeypatch.setattr(sensitivity, "silence", lambda pruned, keep: kept.append(keep) or silence(pruned, keep))
    groups = sensitivity.groups_of(model, {}, channels=True)
    records = {record.producers[0][0]: record for record in model.channels() if record.producers}
    made = [layer for first, group in groups.items() for layer in (first, *group.others)]
    assert sorted(made) == sorted(layer for record in records.values() for layer, _ in record.producers)
    assert len(made) == len(set(made)) and len(groups) == len(records)
    for layer, group in groups.items():
        pruned = group.remove(0.3)
        keep, = kept.pop().values()
        gone = records[layer].by_unit(layer, ~keep).any(1)
        assert int(gone.sum()) == int(len(gone) * 0.3)
        images = images_for(model)
        small = narrow(pruned, {layer: keep})
        torch.testing.assert_close(pruned(images), small(images), rtol=0, atol=1e-9)


def test_a_residual_stream_is_one_line():
    groups = sensitivity.groups_of(network("resnet-basic"), {}, channels=True)
    assert groups["conv1"].others == ["layer1.0.conv2", "layer1.1.conv2"]
    model = network("resnet-basic")
    with torch.no_grad():                                    # small in each of its layers, but not in their sum
        for i, layer in enumerate([model.conv1, model.layer1[0].conv2, model.layer1[1].conv2]):
            layer.weight.fill_(1)
            layer.weight[i] *= 0.1
            layer.weight[5] *= 0.5
    record = next(r for r in model.channels() if r.producers[0][0] == "conv1")
    pruned = sensitivity.without_channels(model, record, 1 / 16)
    zero = [(layer.weight.flatten(1).abs().sum(1) == 0).nonzero().flatten().tolist()
            for layer in (pruned.conv1, pruned.layer1[0].conv2, pruned.layer1[1].conv2)]
    assert zero == [[5]] * 3 and model.conv1.weight.all()


def test_the_plot_names_the_ten_most_sensitive():
    curves = {f"layer{i}": [90 - i] * 9 for i in range(14)}
    figure = sensitivity.draw(curves, 91, "weights")
    axis = figure.axes[0]
    assert {text.get_text() for text in axis.texts} == {f"layer{i}" for i in range(4, 14)} and len(axis.lines) == 14


@pytest.mark.parametrize("flags,message", [
    (["--holdout", "200"], "--holdout 200"), (["--floor", "-1"], "--floor"), (["--subset", "1"], "--holdout 1"),
    (["--channels", "--save", "there"], "already holds a sensitivity.csv")])
def test_wrong_flags_are_refused(flags, message, dense, lights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there/sensitivity.csv").touch()
    with pytest.raises(UserError, match=message):
        sensitivity.main([str(dense), "--dataset", str(lights), "--device", "cpu", *flags])
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_ratios_are_read_by_every_prune_script_alike(tmp_path):
    """As sensitivity.py writes them, as spreadsheets save them, and as the reweighted original has them."""
    weights, file = dict.fromkeys(("conv1.weight", "layer1.0.conv1.weight", "fc.weight")), tmp_path / "ratios.csv"
    plots.write_csv(file, [{"layer": "conv1", "fraction": 0.3}, {"layer": "layer1.0.conv1", "fraction": 0.0}])
    expected = {"conv1.weight": 0.3, "layer1.0.conv1.weight": 0.0}
    written = file.read_text()
    for text in (written, written.replace("\n", "\r\n"), f"\ufeff{written}",
                 "# of mine\nprune_ratios:\n  conv1.weight: 0.3\n  layer1.0.conv1   0  # comment\n\n"):
        file.write_text(text, encoding="utf-8", newline="")
        assert keep.read_ratios(file, weights) == expected
    for text, message in (("conv9,0.5", "line 1: the network has no layer conv9 .* it has conv1, "),
                          ("\nfc", "line 2: 'fc' is no"), ("fc,0.1\nfc.weight,0.2", "line 2: fc has a line already"),
                          ("fc: 1.0", "line 1: 1 is not"), ("\nfc: 9", "line 2: 9 is not"), ("", "no line"),
                          ("fc: -0.1", "line 1: -0.1 is not"), ("fc: a", "line 1"), ("\xff", "ratios.csv: .*utf-8")):
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match=message):
            keep.read_ratios(file, weights)
    with pytest.raises(UserError, match="none"):
        keep.read_ratios(tmp_path / "none", weights)
    shipped = keep.read_ratios(ROOT / "reweighted/profile/config_mobile_v2_0.7.yaml", {
        f"{name}.weight": m for name, m in models.build("mobilenetv2").named_modules() if isinstance(m, nn.Conv2d)})
    assert len(shipped) == 57 and shipped.pop("conv1.weight") == 0 and set(shipped.values()) == {0.7}


def test_prune_takes_the_ratios_layer_by_layer(dense, lights, tmp_path):
    """To the exact counts; a layer that is left out keeps its weights, and its mask of an earlier pruning."""
    file = tmp_path / "ratios.csv"

    def pruned(source, lines, *flags):
        file.write_text("layer,fraction\n" + "\n".join(lines))
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        return prune.main(["--model", str(source), "--dataset", str(lights), "--device", "cpu", "--ratios",
                           str(file), "--save", str(folder), *flags])

    def zeros(path):
        ckpt = checkpoint.load(path)
        assert all((ckpt["state_dict"][name][~mask] == 0).all() for name, mask in ckpt["masks"].items())
        return {name: int((~mask).sum()) for name, mask in ckpt["masks"].items()}, ckpt["rule"]

    first = pruned(dense, ["fc2,0.07", "fc1,0.9", "fc3,0"])
    assert zeros(first) == ({"fc1.weight": 211_680, "fc2.weight": 2_100}, "magnitude, conv+linear, ratios")
    assert zeros(pruned(first, ["fc3,0.5"]))[0] == {"fc1.weight": 211_680, "fc2.weight": 2_100, "fc3.weight": 500}
    for source, lines, flags, message in (
            (first, ["fc1,0.8"], [], "pruned to 0.9000 in fc1.weight already, and --ratios"),
            (dense, ["fc4,0.5"], [], "fc4"), (dense, ["fc1,0"], [], "prunes no layer"),
            (dense, ["fc1,0.5"], ["--cost-exponent", "1"], "--ratios")):
        with pytest.raises(UserError, match=message):
            pruned(source, lines, *flags)
