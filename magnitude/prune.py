"""Magnitude pruning: zeroing the smallest weights of a trained network.

    python prune.py --resume logs/cifar10-resnet56-dense/checkpoint.pth.tar --percent 0.9

One threshold for the whole network: of all T weights of convolutions, the k = int(T * percent) with the smallest |w|
become zero, wherever they are,

    w stays  <=>  |w| >= the (k+1)-th smallest |w|                  (ties: the earlier position goes first)

percent is cumulative: what was pruned before counts as pruned first, so 0.3, then 0.6, then 0.9 are three steps. Batch
norms, biases and linear layers stay whole. The masks are stored beside the weights, never guessed from zeros.
pruned.pth.tar holds one bit per weight and the surviving values, prune.txt the report, prune.png the picture.

    --scope conv+linear   the weights of linear layers too
    --per-layer           the same share in every layer, instead of one threshold
    --floor 100           every layer keeps its 100 largest weights at least; others go instead
    --criterion random    the control: as many weights of every layer as by magnitude, but drawn at random

Expect seconds. At 30 % the accuracy falls by less than a point; at 80 to 90 % it is near chance, and finetune.py brings
it back.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import nn

from common import UserError, checkpoint, cli, compute_flops, data, originals, plots
from common.evaluate import evaluate
from common.run import device_of, facts, output_folder
from magnitude.networks import network

SPEED = ("Speed: the zeros lie scattered in tensors of the same shape, ordinary kernels multiply them like any other "
         "number, so this network is smaller on disk but not faster.")


def add_rule(parser):
    """The flags that say which weights go; finetune.py --iterative has them too."""
    add = parser.add_argument
    add("--percent", type=float, default=0.6, help="share of the weights pruned afterwards, from 0 up to but not 1")
    add("--scope", choices=("conv", "conv+linear"), default="conv", help="the layers that are pruned")
    add("--per-layer", action="store_true", help="the same share of every layer")
    add("--floor", type=int, default=0, metavar="N", help="weights that every layer keeps at least")
    add("--criterion", choices=("magnitude", "random"), default="magnitude")
    add("--faithful", action="store_true", help="drop every |w| up to the (k+1)-th smallest, as in the original: one "
        "weight more, and every tie")


def parse(argv=None):
    parser = cli.parser(__doc__)
    cli.add_flags(parser, train=False)
    add_rule(parser)
    add = parser.add_argument
    add("-d", dest="dataset", default=argparse.SUPPRESS, help="--dataset")
    add("--resume", "--model", metavar="FILE", required=True, help="the network to prune")
    add("--save", "--save_dir", help="folder to write to (default: logs/<dataset>-<network>-pruned)")
    add("--overwrite", action="store_true", help="write over an earlier pruned.pth.tar")
    add("-a", "--arch", help="for a file of an original repository: vgg16, resnet56, preresnet110, ...")
    add("--depth", type=int)
    add("--seed", type=cli.seed_number, default=1, help="of --criterion random")
    return parser.parse_args(argv)


def prunable(model, scope="conv"):
    """{parameter name: weight} of the layers in scope, from input to output."""
    kinds = (nn.Conv2d, nn.Linear) if scope == "conv+linear" else nn.Conv2d
    return {f"{name}.weight": m.weight for name, m in model.named_modules() if isinstance(m, kinds)}


def score(weight, old=None, floor=0):
    """|w|, with -1 where old (bool) says it is gone already, and infinity for the `floor` largest."""
    scores = weight.detach().abs().float().cpu()
    gone = torch.zeros_like(scores, dtype=torch.bool) if old is None else ~old
    scores[gone] = -1
    scores.view(-1)[scores.flatten().topk(min(floor, scores.numel())).indices] = float("inf")
    return scores.masked_fill_(gone, -1)


def choose(scores, percent, faithful=False):
    """{name: keep, bool as the weight} by one threshold over all scores, and that threshold.

    Exactly k = int(T * percent) weights go, ties by position; faithful: all that are not above the k-th smallest,
    counted from 0. The threshold is the smallest score left, where the floor keeps all that is left the largest gone.
    UserError where the floor leaves fewer than k that can go.
    """
    ranked, order = torch.cat([s.flatten() for s in scores.values()]).sort(stable=True)
    k = int(len(ranked) * percent)
    free = int(ranked.isfinite().sum())
    if k > free or (faithful and k == free):
        raise UserError(f"--floor leaves {free} of {len(ranked)} weights that can go, --percent {percent:g} "
                        f"takes {k + faithful}; give a smaller one of the two")
    keep = torch.ones(len(ranked), dtype=torch.bool)
    keep[order[:k]] = False
    if faithful:
        keep[order] = ranked > ranked[k]
    parts = keep.split([s.numel() for s in scores.values()])
    return {name: part.view_as(s) for (name, s), part in zip(scores.items(), parts, strict=True)}, float(
        ranked[k] if k < free else ranked[k - 1])


def shuffle(keep, old, seed):
    """The control: in every layer as many weights kept, at random places among those that `old` had left."""
    generator, drawn = torch.Generator().manual_seed(seed), {}
    for name, mask in keep.items():
        lot = torch.rand(mask.shape, generator=generator).masked_fill_(~old[name], -1)
        drawn[name] = torch.ones(mask.numel(), dtype=torch.bool)
        drawn[name][lot.flatten().argsort()[:int((~mask).sum())]] = False
        drawn[name] = drawn[name].view_as(mask)
    return drawn


def main(argv=None):
    prune(parse(argv))


def prune(args):
    if not 0 <= args.percent < 1:
        raise UserError(f"--percent {args.percent:g} is not in [0, 1)")
    if args.floor < 0:
        raise UserError(f"--floor {args.floor} is below 0")
    if args.floor and args.per_layer:
        raise UserError("--per-layer takes the same share of every layer, a --floor would not; choose one")
    ckpt = originals.load(args.resume, network, args.arch, args.depth)
    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    args.save = args.save or f"logs/{Path(args.dataset).stem}-{ckpt['arch']}{ckpt['cfg'].get('depth', '')}-pruned"
    if (Path(args.save) / "pruned.pth.tar").exists() and not args.overwrite:
        raise UserError(f"{args.save} already holds a pruned.pth.tar; give another --save, or --overwrite")
    folder = output_folder(args.save, overwrite=True)
    device = device_of(args.device)
    original, model = checkpoint.to_model(ckpt), checkpoint.to_model(ckpt)
    weights, earlier = prunable(model, args.scope), ckpt.get("masks", {})
    if not weights:
        raise UserError(f"{args.resume}: a {ckpt['arch']} has no convolution; give --scope conv+linear")
    old = {name: earlier.get(name, torch.ones_like(w, dtype=torch.bool)) for name, w in weights.items()}
    total = sum(mask.numel() for mask in old.values())
    for name, mask in (old if args.per_layer else {"": torch.cat([mask.flatten() for mask in old.values()])}).items():
        gone = int((~mask).sum())
        if gone > int(mask.numel() * args.percent):
            raise UserError(f"{args.resume} is pruned to {gone / mask.numel():.4f} {f'in {name} ' if name else ''}"
                            "already, and --percent counts what is gone; give a larger one")

    # which weights stay
    scores = {name: score(w, old[name], args.floor) for name, w in weights.items()}
    if args.per_layer:
        keep, thresholds = {}, {}
        for name in scores:
            chosen, thresholds[name] = choose({name: scores[name]}, args.percent, args.faithful)
            keep |= chosen
    else:
        keep, threshold = choose(scores, args.percent, args.faithful)
        thresholds = dict.fromkeys(keep, threshold)
    if args.criterion == "random":
        keep = shuffle(keep, old, args.seed)
    with torch.no_grad():
        for name, mask in keep.items():
            weights[name].masked_fill_(~mask, 0)
    pruned = total - sum(int(mask.sum()) for mask in keep.values())
    totals = f"Total {args.scope} params: {total}, Pruned {args.scope} params: {pruned}, Pruned ratio: {pruned / total}"
    dead = [name for name, mask in keep.items() if not mask.any()]
    if args.criterion == "random":
        thresholds = {}
    report = describe(model, keep, {**earlier, **keep}, thresholds, totals)
    print(report)

    # what that does to the accuracy
    dataset = data.load(args.dataset, args.data_dir, ckpt["arch"].startswith("lenet"), args.subset)
    data.check_fit(dataset, model, args.resume)
    test = data.Loader(dataset, "test", args.test_batch_size, device)
    before, after = (evaluate(m.to(device), test) for m in (original, model))
    lines = [f"Before pruning: Test Loss:  {before['loss']:.8f}, Test Acc:  {before['top1']:.2f}", totals,
             f"After Pruning: Test Loss:  {after['loss']:.8f}, Test Acc:  {after['top1']:.2f}"]
    if dead:
        lines.append("There exists a layer with 0 parameters left.")
        print(f"{', '.join(dead)}: no weight is left, the layer passes nothing on; --floor keeps some")
    print(lines[0], lines[2], sep="\n")

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prune.txt").write_text("\n".join([*lines, "", report, ""]))
    draw(folder / "prune.png", prunable(original, args.scope), keep, thresholds)
    path = checkpoint.save(folder / "pruned.pth.tar", checkpoint.of(
        model, "magnitude", "pruned", args.dataset, prec1=after["top1"], best_prec1=after["top1"], args=vars(args),
        dense=ckpt["dense"] or compute_flops.summary(original), masks={**earlier, **keep}, recipe=recipe_of(ckpt),
        rule=rule_of(args, ckpt), run=facts(device)))
    print(f"wrote {path} ({path.stat().st_size:,} bytes), prune.txt and prune.png")
    return path


def recipe_of(ckpt):
    """How the dense network was trained, as far as the file says: what rewinding and training from scratch repeat."""
    if ckpt["method"] == "magnitude" and ckpt["stage"] == "dense":
        wanted = ("epochs", "batch_size", "lr", "schedule", "gamma", "momentum", "weight_decay")
        return {name: ckpt["args"][name] for name in wanted if name in ckpt["args"]}
    return ckpt.get("recipe")


def rule_of(args, ckpt):
    """How the weights were chosen, for the ledger: such as 'magnitude, per layer'."""
    words = [args.criterion, args.scope if args.scope != "conv" else "", "per layer" if args.per_layer else "",
             f"floor {args.floor}" if args.floor else "", "faithful" if args.faithful else "",
             "iterative" if getattr(args, "iterative", False) else ""]
    rule, before = ", ".join(word for word in words if word), ckpt.get("rule")
    return rule if before in (None, rule) else f"{before}, then {rule}"


def describe(model, keep, masks, thresholds, totals):
    """The report: the weights of every layer in scope, then of the network with all its masks sparsity, MACs, bytes.

    keep, masks: {name: bool}; thresholds: {name: |w|}, none of them for a random choice.
    """
    same = len(set(thresholds.values())) < 2
    places = {f"{name}.weight": k for k, (name, _) in enumerate(model.named_modules())}
    lines = [f"Pruning threshold: {next(iter(thresholds.values()))}"] if same and thresholds else []
    for name, mask in keep.items():
        left, size = int(mask.sum()), mask.numel()
        lines.append(f"layer index: {places[name]} \t total params: {size} \t remaining params: {left}"
                     f" \t {name} \t sparsity: {100 * (1 - left / size):.2f} %"
                     + ("" if same else f" \t threshold: {thresholds[name]:.4g}"))
    counted = compute_flops.count(model)
    whole, bits = counted.total, sum(mask.numel() for mask in masks.values())
    kept = whole.params - bits + sum(int(mask.sum()) for mask in masks.values())
    packed = 4 * kept + (bits + 7) // 8
    lines += [totals, "", compute_flops.table(counted), "",
              f"sparsity of all {whole.params:,} parameters: {100 * (1 - kept / whole.params):.2f} %",
              f"{whole.macs:,} MACs, {whole.sparse_macs:,} with weights that are not zero "
              f"({100 * whole.sparse_macs / whole.macs:.2f} %); FLOPs are 2 x MACs",
              f"{4 * whole.params:,} bytes dense, {packed:,} compressed ({100 * packed / (4 * whole.params):.2f} %): "
              "one bit per weight that has a mask, 4 bytes per parameter that stays", SPEED]
    return "\n".join(lines)


def draw(path, weights, keep, thresholds):
    """Left: the weights of every layer, had and kept. Right: the histogram of all weights, had and kept."""
    plt = plots.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.bar(range(len(keep)), [m.numel() for m in keep.values()], color="lightgrey", label="had")
    left.bar(range(len(keep)), [int(m.sum()) for m in keep.values()], color="tab:blue", label="keeps")
    left.set(xlabel="layer, from input to output", ylabel="weights", yscale="log")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend()
    had = torch.cat([w.detach().flatten().cpu() for w in weights.values()]).numpy()
    kept = had[torch.cat([mask.flatten() for mask in keep.values()]).numpy()]
    counts, edges = np.histogram(had, 201)
    right.stairs(counts, edges, fill=True, color="lightgrey", label="had")
    right.stairs(np.histogram(kept, edges)[0], edges, fill=True, color="tab:blue", label="keeps")
    right.set(xlabel="weight", ylabel="weights", yscale="log")
    if len(set(thresholds.values())) == 1:
        threshold = next(iter(thresholds.values()))
        right.axvline(threshold, color="tab:red", label=f"threshold {threshold:.3g}")
        right.axvline(-threshold, color="tab:red")
    right.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    cli.script(main)
