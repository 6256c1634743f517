"""Magnitude pruning: zero the smallest weights of a trained network.

    python prune.py --resume logs/cifar10-resnet56-dense/checkpoint.pth.tar --percent 0.9

One threshold for the whole network: of all T weights of convolutions, prune the k = int(T * percent) with the smallest
|w|, regardless of their layer:

    mask = True  <=>  |w| >= the (k+1)-th smallest |w|          (ties: the earlier one is pruned)
    w     <-  mask * w

percent is cumulative: weights pruned before count towards it, so 0.3, then 0.6, then 0.9 are three steps. Batch
norms, biases and linear layers are not pruned. The masks are stored beside the weights, never guessed from zeros.
pruned.pth.tar holds one bit per weight and the remaining values, prune.txt the report, prune.png weights per layer and
their histogram.

    --keep-weights 0.1    instead of --percent: fraction to keep of the weights of convolutions and linear layers
    --keep-macs 0.1       instead of --percent: fraction to keep of the dense network's MACs; a weight of a layer with P
                          output positions costs P of them
    --cost-exponent 0.25  score |w| / P^0.25 instead of |w|: at the same MACs more weights are kept, in small layers
    --scope conv+linear   prune the weights of linear layers too
    --per-layer           prune the same fraction of every layer, instead of one threshold
    --ratios FILE         prune each layer by its own fraction, in a file such as the ratios.csv of sensitivity.py; a
                          layer that is not in it is not pruned; with --keep-weights or --keep-macs all times one factor
    --pattern 2:4         keep the two largest of each four consecutive input channels, at every position of a filter,
                          which some GPUs multiply faster; layers whose inputs are no multiple of 4 are left whole
    --criterion random    the control: keep as many weights of every layer as by magnitude, chosen at random
    --recalibrate 1000    recompute the batch norms' statistics on so many training images

Takes seconds. At 30 % the accuracy falls by less than a point; at 80 to 90 % it is near chance, and finetune.py
restores it.
"""
import argparse
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import nn

from common import UserError, cli, compute_flops, keep, plots, pruning
from common.evaluate import evaluate
from magnitude.main import milestones
from magnitude.networks import network


def score(weight, previous_mask=None, divisor=1.0):
    """|w| / divisor, and -1 where the weight is pruned already, so that it is pruned first again."""
    scores = weight.detach().abs().float().cpu() / divisor
    return scores if previous_mask is None else scores.masked_fill(~previous_mask, -1)


def choose(scores, percent, faithful=False):
    """{name: mask} by one threshold over all scores, and that threshold: the smallest score that is kept.

    Prunes exactly k = int(T * percent) weights, ties by position; faithful: all that are not above the k-th smallest,
    counted from 0.
    """
    ranked, order = torch.cat([s.flatten() for s in scores.values()]).sort(stable=True)
    k = int(len(ranked) * percent)
    mask = torch.ones(len(ranked), dtype=torch.bool)
    mask[order[:k]] = False
    if faithful:
        mask[order] = ranked > ranked[k]
    parts = mask.split([s.numel() for s in scores.values()])
    return {name: part.view_as(scores[name]) for name, part in zip(scores, parts, strict=True)}, float(ranked[k])


def keep_n_of_m(scores, n, m):
    """The mask, like scores, of the n largest of each m consecutive input channels (axis 1); ties: the later ones."""
    groups = scores.movedim(1, -1).unflatten(-1, (-1, m))
    smallest = groups.argsort(dim=-1, stable=True)[..., :m - n]
    return torch.ones_like(groups, dtype=torch.bool).scatter_(-1, smallest, False).flatten(-2).movedim(-1, 1)


