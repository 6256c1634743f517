"""Pruned weights in files of other repositories: masks are read, zeros without a mask are asked about; and a network
with another number of classes is trained on."""
import pytest
import torch
from by_hand import FILE, METHODS, call, write_images
from torch.nn.utils import prune

from common import UserError, models, zeros
from common.files import checkpoint
from common.models import any_network

COMMON = ["--dataset", "shapes10", "--subset", "20", "--device", "cpu", "--precision", "fp32", "--epochs", "1"]
MAIN = {"softmask": ["--swa-start", "2", "--pretrained"], "reweighted": ["--rew", "--pretrained"]}


def finetune(method):
    return ["--warmup-epochs", "0"] * (method == "reweighted") + [FILE.get(method, "--model")]


def layers(model):
    return [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]


def network(fraction=0.8):
    """A ResNet-8 whose smallest weights are zero, and (zeros, all) of them."""
    torch.manual_seed(0)
    model = models.build("resnet", depth=8)
    for m in layers(model):
        m.weight.data *= m.weight.abs() > m.weight.abs().flatten().quantile(fraction)
    return model


def nonzeros(state):
    return sum(int(w.count_nonzero()) for w in state.values() if w.dim() > 1)


def run(method, script, flags, folder):
    call(f"{method}.{script}", *flags, *COMMON, "--save", folder, "--overwrite")


@pytest.mark.parametrize("method", METHODS)
def test_zeros_without_masks_are_kept_or_trained_as_the_flag_says(method, tmp_path, capsys):
    model, file = network(), tmp_path / "theirs.pth"
    before = nonzeros(model.state_dict())
    torch.save(model.state_dict(), file)
    with pytest.raises(UserError, match="theirs.pth holds no masks, but 80 % of its .*weight is zero .9 more tensors.; "
                                        "give --dense .* --keep-zeros"):
        run(method, "finetune", [*finetune(method), file], tmp_path / "a")
    run(method, "finetune", [*finetune(method), file, "--keep-zeros"], tmp_path / "b")
    kept = checkpoint.load(tmp_path / "b" / "finetuned.pth.tar")
    assert nonzeros(kept["state_dict"]) == before and sum(int(m.sum()) for m in kept["masks"].values()) == before
    run(method, "finetune", [*finetune(method), file, "--dense"], tmp_path / "c")
    trained = checkpoint.load(tmp_path / "c" / "finetuned.pth.tar")
    assert nonzeros(trained["state_dict"]) > 4 * before and not trained.get("masks")
    assert "nothing in it is pruned" not in capsys.readouterr().out
    with pytest.raises(UserError, match="finetuned.pth.tar holds masks, .*leave out --dense"):
        run(method, "finetune", [*finetune(method), tmp_path / "b/finetuned.pth.tar", "--dense"], tmp_path / "d")
    main = MAIN.get(method, ["--pretrained"])
    with pytest.raises(UserError, match="holds no masks, but 80 % of its .*weight is zero"):
        run(method, "main", [*main, file], tmp_path / "e")
    run(method, "main", [*main, file, "--dense"], tmp_path / "e")
    assert nonzeros(checkpoint.load(tmp_path / "e" / "checkpoint.pth.tar")["state_dict"]) > 60_000


def test_a_few_zeros_are_no_question():
    ckpt = {"path": "m.pth", "method": "original", "state_dict": network(0.04).state_dict()}
    assert zeros.kept(ckpt) == {}
    assert zeros.kept({**ckpt, "state_dict": network(0).state_dict()}) == {}


def test_zero_gammas_are_masked_with_their_betas():
    state = {"bn.weight": torch.tensor([0.0, 0.0, 1.0]), "bn.bias": torch.tensor([0.0, 0.5, 0.0])}
    masks = zeros.kept({"path": "m.pth", "method": "original", "state_dict": state}, keep_zeros=True)
    assert {name: mask.tolist() for name, mask in masks.items()} == {"bn.weight": [False, False, True],
                                                                     "bn.bias": [False, True, True]}


def torch_prune(model):
    for m in layers(model):
        prune.l1_unstructured(m, "weight", 0.8)
    return model.state_dict()


def shrinkbench(model):
    """weight as before and weight_mask."""
    torch_prune(model)
    return {name.replace("weight_orig", "weight"): w for name, w in model.state_dict().items()}


