"""The plots show what they are given: bars of every layer, few enough names, a curve of one epoch."""
import pytest

from common import plots


@pytest.fixture
def plt(monkeypatch):
    """pyplot whose figures stay open to be looked at."""
    plt = plots.pyplot()
    with monkeypatch.context() as patch:
        patch.setattr(plt, "close", lambda figure: None)
        yield plt
    plt.close("all")


def test_layer_bars_shows_what_each_layer_had_and_keeps(plt):
    had = {"conv1": 64, "conv2": 128, "conv3": 256}
    _, axis = plt.subplots()
    plots.layer_bars(axis, had, {"conv3": 200, "conv2": 30, "conv1": 1})
    assert [bar.get_height() for bar in axis.patches] == [64, 128, 256, 1, 30, 200]      # matched by name
    assert [label.get_text() for label in axis.get_xticklabels()] == list(had)
    assert axis.get_ylabel() == "channels" and "channels" in axis.get_title() and axis.get_yscale() == "linear"
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["had", "keeps"]


def test_many_layer_names_are_thinned_and_stand_below_their_own_bar(plt):
    names = [f"layer{i}" for i in range(164)]
    _, axis = plt.subplots()
    plots.layer_bars(axis, dict.fromkeys(names, 10), dict.fromkeys(names, 5), unit="weights", log=True)
    shown = [label.get_text() for label in axis.get_xticklabels()]
    assert 10 <= len(shown) <= 20 and axis.get_yscale() == "log"
    assert [names[int(position)] for position in axis.get_xticks()] == shown


def test_a_curve_of_one_epoch_is_visible(plt, tmp_path):
    plots.draw_curve(tmp_path / "curve.png", [{"epoch": 1, "train_loss": 2.0, "test_loss": 1.8, "top1": 33.0}],
                     "slimming dense vgg13")
    left, right = plt.gcf().axes
    lines = [*left.lines, *right.lines]
    assert [line.get_label() for line in lines] == ["train loss", "test loss", "test top-1"]
    assert all(line.get_marker() not in ("", "None", None) for line in lines)
    assert left.get_title() == "slimming dense vgg13" and (tmp_path / "curve.png").exists()
