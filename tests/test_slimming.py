"""Network slimming: the penalty's gradient, the selection rule, and networks that compute the same after it."""
import csv
import json

import pytest
import torch
from torch import nn

from common import UserError, checkpoint, compute_flops, models, originals
from common.models.layers import ChannelSelection
from slimming import main, prune
from slimming.networks import network

FAMILIES = {"vgg": 11, "resnet": 20, "densenet": 10}


def trained_like(arch, depth, seed=0):
    """A network whose batch norms look trained: all statistics differ, gammas are spread and partly negative."""
    torch.manual_seed(seed)
    name, cfg = network(arch, depth)
    model = models.build(name, num_classes=10, **cfg)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, 0.3, 0.2)
            nn.init.normal_(m.bias, 0, 0.2)
            nn.init.normal_(m.running_mean, 0, 0.2)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
    return model.eval()


def gammas_of(model):
    return {name: bn.weight.detach().abs()[there] for name, (bn, there) in prune.scored_norms(model).items()}


def test_the_threshold_takes_exactly_k_channels_wherever_they_are():
    scores = {"a": torch.tensor([0.5, 0.1, 0.9]), "b": torch.tensor([0.2, 0.3, 0.8, 0.7])}
    keep, threshold = prune.choose(scores, 0.45)             # int(7 * 0.45) = 3 channels: 0.1, 0.2, 0.3
    assert keep["a"].tolist() == [True, False, True]
    assert keep["b"].tolist() == [False, False, True, True]
    assert threshold == pytest.approx(0.5)


def test_the_original_rule_takes_one_more():
    scores = {"a": torch.tensor([0.5, 0.1, 0.9]), "b": torch.tensor([0.2, 0.3, 0.8, 0.7])}
    keep, _ = prune.choose(scores, 0.45, faithful=True)      # all that are not above sorted[3] = 0.5
    assert keep["a"].tolist() == [False, False, True]
    assert keep["b"].tolist() == [False, False, True, True]


@pytest.mark.parametrize("arch, depth, pruned", [("vgg", 13, 1178), ("resnet", 29, 813), ("densenet", 40, 3745)])
def test_the_original_counts_at_40_percent(arch, depth, pruned):
    """What the original scripts drop at --percent 0.4 (0.4 T + 1), and ours, one less."""
    scores = gammas_of(trained_like(arch, depth))
    for faithful, expected in ((True, pruned), (False, pruned - 1)):
        keep, _ = prune.choose(scores, 0.4, faithful)
        assert sum(int((~mask).sum()) for mask in keep.values()) == expected


def test_ties_fall_by_position_or_all_at_once():
    scores = {"a": torch.tensor([0.5, 0.5, 0.5, 0.5])}
    assert prune.choose(scores, 0.5)[0]["a"].tolist() == [False, False, True, True]
    assert prune.choose(scores, 0.5, faithful=True)[0]["a"].tolist() == [False] * 4


@pytest.mark.parametrize("percent, left", [(0, 4), (0.999, 1)])
def test_the_ends_of_percent(percent, left):
    keep, _ = prune.choose({"a": torch.tensor([0.4, 0.3, 0.2, 0.1])}, percent)
    assert int(keep["a"].sum()) == left


def test_no_layer_loses_all_its_channels(capsys):
    scores = {"weak": torch.tensor([0.1, 0.3, 0.2]), "strong": torch.tensor([1.0, 2.0])}
    keep, _ = prune.choose(scores, 0.6)
    assert not keep["weak"].any()
    kept = prune.keep_some(keep, scores)
    assert kept["weak"].tolist() == [False, True, False]
    assert "weak: all 3 channels" in capsys.readouterr().out


def test_round_to_gives_multiples_and_keeps_the_strongest():
    scores = {"a": torch.arange(32.0), "b": torch.arange(20.0), "c": torch.arange(6.0)}
    keep = {"a": scores["a"] > 20, "b": scores["b"] > 2, "c": scores["c"] > 3}       # 11, 17 and 2 channels
    kept = prune.keep_some(keep, scores, round_to=8)
    assert {name: int(mask.sum()) for name, mask in kept.items()} == {"a": 8, "b": 16, "c": 6}
    assert kept["a"].nonzero().flatten().tolist() == list(range(24, 32))