def nni(model):
    """The layer in a wrapper's `module`, the masks beside it."""
    wrapped = [f"{name}." for name, m in model.named_modules() if m in layers(model)]
    return {name if name.endswith("_mask") else next(
        (name.replace(layer, f"{layer}module.") for layer in wrapped if name.startswith(layer)), name): w
        for name, w in shrinkbench(model).items()}


@pytest.mark.parametrize("form", [torch_prune, shrinkbench, nni])
def test_masks_of_other_libraries_are_read(form, tmp_path):
    model = network(0)
    theirs = form(model)
    torch.save(theirs, tmp_path / "theirs.pth")
    ckpt = checkpoint.load(tmp_path / "theirs.pth", any_network)
    ours = checkpoint.to_model(ckpt)
    assert ckpt["stage"] == "pruned" and set(ckpt["masks"]) == {n.removesuffix("_mask") for n in theirs if "mask" in n}
    for m, name in zip(layers(model), ckpt["masks"], strict=True):
        assert torch.equal(ckpt["masks"][name], m.weight_mask.bool())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), model.eval()(x))
    run("slimming", "finetune", ["--refine", str(tmp_path / "theirs.pth")], tmp_path / "run")
    tuned = checkpoint.load(tmp_path / "run" / "finetuned.pth.tar")
    assert nonzeros(tuned["state_dict"]) == nonzeros(ckpt["state_dict"])
    assert tuned["masks"].keys() == ckpt["masks"].keys()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images of three classes."""
    return write_images(tmp_path_factory.mktemp("photos"), size=(64, 64), count=4)


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    """torchvision's ResNet-18 for ImageNet as a file."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    path = tmp_path_factory.mktemp("theirs") / "resnet18.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize("method", METHODS)
def test_a_network_is_trained_on_with_another_number_of_classes(method, photos, resnet18, tmp_path, capsys):
    call(f"{method}.main", *MAIN.get(method, ["--pretrained"]), resnet18, "--dataset", photos, "--image-size", 64,
         "--epochs", 1, "--batch-size", 6, "--device", "cpu", "--precision", "fp32", "--save", tmp_path, "--lr", 0)
    ckpt, theirs = checkpoint.load(tmp_path / "checkpoint.pth.tar"), torch.load(resnet18)
    assert f"note: {resnet18} has 1000 classes, {photos} has 3: fc.weight and fc.bias are reinitialized" in \
        capsys.readouterr().out
    assert ckpt["cfg"]["num_classes"] == 3 and ckpt["state_dict"]["fc.weight"].shape == (3, 512)
    assert torch.equal(ckpt["state_dict"]["layer4.1.conv2.weight"], theirs["layer4.1.conv2.weight"])     # lr 0
    assert ckpt["state_dict"]["fc.weight"].std() > 0.01 and ckpt["images"]["classes"] == ["cat", "cow", "dog"]
    assert ckpt["images"]["mean"][0] == 0.485


def test_what_was_pruned_in_other_layers_is_kept_with_new_classes(photos, tmp_path):
    torch.save(network().state_dict(), tmp_path / "theirs.pth")
    ckpt = {**checkpoint.load(tmp_path / "theirs.pth", any_network), "dataset": "shapes10"}
    ckpt["masks"] = zeros.kept(ckpt, keep_zeros=True)
    ckpt["dense"] = {"params": 78_042, "macs": 1, "cfg": ckpt["cfg"]}
    checkpoint.save(tmp_path / "pruned.pth.tar", ckpt)
    short = ["--dataset", photos, "--epochs", 1, "--batch-size", 6, "--device", "cpu"]
    call("reweighted.main", "--rew", "--pretrained", tmp_path / "pruned.pth.tar", *short, "--save", tmp_path / "run")
    after = checkpoint.load(tmp_path / "run" / "checkpoint.pth.tar")
    assert after["masks"].keys() == ckpt["masks"].keys() - {"fc.weight"} and after["dense"]["cfg"]["num_classes"] == 3
    assert all(not after["state_dict"][name][~mask].any() for name, mask in after["masks"].items())
    assert after["state_dict"]["fc.weight"].all() and after["dense"]["params"] < 78_042
    with pytest.raises(UserError, match="has 10 classes, .* has 3; .*main.py --pretrained"):
        call("reweighted.finetune", "--model", tmp_path / "pruned.pth.tar", *short, "--save", tmp_path / "tuned")