@torch.no_grad()
def prune(args, way=""):
    """Prunes the network in args.resume into the folder args.save; returns the path of pruned.pth.tar.

    way: iterative, for the rule in the file.
    """
    settle(args)

    # load
    source = pruning.load(args.resume, network, args.arch, args.depth, save=args.save, overwrite=args.overwrite,
                          device=args.device, batch_size=args.test_batch_size, **cli.data_flags(args))
    ckpt, model = source.ckpt, copy.deepcopy(source.model)
    if args.ratios:                                          # it names the layers
        args.scope = "conv+linear"
    weights, all_masks = prunable(model, args.scope), ckpt.get("masks", {})
    ratios = keep.read_ratios(args.ratios, weights) if args.ratios else {}
    weights = {name: w for name, w in weights.items() if not ratios or ratios.get(name)}
    if not weights:
        raise UserError(f"{args.resume}: a {ckpt['arch']} has no convolution; give --scope conv+linear")
    if args.pattern:
        n, m = map(int, args.pattern.split(":"))
        whole = [name for name, w in weights.items() if w.shape[1] % m]
        weights = {name: w for name, w in weights.items() if w.shape[1] % m == 0}
        if whole:
            print(f"--pattern {args.pattern}: left whole, as their input channels are no multiple of {m}: "
                  f"{', '.join(name.removesuffix('.weight') for name in whole)}")
        if not weights:
            raise UserError(f"--pattern {args.pattern}: no layer is left to prune; give another one")
    if args.keep_weights and not ratios:
        args.percent = keep.percentile(args.keep_weights, ckpt, model, weights, ", or --scope conv+linear")
        print(f"--keep-weights {args.keep_weights:g}: --percent {args.percent:.6f}")
    previous_masks = {name: all_masks.get(name, torch.ones_like(w, dtype=torch.bool)) for name, w in weights.items()}

    # choose the weights to keep
    positions = {f"{row.name}.weight": row.macs // w.numel() for row in compute_flops.count(model).rows
                 if (w := weights.get(f"{row.name}.weight")) is not None}
    divisors = {name: count ** args.cost_exponent for name, count in positions.items()}
    scores = {name: score(w, previous_masks[name], divisors[name]) for name, w in weights.items()}
    if ratios and (args.keep_weights or args.keep_macs):
        ratios = scaled(args, ckpt, model, weights, positions, ratios)
    elif args.keep_macs:
        args.percent = percent_of_macs(args.keep_macs, ckpt, model, scores, positions)
        print(f"--keep-macs {args.keep_macs:g}: --percent {args.percent:.6f}")
    masks, thresholds = {}, {}
    groups = [[name] for name in scores] if args.per_layer or ratios else [list(scores)]
    if args.pattern:
        masks, groups = {name: keep_n_of_m(s, n, m) & previous_masks[name] for name, s in scores.items()}, []
    else:
        check_percent(args, previous_masks, ratios)
    for group in groups:
        percent = ratios.get(group[0], args.percent)
        chosen, threshold = choose({name: scores[name] for name in group}, percent, args.faithful)
        masks, thresholds = masks | chosen, thresholds | {name: threshold * divisors[name] for name in chosen}
    if args.criterion == "random":
        masks, thresholds = shuffle(masks, previous_masks, args.seed), {}

    # apply
    for name, mask in masks.items():
        weights[name].mul_(mask)
    all_masks = {**all_masks, **masks}
    pruning.recalibrate(source, model, args.recalibrate)

    # report
    total = sum(mask.numel() for mask in masks.values())
    pruned = total - sum(int(mask.sum()) for mask in masks.values())
    totals = f"Total {args.scope} params: {total}, Pruned {args.scope} params: {pruned}, Pruned ratio: {pruned / total}"
    text = report(model, masks, all_masks, thresholds, totals)
    print(text)
    before, after = (evaluate(m.to(source.test.device), source.test) for m in (source.model, model))
    lines = [f"Before pruning: Test Loss:  {before['loss']:.8f}, Test Acc:  {before['top1']:.2f}", totals,
             f"After Pruning: Test Loss:  {after['loss']:.8f}, Test Acc:  {after['top1']:.2f}"]
    empty = [name for name, mask in masks.items() if not mask.any()]
    if empty:
        lines.append("There exists a layer with 0 parameters left.")
        print(f"{', '.join(empty)}: no weight remains, so its output is constant")
    print(lines[0], lines[2], sep="\n")

    # save
    return pruning.save(source, model, "magnitude", settings=vars(args), top1=after["top1"],
                        report="\n".join([*lines, "", text]), masks=all_masks, recipe=recipe_of(ckpt),
                        rule=rule_of(args, ckpt, way),
                        figure=draw({name: source.model.get_parameter(name) for name in masks}, masks, thresholds))