@pytest.mark.parametrize("percent", [0.1, 0.4, 0.7, 0.9])
@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_masked_and_narrowed_logits_agree(arch, percent, dtype, tolerance):
    model = trained_like(arch, FAMILIES[arch])
    scores = gammas_of(model)
    keep = prune.keep_some(prune.choose(scores, percent)[0], scores)
    dense = [p.clone() for p in model.parameters()]
    prune.zero(model, keep)
    assert any(not torch.equal(a, b) for a, b in zip(dense, model.parameters(), strict=True))
    model, images = model.to(dtype), torch.randn(4, 3, 32, 32, dtype=dtype)
    small = models.narrow(model, keep)
    with torch.no_grad():
        masked, narrowed = model(images), small(images)
    assert (masked - narrowed).abs().max() <= tolerance * (1 if dtype == torch.float64 else masked.abs().max())
    assert compute_flops.count(small).total.macs < compute_flops.count(model).total.macs


def test_narrow_widths_are_the_original_cfg():
    """The lists that the original scripts print: kept channels per batch norm, 'M' for the pools."""
    model = trained_like("resnet", 20)
    scores = gammas_of(model)
    keep = prune.keep_some(prune.choose(scores, 0.5)[0], scores)
    assert models.narrow(model, keep).cfg["widths"] == [int(mask.sum()) for mask in keep.values()]
    model = trained_like("vgg", 11)
    scores = gammas_of(model)
    keep = prune.keep_some(prune.choose(scores, 0.5)[0], scores)
    widths = models.narrow(model, keep).cfg["widths"]
    assert [w for w in widths if w != "M"] == [int(mask.sum()) for mask in keep.values()]
    assert [i for i, w in enumerate(widths) if w == "M"] == [i for i, w in enumerate(model.cfg["widths"]) if w == "M"]


@pytest.mark.parametrize("training", [True, False])
def test_selecting_through_a_batch_norm_is_selecting_what_it_gives(training):
    torch.manual_seed(0)
    ours, plain, select = nn.BatchNorm2d(6), nn.BatchNorm2d(6), ChannelSelection(6, 3)
    select.indices = torch.tensor([0, 2, 5])
    nn.init.normal_(ours.weight)
    plain.load_state_dict(ours.state_dict())
    ours.train(training), plain.train(training)
    x = torch.randn(4, 6, 5, 5).contiguous(memory_format=torch.channels_last)
    a, b = select(x, ours), plain(x)[:, [0, 2, 5]]
    torch.testing.assert_close(a, b)
    assert a.is_contiguous(memory_format=torch.channels_last)
    a.square().sum().backward(), b.square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name)[[0, 2, 5]], getattr(plain, name)[[0, 2, 5]])
    assert ours.num_batches_tracked == plain.num_batches_tracked


def test_milestones():
    assert main.milestones(160) == main.milestones(160, faithful=True) == [80, 120]
    assert main.milestones(99) == [49, 74]
    assert main.milestones(99, faithful=True) == []          # 49.5 and 74.25 never come
    assert main.milestones(1) == []                          # not at the very start
    assert main.milestones(2) == [1]                         # tenfold, not a hundredfold


def one_step(folder, *flags):
    """Weights after one step of main.py on one batch, without momentum's or weight decay's part."""
    main.main(["--dataset", "shapes10", "--arch", "vgg", "--depth", "11", "--subset", "20", "--batch-size", "20",
               "--epochs", "1", "--lr", "0.5", "--weight-decay", "0", "--momentum", "0", "--precision", "fp32",
               "--device", "cpu", "--save", str(folder), *flags])
    return checkpoint.load(folder / "checkpoint.pth.tar")["state_dict"]


def test_the_penalty_adds_s_sign_gamma_to_the_gradient(tmp_path):
    plain, sparse = one_step(tmp_path / "a"), one_step(tmp_path / "b", "-sr", "--s", "0.25")
    name, cfg = network("vgg", 11)
    norms = [n for n, m in models.build(name, **cfg).named_modules() if isinstance(m, nn.BatchNorm2d)]
    for layer in norms:
        difference = plain[f"{layer}.weight"] - sparse[f"{layer}.weight"]
        torch.testing.assert_close(difference, torch.full_like(difference, 0.5 * 0.25))    # lr * s, gammas start at 0.5
        assert torch.equal(plain[f"{layer}.bias"], sparse[f"{layer}.bias"])                # nothing on beta
    assert torch.equal(plain["feature.0.weight"], sparse["feature.0.weight"])


def saved(path, arch, **kwargs):
    model = trained_like(arch, FAMILIES[arch])
    checkpoint.save(path, checkpoint.of(model, "slimming", "sparse", "shapes10", prec1=10.0, best_prec1=10.0, **kwargs))
    return model


