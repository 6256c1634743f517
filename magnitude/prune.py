"""Magnitude pruning: zero the smallest weights of a trained network.

    python prune.py --resume logs/cifar10-resnet56-magnitude-dense/checkpoint.pth.tar --percent 0.9

One threshold for the whole network: of all T weights of convolutions, prune the k = int(T * percent) with the smallest
|w|, regardless of their layer:

    mask = True  <=>  |w| >= the (k+1)-th smallest |w|          (ties: the earlier one is pruned)
    w     <-  mask * w

percent is cumulative: weights pruned before count towards it, so 0.3, then 0.6, then 0.9 are three steps. Batch
norms, biases and linear layers are not pruned. The masks are stored beside the weights, never guessed from zeros.
pruned.pth.tar holds one bit per weight and the remaining values, prune.txt the report, prune.png weights per layer and
their histogram. --keep-weights 0.1 and --keep-macs 0.1 compute the percent that keeps a tenth of the dense network's
weights or MACs; --ratios has a fraction for each layer (budget.py). With --cost-exponent the score is |w| / P^A.

Takes seconds. At 30 % the accuracy falls by less than a point; at 80 to 90 % it is near chance, and finetune.py
restores it.
"""
import argparse
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from common import cli, compute_flops, keep, plots, pruning
from common.evaluate import evaluate
from magnitude import budget
from magnitude.main import recipe_of
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
    budget.settle(args)

    # load
    source = pruning.load(args.resume, network, what="magnitude-pruned", **cli.prune_flags(args))
    ckpt, model = source.ckpt, copy.deepcopy(source.model)
    weights, ratios = budget.layers(args, model)
    all_masks = ckpt.get("masks", {})
    previous_masks = {name: all_masks.get(name, torch.ones_like(w, dtype=torch.bool)) for name, w in weights.items()}

    # choose the weights to keep
    positions = budget.positions(model, weights)
    divisors = {name: max(count, 1) ** args.cost_exponent for name, count in positions.items()}
    scores = {name: score(w, previous_masks[name], divisors[name]) for name, w in weights.items()}
    masks, thresholds = {}, {}
    if args.pattern:
        n, m = map(int, args.pattern.split(":"))
        masks = {name: keep_n_of_m(s, n, m) & previous_masks[name] for name, s in scores.items()}
    else:
        for names, fraction in budget.parts(args, ckpt, model, scores, positions, ratios, previous_masks):
            chosen, threshold = choose({name: scores[name] for name in names}, fraction, args.faithful)
            masks, thresholds = masks | chosen, thresholds | {name: threshold * divisors[name] for name in names}
    if args.criterion == "random":
        masks, thresholds = keep.shuffled(masks, previous_masks, args.seed), {}

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
    if empty := [name for name, mask in masks.items() if not mask.any()]:
        lines.append("There exists a layer with 0 parameters left.")
        print(f"{', '.join(empty)}: no weight remains, so its output is constant")
    print(lines[0], lines[2], sep="\n")

    # save
    return pruning.save(source, model, "magnitude", settings=vars(args), top1=after["top1"],
                        report="\n".join([*lines, "", text]), masks=all_masks, recipe=recipe_of(ckpt),
                        rule=rule_of(args, ckpt, way),
                        figure=draw({name: source.model.get_parameter(name) for name in masks}, masks, thresholds))


def rule_of(args, ckpt, way=""):
    """How the weights were chosen, for the ledger: such as 'magnitude, per layer'."""
    words = [args.criterion, args.scope if args.scope != "conv" else "", "per layer" if args.per_layer else "",
             "ratios" if args.ratios else "", args.pattern or "",
             f"cost exponent {args.cost_exponent:g}" if args.cost_exponent else "",
             "faithful" if args.faithful else "", way]
    rule, before = ", ".join(word for word in words if word), ckpt.get("rule")
    return rule if before in (None, rule) else f"{before}, then {rule}"


def add_rule(parser, how):
    """The flags of the rule except --percent, for iterative.py too; how: the parser, or its group for --per-layer."""
    add = parser.add_argument
    add("--scope", choices=("conv", "conv+linear"), default="conv", help="layers to prune (default: conv; --ratios "
        "prunes those in its file)")
    how.add_argument("--per-layer", action="store_true", help="prune the same fraction of every layer, instead of by "
                     "one threshold")
    add("--criterion", choices=("magnitude", "random"), default="magnitude", help="random: the control, which keeps as "
        "many weights in every layer, at random positions (default: magnitude)")
    add("--faithful", action="store_true", help="prune every |w| up to the (k+1)-th smallest, as the original does: "
        "one weight more, and every tie")


def flags():
    parser = cli.parser(__doc__, train=False, arch=cli.RECORDED, writes="pruned.pth.tar")
    add = parser.add_argument
    add("--resume", "--model", metavar="FILE", required=True, help="network to prune")
    add("-d", dest="dataset", default=argparse.SUPPRESS, help="same as --dataset")
    add("--save_dir", dest="save", default=argparse.SUPPRESS, help="same as --save")
    add_rule(parser, budget.add_flags(parser))
    pruning.add_recalibrate(parser)
    add("--seed", type=cli.seed_number, default=1, help="seed for --criterion random (default: 1)")
    return parser


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
              "Speed: ordinary kernels multiply by zeros too, so the network is smaller on disk but not faster; "
              "deploy/export.py FILE model.c makes one that is, of ordinary layers."]
    return "\n".join(lines)


def draw(weights, masks, thresholds):
    """The figure. Left: weights of every layer, before and after. Right: the histogram of all weights."""
    figure, right = plots.pruned(masks, "weights", percent=True)
    had = torch.cat([w.detach().flatten().cpu() for w in weights.values()])
    plots.before_and_kept(right, had.numpy(), had[torch.cat([m.flatten() for m in masks.values()])].numpy(), bins=201)
    right.set(xlabel="weight", ylabel="weights", yscale="log", title="values before pruning")
    if len(set(thresholds.values())) == 1:
        threshold = next(iter(thresholds.values()))
        right.axvline(threshold, color="tab:red", label=f"threshold {threshold:.3g}")
        right.axvline(-threshold, color="tab:red")
    right.legend()
    return figure


def main(argv=None):
    return prune(flags().parse_args(argv))


if __name__ == "__main__":
    cli.script(main)