def settle(args):
    """Sets the default of --percent; UserError where flags exclude each other."""
    if args.per_layer and (args.keep_macs or args.cost_exponent):
        raise UserError("--keep-macs and --cost-exponent compare the weights of all layers; leave out --per-layer")
    if args.pattern and args.criterion == "random":
        raise UserError("--criterion random does not keep --pattern; leave out one of them")
    if not (args.ratios or args.pattern):
        args.percent = 0.6 if args.percent is None else args.percent
        return
    given, last = ("ratios", "pattern") if args.ratios else ("pattern", "faithful")
    for other in ("percent", "per_layer", "cost_exponent", last):
        if getattr(args, other):
            raise UserError(f"--{given} is not allowed with --{other.replace('_', '-')}: it says how much of each "
                            "layer is pruned")


def prunable(model, scope="conv"):
    """{parameter name: weight} of the layers in scope, from input to output."""
    kinds = (nn.Conv2d, nn.Linear) if scope == "conv+linear" else nn.Conv2d
    return {f"{name}.weight": m.weight for name, m in model.named_modules() if isinstance(m, kinds)}


def shuffle(masks, previous_masks, seed):
    """The control: keeps as many weights in every layer, at random positions of the previous mask."""
    generator, shuffled = torch.Generator().manual_seed(seed), {}
    for name, mask in masks.items():
        scores = torch.rand(mask.shape, generator=generator).masked_fill_(~previous_masks[name], -1)
        shuffled[name] = torch.ones(mask.numel(), dtype=torch.bool)
        shuffled[name][scores.flatten().argsort()[:int((~mask).sum())]] = False
        shuffled[name] = shuffled[name].view_as(mask)
    return shuffled


def percent_of_macs(fraction, ckpt, model, scores, positions):
    """The fraction of the weights, smallest scores first, to prune so that `fraction` of the dense MACs is kept."""
    order = torch.cat([s.flatten() for s in scores.values()]).argsort(stable=True)
    weights = dict(model.named_parameters())
    costs = torch.cat([positions[name] * weights[name].detach().cpu().ne(0).flatten() for name in scores])[order]
    wanted = fraction * keep.dense_total(ckpt, model).macs
    left = compute_flops.count(model).total.sparse_macs - torch.cat([costs.new_zeros(1), costs.cumsum(0)])
    if left[-2] > wanted:
        raise UserError(f"--keep-macs {fraction:g} would leave no weight: {left[-1]:,} of the {wanted:,.0f} MACs are "
                        "in layers that are not pruned; give a larger fraction, or --scope conv+linear")
    return (int((left > wanted).sum()) + 0.5) / len(costs)   # + 0.5, so that rounding changes no count


def scaled(args, ckpt, model, weights, positions, ratios):
    """The ratios times the factor that leaves --keep-weights, or --keep-macs."""
    now, dense = compute_flops.count(model).total, keep.dense_total(ckpt, model)
    now, dense = (now.sparse_macs, dense.macs) if args.keep_macs else (now.weights, dense.weights)
    alive = {name: int(w.count_nonzero()) for name, w in weights.items()}

    def left(ratios):
        return (now - sum(max(0, alive[name] - w.numel() + int(w.numel() * ratios[name]))
                          * (positions[name] if args.keep_macs else 1) for name, w in weights.items())) / dense
    return keep.scaled({name: ratios[name] for name in weights}, left, args.keep_weights or args.keep_macs)