def cut(source, folder, *flags):
    prune.main(["--model", str(source), "--save", str(folder), "--subset", "20", "--device", "cpu", *flags])


@pytest.mark.parametrize("arch", FAMILIES)
def test_mask_then_compact_is_the_same_network(arch, tmp_path):
    saved(tmp_path / "m.pth.tar", arch)
    cut(tmp_path / "m.pth.tar", tmp_path / "masked", "--mask", "--percent", "0.6")
    cut(tmp_path / "masked/pruned.pth.tar", tmp_path / "small", "--compact")
    masked, small = (checkpoint.load(tmp_path / d / "pruned.pth.tar") for d in ("masked", "small"))
    assert "masks" in masked and "masks" not in small
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        a, b = checkpoint.to_model(masked)(images), checkpoint.to_model(small)(images)
    assert (a - b).abs().max() <= 1e-4 * a.abs().max()
    assert sum(v.numel() for v in small["state_dict"].values()) < sum(v.numel() for v in masked["state_dict"].values())


def test_a_fully_masked_layer_is_no_error_and_still_compacts(tmp_path, capsys):
    torch.manual_seed(0)
    model = trained_like("resnet", 20)
    model.layer2[1].bn2.weight.data.mul_(1e-6)               # this layer goes as a whole
    checkpoint.save(tmp_path / "m.pth.tar", checkpoint.of(model, "slimming", "sparse", "shapes10"))
    cut(tmp_path / "m.pth.tar", tmp_path / "a", "--mask", "--percent", "0.5")
    assert "layer2.1.bn2: all channels are zero" in capsys.readouterr().out
    cut(tmp_path / "a/pruned.pth.tar", tmp_path / "b", "--compact")
    small = checkpoint.load(tmp_path / "b/pruned.pth.tar")
    assert small["state_dict"]["layer2.1.conv1.weight"].shape[0] == 1
    images = torch.randn(4, 3, 32, 32)
    masked = checkpoint.to_model(checkpoint.load(tmp_path / "a/pruned.pth.tar"))
    with torch.no_grad():
        a, b = masked(images), checkpoint.to_model(small)(images)
    assert (a - b).abs().max() <= 1e-4 * a.abs().max()


def test_masked_channels_stay_zero_through_fine_tuning(tmp_path):
    saved(tmp_path / "m.pth.tar", "resnet")
    cut(tmp_path / "m.pth.tar", tmp_path / "p", "--mask", "--percent", "0.5")
    main.main(["--refine", str(tmp_path / "p/pruned.pth.tar"), "--subset", "40", "--epochs", "2", "--batch-size", "20",
               "--save", str(tmp_path / "f"), "--device", "cpu", "--weight-decay", "0.1"])
    masks = checkpoint.load(tmp_path / "p/pruned.pth.tar")["masks"]
    tuned = checkpoint.load(tmp_path / "f/finetuned.pth.tar")
    assert tuned["masks"].keys() == masks.keys() and any((~m).any() for m in masks.values())
    before = checkpoint.load(tmp_path / "p/pruned.pth.tar")["state_dict"]
    for name, mask in masks.items():
        assert tuned["state_dict"][name][~mask].eq(0).all(), name
        assert not torch.equal(tuned["state_dict"][name][mask], before[name][mask])       # the others do learn


def originals_file(path, arch, seed=0, **extra):
    """A file as the original repository writes it: {epoch, state_dict, best_prec1}, selections as 0/1 vectors."""
    model = trained_like(arch, FAMILIES[arch], seed)
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("select.indices"):
            name, tensor = name.replace("indices", "indexes"), torch.ones(len(tensor))
        state[name] = tensor
    torch.save({"epoch": 3, "state_dict": state, "best_prec1": 0.9, **extra}, path)
    return model


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_file_of_the_original_repository_prunes_like_the_original(arch, tmp_path):
    model = originals_file(tmp_path / "theirs.pth.tar", arch)
    cut(tmp_path / "theirs.pth.tar", tmp_path / "p", "--arch", arch, "--depth", str(FAMILIES[arch]), "--dataset",
        "shapes10", "--faithful", "--percent", "0.3")
    small = checkpoint.to_model(checkpoint.load(tmp_path / "p/pruned.pth.tar"))
    # the original script, by its description: strict threshold over all batch norms, gamma and beta to zero
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    everything = torch.cat([m.weight.detach().abs() for m in norms]).sort().values
    threshold = everything[int(len(everything) * 0.3)]
    widths = []
    with torch.no_grad():
        for m in norms:
            mask = (m.weight.abs() > threshold).float()
            widths.append(int(mask.sum()))
            m.weight.mul_(mask)
            m.bias.mul_(mask)
        images = torch.randn(4, 3, 32, 32)
        theirs, ours = model(images), small(images)
    assert [w for w in small.cfg["widths"] if w != "M"] == widths
    assert (theirs - ours).abs().max() <= 1e-4 * theirs.abs().max()


