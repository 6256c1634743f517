"""The table of torchvision's and timm's networks, and the comparison with other libraries that it makes."""
import pytest
import torch
from by_hand import rows_of
from test_trace import Holed

from common.models.own import Own
from results import networks

FLOOR = {"torchvision:shufflenet_v2_x1_0": 79, "torchvision:convnext_tiny": 0}               # percent of the channels


def test_a_row_is_measured(monkeypatch):
    monkeypatch.setattr(networks, "installed", lambda package: False)
    row = networks.row_of("torchvision:squeezenet1_1")
    assert row["channels, %"] == "100.0" and float(row["difference"]) < 1e-12
    assert row["torch-pruning: difference"] == "not installed"


def test_every_network_of_the_table_is_exact():
    for row in rows_of(networks.ROOT / "results/networks.csv"):
        spec = row["network"]
        assert float(row["difference"]) < 1e-12, spec
        if spec.startswith("torchvision"):
            assert float(row["channels, %"]) >= FLOOR.get(spec, 100), spec


def cut(*places):
    """A pruning that leaves these channels of a, and of what b reads."""
    def prune(net, images, heads):
        made, read = (torch.tensor(p) for p in places)
        net.a.weight.data, net.a.bias.data = net.a.weight[made], net.a.bias[made]
        net.b.weight.data = net.b.weight[:, read]
    return prune


def broken(net, images, heads):
    raise ValueError("no rule for | it\nand more")


@pytest.mark.parametrize("prune, channels, difference", [
    (cut([0, 2, 5], [0, 2, 5]), "60.0", "exact"), (cut([0, 2, 5], [0, 2, 4]), "60.0", "other"),
    (lambda *_: None, "0.0", "exact"), (broken, "", "error: ValueError (no rule for / it)"),
    (cut([0, 2, 5], [0, 2]), "60.0", "error: RuntimeError")])
def test_another_library_is_compared(prune, channels, difference):
    """12 channels of a, 8 of b."""
    model = Own(Holed(lambda net, x: x), "FILE.py:Net", {"num_classes": 10, "input": [3, 8, 8]})
    found = networks.of_peer(model, prune)
    assert found[0] == channels
    if difference.startswith("error"):
        assert found[1].startswith(difference)
    else:
        assert (float(found[1]) < 1e-12) == (difference == "exact")
