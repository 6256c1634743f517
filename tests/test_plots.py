"""The plots show what they are given: bars of every layer, few enough names, a curve of one epoch."""
import torch

from common import plots
from hoyer.regularizers import ELEMENT, GROUP
from results import ledger, make_plots, tables, tables_hoyer


def test_layer_bars_shows_what_each_layer_had_and_keeps(plt):
    keep = {"conv1": torch.arange(64) < 1, "conv2": torch.arange(128) < 30, "conv3": torch.arange(256) < 200}
    axis = plots.pruned(keep)[0].axes[0]
    assert [bar.get_height() for bar in axis.patches] == [64, 128, 256, 1, 30, 200]
    assert [label.get_text() for label in axis.get_xticklabels()] == list(keep)
    assert axis.get_ylabel() == "channels" and axis.get_yscale() == "linear"
    assert axis.get_title(loc="left") == "channels of each layer"
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["before", "kept"]


def test_many_layer_names_are_thinned_and_stand_below_their_own_bar(plt):
    names = [f"layer{i}" for i in range(164)]
    axis = plots.pruned(dict.fromkeys(names, torch.arange(10) < 5), "weights", percent=True)[0].axes[0]
    shown = [label.get_text() for label in axis.get_xticklabels()]
    assert 10 <= len(shown) <= 20 and axis.get_ylabel() == "weights (%)"
    assert [bar.get_height() for bar in axis.patches] == [100] * 164 + [50] * 164
    assert [names[int(position)] for position in axis.get_xticks()] == shown


def test_a_curve_of_one_epoch_is_visible(plt, tmp_path):
    plots.draw_curve(tmp_path / "curve.png", [{"epoch": 1, "train_loss": 2.0, "test_loss": 1.8, "top1": 33.0}],
                     "slimming dense vgg13")
    left, right = plt.gcf().axes
    lines = [*left.lines, *right.lines]
    assert [line.get_label() for line in lines] == ["train loss", "test loss", "test top-1"]
    assert all(line.get_marker() not in ("", "None", None) for line in lines)
    assert left.get_title() == "slimming dense vgg13" and (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_plots_of_the_readmes_show_every_run_and_say_what_each_line_is(plt):
    rows = ledger.read()
    for draw, groups in ((make_plots.hoyer_mnist, dict(enumerate(tables_hoyer.groups(rows)))),
                         (make_plots.magnitude_cifar10, tables.magnitude_groups(rows))):
        figure = draw(plt, rows)
        lines = [line for axis in figure.axes for line in axis.lines]
        marks = [line for line in lines if line.get_marker() not in ("None", "*")]
        runs = [group[1] if isinstance(group, tuple) else group for group in groups.values()]
        dense = [group for group in runs if group[0]["stage"] == "dense"]
        shown = sum(len(line.get_xdata()) for line in marks)
        everything = sum(map(len, runs))
        assert shown == everything - (sum(map(len, dense)) if draw is make_plots.hoyer_mnist else 0)
        dashed = [line for line in lines if line.get_linestyle() not in ("None", "-")]
        assert dashed and all("dense" in line.get_label() for line in dashed)
        assert all(axis.get_title() for axis in figure.axes) and figure.get_suptitle()


def test_penalties_differ_by_mark_and_seeds_stand_side_by_side(plt):
    marks = make_plots.MARKS
    assert len({colour for _, colour in marks.values()}) == len(marks) == len({*ELEMENT, *GROUP})
    for kind in (ELEMENT, GROUP):
        assert len({marks[name][0] for name in kind}) == len(kind)
    figure = make_plots.magnitude_cifar10(plt, ledger.read())
    for line in (line for axis in figure.axes for line in axis.lines if line.get_linestyle() == "None"):
        assert len(set(line.get_xdata())) == len(line.get_xdata())
