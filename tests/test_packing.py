"""Quantized weights come back from a file as the integers they are, and the file is as small as the bits say."""
from functools import partial

import pytest
import torch
from by_hand import save

from common import models
from common.files import checkpoint, packing


def entry_of(bits, shape=(6, 3, 3, 3), per_channel=False, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2 ** bits, shape, generator=generator)
    codes.view(-1)[:2] = torch.tensor([0, 2 ** bits - 1])    # both ends
    size = (shape[0], *[1] * (len(shape) - 1)) if per_channel else ()
    scale = 0.001 + torch.rand(size, generator=generator)
    zero = torch.randint(0, 2 ** bits, size, generator=generator)
    return codes, scale, zero, packing.quantized(codes, bits, scale, zero, **more)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", range(1, 17))
def test_codes_come_back_at_every_width(bits, per_channel):
    codes, scale, zero, entry = entry_of(bits, per_channel=per_channel)
    assert entry["codes"].dtype == torch.uint8 and len(entry["codes"]) == -(-codes.numel() * bits // 8)
    assert torch.equal(packing.codes_of(entry), codes)
    assert torch.equal(packing.dequantize(entry), (codes - zero).float() * scale)


def test_three_bits_by_hand():
    entry = packing.quantized(torch.tensor([5, 0, 7]), 3, torch.tensor(0.5), torch.tensor(2))
    assert entry["codes"].tolist() == [0b10100011, 0b10000000]           # 101 000 111, end to end
    assert packing.dequantize(entry).tolist() == [1.5, -1.0, 2.5]


@pytest.mark.parametrize("shape", [(5,), (4, 7), (1,), (0, 3)])
def test_any_shape(shape):
    codes = torch.zeros(shape, dtype=torch.int64)
    entry = packing.quantized(codes, 5, torch.tensor(2.0), torch.tensor(3))
    assert torch.equal(packing.dequantize(entry), torch.full(shape, -6.0))


def test_a_codebook_for_the_tensor_and_for_each_channel():
    codes = torch.tensor([[0, 2], [1, 1]])
    assert packing.dequantize(packing.quantized(codes, 2, codebook=torch.tensor([-1.0, 0.0, 4.0]))).tolist() == [
        [-1, 4], [0, 0]]
    books = torch.tensor([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]])
    assert packing.dequantize(packing.quantized(codes, 2, codebook=books)).tolist() == [[1, 3], [6, 6]]


def test_what_a_mask_prunes_is_zero_and_costs_one_bit():
    mask = torch.rand(64, 10, generator=torch.Generator().manual_seed(1)) < 0.2
    codes, scale, zero, entry = entry_of(8, (64, 10), mask=mask)
    assert torch.equal(packing.dequantize(entry), torch.where(mask, (codes - zero) * scale, 0.0))
    assert len(entry["codes"]) == int(mask.sum()) and len(entry["kept"]) == 80


@pytest.mark.parametrize("codes, bits", [([4], 2), ([-1], 2), ([0], 0), ([0], 17)])
def test_codes_that_do_not_fit_are_refused(codes, bits):
    with pytest.raises(ValueError, match="bits"):
        packing.quantized(torch.tensor(codes), bits, torch.tensor(1.0), torch.tensor(0))


# In a checkpoint


def quantize(model, bits, **more):
    """quant of all weights with more than one dimension, and the model with these values."""
    quant = {}
    for i, (name, p) in enumerate(model.named_parameters()):
        if p.dim() > 1:
            quant[name] = entry_of(bits, tuple(p.shape), per_channel=i % 2 == 0, seed=i, **more)[-1]
            p.data.copy_(packing.dequantize(quant[name]))
    return quant


write = partial(save, method="softmask", stage="quantized")


@pytest.mark.parametrize("bits, ratio", [(8, 4), (4, 8)])
def test_the_file_is_a_quarter_at_8_bits_and_an_eighth_at_4(bits, ratio, tmp_path):
    model = models.build("vgg", depth=11).eval()
    dense = write(tmp_path / "dense", model).stat().st_size
    quant = quantize(model, bits)
    path = write(tmp_path / "small", model, quant=quant)
    assert path.stat().st_size == pytest.approx(dense / ratio, rel=0.02)
    assert not quant.keys() & torch.load(path, weights_only=True)["state_dict"].keys()
    ckpt = checkpoint.load(path, quantized=True)
    assert ckpt["quant"].keys() == quant.keys()
    again, images = checkpoint.to_model(ckpt), torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))


def test_a_masked_and_quantized_weight_keeps_its_mask(tmp_path):
    model = models.build("lenet300")
    name = "fc1.weight"
    mask = torch.rand(300, 784) < 0.1
    quant = {name: entry_of(4, (300, 784), mask=mask)[-1]}
    model.fc1.weight.data.copy_(packing.dequantize(quant[name]))
    other = torch.rand(100, 300) < 0.5                       # of a weight that is not quantized
    model.fc2.weight.data.mul_(other)
    path = write(tmp_path / "c", model, quant=quant, masks={name: mask, "fc2.weight": other})
    ckpt = checkpoint.load(path, quantized=True)
    assert torch.equal(ckpt["masks"][name], mask) and torch.equal(ckpt["masks"]["fc2.weight"], other)
    assert all(torch.equal(ckpt["state_dict"][k], v) for k, v in model.state_dict().items())


def test_saving_other_weights_than_the_entry_says_is_refused(tmp_path):
    model = models.build("lenet300")
    with pytest.raises(ValueError, match="fc1.weight"):
        write(tmp_path / "c", model, quant={"fc1.weight": entry_of(4, (300, 784))[-1]})
    assert not (tmp_path / "c").exists()
