"""DeepHoyer: zero the small weights.

    python prune.py --model saves/elt_0.0001_3.pth --rule T --sensitivity 0.01

Tensor by tensor, prune an entry w if |w| is below a threshold t (section 4 of the paper):

    --rule T     t = sensitivity                  one threshold for all tensors
    --rule V     t = sensitivity * std(tensor)    standard deviation over all entries, zeros included

In the LeNets the rule applies to every parameter, biases included; elsewhere to every weight, those of batch norms
included, but to no bias. Single entries are pruned even after training with a group penalty, which has made whole
groups small together.

    --granularity group     prune a filter W[o] or an input channel W[:, i] as a whole if its root mean square is below
                            t; tensors of one dimension are not pruned
    --granularity channel   prune a channel inside a block, with the filter that makes it and the weights that read it,
                            if the root mean square of either is below t; channels of residual streams are kept

The network keeps its shape; the masks are stored with it in pruned.pth.tar, and finetune.py keeps the zeros. The
original's sparsity report and the compacted network's size are printed and written to prune.txt; prune.png shows the
weights of each layer before and after. Takes seconds; fine-tuning restores the accuracy.
"""
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from common import UserError, cli, compute_flops, keep, plots, pruning
from common.compact import compact
from common.evaluate import evaluate
from hoyer.networks import find, network
from hoyer.reports import compaction_report, sparsity_report


def choose(model, rule, sensitivity, granularity="element", criterion="magnitude", seed=1, previous_masks=None,
           ratios=None):
    """({name: mask}, {name: threshold}) for the tensors to prune; weights that previous masks prune stay pruned."""
    channels = channel_masks(model, sensitivity, ratios) if granularity == "channel" else {}
    masks, before, thresholds = {}, {}, {}
    for name, w in prunable(model).items():
        t, whole = threshold(w, rule, sensitivity), torch.ones_like(w, dtype=torch.bool)
        before[name], thresholds[name] = (previous_masks or {}).get(name, whole).to(w.device), t
        masks[name] = before[name] & (channels.get(name, whole) if granularity == "channel" else
                                  group_mask(w, t) if granularity == "group" else element_mask(w, t))
    if criterion == "random":                                # as many, among those kept before
        masks = keep.shuffled(masks, before, seed)
    return masks, thresholds


def prune(args):
    """Prunes args.model; writes pruned.pth.tar, prune.txt and prune.png to args.save. args: those of `flags`."""
    check(args)

    # load
    source = pruning.load(find(args.model), network, what="hoyer-pruned", holdout=args.holdout,
                          **cli.prune_flags(args))
    model, previous_masks = source.model.to(source.test.device), source.ckpt.get("masks") or {}
    source = source._replace(dense=compute_flops.summary(compute_flops.dense_network(source.ckpt, model)))
    print("--- Pruning ---")
    ratios = args.ratios and keep.channel_ratios(args.ratios, model, [r.producers[0][0] for r in inside_blocks(model)])
    if args.keep_weights or args.keep_macs:
        args.sensitivity, ratios = amount_for(args, source.ckpt, model, ratios)

    # choose the weights to keep
    masks, thresholds = choose(model, args.rule, args.sensitivity, args.granularity, args.criterion, args.seed,
                               previous_masks, ratios)
    if args.rule == "V":
        for name, t in thresholds.items():
            print(f"Pruning with threshold : {t} for layer {name}")

    # apply
    apply(model, masks)
    left = {name: bool(w.any()) for name, w in model.named_parameters() if w.dim() > 1}
    for name in [name for name, some in left.items() if not some]:
        print(f"{name}: no weight remains, so its output is constant")
    if not any(left.values()):
        raise NothingLeft(f"--sensitivity {args.sensitivity:g} prunes every weight; give a smaller one")
    pruning.recalibrate(source, model, args.recalibrate)

    # report
    report = f"{sparsity_report(model)}\n{compaction_report(model, compact(model), source.dense)}"
    print(report, flush=True)
    result = evaluate(model, source.test)
    line = f"accuracy on {'the validation set' if args.holdout else source.dataset.name}: {result['top1']:.2f} %"
    print(line)

    # save
    amount = f"ratios {args.ratios}" if args.ratios else f"sensitivity {args.sensitivity}"
    how = f"{args.model}, rule {args.rule}, {amount}, {args.granularity}, {args.criterion}"
    pruning.save(source, model, "hoyer", settings=vars(args), top1=result["top1"], report=f"{how}\n{line}\n{report}",
                 masks={**previous_masks, **masks}, figure=draw(model))


