"""Magnitude pruning: the selection rule, masks that never move, the ways to retrain, and files that are small."""
import argparse
import json
import math
from pathlib import Path

import pytest
import torch
from by_hand import STEPS, assert_same_network, column, like_trained, pruned_by, save, train_by_hand
from reliability import same
from torch import nn

from common import UserError, cli, compute_flops, keep, models
from common.files import checkpoint
from common.models import own
from common.models.narrow import narrow
from magnitude import budget, finetune, iterative, main, prune, rewind
from magnitude.main import recipe_of
from magnitude.networks import network

pytestmark = pytest.mark.usefixtures("undrawn")
TRUTH = json.loads(Path(__file__).with_name("ground_truth.json").read_text())
TINY = ["--dataset", "shapes10", "--subset", "20", "--device", "cpu", "--precision", "fp32"]


def tensors(**lists):
    return {name: torch.tensor(values) for name, values in lists.items()}


def listed(masks):
    return {name: mask.int().tolist() for name, mask in masks.items()}


# the networks

TRUTHS = {arch: TRUTH[f"kesi:{arch}{block}|c10"] for arch, block in (
    ("vgg16", ""), ("resnet20", ""), ("resnet56", ""), ("resnet110", ""), ("preresnet110", "-basic"),
    ("preresnet164", "-bottleneck"))} | {arch: {"conv_weights": weights} for arch, weights in (
        ("wrn_28_10", 36_454_832), ("wrn_16_8", 10_949_040), ("densenet", 1_036_008))}


@pytest.mark.parametrize("arch", TRUTHS)
def test_the_names_mean_the_original_networks(arch):
    name, cfg = network(arch)
    model, truth = models.sketch(name, **cfg), TRUTHS[arch]
    assert sum(w.numel() for w in budget.prunable(model).values()) == truth["conv_weights"]
    assert "params" not in truth or sum(p.numel() for p in model.parameters()) == truth["params"]
    name, cfg = network("resnet164")                         # 6n+2 too, though others mean bottlenecks by it
    assert cfg["block"] == "basic"


# the rule

A, B, SAME = [0.5, 0.1, 0.9], [0.2, 0.3, 0.8, 0.7], [0.5, 0.5]


@pytest.mark.parametrize("a, b, percent, faithful, left_a, left_b", [
    (A, B, 0.45, False, [1, 0, 1], [0, 0, 1, 1]),             # int(7 * 0.45) = 3 weights: 0.1, 0.2, 0.3
    (A, B, 0.45, True, [0, 0, 1], [0, 0, 1, 1]),              # all that are not above sorted[3] = 0.5
    (SAME, SAME, 0.75, False, [0, 0], [0, 1]), (SAME, SAME, 0.25, True, [0, 0], [0, 0]),
    (B, [], 0, False, [1, 1, 1, 1], []), (B, [], 0, True, [0, 1, 1, 1], []),
    (B, [], 0.999, False, [0, 0, 1, 0], []), (B, [], 0.999, True, [0, 0, 0, 0], [])])
def test_one_threshold_removes_exactly_k_weights_wherever_they_are(a, b, percent, faithful, left_a, left_b):
    masks, threshold = prune.choose(tensors(a=a, b=b), percent, faithful=faithful)
    assert listed(masks) == {"a": left_a, "b": left_b}
    if not faithful:
        assert threshold == sorted(torch.tensor(a + b).tolist())[int(len(a + b) * percent)]


def test_the_score_is_the_magnitude_and_what_is_pruned_goes_first():
    weight, previous_mask = torch.tensor([[-0.5, 0.1], [0.3, 0.0]]), torch.tensor([[True, True], [False, True]])
    assert prune.score(weight).flatten().tolist() == pytest.approx([0.5, 0.1, 0.3, 0.0])
    assert prune.score(weight, previous_mask).flatten().tolist() == pytest.approx([0.5, 0.1, -1, 0.0])
    assert weight.flatten().tolist() == pytest.approx([-0.5, 0.1, 0.3, 0.0])             # untouched


def test_a_layer_of_zeros_before_one_that_is_pruned():
    """A live weight of 0 stands behind every weight that was pruned before."""
    scores = {"a": prune.score(torch.zeros(2)), "b": prune.score(torch.tensor([5.0, 6.0]), torch.tensor([False, True]))}
    masks, threshold = prune.choose(scores, 0.25)
    assert listed(masks) == {"a": [1, 1], "b": [0, 1]} and threshold == 0


def test_the_random_control_keeps_as_many_in_every_layer_and_revives_none(monkeypatch):
    torch.manual_seed(0)
    masks = {"a": torch.rand(30, 40) > 0.7, "b": torch.rand(500) > 0.2}
    previous_masks = {"a": torch.rand(30, 40) > 0.3, "b": torch.ones(500, dtype=torch.bool)}
    masks["a"] &= previous_masks["a"]
    first, again, other = (keep.shuffled(masks, previous_masks, seed) for seed in (1, 1, 2))
    for name, mask in masks.items():
        assert first[name].sum() == mask.sum() and not torch.equal(first[name], mask)
        assert first[name].shape == mask.shape and not (first[name] & ~previous_masks[name]).any()
        assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])
    assert abs(float(first["b"][:250].float().mean() - first["b"][250:].float().mean())) < 0.15     # anywhere
    monkeypatch.setattr(torch, "rand", lambda shape, generator: torch.zeros(shape))      # the lowest number there is
    for previous_mask in (torch.arange(40) < 30, torch.arange(40) >= 10):
        shuffled = keep.shuffled({"a": torch.arange(40) < 10}, {"a": previous_mask}, 1)["a"]
        assert shuffled.sum() == 10 and not (shuffled & ~previous_mask).any()


# the plan and the fresh weights

RECIPE = {"epochs": 160, "batch_size": 32, "lr": 0.1, "schedule": [80, 120], "gamma": 0.2, "momentum": 0.8,
          "weight_decay": 5e-4}
REST = {"small": (0.1, 0.9, 1e-4), "onecycle": (0.1, 0.9, 1e-4)}          # gamma, momentum, weight decay; else RECIPE's


