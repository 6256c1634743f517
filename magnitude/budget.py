"""Which layers prune.py prunes, and the fraction of each: a given one, or that which keeps so many weights or MACs."""
import torch
from torch import nn

from common import UserError, cli, compute_flops, keep


def n_below_m(text):
    n, m = map(int, text.split(":"))
    return 0 < n < m


def add_flags(parser):
    """The flags for how much to prune; returns the group of those that exclude --per-layer."""
    amount, how = parser.add_mutually_exclusive_group(), parser.add_mutually_exclusive_group()
    amount.add_argument("--percent", type=cli.fraction, help="fraction of the weights that are zero afterwards "
                        "(default: 0.6)")
    amount.add_argument("--pattern", type=cli.flag_type("a pattern such as 2:4", str, n_below_m), metavar="N:M",
                        help="keep the N largest of each M consecutive input channels, at every position of a filter "
                        "(2:4: some GPUs multiply faster); layers whose input channels are not a multiple of M are not "
                        "pruned")
    keep.add_flags(amount, macs=False)
    amount.add_argument("--keep-macs", type=cli.part, metavar="FRACTION", help="fraction of the dense network's "
                        "MACs to keep; a weight of a layer with P output positions costs P of them")
    how.add_argument("--cost-exponent", type=cli.nonnegative, default=0, metavar="A", help="score |w| / P^A instead of "
                     "|w|, which keeps more weights for the same MACs (default: 0)")
    how.add_argument("--ratios", metavar="FILE", help="prune each layer by its own fraction, in a CSV file with the "
                     "columns layer,fraction such as sensitivity.py's ratios.csv; others are not pruned; "
                     "--keep-weights or --keep-macs multiply all fractions by one factor")
    return how


def settle(args):
    """Sets the default of --percent; UserError where flags exclude each other."""
    if args.pattern and args.criterion == "random":
        raise UserError("--criterion random does not keep --pattern; leave out one of them")
    for given, other in (("ratios", "percent"), ("ratios", "pattern"), ("pattern", "per-layer"),
                         ("pattern", "cost-exponent"), ("pattern", "faithful"), ("per-layer", "keep-macs")):
        if getattr(args, given.replace("-", "_")) and getattr(args, other.replace("-", "_")):
            raise UserError(f"--{given} is not allowed with --{other}: it says how much of each layer is pruned")
    if args.percent is None and not (args.ratios or args.pattern):
        args.percent = 0.6


def prunable(model, scope="conv"):
    """{parameter name: weight} of the layers in scope, from input to output."""
    kinds = (nn.Conv2d, nn.Linear) if scope == "conv+linear" else nn.Conv2d
    return {f"{name}.weight": m.weight for name, m in model.named_modules() if isinstance(m, kinds)}


def layers(args, model):
    """({name: weight} of the layers to prune, {name: fraction of it} of --ratios)."""
    if args.ratios:                                          # it names the layers
        args.scope = "conv+linear"
        ratios = keep.read_ratios(args.ratios, prunable(model, args.scope))
        return {name: w for name, w in prunable(model, args.scope).items() if ratios.get(name)}, ratios
    weights = prunable(model, args.scope)
    if not weights:
        raise UserError(f"{args.resume}: a {model.arch} has no convolution; give --scope conv+linear")
    m = int(args.pattern.split(":")[1]) if args.pattern else 1
    if whole := [name.removesuffix(".weight") for name, w in weights.items() if w.shape[1] % m]:
        print(f"--pattern {args.pattern}: not pruned, since their input channels are not a multiple of {m}: "
              f"{', '.join(whole)}")
    if len(whole) == len(weights):
        raise UserError(f"--pattern {args.pattern}: no layer can be pruned by it; give another one")
    return {name: w for name, w in weights.items() if w.shape[1] % m == 0}, {}


def positions(model, weights):
    """{name: output positions of its layer}, the MACs of one weight."""
    macs = {f"{row.name}.weight": row.macs for row in compute_flops.count(model).rows}
    return {name: macs[name] // w.numel() for name, w in weights.items()}


def parts(args, ckpt, model, scores, positions, ratios, previous_masks):
    """[(names of weights, fraction of them to prune by one threshold), ...]; UserError if more are pruned already."""
    weights = {name: model.get_parameter(name) for name in scores}
    asked = f"--keep-weights {args.keep_weights:g}" if args.keep_weights else (
        f"--keep-macs {args.keep_macs:g}" if args.keep_macs else "")
    if ratios:
        if asked:
            ratios = scaled(args, ckpt, model, weights, positions, ratios)
        found = [([name], ratios[name]) for name in scores]
    else:
        if args.keep_weights:
            args.percent = keep.percentile(args.keep_weights, ckpt, model, weights, ", or --scope conv+linear")
        elif args.keep_macs:
            args.percent = percent_of_macs(args.keep_macs, ckpt, model, scores, positions)
        if asked:
            print(f"{asked}: --percent {args.percent:.6f}")
        found = [([name], args.percent) for name in scores] if args.per_layer else [(list(scores), args.percent)]

    remedy = (f"further than {asked} asks for; give a smaller one" if asked else
              f"and --{'ratios' if ratios else 'percent'} counts these weights too; give a larger one")
    for names, fraction in found:
        mask = torch.cat([previous_masks[name].flatten() for name in names])
        zeros = mask.numel() - int(mask.sum())
        if zeros > int(mask.numel() * fraction):
            where = f"in {names[0]} " if ratios or args.per_layer else ""
            raise UserError(f"{args.resume} is pruned to {zeros / mask.numel():.4f} {where}already, {remedy}")
    return found


def percent_of_macs(fraction, ckpt, model, scores, positions):
    """The fraction of the weights, smallest scores first, to prune so that `fraction` of the dense MACs is kept."""
    order = torch.cat([s.flatten() for s in scores.values()]).argsort(stable=True)
    alive = {name: model.get_parameter(name).detach().cpu().ne(0).flatten() for name in scores}
    costs = torch.cat([positions[name] * alive[name] for name in scores])[order]
    wanted = fraction * compute_flops.dense_total(ckpt, model).macs
    left = compute_flops.count(model).total.sparse_macs - torch.cat([costs.new_zeros(1), costs.cumsum(0)])
    if left[-2] > wanted:
        raise UserError(f"--keep-macs {fraction:g} would leave no weight: it is {wanted:,.0f} MACs, and layers that "
                        f"are not pruned have {left[-1]:,}; give a larger fraction, or --scope conv+linear")
    return (int((left > wanted).sum()) + 0.5) / len(costs)   # + 0.5, so that rounding changes no count


def scaled(args, ckpt, model, weights, positions, ratios):
    """The ratios times the factor that leaves --keep-weights, or --keep-macs."""
    now, dense = compute_flops.count(model).total, compute_flops.dense_total(ckpt, model)
    now, dense = (now.sparse_macs, dense.macs) if args.keep_macs else (now.weights, dense.weights)
    alive = {name: int(w.count_nonzero()) for name, w in weights.items()}

    def left(ratios):
        return (now - sum(max(0, alive[name] - w.numel() + int(w.numel() * ratios[name]))
                          * (positions[name] if args.keep_macs else 1) for name, w in weights.items())) / dense
    return keep.scaled({name: ratios[name] for name in weights}, left, args.keep_weights or args.keep_macs)