class NothingLeft(UserError):
    """Every weight is below the threshold."""


def prunable(model):
    """{name: parameter}: in a LeNet all of them, elsewhere the weights (batch norms' too)."""
    lenet = model.arch.startswith("lenet")
    return {name: p for name, p in model.named_parameters() if lenet or name.endswith("weight")}


def threshold(w, rule, sensitivity):
    """The threshold for one tensor; V: the population standard deviation, as numpy's std."""
    return sensitivity if rule == "T" else sensitivity * float(w.detach().cpu().double().std(correction=0))


def element_mask(w, t):
    """The mask, like w: |w| is not below t. Entries equal to t are kept, so that t = 0 prunes nothing."""
    return w.detach().abs() >= t


def group_mask(w, t):
    """The mask, like w: True if filter and input channel of an entry both have a root mean square of t or more."""
    if w.dim() == 1:
        return torch.ones_like(w, dtype=torch.bool)
    squares = w.detach().square()
    filters = squares.flatten(1).mean(1).sqrt() >= t
    channels = squares.transpose(0, 1).flatten(1).mean(1).sqrt() >= t
    mask = filters[:, None] & channels[None, :]
    return mask.view(*mask.shape, *[1] * (w.dim() - 2)).expand_as(w).clone()


def inside_blocks(model):
    """The records of `model.channels()` that are no streams, without grouped channels and those of a selection."""
    return [record for record in model.channels() if record.producers and record.plain and record.group_size == 1
            and not record.stream and not any(consumer.select for consumer in record.consumers)]


@torch.no_grad()
def channel_masks(model, t, ratios=None):
    """{name: mask} of the layers that make or read channels inside blocks: False for a channel whose filter, or whose
    weights in the layer after it, has a root mean square below t; with ratios, {layer: fraction}, for this fraction,
    the smallest ones. A layer keeps its strongest channel."""
    parameters, masks, records = dict(model.named_parameters()), {}, inside_blocks(model)
    if not records:
        raise UserError(f"--granularity channel: a {model.arch} has no channels inside blocks; give element or group")
    for record in records:
        makers = [f"{name}.weight" for name, _ in record.producers]
        readers = [(f"{consumer.layer}.weight", consumer.repeat) for consumer in record.consumers]
        sizes = [parameters[name].square().flatten(1).mean(1).sqrt() for name in makers]
        sizes += [parameters[name].square().transpose(0, 1).reshape(len(sizes[0]), -1).mean(1).sqrt()
                  for name, _ in readers]
        smallest = torch.stack(sizes).amin(0)
        if ratios:
            gone = smallest.argsort(stable=True)[:int(len(smallest) * ratios[record.producers[0][0]])]
            alive = torch.ones_like(smallest, dtype=torch.bool).index_fill(0, gone, False)
        else:
            alive = (smallest >= t).index_fill(0, smallest.argmax(), True)
        for name in makers:
            masks[name] = masks.get(name, True) & alive.view(-1, *[1] * (parameters[name].dim() - 1))
        for name, repeat in readers:
            masks[name] = masks.get(name, True) & alive.repeat_interleave(repeat).view(
                1, -1, *[1] * (parameters[name].dim() - 2))
    return {name: mask.expand_as(parameters[name]).clone() for name, mask in masks.items()}


@torch.no_grad()
def apply(model, masks):
    """w <- mask * w."""
    for name, w in prunable(model).items():
        w.mul_(masks[name])


def amount_for(args, ckpt, model, ratios):
    """(--sensitivity, None) or (None, the ratios times a factor), of which --keep-weights are kept, or --keep-macs
    after compaction."""
    dense = compute_flops.dense_total(ckpt, model)
    model.channels()                                         # a traced network's copies have them from now on

    def left(sensitivity, ratios=None):
        pruned = copy.deepcopy(model)
        apply(pruned, choose(pruned, args.rule, sensitivity, args.granularity, previous_masks=ckpt.get("masks"),
                             ratios=ratios)[0])
        if args.keep_weights:
            return compute_flops.count(pruned).total.weights / dense.weights
        return compute_flops.count(compact(pruned)).total.macs / dense.macs

    if ratios:
        return None, keep.scaled(ratios, lambda ratios: left(None, ratios), args.keep_weights or args.keep_macs)
    largest = max(float(w.detach().abs().max() / (threshold(w, args.rule, 1) or 1)) for w in prunable(model).values())
    found = keep.bisect(left, args.keep_weights or args.keep_macs, 1.01 * largest)
    print(f"--sensitivity {found:.6g} keeps {left(found):.4f} of the {'weights' if args.keep_weights else 'MACs'}")
    return found, None


