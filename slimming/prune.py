"""Network slimming: dropping the channels with the smallest gammas.

    python prune.py --model logs/cifar10-vgg13-sparse/checkpoint.pth.tar --percent 0.4

One threshold for the whole network (section 3.4 of the paper): of all T channels that have a gamma, the
k = int(T * percent) with the smallest |gamma| go, wherever they are. No layer loses all its channels: it keeps its
strongest, and the output says so. The network that is left computes what the large one computes with those gammas
and betas at zero; it is written to pruned.pth.tar, the report to prune.txt, the picture to prune.png.

    --mask            zeroes gammas and betas and keeps the shape; a layer may then lose all its channels
    --compact         turns a network pruned with --mask (and fine-tuned) into the narrow one
    --criterion random  the control: as many channels, drawn at random
    --round-to 8      channel counts in multiples that hardware likes

Expect seconds. Accuracy may fall to chance before fine-tuning (finetune.py); that is normal.
"""
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from common import UserError, checkpoint, cli, compute_flops, data, models, originals, plots
from common.evaluate import evaluate
from common.run import device_of, facts, output_folder
from slimming.networks import network


def parse(argv=None):
    parser = cli.parser(__doc__)
    cli.add_flags(parser, train=False)
    add = parser.add_argument
    add("--model", metavar="FILE", required=True, help="the network to prune, after training with -sr")
    add("--percent", type=float, default=0.5, help="share of all channels to drop, from 0 up to but not 1")
    add("--save", help="folder to write to (default: logs/<dataset>-<network>-pruned)")
    add("--overwrite", action="store_true", help="write over an earlier pruned.pth.tar")
    add("--arch", help="for a file of the original repository: vgg, resnet, densenet")
    add("--depth", type=int)
    add("--criterion", choices=("gamma", "random"), default="gamma")
    add("--seed", type=cli.seed_number, default=1, help="of --criterion random")
    add("--round-to", type=cli.positive, default=1, help="channels per layer in multiples of this")
    add("--mask", action="store_true", help="zero instead of remove")
    add("--compact", action="store_true", help="remove what --mask zeroed; --percent is not used")
    add("--faithful", action="store_true", help="drop every |gamma| up to the k-th smallest (counted from 0), as in "
        "the original: one channel more, and more with ties")
    return parser.parse_args(argv)


def scored_norms(model):
    """{name: (batch norm, indices)} of the channels that can go one by one: one for each record that has any.

    indices: which channels of the batch norm there are to choose from; behind it a selection may have dropped some.
    """
    modules, found = dict(model.named_modules()), {}
    for record in model.channels():
        names = [name for name in record.names() if isinstance(modules[name], nn.BatchNorm2d)]
        if names and not record.stream:
            select = "" if record.producers else record.consumers[0].select
            found[names[-1]] = modules[select].indices if select else torch.arange(modules[names[-1]].num_features)
    return {name: (m, found[name].cpu()) for name, m in modules.items() if name in found}


def choose(scores, percent, faithful=False):
    """{layer: keep (channels,)} by one threshold over all layers, and that threshold.

    Exactly k = int(T * percent) channels go, ties by position; faithful: all that are not above the k-th smallest,
    counted from 0.
    """
    ranked, order = torch.cat(list(scores.values())).sort(stable=True)
    k = int(len(ranked) * percent)
    keep = torch.ones(len(ranked), dtype=torch.bool)
    keep[order[:k]] = False
    if faithful:
        keep[order] = ranked > ranked[k]
    return dict(zip(scores, keep.split([len(s) for s in scores.values()]), strict=True)), float(ranked[k])


def keep_some(keep, scores, round_to=1):
    """Every layer with at least one channel, in multiples of round_to (the nearest, up to the layer's width)."""
    kept = {}
    for name, mask in keep.items():
        alive = int(mask.sum())
        wanted = max(round(alive / round_to), 1) * round_to
        wanted = min(wanted, len(mask))
        if not alive:
            print(f"{name}: all {len(mask)} channels are below the threshold; it keeps its strongest {wanted}")
        if wanted == alive:
            kept[name] = mask
            continue
        strongest = torch.where(mask, scores[name] + scores[name].max() + 1, scores[name]).topk(wanted).indices
        kept[name] = torch.zeros_like(mask).index_fill(0, strongest, True)
    return kept


