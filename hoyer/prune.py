"""DeepHoyer: zeroing what training with a penalty has made small.

    python prune.py --model saves/elt_0.0001_3.pth --rule T --sensitivity 0.01

Tensor by tensor, an entry w goes where |w| is below a threshold t (section 4 of the paper):

    --rule T     t = sensitivity                  one threshold for all tensors
    --rule V     t = sensitivity * std(tensor)    its deviation over all entries, zeros included

In the LeNets every parameter is pruned, biases too; elsewhere every weight, batch norms' too, but no bias. Single
entries go even after training with a group penalty: the penalty has made whole groups small together.

    --granularity group     a filter W[o] or an input channel W[:, i] goes as a whole where its root mean square is
                            below t; what has one dimension is left alone
    --criterion random      the control: as many entries of every tensor, drawn at random

The network keeps its shape; the masks are stored with it in pruned.pth.tar, and finetune.py keeps the zeros. The
original's sparsity report and the compacted network's size are printed and written to prune.txt, prune.png shows what
each layer had and keeps. Expect seconds, and an accuracy that fine-tuning brings back.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from common import UserError, checkpoint, cli, compute_flops, data, originals, plots
from common.evaluate import evaluate
from common.run import device_of, facts, output_folder
from hoyer.compact import compact, compaction_report, sparsity_report
from hoyer.main import pictures, test_line
from hoyer.networks import find, network


def add_flags(parser, sensitivity=None):
    add = parser.add_argument
    add("--model", metavar="FILE", required=True, help="the trained network, with or without its suffix")
    add("--sensitivity", type=float, default=sensitivity, required=sensitivity is None,
        help="the threshold, or its ratio to the deviation")
    add("--granularity", choices=("element", "group"), default="element")
    add("--criterion", choices=("magnitude", "random"), default="magnitude")


def parse(argv):
    parser = cli.parser(__doc__)
    cli.add_flags(parser, train=False)
    add_flags(parser)
    add = parser.add_argument
    add("--rule", choices=("T", "V"), default="T", help="a fixed threshold, or a ratio to the tensor's deviation")
    add("--save", help="folder to write to (default: logs/<dataset>-<network>-pruned)")
    add("--overwrite", action="store_true", help="write over an earlier pruned.pth.tar")
    add("-a", "--arch", help="for a file of the original repository: mlp, cnn, resnet, ...")
    add("--depth", type=int)
    add("--seed", type=cli.seed_number, default=1, help="of --criterion random")
    add("--holdout", type=int, default=0, metavar="N", help="report on the last N training pictures")
    return parser.parse_args(argv)


def prunable(model):
    """{name: parameter}: in a LeNet all of them, elsewhere the weights (batch norms' too)."""
    lenet = model.arch.startswith("lenet")
    return {name: p for name, p in model.named_parameters() if lenet or name.endswith("weight")}


def threshold(w, rule, sensitivity):
    """The threshold for one tensor; V: the population deviation, as numpy's std."""
    return sensitivity if rule == "T" else sensitivity * float(w.detach().cpu().double().std(correction=0))


def keep_elements(w, t):
    """bool, like w: |w| is not below t. Entries equal to t stay, so that t = 0 prunes nothing."""
    return w.detach().abs() >= t


def keep_groups(w, t):
    """bool, like w: the filter and the input channel of an entry both have a root mean square of t or more."""
    if w.dim() == 1:
        return torch.ones_like(w, dtype=torch.bool)
    squares = w.detach().square()
    filters = squares.flatten(1).mean(1).sqrt() >= t
    channels = squares.transpose(0, 1).flatten(1).mean(1).sqrt() >= t
    keep = filters[:, None] & channels[None, :]
    return keep.view(*keep.shape, *[1] * (w.dim() - 2)).expand_as(w).clone()


def choose(model, rule, sensitivity, granularity="element", criterion="magnitude", seed=1, earlier=None):
    """({name: keep}, {name: threshold}) for the tensors that are pruned; what `earlier` masks took stays away."""
    generator = torch.Generator().manual_seed(seed)
    keep, thresholds = {}, {}
    for name, w in prunable(model).items():
        t = thresholds[name] = threshold(w, rule, sensitivity)
        there = (earlier or {}).get(name, torch.ones_like(w, dtype=torch.bool)).to(w.device)
        keep[name] = (keep_elements if granularity == "element" else keep_groups)(w, t) & there
        if criterion == "random":                            # as many, drawn from those that are there
            lot = torch.rand(w.shape, generator=generator).to(w.device).masked_fill(~there, -1).flatten()
            drawn = lot.topk(int(keep[name].sum())).indices
            keep[name] = torch.zeros_like(lot, dtype=torch.bool).index_fill(0, drawn, True).view_as(w)
    return keep, thresholds


def prune(args):
    """Prunes args.model and writes pruned.pth.tar, prune.txt and prune.png to args.save; returns the file's path."""
    if args.sensitivity < 0:
        raise UserError(f"--sensitivity {args.sensitivity:g} is below 0")
    if args.granularity == "group" and args.criterion == "random":
        raise UserError("--criterion random draws single entries; leave out --granularity group")
    ckpt = originals.load(find(args.model), network, args.arch, args.depth)
    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    args.save = args.save or f"logs/{Path(args.dataset).stem}-{ckpt['arch']}{ckpt['cfg'].get('depth', '')}-pruned"
    path = Path(args.save) / "pruned.pth.tar"
    if path.exists() and not args.overwrite:
        raise UserError(f"{args.save} already holds a pruned.pth.tar; give another --save, or --overwrite")
    device = device_of(args.device)
    model = checkpoint.to_model(ckpt).to(device)
    dense = ckpt["dense"] or compute_flops.summary(model)
    print("--- Pruning ---")

    # what stays; what an earlier pruning took is not given back
    earlier = ckpt.get("masks", {})
    masks, thresholds = choose(model, args.rule, args.sensitivity, args.granularity, args.criterion, args.seed, earlier)
    with torch.no_grad():
        for name, w in prunable(model).items():
            if args.rule == "V":
                print(f"Pruning with threshold : {thresholds[name]} for layer {name}")
            w.mul_(masks[name])

    # what is left
    for name, w in model.named_parameters():
        if w.dim() > 1 and not w.any():
            print(f"{name}: no weight is left, the layer passes nothing on")
    if not any(bool(w.any()) for w in model.parameters() if w.dim() > 1):
        raise UserError(f"--sensitivity {args.sensitivity:g} prunes every weight; give a smaller one")
    small = compact(model)
    report = f"{sparsity_report(model)}\n{compaction_report(model, small, dense)}"
    print(report, flush=True)

    # what that does to the accuracy
    dataset = pictures(args, model.arch)
    data.check_fit(dataset, model, args.model)
    test = data.Loader(dataset, "test", args.test_batch_size, device)
    result = evaluate(model, test)
    line = test_line(result, len(dataset.y_test), args)
    print(line)

    folder = output_folder(args.save, overwrite=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prune.txt").write_text(f"{args.model}, rule {args.rule}, sensitivity {args.sensitivity}, "
                                      f"{args.granularity}, {args.criterion}\n{line}\n{report}\n")
    draw(folder / "prune.png", model)
    checkpoint.save(path, checkpoint.of(
        model, "hoyer", "pruned", args.dataset, prec1=result["top1"], best_prec1=result["top1"], args=vars(args),
        dense=dense, masks={name: mask.cpu() for name, mask in masks.items()}, run=facts(device)))
    print(f"wrote {path}, prune.txt and prune.png")
    return path


def draw(path, model):
    """Left: weights that each layer had and keeps. Right: of LeNet-300-100 how many weights read each of the 28 x 28
    pixels, of other networks the share of input channels and filters that have any weight left."""
    plt = plots.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    layers = {name.removesuffix(".weight"): w.detach().cpu() for name, w in model.named_parameters() if w.dim() > 1}
    position, short = range(len(layers)), len(layers) <= 10
    left.bar(position, [w.numel() for w in layers.values()], color="lightgrey", label="had")
    left.bar(position, [int(w.count_nonzero()) for w in layers.values()], color="tab:blue", label="keeps")
    left.set(ylabel="weights", yscale="log")
    left.legend()
    if model.arch == "lenet300":
        pixels = torch.zeros(784)
        pixels[model.select.indices.cpu()] = layers["fc1"].ne(0).sum(0).float()
        shown = right.imshow(pixels.view(28, 28).numpy(), cmap="Blues")
        figure.colorbar(shown, label="weights that read the pixel")
        right.set_title(f"{int(pixels.count_nonzero())} of 784 input pixels alive")
    else:
        for offset, dim, label in ((-0.2, 1, "input channels"), (0.2, 0, "filters")):
            share = [float(w.ne(0).transpose(0, dim).flatten(1).any(1).float().mean()) for w in layers.values()]
            right.bar([p + offset for p in position], [100 * s for s in share], 0.4, label=label)
        right.set(ylabel="alive (%)", ylim=(0, 120))
        right.legend()
    for axis in (left, right) if model.arch != "lenet300" else (left,):
        axis.set_xticks(position if short else [], list(layers) if short else [])
        axis.set_xlabel("layer" if short else "layer, from input to output")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(argv=None):
    prune(parse(argv))


if __name__ == "__main__":
    cli.script(main)
