"""Operations by hand and of MobileNetV2; the MicroNet score in both tallies."""
import pytest
import torch
from by_hand import SMALL
from torch import nn

from common import UserError, compute_flops, models, scores


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Hand(nn.Module):
    """(N, 2, 4, 4) -> (N, 3): 3 x 3 convolution, batch norm, ReLU, 1 x 1 residual branch, pool, linear."""
    arch, cfg = "hand", {"input": (2, 4, 4)}

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 5, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(5)
        self.branch = nn.Conv2d(5, 5, 1, bias=False)
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        x = x + self.branch(x)
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def by_kind(rows):
    found = {}
    for row in rows:
        mults, adds = found.get(row.kind, (0, 0))
        found[row.kind] = mults + row.mults, adds + row.adds
    return found


def test_operations_by_hand():
    model = Hand()
    rows = scores.operations(model)
    assert [(row.name, row.kind, row.weight) for row in rows] == [
        ("conv", "conv", "conv.weight"), ("bn", "norm", ""), ("", "relu", ""), ("branch", "conv", "branch.weight"),
        ("", "add", ""), ("", "pool", ""), ("fc", "linear", "fc.weight")]
    assert [(row.mults, row.adds) for row in rows] == [
        (16 * 5 * 18, 16 * 5 * 17),             # 16 positions, 5 filters of 18 weights: 17 additions join 18 products
        (0, 16 * 5),                            # the batch norm is a bias
        (16 * 5, 0), (16 * 5 * 5, 16 * 5 * 4), (0, 16 * 5),
        (5, 5 * 15),                            # the mean of 16 numbers
        (15, 3 * 4 + 3)]                        # and a bias


def test_zeros_need_no_operations():
    model = Hand()
    with torch.no_grad():
        model.conv.weight[0] = 0                             # an empty filter: its bias is a constant
        model.conv.weight[1].view(-1)[:7] = 0
        model.fc.weight[2, 1:] = 0
    rows = {row.name: row for row in scores.operations(model) if row.name}
    assert (rows["conv"].mults, rows["conv"].adds) == (16 * (3 * 18 + 11), 16 * (3 * 17 + 10))
    assert (rows["bn"].mults, rows["bn"].adds) == (0, 16 * 4)
    assert (rows["fc"].mults, rows["fc"].adds) == (11, 4 + 4 + 0 + 3)


def test_a_batch_norm_of_an_earlier_tensor_with_the_identity_of_a_convolution_s_output_is_not_folded():
    """Python gives the identity of a tensor that is gone to a later one."""
    counter, x, out = scores.Counter({}), torch.ones(1, 3, 4, 4), torch.ones(1, 2, 4, 4)
    counter.record("batch_norm", (out, ), [out], out)
    weight = torch.ones(2, 3, 1, 1)
    counter.record("convolution", (x, weight, None, [1], [0], [1], False), [x, weight], out)
    counter.uses[id(out)] = 1
    counter.fold()
    assert [(row.kind, row.mults) for row in counter.rows] == [("norm", 32), ("conv", 96)]


def test_a_batch_norm_that_is_not_alone_behind_its_convolution_is_not_folded():
    class Shared(nn.Module):
        arch, cfg = "shared", {"input": (1, 3, 3)}

        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2)

        def forward(self, x):
            x = self.conv(x)
            return x + self.bn(x)

    assert by_kind(scores.operations(Shared()))["norm"] == (18, 18)
    # preactivation: the first batch norm of each of the 9 blocks reads a stream, the last one too
    norms = [row for row in scores.operations(models.build("preresnet", depth=20)) if row.kind == "norm"]
    assert sum(row.mults > 0 for row in norms) == 10 and len(norms) == 19