def check_percent(args, previous_masks, ratios):
    """UserError if more weights are already pruned than --percent, or a layer's ratio, would prune."""
    if not args.per_layer and not ratios:
        previous_masks = {"": torch.cat([mask.flatten() for mask in previous_masks.values()])}
    asked = f"--keep-weights {args.keep_weights:g}" if args.keep_weights else (
        f"--keep-macs {args.keep_macs:g}" if args.keep_macs else "")
    remedy = (f"further than {asked} asks for; give a smaller one" if asked else
              f"and --{'ratios' if ratios else 'percent'} counts these weights too; give a larger one")
    for name, mask in previous_masks.items():
        zeros = mask.numel() - int(mask.sum())
        if zeros > int(mask.numel() * ratios.get(name, args.percent)):
            raise UserError(f"{args.resume} is pruned to {zeros / mask.numel():.4f} {f'in {name} ' if name else ''}"
                            f"already, {remedy}")


def recipe_of(ckpt):
    """How the dense network was trained, if the file records it; rewind.py repeats that."""
    if ckpt["method"] == "magnitude" and ckpt["stage"] == "dense":
        wanted = ("epochs", "batch_size", "lr", "schedule", "gamma", "momentum", "weight_decay")
        had = {name: ckpt["args"][name] for name in wanted if name in ckpt["args"]}
        return had | ({} if had.get("schedule") or "epochs" not in had else {"schedule": milestones(had["epochs"])})
    return ckpt.get("recipe")


def rule_of(args, ckpt, way=""):
    """How the weights were chosen, for the ledger: such as 'magnitude, per layer'."""
    words = [args.criterion, args.scope if args.scope != "conv" else "", "per layer" if args.per_layer else "",
             "ratios" if args.ratios else "", args.pattern or "",
             f"cost exponent {args.cost_exponent:g}" if args.cost_exponent else "",
             "faithful" if args.faithful else "", way]
    rule, before = ", ".join(word for word in words if word), ckpt.get("rule")
    return rule if before in (None, rule) else f"{before}, then {rule}"


def add_rule(parser):
    """The flags of the rule except --percent; iterative.py has them too."""
    add = parser.add_argument
    add("--scope", choices=("conv", "conv+linear"), default="conv", help="layers to prune")
    add("--per-layer", action="store_true", help="prune the same fraction of every layer")
    add("--criterion", choices=("magnitude", "random"), default="magnitude")
    add("--faithful", action="store_true", help="prune every |w| up to the (k+1)-th smallest, as the original does: "
        "one weight more, and every tie")


def pattern(text):
    n, m = map(int, text.split(":"))
    if not 0 < n < m:
        raise ValueError
    return text


pattern.__name__ = "pattern such as 2:4"


def flags():
    parser = cli.parser(__doc__)
    cli.add_flags(parser, train=False)
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--percent", type=cli.fraction, help="fraction of the weights that are zero afterwards "
                        "(default: 0.6)")
    amount.add_argument("--pattern", type=pattern, metavar="N:M", help="keep the N largest of each M input channels")
    keep.add_flags(amount, macs=False)
    amount.add_argument("--keep-macs", type=keep.part, metavar="FRACTION", help="fraction of the dense network's MACs "
                        "to keep, counting non-zero weights")
    add_rule(parser)
    pruning.add_recalibrate(parser)
    add = parser.add_argument
    add("--ratios", metavar="FILE", help="csv file with the columns layer,fraction: how much to prune of each "
        "convolution or linear layer")
    add("--cost-exponent", type=cli.nonnegative, default=0, metavar="A", help="divide |w| by (output positions of its "
        "layer)^A (default: 0)")
    add("-d", dest="dataset", default=argparse.SUPPRESS, help="--dataset")
    add("--resume", "--model", metavar="FILE", required=True, help="network to prune")
    add("--save", "--save_dir", help="folder to write to (default: logs/<dataset>-<network>-pruned)")
    add("--overwrite", action="store_true", help="write over an earlier pruned.pth.tar")
    add("-a", "--arch", help="architecture, if the checkpoint does not record it")
    add("--depth", type=int)
    add("--seed", type=cli.seed_number, default=1, help="seed for --criterion random")
    return parser


