"""Half precision: bf16 where the hardware has it, else fp32 with weights and inputs of layers rounded to bf16."""
import pytest
import torch
from by_hand import like_trained, save
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from common import device, models
from common.run import Run
from reweighted import eval as reweighted_eval
from slimming import main
from softmask import eval as softmask_eval

TINY = ["--subset", "10", "--device", "cpu"]


class ComputedIn16Bits(TorchDispatchMode):
    """The operations, but for casts, that read or return half precision while it is on."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        result = op(*args, **kwargs or {})
        if any(isinstance(t, torch.Tensor) and t.dtype in (torch.bfloat16, torch.float16) for t in (*args, result)):
            self.found.add(op.overloadpacket.__name__)
        return result

    def all(self):
        return self.found - {"_to_copy", "detach"}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    torch.manual_seed(0)
    model = like_trained(models.build("resnet", depth=8, num_classes=10))
    return str(save(tmp_path_factory.mktemp("half") / "c.pth.tar", model))


@pytest.mark.parametrize("script", [softmask_eval, reweighted_eval])
@pytest.mark.parametrize("native", [False, True])
def test_evaluation_computes_in_bf16_only_where_the_hardware_does(script, native, file, monkeypatch, capsys):
    monkeypatch.setattr(device, "has_bf16", lambda device: native)
    with ComputedIn16Bits() as mode:
        script.main([file, "--half", "--per-class", *TINY])
    assert ("convolution" in mode.all()) is native and (native or not mode.all())
    assert ("cpu has no native bf16; weights and inputs of layers are rounded" in capsys.readouterr().out) is not native


@pytest.mark.parametrize("arch, cfg", [("resnet", dict(depth=8)), ("lenet300", {}), ("densenet", dict(depth=10)),
                                       ("preresnet", dict(depth=11, selection=True))])
def test_rounding_gives_the_logits_of_bf16(arch, cfg, monkeypatch, capsys):
    """To a part of what fp32's differ from them; and nothing of the network itself changes."""
    torch.manual_seed(0)
    model = like_trained(models.build(arch, **cfg)).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(4, *models.input_shape(arch))
    with torch.no_grad():
        whole = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            expected = model(images).float()
        monkeypatch.setattr(device, "has_bf16", lambda device: False)
        half = device.in_half(model)
        inputs = []
        for m in half.modules():
            if isinstance(m, nn.Conv2d | nn.Linear):
                m.register_forward_pre_hook(lambda m, x: inputs.append(x[0]))
        given = half(images)
    assert (given - expected).abs().max() < 0.02 * expected.abs().max() and not torch.equal(given, whole)
    layers = [m for m in half.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(inputs) == len(layers) > 2
    for tensor in (*inputs, *(p for m in layers for p in m.parameters())):
        assert torch.equal(tensor, tensor.bfloat16().float())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_cpu_that_is_to_use_avx2_alone_has_no_bf16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    for capability, native in (("AVX512", True), ("AVX2", False), ("DEFAULT", False)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert device.has_bf16(torch.device("cpu")) is native


def test_training_in_emulated_bf16_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("common.run.has_bf16", lambda device: False)
    args = main.parse(["--dataset", "shapes10", "--precision", "bf16", "--save", str(tmp_path / "run"), *TINY])
    Run("slimming", "dense", "lenet300", **vars(args)).describe(models.build("lenet300"))
    assert "note: cpu has no native bf16; emulated" in capsys.readouterr().out