def planned(retrain, recipe=RECIPE, start=0, stretch=1.0, **flags):
    names = ("epochs", "batch_size", "lr", "schedule", "gamma", "momentum", "weight_decay")
    args = argparse.Namespace(retrain=retrain, **{name: flags.get(name) for name in names})
    if retrain in finetune.RECIPES:
        finetune.fill_in(args, finetune.RECIPES[retrain])
    else:
        rewind.plan(args, recipe, start, stretch)
    rest = REST.get(retrain, (0.2, 0.8, 5e-4) if recipe else (0.1, 0.9, 1e-4))
    assert (args.gamma, args.momentum, args.weight_decay) == rest
    return args.epochs, args.batch_size, pytest.approx(args.lr), args.schedule


@pytest.mark.parametrize("retrain, options, expected", [
    ("small", {}, (40, 64, 0.001, [])),
    ("small", {"epochs": 20, "schedule": [10]}, (20, 64, 0.001, [10])),
    ("onecycle", {}, (40, 128, 0.1, [])),
    ("lr-rewind", {}, (160, 32, 0.1, [80, 120])),
    ("lr-rewind", {"epochs": 80}, (80, 32, 0.02, [40])),                  # the rate has just fallen
    ("lr-rewind", {"epochs": 81}, (81, 32, 0.1, [1, 41])),
    ("lr-rewind", {"epochs": 40}, (40, 32, 0.004, [])),
    ("weight-rewind", {"start": 8}, (152, 32, 0.1, [72, 112])),
    ("weight-rewind", {"start": 0}, (160, 32, 0.1, [80, 120])),
    ("weight-rewind", {"start": 8, "epochs": 80}, (80, 32, 0.1, [72, 112])),             # always from epoch 8 on
    ("weight-rewind", {"start": 8, "epochs": 160}, (152, 32, 0.1, [72, 112])),            # there are no more
    ("weight-rewind", {"start": 80}, (80, 32, 0.02, [40])),
    ("scratch-e", {}, (160, 32, 0.1, [80, 120])),
    ("scratch-b", {"stretch": 4.0}, (640, 32, 0.1, [320, 480])),
    ("scratch-b", {"stretch": 4.0, "epochs": 1}, (1, 32, 0.1, [])),
])
def test_each_way_to_retrain_has_the_schedule_of_the_table(retrain, options, expected):
    assert planned(retrain, **options) == expected


def test_a_schedule_that_cannot_be_is_refused():
    with pytest.raises(UserError, match="160 epochs, so 161 are too many"):
        planned("lr-rewind", epochs=161)
    with pytest.raises(UserError, match="--rewind-to"):
        planned("weight-rewind", start=160)
    with pytest.raises(UserError, match="give --epochs, --lr, --schedule"):
        planned("lr-rewind", recipe={})
    assert planned("lr-rewind", recipe={}, epochs=10, lr=0.2, schedule=[5]) == (10, 64, 0.2, [5])
    assert planned("scratch-b", recipe={}, stretch=3, epochs=10, lr=0.2, schedule=[5]) == (30, 64, 0.2, [15])
    assert planned("weight-rewind", recipe={}, start=2, epochs=10, lr=0.2, schedule=[5]) == (8, 64, 0.2, [3])


def test_fresh_weights_have_the_std_of_the_fan_out_that_is_left():
    torch.manual_seed(0)
    model = models.build("resnet", depth=8, shortcut="pad")
    mask = torch.zeros_like(model.layer3[0].conv1.weight, dtype=torch.bool)
    mask[:, :, :, 0] = True                                               # a third of 3 x 3 x 64 = 192 per channel read
    before = model.conv1.weight.clone()
    rewind.draw_fresh(model, {"layer3.0.conv1.weight": mask, "conv1.weight": torch.zeros_like(before).bool()})
    assert float(model.layer3[0].conv1.weight.detach()[mask].std()) == pytest.approx((2 / 192) ** 0.5, rel=0.03)
    assert torch.equal(model.conv1.weight, before)                        # nothing is left of it: no division by zero


def test_a_round_takes_a_fifth_of_what_is_left():
    assert iterative.ladder(0.5) == [0.2, 0.36, 0.488, 0.5]  # exactly: 0.19999 of 5000 weights would be 999
    assert iterative.ladder(0.36) == pytest.approx([0.2, 0.36])
    assert iterative.ladder(0.1) == [0.1] and len(iterative.ladder(0.9)) == 11


ROUND = {"percent": 0.2, "scope": "conv", "per_layer": False, "criterion": "magnitude", "faithful": False, "seed": 1}
RETRAINED = {"retrain": "small", "rewind_to": None, "subset": 20, "epochs": 2, "lr": 0.1, "schedule": [1],
             "batch_size": 10, "gamma": 0.1, "momentum": 0.9, "weight_decay": 1e-4}


@pytest.mark.parametrize("made, checked", [(ROUND, iterative.RULE), (RETRAINED, iterative.TRAINING)])
def test_a_round_made_with_any_other_flag_is_not_continued(made, checked, tmp_path):
    path = save(tmp_path / "m.pth.tar", models.build("lenet5"), "magnitude", "finetuned", args=made)
    assert iterative.made_with(path, argparse.Namespace(**made), checked)["stage"] == "finetuned"
    for flag in made:
        with pytest.raises(UserError, match=f"was made with --{flag.replace('_', '-')} "):
            iterative.made_with(path, argparse.Namespace(**{**made, flag: "other"}), checked)
    checkpoint.save(path, checkpoint.of(models.build("lenet5"), "magnitude", "finetuned", "shapes10"))
    with pytest.raises(UserError, match=f"--{checked[0]} None, --"):
        iterative.made_with(path, argparse.Namespace(**made), checked)


def test_a_round_comes_from_the_network_that_has_its_weights_under_its_masks():
    source = {"cfg": {"depth": 8}, "state_dict": tensors(a=[1.0, 2.0], b=[3.0], c=[4.0])}
    pruned = {"cfg": {"depth": 8}, "path": "p", "masks": {"a": torch.tensor([True, False])}, "state_dict": tensors(
        a=[1.0, 0.0], b=[3.0], c=[4.0])}
    iterative.check_origin(pruned, source, "s")
    for other in ({"cfg": {"depth": 14}}, {"masks": {}}, *({"state_dict": pruned["state_dict"] | tensors(**{n: v})}
                  for n, v in (("a", [1.0, 2.0]), ("a", [9.0, 0.0]), ("b", [9.0]), ("c", [9.0])))):
        with pytest.raises(UserError, match="p was not made from s"):
            iterative.check_origin({**pruned, **other}, source, "s")