def test_a_pruned_file_of_the_original_repository_fine_tunes_and_evaluates(tmp_path):
    model = trained_like("resnet", 20)
    scores = gammas_of(model)
    keep = prune.keep_some(prune.choose(scores, 0.5)[0], scores)
    prune.zero(model, keep)
    small = models.narrow(model, keep)
    state = dict(small.state_dict())
    for name in [n for n in state if n.endswith("select.indices")]:
        width = small.get_submodule(name.rpartition(".")[0]).width
        state[name.replace("indices", "indexes")] = torch.zeros(width).index_fill(0, state.pop(name), 1)
    torch.save({"cfg": small.cfg["widths"], "state_dict": state}, tmp_path / "pruned.pth.tar")
    ckpt = originals.load(tmp_path / "pruned.pth.tar", network, "resnet", 20)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(checkpoint.to_model(ckpt)(images), small(images))
    main.main(["--refine", str(tmp_path / "pruned.pth.tar"), "--arch", "resnet", "--depth", "20", "--dataset",
               "shapes10", "--subset", "20", "--epochs", "1", "--save", str(tmp_path / "f"), "--device", "cpu"])
    assert checkpoint.load(tmp_path / "f/finetuned.pth.tar")["cfg"]["widths"] == small.cfg["widths"]


def test_a_masked_file_of_the_original_repository_loads_whole(tmp_path):
    """Its prune_mask.py writes the widths that would be left, zeros among them, beside weights of full size."""
    model = trained_like("resnet", 20)
    state = {name: tensor for name, tensor in model.state_dict().items() if "select" not in name}
    torch.save({"cfg": [0] * len(model.cfg["widths"]), "state_dict": state}, tmp_path / "pruned.pth.tar")
    loaded = checkpoint.to_model(originals.load(tmp_path / "pruned.pth.tar", network, "resnet", 20))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


def test_the_random_control_drops_as_many_channels_but_others(tmp_path):
    saved(tmp_path / "m.pth.tar", "resnet")
    for criterion in ("gamma", "random"):
        cut(tmp_path / "m.pth.tar", tmp_path / criterion, "--percent", "0.4", "--criterion", criterion)
    gamma, random = (checkpoint.load(tmp_path / c / "pruned.pth.tar")["cfg"]["widths"] for c in ("gamma", "random"))
    assert sum(gamma) == sum(random) and gamma != random


def test_prune_writes_what_it_says(tmp_path, capsys):
    saved(tmp_path / "m.pth.tar", "resnet")
    cut(tmp_path / "m.pth.tar", tmp_path / "p", "--percent", "0.4")
    out, text = capsys.readouterr().out, (tmp_path / "p/prune.txt").read_text()
    lines = text.splitlines()
    ckpt = checkpoint.load(tmp_path / "p/pruned.pth.tar")
    total = compute_flops.count(checkpoint.to_model(ckpt)).total
    assert lines[0] == "Configuration:" and json.loads(lines[1]) == ckpt["cfg"]["widths"]
    assert lines[2] == "Number of parameters:" and int(lines[3]) == total.params
    assert lines[4] == "Test accuracy:" and 0 <= float(lines[5]) <= 1
    for report in (text, out):
        assert f"{total.params:,}" in report and f"{total.macs:,}" in report and f"{2 * total.macs:,}" in report
        assert "requested 40.00 %" in report and "dropped 544 of 1360 channels: 40.00 %" in report
    assert (tmp_path / "p/prune.png").stat().st_size > 5000
    assert ckpt["dense"]["params"] == 219_482


@pytest.mark.parametrize("arch", FAMILIES)
def test_prune_again_from_a_narrow_network(arch, tmp_path):
    saved(tmp_path / "m.pth.tar", arch)
    for source, target in (("m.pth.tar", "p"), ("p/pruned.pth.tar", "q")):
        cut(tmp_path / source, tmp_path / target, "--percent", "0.3")
    first, second = (checkpoint.load(tmp_path / d / "pruned.pth.tar") for d in "pq")
    counts = [sum(w for w in cfg["widths"] if w != "M") for cfg in (first["dense"]["cfg"], first["cfg"], second["cfg"])]
    for before, after in zip(counts, counts[1:], strict=False):
        assert before - after == int(0.3 * before)           # of those that are left, not of those gone before
    assert second["dense"]["params"] == first["dense"]["params"]