def check(args):
    """UserError if flags exclude each other, or none determines how much to prune."""
    if args.sensitivity is None and not (args.keep_weights or args.keep_macs or args.ratios):
        raise UserError("give one of --sensitivity, --keep-weights and --keep-macs, or --ratios")
    if args.ratios and (args.sensitivity is not None or args.granularity != "channel"):
        raise UserError("--ratios is for --granularity channel, and there is no --sensitivity beside it")
    if args.keep_macs and args.criterion == "random":
        raise UserError("--criterion random empties no channels, so MACs say little; give --keep-weights")
    if args.granularity != "element" and args.criterion == "random":
        raise UserError(f"--criterion random chooses single entries; leave out --granularity {args.granularity}")
    if args.granularity == "channel" and args.rule == "V":
        raise UserError("--granularity channel has one threshold for all layers; leave out --rule V")


def add_flags(parser, sensitivity=None):
    """The flags that say what to prune, and how; returns the group of those that exclude --sensitivity."""
    add, amount = parser.add_argument, parser.add_mutually_exclusive_group()
    add("--model", metavar="FILE", required=True, help="trained network, with or without its suffix")
    amount.add_argument("--sensitivity", type=cli.nonnegative, default=sensitivity, help="threshold, or its ratio to "
                        "the standard deviation" + (f" (default: {sensitivity:g})" if sensitivity else ""))
    add("--granularity", choices=("element", "group", "channel"), default="element", help="element: single "
        "weights; group: filters and input channels; channel: channels inside blocks (default: element)")
    add("--criterion", choices=("magnitude", "random"), default="magnitude", help="random: the control, which prunes "
        "the same number of entries of every tensor, chosen at random (default: magnitude)")
    return amount


def flags():
    parser = cli.parser(__doc__, train=False, arch=cli.RECORDED, writes="pruned.pth.tar")
    keep.add_flags(add_flags(parser))
    pruning.add_recalibrate(parser)
    add = parser.add_argument
    add("--ratios", metavar="FILE", help="with --granularity channel, instead of --sensitivity, a CSV file with the "
        "fraction of each layer to remove, columns layer,fraction, such as ratios.csv of magnitude/sensitivity.py "
        "--channels; --keep-weights or --keep-macs multiplies all of them by one factor")
    add("--rule", choices=("T", "V"), default="T", help="one threshold for all tensors, or one proportional to each "
        "tensor's standard deviation (default: T)")
    add("--seed", type=cli.seed_number, default=1, help="seed for --criterion random (default: 1)")
    add("--holdout", type=int, default=0, metavar="N", help="report on the last N training images")
    return parser


def draw(model):
    """The figure. Left: weights of each layer before and after. Right: for LeNet-300-100 how many weights read each of
    the 28 x 28 pixels, for other networks the fraction of input channels and of filters with non-zero weights."""
    layers = {name.removesuffix(".weight"): w.detach().cpu() for name, w in model.named_parameters() if w.dim() > 1}
    figure, right = plots.pruned({name: w.ne(0) for name, w in layers.items()}, "weights", percent=True)
    if model.arch == "lenet300":
        pixels = torch.zeros(784)
        pixels[model.select.indices.cpu()] = layers["fc1"].ne(0).sum(0).float()
        shown = right.imshow(pixels.view(28, 28).numpy(), cmap="Blues")
        figure.colorbar(shown, label="weights that read the pixel")
        right.set_title(f"{int(pixels.count_nonzero())} of 784 input pixels are read")
    else:
        for offset, dim, label in ((-0.2, 1, "input channels"), (0.2, 0, "filters")):
            alive = [float(w.ne(0).transpose(0, dim).flatten(1).any(1).float().mean()) for w in layers.values()]
            right.bar([p + offset for p in range(len(layers))], [100 * a for a in alive], 0.4, label=label)
        plots.name_layers(right, list(layers))
        right.set(ylabel="with non-zero weights (%)", ylim=(0, 105))
        plots.legend_beside_title(right, "groups of each layer")
    return figure


def main(argv=None):
    prune(flags().parse_args(argv))


if __name__ == "__main__":
    cli.script(main)
