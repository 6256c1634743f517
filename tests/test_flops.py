"""Counts against torch's own counter and by hand; counting leaves the network as it was."""
import pytest
import torch
from by_hand import SMALL, save
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common import compute_flops, models
from common.files import checkpoint


@pytest.mark.parametrize("arch", models.ARCHS)
def test_macs_equal_torchs_counter_and_counting_changes_nothing(arch):
    torch.manual_seed(0)
    imagenet = dict(stem="imagenet", image_size=64)
    model = models.build(arch, **(imagenet if arch == "resnet_imagenet" else SMALL[arch])).train()
    frozen = [m for m in model.modules() if not list(m.children())][1]
    frozen.eval()                                            # modes may differ from module to module
    frozen.register_forward_hook(own_hook := lambda *_: None)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes, random_state = [m.training for m in model.modules()], torch.get_rng_state()
    names = set(vars(model))
    total = compute_flops.count(model).total
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert [m.training for m in model.modules()] == modes and set(vars(model)) == names
    assert [hook for m in model.modules() for hook in m._forward_hooks.values()] == [own_hook]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.grad is None for p in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *models.input_shape(arch, model.cfg)))
    assert 2 * total.macs == counter.get_total_flops()
    assert total.params == sum(p.numel() for p in model.parameters()) and total.bytes == 4 * total.params


def test_a_failing_count_leaves_no_hooks():
    model = models.build("vgg", depth=11).train()
    model.cfg["image_size"] = 7
    with pytest.raises(RuntimeError):
        compute_flops.count(model)
    assert all(m.training and not m._forward_hooks for m in model.modules())


def test_sparse_macs_and_non_zeros_by_hand():
    model = models.build("lenet5")                           # conv1 20 x 1 x 5 x 5 at 24 x 24, fc2 10 x 500
    nn.init.ones_(model.conv1.weight)
    nn.init.zeros_(model.conv1.bias)
    nn.init.ones_(model.fc2.weight)
    before = {row.name: row for row in compute_flops.count(model).rows}
    with torch.no_grad():
        model.conv1.weight[:3] = 0                           # three filters
        model.conv1.weight[5, 0, 2, 2] = 0
        model.fc2.weight[:, :100] = 0
    rows = {row.name: row for row in compute_flops.count(model).rows}
    assert before["conv1"].sparse_macs == before["conv1"].macs == 24 * 24 * 500
    assert rows["conv1"].macs == 24 * 24 * 500 and rows["conv1"].sparse_macs == 24 * 24 * (500 - 76)
    assert rows["conv1"].nonzeros == 500 - 76 and rows["conv1"].params == 520
    assert rows["fc2"].macs == 5000 and rows["fc2"].sparse_macs == 4000 and before["fc2"].sparse_macs == 5000
    assert before["fc2"].nonzeros - rows["fc2"].nonzeros == 1000
    total = compute_flops.count(model).total
    assert total.sparse_macs == sum(row.sparse_macs for row in rows.values())


@pytest.mark.parametrize("flush", [True, False])
def test_what_a_cpu_computes_with_as_zero_is_counted_as_zero(flush):
    """Denormals, which a training on a GPU leaves, whether or not this process flushes them."""
    model = models.build("lenet300")
    model.fc3.weight.data[0, :3] = torch.tensor([1e-40, -1e-44, 1e-37])
    try:
        torch.set_flush_denormal(flush)
        counted = {row.name: row for row in compute_flops.count(checkpoint.to_model(
            checkpoint.of(model, "hoyer", "sparse", "mnist"))).rows}
    finally:
        torch.set_flush_denormal(False)
    assert (counted["fc3"].weights, counted["fc3"].sparse_macs) == (998, 998)


def test_vgg13_as_thop_counts_it():
    """The slimming README's figure: MACs plus 2 per batch-norm output, doubled."""
    total = compute_flops.count(models.build("vgg", depth=13, num_classes=10)).total
    sizes = {64: 32 * 32, 128: 16 * 16, 256: 8 * 8, 512: 4 * 4 + 2 * 2}
    assert total.norm_elements == sum(2 * width * positions for width, positions in sizes.items()) == 249_856
    assert total.macs + 2 * total.norm_elements == 228_766_720 and total.thop_flops == 457_533_440


def test_channel_selections_are_counted_apart():
    counted = compute_flops.count(models.build("densenet", depth=40, selection=True))
    assert counted.selections == 9_360
    assert counted.total.params == 1_109_788 - 9_360 - 90 * 457          # theirs has 100 classes


def test_the_command_shows_each_layer_and_the_total(tmp_path, capsys):
    model = models.build("lenet5")
    path = save(tmp_path / "c.pth.tar", model)
    compute_flops.main([str(path)])
    shown = capsys.readouterr().out
    total = compute_flops.count(model).total
    assert all(name in shown for name in ("conv1", "conv2", "fc1", "fc2", "total"))
    assert f"{total.macs:,} MACs" in shown and "2 x MACs" in shown and f"{path.stat().st_size:,}" in shown