@torch.no_grad()
def zero(model, keep):
    """gamma = beta = 0 for every dropped channel: from here on it contributes nothing. Returns the masks."""
    modules, masks = dict(model.named_modules()), {}
    for name, mask in keep.items():
        for parameter in ("weight", "bias"):
            getattr(modules[name], parameter).mul_(mask.to(modules[name].weight))
            masks[f"{name}.{parameter}"] = mask.clone()
    return masks


def narrow_masks(model, masks, keep):
    """The masks of other layers than those that `keep` narrows: they are narrowed in the place of their tensors."""
    masks = {name: mask for name, mask in masks.items() if name.rpartition(".")[0] not in keep}
    if not masks:
        return {}
    stencil = copy.deepcopy(model)
    stencil.load_state_dict({**model.state_dict(), **{name: mask.float() for name, mask in masks.items()}})
    state = models.narrow(stencil, keep).state_dict()
    return {name: state[name].ne(0) for name in masks}


def main(argv=None):
    args = parse(argv)
    if not 0 <= args.percent < 1:
        raise UserError(f"--percent {args.percent:g} is not in [0, 1)")
    if args.mask and args.compact:
        raise UserError("--mask keeps the shape and --compact gives it up; choose one")
    if args.round_to > 1 and (args.mask or args.compact):
        raise UserError("--round-to is for channels that are removed by their gammas; leave out --mask and --compact")
    ckpt = originals.load(args.model, network, args.arch, args.depth)
    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    args.save = args.save or f"logs/{Path(args.dataset).stem}-{ckpt['arch']}{ckpt['cfg'].get('depth', '')}-pruned"
    if (Path(args.save) / "pruned.pth.tar").exists() and not args.overwrite:
        raise UserError(f"{args.save} already holds a pruned.pth.tar; give another --save, or --overwrite")
    device = device_of(args.device)
    model = checkpoint.to_model(ckpt).to(device)
    before = compute_flops.count(model)
    norms = scored_norms(model)
    gammas = {name: bn.weight.detach().abs().float().cpu()[there] for name, (bn, there) in norms.items()}
    if not gammas:
        raise UserError(f"{args.model} has no batch norm whose channels could be dropped; slimming needs one")
    if ckpt["stage"] == "dense" and ckpt["method"] != "original" and not args.compact:
        print("note: this network was trained without -sr, so its gammas are not sparse")

    # which channels stay
    scores = gammas
    if args.criterion == "random":
        generator = torch.Generator().manual_seed(args.seed)
        scores = {name: torch.rand(len(g), generator=generator) for name, g in gammas.items()}
    if args.compact:
        masks = {name: ckpt.get("masks", {}).get(f"{name}.weight") for name in norms}
        if any(mask is None for mask in masks.values()):
            raise UserError(f"{args.model} holds no masks; --compact takes a network pruned with --mask")
        keep, threshold = {name: mask[norms[name][1]] for name, mask in masks.items()}, None
    else:
        keep, threshold = choose(scores, args.percent, args.faithful)
    if not args.mask:
        keep = keep_some(keep, scores, args.round_to)

    # the same network without the others
    original = checkpoint.to_model(ckpt).to(device)
    whole = {name: torch.zeros(bn.num_features, dtype=torch.bool).index_put((there,), keep[name])
             for name, (bn, there) in norms.items()}
    masks = zero(model, whole)
    dead = [name for name, mask in keep.items() if not mask.any()]
    for name in dead:
        print(f"{name}: all channels are zero (--mask), the layer passes nothing on")
    small = model if args.mask else models.narrow(model, whole)
    earlier = ckpt.get("masks", {})                          # another method's, or of an earlier --mask
    masks = {**earlier, **masks} if args.mask else narrow_masks(model, earlier, whole)
    after = compute_flops.count(small)
    report = describe(args, keep, threshold, before, after)
    print(report)

    # what that does to the accuracy
    dataset = data.load(args.dataset, args.data_dir, subset=args.subset)
    data.check_fit(dataset, model, args.model)
    test = data.Loader(dataset, "test", args.test_batch_size, device)
    images, _ = next(iter(test))
    with torch.no_grad():
        difference = float((model(images) - small(images)).abs().max() / model(images).abs().max())
    prec1, masked, pruned = (evaluate(m, test)["top1"] for m in (original, model, small))
    accuracy = (f"accuracy on {args.dataset}: {prec1:.2f} % before, {masked:.2f} % masked, {pruned:.2f} % narrowed; "
                f"their logits differ by {difference:.1e} of the largest")
    print(accuracy)

    folder = output_folder(args.save, overwrite=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prune.txt").write_text(
        f"Configuration:\n{small.cfg.get('widths')}\nNumber of parameters:\n{after.total.params}\n"
        f"Test accuracy:\n{pruned / 100:.4f}\n\n{accuracy}\n{report}\n")
    draw(folder / "prune.png", gammas, keep, None if args.criterion == "random" else threshold)
    stage = "finetuned" if args.compact and ckpt["stage"] == "finetuned" else "pruned"
    path = checkpoint.save(folder / "pruned.pth.tar", checkpoint.of(
        small, "slimming", stage, args.dataset, prec1=pruned, best_prec1=pruned, args=vars(args),
        dense=ckpt["dense"] or compute_flops.summary(original), masks=masks or None,
        run=facts(device)))
    print(f"wrote {path}, prune.txt and prune.png")