def test_counting_leaves_the_network_as_it_was():
    model = models.build("mobilenetv2", width_multiplier=0.1).train()
    model.bn1.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scores.operations(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training and not model.bn1.training and not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("arch", models.ARCHS)
def test_every_network_can_be_counted(arch):
    model = models.build(arch, **SMALL[arch])
    kinds = by_kind(scores.operations(model))
    weights = kinds.get("conv", (0, 0))[0] + kinds["linear"][0]
    assert weights == compute_flops.count(model).total.sparse_macs


def test_a_linear_layer_on_several_rows_and_a_transposed_convolution():
    class Rows(nn.Sequential):
        arch, cfg = "rows", {"input": (1, 4, 4)}

        def forward(self, x):
            return super().forward(x.flatten(1).view(8, 2))
    assert [row.mults for row in scores.operations(Rows(nn.Linear(2, 3)))] == [8 * 6]
    net = nn.Sequential(nn.ConvTranspose2d(1, 2, 2, 2))
    net.arch, net.cfg = "up", {"input": (1, 4, 4)}
    with pytest.raises(UserError, match="0 runs convolution, which common/scores.py cannot count"):
        scores.operations(net)


def test_an_operation_that_nobody_can_count_is_named():
    class Strange(nn.Sequential):
        arch, cfg = "strange", {"input": (1, 4, 4)}

        def forward(self, x):
            return torch.fft.fft(super().forward(x)).real
    with pytest.raises(UserError, match="_fft_r2c"):
        scores.operations(Strange(nn.Conv2d(1, 1, 1)))


def test_mobilenetv2():
    """The figures of the original, less its 254,720 ReLUs that are none, plus residual connections and pooling."""
    model = models.build("mobilenetv2")
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1)                                  # a random one may be zero
    kinds = by_kind(scores.operations(model))
    assert sum(kinds[k][0] for k in ("conv", "linear", "relu")) == 155_691_776 - 254_720
    assert sum(kinds[k][1] for k in ("conv", "linear", "norm")) == 153_407_488
    assert kinds["pool"] == (1664, 1664 * 15)
    blocks = {32: [24, 32, 32], 16: [40, 40], 8: [80, 80, 80, 128, 128, 128], 4: [208, 208, 416]}
    residual = sum(side * side * width for side, widths in blocks.items() for width in widths)
    assert kinds["add"] == (0, residual) and residual == 163_840


def test_rules_at_bit_widths_by_hand():
    model = Hand()
    rows = scores.operations(model)
    plain = scores.rules(model, rows=rows)
    everything = 90 + 4 * 5 + 25 + 15 + 3
    assert plain.storage == everything
    assert plain.mults == 1440 + 80 + 400 + 5 + 15 and plain.adds == 1360 + 80 + 320 + 80 + 75 + 15
    assert plain.score == everything / 36.5e6 + (plain.mults + plain.adds) / 10.49e9
    bits = {"conv.weight": 8, "branch.weight": 4}
    small = scores.rules(model, bits=bits, activation_bits=6, accumulator_bits=16, rows=rows, scales=2)
    assert small.storage == (90 * 8 + 25 * 4 + (20 + 15 + 3) * 32) / 32 + 2
    # the larger operand counts: 8 for conv, 6 for branch, 32 for the linear layer; ReLU and pool have none
    assert small.mults == (1440 * 8 + 400 * 6 + 15 * 32 + (80 + 5) * 6) / 32
    assert small.adds == plain.adds / 2
    free = scores.rules(model, freebie=True, rows=rows)
    assert (free.storage, free.mults, free.adds) == (plain.storage / 2, plain.mults / 2, plain.adds)


def test_masks_cost_a_bit_an_element():
    model = Hand()
    mask = torch.zeros(5, 2, 3, 3, dtype=torch.bool)
    mask.view(-1)[:30] = True
    dense = scores.words(model)
    assert scores.words(model, {"conv.weight": mask}) == dense - 90 + 30 + 90 / 32
    assert scores.words(model, {"conv.weight": mask}, {"conv.weight": 8}) == dense - 90 + (30 * 8 + 90) / 32
    full = torch.ones_like(mask)                             # a mask without zeros would only cost
    assert scores.words(model, {"conv.weight": full}, {"conv.weight": 8}) == dense - 90 + 90 * 8 / 32


def test_the_freebie_is_for_networks_that_are_not_quantized():
    model = Hand()
    for refused in ({"bits": {"conv.weight": 8}}, {"activation_bits": 8}):
        with pytest.raises(UserError, match="freebie"):
            scores.rules(model, freebie=True, rows=[], **refused)
    with pytest.raises(UserError, match="'conv'"):
        scores.rules(model, bits={"conv": 8}, rows=[])


@pytest.mark.parametrize("params,operations,score", [
    (617_641.5, 231_253_376, 0.0390),                        # the reweighted README's own case
    (23_181_353 // (32 // 8), 5_318_413_340, 0.66577),       # the soft mask's
    (566_818, 116_190_000, 0.0266), (368_185, 61_250_000, 0.0159), (350_985.5, 61_250_000, 0.0155)])
def test_published_scores(params, operations, score):
    a, b, total = scores.published(params, operations)
    assert total == a + b == pytest.approx(score, abs=10.0 ** -len(str(score).split(".")[1]) * 0.51)
    assert a == params / 36.5e6 and b == operations / 10.49e9