# files

def sparse_checkpoint(percent=0.9):
    torch.manual_seed(0)
    model = models.build("resnet", depth=8, shortcut="pad")
    masks, _ = prune.choose({n: prune.score(w) for n, w in budget.prunable(model).items()}, percent)
    return checkpoint.of(pruned_by(masks, model), "magnitude", "pruned", "shapes10", masks=masks)


def test_a_damaged_packed_file_is_named(tmp_path):
    checkpoint.save(tmp_path / "a.pth.tar", sparse_checkpoint())
    whole = torch.load(tmp_path / "a.pth.tar")
    for damage in ({"values": whole["packed"]["values"][:-1]}, {"bits": whole["packed"]["bits"][:9]}, {"bits": None}):
        torch.save({**whole, "packed": whole["packed"] | damage}, tmp_path / "b.pth.tar")
        with pytest.raises(UserError, match="b.pth.tar: its masks and its packed weights do not match"):
            checkpoint.load(tmp_path / "b.pth.tar")


@pytest.mark.parametrize("percent", [0, 0.3, 0.9, 0.99999])
def test_a_pruned_file_comes_back_as_it_went_in(percent, tmp_path):
    ckpt = sparse_checkpoint(percent)
    given = {k: dict(ckpt[k]) for k in ("state_dict", "masks")}
    checkpoint.save(tmp_path / "a.pth.tar", ckpt)
    assert all(same(ckpt[k], given[k]) for k in given)                    # saving changes nothing
    loaded = checkpoint.load(tmp_path / "a.pth.tar")
    assert all(same(loaded[k], given[k]) and list(loaded[k]) == list(given[k]) for k in given)
    assert "packed" not in loaded
    checkpoint.save(tmp_path / "b.pth.tar", {k: v for k, v in loaded.items() if k != "path"})
    assert abs((tmp_path / "a.pth.tar").stat().st_size - (tmp_path / "b.pth.tar").stat().st_size) < 2000


def test_a_half_file_of_a_pruned_network_is_smaller_still(tmp_path):
    sparse = sparse_checkpoint(0.5)
    whole, half = (checkpoint.save(tmp_path / f"{h}.pth.tar", sparse, half=h).stat().st_size for h in (False, True))
    assert half < 0.75 * whole
    loaded = checkpoint.load(tmp_path / "True.pth.tar")["state_dict"]
    assert all(torch.equal(v.half().float() if v.is_floating_point() else v, loaded[k])
               for k, v in sparse["state_dict"].items())


# the scripts

@pytest.fixture(scope="module")
def trained(tmp_path_factory, data_folder):
    """A folder with dense/, a ResNet-8 after 4 epochs, and pruned/, at 80 %."""
    folder = tmp_path_factory.mktemp("magnitude")
    main.main([*TINY, "--arch", "resnet8", "--epochs", "4", "--batch-size", "10", "--rewind-epoch", "2",
               "--save", str(folder / "dense")])
    cut(folder / "dense/checkpoint.pth.tar", folder / "pruned", "--percent", "0.8")
    return folder


def cut(source, folder, *flags):
    prune.main(["--resume", str(source), "--save_dir", str(folder), "--subset", "20", "--device", "cpu", *flags])
    return checkpoint.load(folder / "pruned.pth.tar")


def tune(source, folder, *flags):
    script = rewind if set(rewind.WAYS) & set(flags) else finetune
    script.main([*TINY, "--resume", str(source), "--save_dir", str(folder), *map(str, flags)])
    return checkpoint.load(folder / "finetuned.pth.tar")


def in_rounds(source, folder, *flags):
    iterative.main([*TINY, "--resume", str(source), "--save_dir", str(folder), *map(str, flags)])
    return checkpoint.load(folder / "finetuned.pth.tar")


HALVES = {"one threshold": [], "per layer": ["--per-layer"], "linear": ["--scope", "conv+linear"],
          "faithful": ["--faithful"], "random": ["--criterion", "random"],
          "other": ["--criterion", "random", "--seed", "2"]}


@pytest.fixture(scope="module")
def halves(trained):
    """{way: folder with the dense network cut to a half}."""
    for way, flags in HALVES.items():
        cut(trained / "dense/checkpoint.pth.tar", trained / way, "--percent", "0.5", *flags)
    return {way: trained / way for way in HALVES}


def test_main_keeps_the_first_and_the_early_weights(trained):
    ckpts = {name: checkpoint.load(trained / f"dense/{name}.pth.tar") for name in ("init", "early", "checkpoint")}
    assert [c["epoch"] for c in ckpts.values()] == [0, 2, 4]
    assert {c["stage"] for c in ckpts.values()} == {"dense"}
    assert column(trained / "dense") == pytest.approx([0.1, 0.1, 0.01, 0.001])              # falls at 2 and 3 of 4