def describe(args, keep, threshold, before, after):
    """The report: channels per layer, then parameters, MACs and FLOPs before and after."""
    total, left = sum(len(m) for m in keep.values()), sum(int(m.sum()) for m in keep.values())
    lines = [compute_flops.table(after, before), "", f"{'layer':30} {'channels':>9} {'left':>6}"]
    lines += [f"{name:30} {len(mask):9d} {int(mask.sum()):6d}" for name, mask in keep.items()]
    wanted = "as the masks say" if args.compact else f"requested {100 * args.percent:.2f} %, threshold {threshold:.4g}"
    lines += [f"dropped {total - left} of {total} channels: {100 * (1 - left / total):.2f} % ({wanted})", "",
              f"{'':38} {'before':>14} {'after':>14} {'left':>8}"]
    a, b = before.total, after.total
    # the original counted the 0/1 vector of every channel selection as parameters
    figures = [("parameters", a.params, b.params),
               ("parameters with selection indexes", a.params + before.selections, b.params + after.selections),
               ("MACs", a.macs, b.macs), ("FLOPs (2 x MACs)", 2 * a.macs, 2 * b.macs),
               ("FLOPs as thop counts (2 x (MACs + 2 BN))", a.thop_flops, b.thop_flops)]
    lines += [f"{name:40} {x:14,} {y:14,} {100 * y / x:6.1f} %" for name, x, y in figures]
    return "\n".join(lines)


def draw(path, gammas, keep, threshold):
    """Left: the channels of every layer, had and kept. Right: the histogram of gammas, with the threshold."""
    plt = plots.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    left.bar(range(len(keep)), [len(m) for m in keep.values()], color="lightgrey", label="had")
    left.bar(range(len(keep)), [int(m.sum()) for m in keep.values()], color="tab:blue", label="keeps")
    left.set(xlabel="batch norm, from input to output", ylabel="channels")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend()
    right.hist(torch.cat(list(gammas.values())).numpy(), bins=80, color="tab:blue")
    right.set(xlabel="|gamma|", ylabel="channels", yscale="log")
    if threshold is not None:
        right.axvline(threshold, color="tab:red", label=f"threshold {threshold:.3g}")
        right.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    cli.script(main)