def parse(argv=None):
    return flags().parse_args(argv)


def report(model, masks, all_masks, thresholds, totals):
    """The weights of every layer in scope, then sparsity, MACs and bytes of the whole network, as text.

    masks: of the layers in scope; all_masks: earlier ones too; thresholds: {name: |w|}, empty for a random choice.
    """
    same = len(set(thresholds.values())) < 2
    places = {f"{name}.weight": k for k, (name, _) in enumerate(model.named_modules())}
    lines = [f"Pruning threshold: {next(iter(thresholds.values()))}"] if same and thresholds else []
    for name, mask in masks.items():
        kept, size = int(mask.sum()), mask.numel()
        lines.append(f"layer index: {places[name]} \t total params: {size} \t remaining params: {kept}"
                     f" \t {name} \t sparsity: {100 * (1 - kept / size):.2f} %"
                     + ("" if same else f" \t threshold: {thresholds[name]:.4g}"))
    counted = compute_flops.count(model)
    whole, bits = counted.total, sum(mask.numel() for mask in all_masks.values())
    kept = whole.params - bits + sum(int(mask.sum()) for mask in all_masks.values())
    packed = 4 * kept + (bits + 7) // 8
    lines += [totals, "", compute_flops.table(counted), "",
              f"sparsity of all {whole.params:,} parameters: {100 * (1 - kept / whole.params):.2f} %",
              f"{whole.macs:,} MACs, {whole.sparse_macs:,} with non-zero weights "
              f"({100 * whole.sparse_macs / whole.macs:.2f} %); FLOPs are 2 x MACs",
              f"{4 * whole.params:,} bytes dense, {packed:,} compressed ({100 * packed / (4 * whole.params):.2f} %): "
              "one bit per weight with a mask, 4 bytes per remaining parameter",
              "Speed: the zeros are scattered over tensors of unchanged shape, and ordinary kernels multiply by them "
              "like by any other number, so this network is smaller on disk but not faster; deploy/export.py FILE "
              "model.c is."]
    return "\n".join(lines)


def draw(weights, masks, thresholds):
    """The figure. Left: weights of every layer, before and after. Right: the histogram of all weights."""
    figure, (left, right) = plots.pyplot().subplots(1, 2, figsize=(11, 4), layout="constrained")
    layers = {name.removesuffix(".weight"): mask for name, mask in masks.items()}
    plots.layer_bars(left, layers, "weights", percent=True)
    had = torch.cat([w.detach().flatten().cpu() for w in weights.values()]).numpy()
    kept = had[torch.cat([mask.flatten() for mask in masks.values()]).numpy()]
    counts, edges = np.histogram(had, 201)
    right.stairs(counts, edges, fill=True, color="lightgrey", label="before")
    right.stairs(np.histogram(kept, edges)[0], edges, fill=True, color="tab:blue", label="kept")
    right.set(xlabel="weight", ylabel="weights", yscale="log", title="values before pruning")
    if len(set(thresholds.values())) == 1:
        threshold = next(iter(thresholds.values()))
        right.axvline(threshold, color="tab:red", label=f"threshold {threshold:.3g}")
        right.axvline(-threshold, color="tab:red")
    right.legend()
    return figure


def main(argv=None):
    prune(parse(argv))


if __name__ == "__main__":
    cli.script(main)