def test_prune_writes_what_it_says(trained, tmp_path, capsys, rendered):
    ckpt = cut(trained / "dense/checkpoint.pth.tar", tmp_path / "p", "--percent", "0.3")
    out, text = capsys.readouterr().out, (tmp_path / "p/prune.txt").read_text()
    total = sum(m.numel() for m in ckpt["masks"].values())
    pruned = sum(int((~m).sum()) for m in ckpt["masks"].values())
    assert pruned == int(0.3 * total) == sum(int((ckpt["state_dict"][n] == 0).sum()) for n in ckpt["masks"])
    assert text.startswith("Before pruning: Test Loss:  ") and "\nAfter Pruning: Test Loss:  " in text
    totals = f"Total conv params: {total}, Pruned conv params: {pruned}, Pruned ratio: {pruned / total}\n"
    assert text.splitlines()[1] + "\n" == totals
    counted = compute_flops.count(checkpoint.to_model(ckpt)).total
    for report in (out, text):
        assert totals in report and "Pruning threshold: 0.0" in report and "not faster" in report
        assert "layer index: 1 \t total params: 432 \t remaining params: " in report
        assert f"{counted.sparse_macs:,} with non-zero weights" in report
        packed = 4 * (counted.params - pruned) + -(-total // 8)
        assert f"{4 * counted.params:,} bytes dense, {packed:,} compressed" in report
    assert (tmp_path / "p/prune.png").stat().st_size > 5000
    assert ckpt["dense"]["params"] == counted.params and ckpt["stage"] == "pruned"
    assert ckpt["recipe"] == {"epochs": 4, "batch_size": 10, "lr": 0.1, "schedule": [2, 3], "gamma": 0.1,
                              "momentum": 0.9, "weight_decay": 1e-4}


@pytest.mark.parametrize("way", ["one threshold", "per layer"])
def test_pruning_to_what_is_pruned_already_changes_nothing(way, halves, tmp_path):
    file = halves[way] / "pruned.pth.tar"
    first, again = checkpoint.load(file), cut(file, tmp_path / "b", "--percent", "0.5", *HALVES[way])
    assert same(first["masks"], again["masks"]) and same(first["state_dict"], again["state_dict"])
    with pytest.raises(UserError, match="pruned to 0.5000"):
        cut(file, tmp_path / "c", "--percent", "0.49", *HALVES[way])


@pytest.mark.parametrize("flags, before, rule", [
    ([], None, "magnitude"), (["--criterion", "random"], None, "random"), ([], "magnitude", "magnitude"),
    (["--faithful", "--scope", "conv+linear"], None, "magnitude, conv+linear, faithful"),
    (["--per-layer"], "random", "random, then magnitude, per layer")])
def test_the_rule_in_words(flags, before, rule):
    assert prune.rule_of(prune.flags().parse_args(["--resume", "m.pth.tar", *flags]), {"rule": before}) == rule


def test_the_thresholds_are_in_the_report(trained, halves):
    dense = checkpoint.load(trained / "dense/checkpoint.pth.tar")["state_dict"]
    reports = {way: (folder / "prune.txt").read_text() for way, folder in halves.items()}

    def smallest(way):
        masks = checkpoint.load(halves[way] / "pruned.pth.tar")["masks"]
        return {name: float(dense[name].abs()[mask].min()) for name, mask in masks.items()}
    assert f"\nPruning threshold: {min(smallest('one threshold').values())}\n" in reports["one threshold"]
    lines = [line for line in reports["per layer"].splitlines() if line.startswith("layer index")]
    for line, (name, least) in zip(lines, smallest("per layer").items(), strict=True):
        assert f" {name} " in line and line.endswith(f"threshold: {least:.4g}")
    assert "threshold" not in reports["random"]


def test_the_options_of_the_rule(halves):
    masks = {way: checkpoint.load(folder / "pruned.pth.tar")["masks"] for way, folder in halves.items()}
    assert all(int((~m).sum()) == m.numel() // 2 for m in masks["per layer"].values())
    assert set(masks["linear"]) - set(masks["per layer"]) == {"fc.weight"}
    pruned = {way: sum(int((~m).sum()) for m in found.values()) for way, found in masks.items()}
    total = sum(m.numel() for m in masks["per layer"].values())
    assert pruned["one threshold"] == int(0.5 * total) and pruned["faithful"] == int(0.5 * total) + 1
    exact, random, other = masks["one threshold"], masks["random"], masks["other"]
    assert all(exact[n].sum() == random[n].sum() and not torch.equal(exact[n], random[n]) for n in exact)
    assert not same(random, other)


def test_a_layer_may_lose_all_its_weights_and_the_report_says_so(tmp_path, capsys):
    torch.manual_seed(0)
    model = models.build("resnet", depth=8, shortcut="pad")
    model.layer1[0].conv1.weight.data.mul_(1e-6)
    save(tmp_path / "m.pth.tar", model, "magnitude", "dense", args=RECIPE)
    cut(tmp_path / "m.pth.tar", tmp_path / "p", "--percent", "0.5")
    assert "layer1.0.conv1.weight: no weight remains" in capsys.readouterr().out
    assert "There exists a layer with 0 parameters left." in (tmp_path / "p/prune.txt").read_text()
    tuned = tune(tmp_path / "p/pruned.pth.tar", tmp_path / "f", "--retrain", "scratch-e", "--epochs", 1)
    assert not tuned["state_dict"]["layer1.0.conv1.weight"].any()


def test_pruning_step_by_step_never_brings_a_weight_back(trained, tmp_path):
    first = cut(trained / "dense/checkpoint.pth.tar", tmp_path / "a", "--percent", "0.3")
    tune(tmp_path / "a/pruned.pth.tar", tmp_path / "f", "--epochs", 1)
    layer = cut(tmp_path / "f/finetuned.pth.tar", tmp_path / "layer", "--percent", "0.9", "--per-layer")
    with pytest.raises(UserError, match=r"in \S+weight already"):         # some layers have lost more than 31 %
        cut(tmp_path / "f/finetuned.pth.tar", tmp_path / "c", "--percent", "0.31", "--per-layer")
    for criterion in ("magnitude", "random"):
        second = cut(tmp_path / "f/finetuned.pth.tar", tmp_path / criterion, "--percent", "0.6",
                     "--criterion", criterion)
        for name, mask in first["masks"].items():
            assert not (second["masks"][name] & ~mask).any() and not (layer["masks"][name] & ~mask).any()
        total = sum(m.numel() for m in second["masks"].values())
        assert sum(int((~m).sum()) for m in second["masks"].values()) == int(0.6 * total)
        assert second["recipe"] == first["recipe"]
    with pytest.raises(UserError, match="counts these weights too"):
        cut(tmp_path / "magnitude/pruned.pth.tar", tmp_path / "b", "--percent", "0.5")


def test_keep_weights_counts_what_is_not_zero_in_the_layers_out_of_scope(tmp_path):
    model = models.build("lenet5")
    weights = budget.prunable(model, "conv+linear")
    masks = {name: torch.rand_like(w) < 0.05 for name, w in weights.items() if name.startswith("fc")}
    path = save(tmp_path / "m.pth.tar", pruned_by(masks, model), "hoyer", "pruned", masks=masks)
    pruned = cut(path, tmp_path / "p", "--keep-weights", "0.1")
    assert compute_flops.count(checkpoint.to_model(pruned)).total.weights == 43_050 and pruned["args"]["percent"] < 0.5
    with pytest.raises(UserError, match="are not pruned have .* of the 430,500 weights; .*, or --scope conv"):
        cut(path, tmp_path / "q", "--keep-weights", "0.01")
    with pytest.raises(UserError, match="already, further than --keep-weights 0.15 asks for; give a smaller one"):
        cut(tmp_path / "p/pruned.pth.tar", tmp_path / "q", "--keep-weights", "0.15")


class Two(torch.nn.Module):
    """Eight weights at 16 positions of a 4 x 4 image, then eight at 4 positions, and two classes."""
    arch, cfg = "two", {"input": (2, 4, 4)}

    def __init__(self):
        super().__init__()
        self.a, self.b = torch.nn.Conv2d(2, 4, 1, bias=False), torch.nn.Conv2d(4, 2, 1, stride=2, bias=False)

    def forward(self, x):
        return self.b(self.a(x))


@torch.no_grad()
def test_macs_are_kept_by_score_with_their_cost_by_hand(monkeypatch):
    model = Two()
    model.a.weight.copy_(torch.tensor([8, 7, 6, 5, 4, 3, 2, 1.]).view(4, 2, 1, 1))
    model.b.weight.copy_(torch.tensor([4.5, 3.5, 2.5, 1.5, 0.9, 0.8, 0.7, 0]).view(2, 4, 1, 1))
    monkeypatch.setattr(compute_flops, "dense_total", lambda ckpt, model: compute_flops.count(model).total)
    positions, weights = {"a.weight": 16, "b.weight": 4}, budget.prunable(model)
    for exponent, fraction, a, b in (                        # a and b: how many of the largest are kept
            (0, 0.5, 4, 1),                                  # 4 * 16 + 1 * 4 = 68 MACs of 160; one more is 84
            (1, 0.5, 4, 4),                                  # 5 / 16 > 0.9 / 4: exactly 80 MACs
            (1, 1.0, 8, 8)):
        scores = {name: prune.score(w, divisor=positions[name] ** exponent) for name, w in weights.items()}
        percent = budget.percent_of_macs(fraction, None, model, scores, positions)
        masks, _ = prune.choose(scores, percent)
        assert [m.flatten().int().tolist() for m in masks.values()] == [[1] * n + [0] * (8 - n) for n in (a, b)]
    with pytest.raises(UserError, match="would leave no weight: it is 2 MACs, and layers that are not pruned have 0"):
        budget.percent_of_macs(0.01, None, model, scores, positions)


def test_keep_macs_leaves_that_many_and_more_weights_with_a_cost_exponent(trained, tmp_path):
    dense, weights = trained / "dense/checkpoint.pth.tar", []
    for exponent in ("0", "0.25"):
        flags = ["--keep-macs", "0.3", "--cost-exponent", exponent]
        pruned = cut(dense, tmp_path / exponent, *flags)
        total = compute_flops.count(checkpoint.to_model(pruned)).total
        assert 0.29 < total.sparse_macs / pruned["dense"]["macs"] <= 0.3
        weights.append(total.weights)
    assert weights[1] > weights[0] and pruned["rule"] == "magnitude, cost exponent 0.25"
    with pytest.raises(UserError, match="already, further than --keep-macs 0.5 asks for"):
        cut(tmp_path / "0/pruned.pth.tar", tmp_path / "q", "--keep-macs", "0.5")


class Auxiliary(nn.Module):
    """A layer that only training runs has no output positions."""

    def __init__(self):
        super().__init__()
        self.conv, self.auxiliary, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Linear(8, 10)

    def forward(self, x):
        y = self.conv(x)
        if self.training:
            self.auxiliary(y)
        return self.last(y.mean((2, 3)))


def test_a_cost_exponent_takes_layers_without_positions_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setitem(own.NAMED, "nets.py:Net", lambda num_classes: Auxiliary())
    source = save(tmp_path / "x.pth.tar", models.build("nets.py:Net", num_classes=10, input=[3, 32, 32]))
    masks = cut(source, tmp_path / "p", "--cost-exponent", "0.01", "--percent", "0.5")["masks"]
    assert all(mask.any() and not mask.all() for mask in masks.values()) and len(masks) == 2


STARTS = {  # with --lr 0 no weight moves, so the end shows the start
    "small": "pruned/pruned", "onecycle": "pruned/pruned", "lr-rewind": "pruned/pruned",
    "weight-rewind early": "dense/early", "weight-rewind init": "dense/init", "scratch-e": None, "scratch-b": None}


@pytest.mark.parametrize("way", STARTS)
def test_each_way_to_retrain_starts_from_its_weights_and_keeps_the_masks(way, trained, tmp_path, capsys):
    retrain, _, early = way.partition(" ")
    rewind = ["--rewind-to", trained / f"dense/{early}.pth.tar"] if early else []
    masks = checkpoint.load(trained / "pruned/pruned.pth.tar")["masks"]
    tuned = tune(trained / "pruned/pruned.pth.tar", tmp_path / "f", "--retrain", retrain, *rewind, "--epochs", 1,
                 "--lr", 0)
    assert "all of them are still zero" in capsys.readouterr().out
    assert same(tuned["masks"], masks) and tuned["stage"] == "finetuned"
    start = checkpoint.load(trained / f"{STARTS[way]}.pth.tar")["state_dict"] if STARTS[way] else None
    first = checkpoint.load(trained / "dense/init.pth.tar")["state_dict"]
    learned = [name for name in tuned["state_dict"] if name.endswith(("weight", "bias"))]
    if start:
        assert all(torch.equal(tuned["state_dict"][n], start[n] * masks.get(n, torch.tensor(1))) for n in learned)
    else:                                                    # batch norms and the classifier begin anew too
        assert tuned["state_dict"]["bn1.weight"].eq(1).all() and tuned["state_dict"]["bn1.bias"].eq(0).all()
        assert not torch.equal(tuned["state_dict"]["fc.weight"],
                               checkpoint.load(trained / "pruned/pruned.pth.tar")["state_dict"]["fc.weight"])
    for name, mask in masks.items():
        now = tuned["state_dict"][name]
        assert not now[~mask].any()
        if not start and mask.sum() > 1000:                  # drawn anew
            assert not torch.isclose(now[mask], first[name][mask], rtol=1e-3).float().mean() > 0.01


def test_rates_of_one_cycle(trained, tmp_path):
    """20 steps: up from 0.01 over 10 % of them, so it stands at 0.1 after step 1 (counted from 0), then down to 1e-4 by
    a half cosine over the other 18; the log has the rate of every second step."""
    tune(trained / "pruned/pruned.pth.tar", tmp_path / "d", "--retrain", "onecycle", "--epochs", 10, "--batch-size", 10)
    rates = [0.01] + [1e-4 + (0.1 - 1e-4) * (1 + math.cos(math.pi * (2 * e - 1) / 18)) / 2 for e in range(1, 10)]
    assert column(tmp_path / "d") == pytest.approx(rates, rel=1e-3)


FALLING, RATES = [*STEPS, "--epochs", "4", "--schedule", "2", "3", "--gamma", "0.5"], [0.02, 0.02, 0.01, 0.005]


def test_dense_training_is_sgd_with_momentum_weight_decay_and_milestones(tmp_path):
    main.main(["--arch", "resnet8", *FALLING, "--save", str(tmp_path / "run")])
    model = checkpoint.to_model(checkpoint.load(tmp_path / "run/init.pth.tar"))
    train_by_hand(model, RATES, momentum=0.8, weight_decay=0.1)
    assert_same_network(checkpoint.load(tmp_path / "run/checkpoint.pth.tar")["state_dict"], model)


def test_fine_tuning_is_the_same_with_the_mask_after_every_step(trained, tmp_path):
    finetune.main(["--model", str(trained / "pruned/pruned.pth.tar"), *FALLING, "--save", str(tmp_path / "run")])
    ckpt = checkpoint.load(trained / "pruned/pruned.pth.tar")
    model = checkpoint.to_model(ckpt)
    train_by_hand(model, RATES, momentum=0.8, weight_decay=0.1, masks=ckpt["masks"])
    assert_same_network(checkpoint.load(tmp_path / "run/finetuned.pth.tar")["state_dict"], model)


def test_defaults_are_the_originals():
    """160 epochs, batch 64, 0.1 divided by ten at half and three quarters; fine-tuning 40 epochs at 0.001."""
    args = main.parse([])
    assert (args.epochs, args.batch_size, args.lr, args.gamma, args.momentum, args.weight_decay) == (
        160, 64, 0.1, 0.1, 0.9, 1e-4)
    args = finetune.flags().parse_args(["--resume", "pruned.pth.tar"])
    finetune.fill_in(args, finetune.RECIPES[args.retrain])
    assert (args.epochs, args.batch_size, args.lr, args.schedule, args.momentum, args.weight_decay) == (
        40, 64, 0.001, [], 0.9, 1e-4)
    args = prune.flags().parse_args(["--resume", "dense.pth.tar"])
    budget.settle(args)
    assert args.percent == iterative.parse(["--model", "x"]).percent == 0.6


def test_a_run_is_continued_by_its_own_file(trained, tmp_path, stopped):
    pruned, own, flags = trained / "pruned/pruned.pth.tar", tmp_path / "own", ["--epochs", "3", "--batch-size", "10"]
    whole = tune(pruned, tmp_path / "whole", *flags)
    stopped(1, tune, pruned, own, *flags)
    with pytest.raises(UserError, match="it had --lr"):
        tune(own / "checkpoint.pth.tar", own, *flags, "--lr", "0.5")
    assert not (own / "finetuned.pth.tar").exists()
    parts = tune(own / "checkpoint.pth.tar", own, *flags)
    assert same(whole["state_dict"], parts["state_dict"]) and same(whole["masks"], parts["masks"])


def test_a_resumed_dense_run_keeps_its_first_and_early_weights(tmp_path, stopped):
    """By default the early weights are those after a twentieth of the epochs: 2 of 40."""
    flags = [*TINY, "--arch", "resnet8", "--epochs", "40", "--save", str(tmp_path / "m")]
    for resume, epochs in ([], 2), (["--resume", "auto"], 1):
        stopped(epochs, main.main, [*flags, *resume])
        kept = [checkpoint.load(tmp_path / f"m/{name}.pth.tar") for name in ("init", "early", "checkpoint")]
        assert [ckpt["epoch"] for ckpt in kept] == [0, 2, 3 if resume else 2]
        assert recipe_of(kept[2])["schedule"] == [20, 30]
        torch.manual_seed(1)                                              # --seed 1
        name, cfg = network("resnet8")
        assert same(kept[0]["state_dict"], dict(models.build(name, num_classes=10, **cfg).state_dict()))
    assert not same(kept[1]["state_dict"], kept[2]["state_dict"])
    with pytest.raises(UserError, match=r"of another run \(it had --seed 1\); give the same"):
        main.main([*flags, "--resume", "auto", "--seed", "2"])
    with pytest.raises(UserError, match="it had --epochs 40"):           # and no --schedule, which nobody gave
        main.main([*flags, "--resume", "auto", "--epochs", "30"])
    with pytest.raises(UserError, match=r"it had no --schedule\)"):
        main.main([*flags, "--resume", "auto", "--schedule", "5"])


def test_a_finished_run_is_not_resumed_elsewhere(trained, tmp_path):
    with pytest.raises(UserError, match="has all its 4 epochs"):
        main.main([*TINY, "--arch", "resnet8", "--epochs", "4", "--batch-size", "10", "--rewind-epoch", "2",
                   "--resume", str(trained / "dense/checkpoint.pth.tar"), "--save", str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_iterative_is_prune_and_retrain_again_and_again(trained, tmp_path, stopped, capsys):
    flags = ["--percent", 0.36, "--retrain", "lr-rewind", "--epochs", 2, "--batch-size", 20]
    dense = trained / "dense/checkpoint.pth.tar"
    whole = in_rounds(dense, tmp_path / "whole", *flags)
    masks = [checkpoint.load(tmp_path / f"whole/round-{i:02}/finetuned.pth.tar")["masks"] for i in (1, 2)]
    total = sum(m.numel() for m in masks[0].values())
    for mask, percent in zip(masks, (0.2, 0.36), strict=True):
        assert sum(int((~m).sum()) for m in mask.values()) == int(percent * total)
    assert not any((mask & ~masks[0][name]).any() for name, mask in masks[1].items())
    assert whole["epoch"] == 4 and same(whole["masks"], masks[1]) and whole["rule"] == "magnitude, iterative"
    assert column(tmp_path / "whole/round-02") == pytest.approx([0.01, 0.001])           # of 0.1, 0.1, 0.01, 0.001
    stopped(3, in_rounds, dense, tmp_path / "parts", *flags)             # within round 2
    with pytest.raises(UserError, match="--resume auto continues"):
        in_rounds(dense, tmp_path / "parts", *flags)
    capsys.readouterr()
    (tmp_path / "parts/round-01/.lock").write_text("1")      # as a run leaves it that is killed at the end of a round
    parts = in_rounds("auto", tmp_path / "parts", *flags)
    assert "resumed" in capsys.readouterr().out and not [*(tmp_path / "parts").glob("**/.lock")]
    assert same(whole["state_dict"], parts["state_dict"])
    kept = {f: f.read_bytes() for f in (tmp_path / "parts").glob("**/*.pth.tar")}
    other = save(tmp_path / "other.pth.tar", models.build("resnet", depth=8, shortcut="pad"), "magnitude", args=RECIPE)
    for more, message in ((["--percent", 0.3], "--percent 0.36"), (["--retrain", "small"], "--retrain lr-rewind"),
                          (["--epochs", 3], "--epochs 2"), (["--per-layer"], "--per-layer False"),
                          (["--lr", 0.3], "--lr"), (["--model", other], "was not made from .*other")):
        with pytest.raises(UserError, match=message):
            in_rounds("auto", tmp_path / "parts", *flags, *more)
    for more in (["--epochs", 9], ["--dataset", "nowhere"]):
        with pytest.raises(UserError):                       # nothing is deleted before the new run can begin
            in_rounds(dense, tmp_path / "parts", *flags, "--overwrite", *more)
    assert kept == {f: f.read_bytes() for f in (tmp_path / "parts").glob("**/*.pth.tar")}


def test_a_stopped_iterative_run_names_its_own_folder(trained, tmp_path, monkeypatch, capsys, stopped):
    flags = ["--percent", 0.3, "--epochs", 2, "--batch-size", 20]
    end = stopped(1, cli.script, lambda: in_rounds(trained / "dense/checkpoint.pth.tar", tmp_path / "it", *flags))
    said = capsys.readouterr().err
    assert end.code == 130 and said.count("\n") == 1 and said.endswith(
        f"stopped; --save {tmp_path / 'it'} --resume auto continues\n")
    with pytest.raises(UserError, match="--per-layer False"):            # pruned, and not retrained yet
        in_rounds("auto", tmp_path / "it", *flags, "--per-layer")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prune, "prune", stop)
    (tmp_path / "none").mkdir()
    with pytest.raises(SystemExit):
        cli.script(lambda: in_rounds(trained / "dense/checkpoint.pth.tar", tmp_path / "none", *flags))
    assert capsys.readouterr().err.endswith(": error: stopped\n") and not [*(tmp_path / "none").iterdir()]
    monkeypatch.setattr(checkpoint, "load", stop)             # before --save has its default
    with pytest.raises(SystemExit):
        cli.script(lambda: iterative.main([*TINY, "--resume", "dense.pth.tar"]))
    assert capsys.readouterr().err.endswith(": error: stopped\n")


def test_what_was_there_goes_when_new_rounds_have_begun(trained, tmp_path, monkeypatch):
    """--overwrite leaves nothing that a later --resume auto would take for its own, and no old result."""
    dense = trained / "dense/checkpoint.pth.tar"
    for name in ("finetuned", "round-01/finetuned", "round-01/checkpoint", "round-02/pruned"):
        path = tmp_path / f"it/{name}.pth.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dense.read_bytes())

    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "retrain", stop)
    with pytest.raises(KeyboardInterrupt):
        in_rounds(dense, tmp_path / "it", "--percent", 0.3, "--overwrite")
    assert [path.name for path in tmp_path.rglob("*.pth.tar")] == ["pruned.pth.tar"]
    assert checkpoint.load(tmp_path / "it/round-01/pruned.pth.tar")["args"]["percent"] == 0.2


def test_rounds_begin_with_what_another_method_pruned(trained, tmp_path, monkeypatch):
    begun = []

    def stop(args, way):
        begun.append(args.resume)
        raise KeyboardInterrupt

    monkeypatch.setattr(prune, "prune", stop)
    ckpt = {**checkpoint.load(trained / "dense/checkpoint.pth.tar"), "method": "slimming", "stage": "pruned"}
    path = checkpoint.save(tmp_path / "slim.pth.tar", {key: v for key, v in ckpt.items() if key != "path"})
    with pytest.raises(KeyboardInterrupt):
        in_rounds(path, tmp_path / "it", "--percent", 0.3)
    assert begun == [str(path)]


def test_rounds_of_weight_rewinding(trained, tmp_path, capsys):
    """The trial flags --epochs 2, with a dense run of 4 epochs whose weights after 2 come back."""
    done = in_rounds(trained / "dense/checkpoint.pth.tar", tmp_path / "it", "--percent", 0.3, "--epochs", 2,
                     "--retrain", "weight-rewind", "--rewind-to", trained / "dense/early.pth.tar")
    assert done["epoch"] == 4 and column(tmp_path / "it/round-02") == pytest.approx([0.01, 0.001])
    rounds = [checkpoint.load(tmp_path / f"it/round-0{i}/finetuned.pth.tar") for i in (1, 2)]
    assert done["run"]["minutes"] == pytest.approx(sum(ckpt["run"]["minutes"] for ckpt in rounds))
    assert same(done["state_dict"], rounds[1]["state_dict"]) and done["rule"] == "magnitude, iterative"
    lines = capsys.readouterr().out.splitlines()[-3:-1]      # accuracy after pruning, after retraining
    pruned = [checkpoint.load(tmp_path / f"it/round-0{i}/pruned.pth.tar") for i in (1, 2)]
    assert [ckpt["args"]["percent"] for ckpt in pruned] == pytest.approx([0.2, 0.3])
    assert lines == [f"{percent:10.2f} % {cut:12.2f} % {ckpt['prec1']:12.2f} %"
                     for percent, cut, ckpt in zip((20, 30), [c["prec1"] for c in pruned], rounds, strict=True)]
    with pytest.raises(UserError, match="none of them after epoch 4"):   # before anything is written
        in_rounds(trained / "dense/checkpoint.pth.tar", tmp_path / "no", "--percent", 0.3, "--retrain",
                  "weight-rewind", "--rewind-to", trained / "dense/checkpoint.pth.tar")
    assert not (tmp_path / "no").exists()


def test_weight_rewinding_in_a_trial_run_of_two_epochs(tmp_path, capsys):
    """--epochs 2 everywhere: the dense run keeps its weights after epoch 1, and one epoch is left of it."""
    main.main([*TINY, "--arch", "resnet8", "--epochs", "2", "--save", str(tmp_path / "dense")])
    assert checkpoint.load(tmp_path / "dense/early.pth.tar")["args"]["rewind_epoch"] is None        # it was not given
    cut(tmp_path / "dense/checkpoint.pth.tar", tmp_path / "pruned", "--percent", "0.5")
    for name, epochs in (("early", 1), ("init", 2)):
        tuned = tune(tmp_path / "pruned/pruned.pth.tar", tmp_path / name, "--epochs", 2, "--retrain", "weight-rewind",
                     "--rewind-to", tmp_path / f"dense/{name}.pth.tar")
        assert tuned["epoch"] == epochs and len(column(tmp_path / name)) == epochs
        assert f"weight-rewind from epoch {2 - epochs}" in capsys.readouterr().out


def test_chaining_after_slimming(tmp_path):
    """A network with fewer channels and with masks of batch norms, biases too."""
    torch.manual_seed(0)
    model = like_trained(models.build("preresnet", depth=11, block="bottleneck", selection=True))
    model = narrow(model, {"layer1.0.bn1": torch.arange(16) % 2 > 0})
    masks = {f"bn.{kind}": torch.arange(256) % 3 > 0 for kind in ("weight", "bias")}
    dense = {"params": 7, "macs": 8, "cfg": model.cfg}
    path = save(tmp_path / "m.pth.tar", pruned_by(masks, model), "slimming", "pruned", masks=masks, dense=dense,
                args=RECIPE)
    pruned = cut(path, tmp_path / "p", "--percent", "0.5")
    assert pruned["cfg"] == model.cfg and pruned["dense"] == dense
    assert set(pruned["masks"]) == set(budget.prunable(model)) | set(masks)
    tuned = tune(tmp_path / "p/pruned.pth.tar", tmp_path / "f", "--epochs", 1, "--lr", 0.1)
    for name, mask in pruned["masks"].items():
        assert torch.equal(mask, masks.get(name, mask)) and torch.equal(tuned["masks"][name], mask)
        assert not tuned["state_dict"][name][~mask].any()
    fresh = tune(tmp_path / "p/pruned.pth.tar", tmp_path / "s", "--retrain", "scratch-e", "--epochs", 1, "--lr", 0.1,
                 "--schedule", 9)
    indices = {n: v for n, v in model.state_dict().items() if "indices" in n}
    assert indices and same(indices, {n: fresh["state_dict"][n] for n in indices})


def test_files_of_the_original_repositories(tmp_path):
    """A dense file under DataParallel prunes like the original; a pruned one, masks being its zeros, gets the same."""
    torch.manual_seed(0)
    name, cfg = network("preresnet8")
    model = models.build(name, num_classes=10, **cfg)
    names = ["--arch", "preresnet8", "--dataset", "shapes10", "--percent", "0.3", "--faithful"]
    theirs = {"epoch": 3, "acc": 90.0, "best_acc": 91.0, "optimizer": {}}
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    torch.save({**theirs, "state_dict": state}, tmp_path / "dense.pth.tar")
    ours = cut(tmp_path / "dense.pth.tar", tmp_path / "a", *names)
    weights = torch.cat([m.weight.detach().abs().flatten() for m in model.modules() if isinstance(m, nn.Conv2d)])
    threshold = weights.sort().values[int(len(weights) * 0.3)]
    expected = {n: w.detach() * (w.detach().abs() > threshold) for n, w in budget.prunable(model).items()}
    assert same({n: ours["state_dict"][n] for n in expected}, expected)
    torch.save({**theirs, "state_dict": {**model.state_dict(), **expected}}, tmp_path / "pruned.pth.tar")
    again = cut(tmp_path / "pruned.pth.tar", tmp_path / "b", *names)
    assert same(again["masks"], ours["masks"]) and same(again["masks"], {n: w != 0 for n, w in expected.items()})
    with pytest.raises(UserError, match="holds no masks"):
        tune(tmp_path / "pruned.pth.tar", tmp_path / "f", "--arch", "preresnet8")


def test_the_report_counts_masks_out_of_scope_too(tmp_path):
    torch.manual_seed(0)
    save(tmp_path / "m.pth.tar", models.build("lenet5"), "hoyer", "dense")
    cut(tmp_path / "m.pth.tar", tmp_path / "a", "--scope", "conv+linear", "--percent", "0.5")
    ckpt = cut(tmp_path / "a/pruned.pth.tar", tmp_path / "b", "--percent", "0.9")
    total = compute_flops.count(checkpoint.to_model(ckpt)).total
    line = f"sparsity of all {total.params:,} parameters: {100 * (1 - total.nonzeros / total.params):.2f} %"
    assert line in (tmp_path / "b/prune.txt").read_text()
    assert ckpt["rule"] == "magnitude, conv+linear, then magnitude"