def test_the_penalty_goes_on_in_fine_tuning(tmp_path):
    saved(tmp_path / "m.pth.tar", "vgg")
    cut(tmp_path / "m.pth.tar", tmp_path / "p", "--percent", "0.3")
    flags = ["--refine", str(tmp_path / "p/pruned.pth.tar"), "--subset", "20", "--batch-size", "20", "--epochs", "1",
             "--lr", "0.5", "--weight-decay", "0", "--momentum", "0", "--precision", "fp32", "--device", "cpu"]
    main.main([*flags, "--save", str(tmp_path / "a")])
    main.main([*flags, "--save", str(tmp_path / "b"), "-sr", "--s", "0.25"])
    plain, sparse = (checkpoint.load(tmp_path / d / "finetuned.pth.tar")["state_dict"] for d in "ab")
    before = checkpoint.load(tmp_path / "p/pruned.pth.tar")["state_dict"]["feature.1.weight"]
    torch.testing.assert_close(plain["feature.1.weight"] - sparse["feature.1.weight"], 0.5 * 0.25 * before.sign())


def test_fine_tuning_has_the_schedule_of_training(tmp_path):
    saved(tmp_path / "m.pth.tar", "vgg")
    cut(tmp_path / "m.pth.tar", tmp_path / "p", "--percent", "0.9")
    main.main(["--refine", str(tmp_path / "p/pruned.pth.tar"), "--subset", "20", "--epochs", "4", "--device", "cpu",
               "--save", str(tmp_path / "f")])
    with open(tmp_path / "f/log.csv", newline="") as file:
        assert [float(row["lr"]) for row in csv.DictReader(file)] == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_a_run_is_not_gone_on_with_under_other_masks(tmp_path):
    saved(tmp_path / "m.pth.tar", "vgg")
    cut(tmp_path / "m.pth.tar", tmp_path / "p", "--mask", "--percent", "0.5")
    flags = ["--refine", str(tmp_path / "p/pruned.pth.tar"), "--subset", "20", "--epochs", "1", "--device", "cpu",
             "--save", str(tmp_path / "f"), "--resume", "auto"]
    main.main(flags)
    before = checkpoint.load(tmp_path / "f/finetuned.pth.tar")["masks"]
    main.main(flags)                                         # the same: it is finished
    cut(tmp_path / "m.pth.tar", tmp_path / "p", "--mask", "--percent", "0.2", "--overwrite")
    with pytest.raises(UserError, match="refuses to resume with different masks"):
        main.main(flags)
    after = checkpoint.load(tmp_path / "f/finetuned.pth.tar")["masks"]
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("flags", [["--mask"], [], ["--round-to", "8"]])
@pytest.mark.parametrize("arch", FAMILIES)
def test_another_methods_masks_stay_with_their_weights(arch, flags, tmp_path):
    from magnitude import prune as magnitude
    saved(tmp_path / "m.pth.tar", arch)
    magnitude.main(["--model", str(tmp_path / "m.pth.tar"), "--save", str(tmp_path / "a"), "--percent", "0.8",
                    "--subset", "20", "--device", "cpu"])
    cut(tmp_path / "a/pruned.pth.tar", tmp_path / "b", "--percent", "0.4", *flags)
    ckpt = checkpoint.load(tmp_path / "b/pruned.pth.tar")
    convs = {n: w for n, w in ckpt["state_dict"].items() if w.dim() == 4}
    assert convs.keys() <= ckpt["masks"].keys()
    for name, weight in convs.items():
        assert torch.equal(weight != 0, ckpt["masks"][name])               # none of the trained weights is exactly zero


def test_prune_refuses(tmp_path):
    saved(tmp_path / "m.pth.tar", "vgg")
    for flags, message in ((["--percent", "1"], "percent"), (["--percent", "-0.1"], "percent"),
                           (["--compact"], "holds no masks"), (["--compact", "--mask"], "choose one"),
                           (["--mask", "--round-to", "8"], "--round-to"), (["--depth", "13"], "depth 11"),
                           (["--arch", "resnet"], "not --arch resnet"), (["--arch", "vgg13"], "depth 11")):
        with pytest.raises(UserError, match=message):
            cut(tmp_path / "m.pth.tar", tmp_path / "p", *flags)
    assert not (tmp_path / "p").exists()
