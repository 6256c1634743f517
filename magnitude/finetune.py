"""Magnitude pruning: fine-tune the remaining weights.

    python finetune.py --resume logs/cifar10-resnet56-magnitude-pruned/pruned.pth.tar

Every step ends by setting each pruned weight back to zero,

    w <- mask * (w - learning rate * step)

so that neither momentum nor weight decay nor rounding revives one. At the end, the run checks that none has changed.

    --retrain small       learning rate 0.001 throughout (Han et al.; the default)
    --retrain onecycle    learning rate up to 0.1 and down again, batch by batch, in batches of 128

rewind.py trains with the learning rates of the dense run instead, which takes longer and gives a better network.

As in the original, --resume names the network to start from. --model FILE names it too, and leaves --resume auto free
to continue a stopped run, as in every other script. Renda, Frankle and Carbin (ICLR 2020) report 92.2 % for ResNet-56
on CIFAR-10 with 10.7 % of its weights, 93.5 % dense. An epoch takes as long as a dense one.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from common import UserError, cli, compute_flops, models, say, teacher, training, zeros
from common.evaluate import evaluate
from common.files import checkpoint
from common.run import Run
from common.schedule import epoch_or_word, make_scheduler
from magnitude.networks import network

REST = dict(gamma=0.1, momentum=0.9, weight_decay=1e-4)
RECIPES = {"small": dict(epochs=40, batch_size=64, lr=0.001, schedule=[], **REST),       # for flags that are not given
           "onecycle": dict(epochs=40, batch_size=128, lr=0.1, schedule=[], **REST)}


def add_flags(parser, ways, epochs="40", batch_size="64, onecycle: 128", lr="0.001, onecycle: 0.1"):
    """The flags of finetune.py, rewind.py and iterative.py; defaults as text, since they depend on --retrain."""
    cli.add_flags(parser, True, epochs, batch_size, lr, arch=cli.RECORDED, resume="network to start from, or "
                  "checkpoint.pth.tar of a stopped run to continue; auto: the one in --save, if there is one")
    add = parser.add_argument
    add("-d", dest="dataset", default=argparse.SUPPRESS, help="same as --dataset")
    add("--save_dir", dest="save", default=argparse.SUPPRESS, help="same as --save")
    add("--model", metavar="FILE", help="network to start from; then use --resume auto to continue")
    add("--retrain", choices=ways, default=ways[0], help=f"way to train, see above (default: {ways[0]})")
    add("--schedule", type=epoch_or_word, nargs="+", metavar="EPOCH", help="epochs after which the learning rate "
        "falls, or cosine, or onecycle")
    add("--gamma", type=cli.nonnegative, help="factor by which the learning rate falls")
    add("--momentum", type=cli.nonnegative, help="default: 0.9; in rewind.py the dense run's")
    add("--weight-decay", "--wd", type=cli.nonnegative, help="default: 1e-4; in rewind.py the dense run's")


def flags():
    parser = cli.parser(__doc__)
    add_flags(parser, tuple(RECIPES))
    zeros.add_flags(parser)
    teacher.add_flags(parser)
    return parser


def check(args):
    """UserError if flags exclude each other."""
    if not (args.model or args.resume):
        raise UserError("--resume FILE is needed: the network to start from")
    if args.resume == "auto" and not (args.model or args.save):
        raise UserError("--resume auto continues the run in --save; give that folder, or --model")
    unused = [f"--{name}" for name in ("schedule", "gamma", "momentum") if getattr(args, name) is not None]
    if args.retrain == "onecycle" and unused:
        raise UserError(f"--retrain onecycle has its own cycle of learning rate and momentum; leave out {unused[0]}")


def fill_in(args, recipe):
    """Fills in the recipe's settings for flags that are not given."""
    vars(args).update({name: value for name, value in recipe.items() if getattr(args, name) is None})


def start_from(args):
    """The checkpoint to start from. --resume alone names it, or a run of this script to continue."""
    path = args.model or (Path(args.save) / "checkpoint.pth.tar" if args.resume == "auto" else args.resume)
    ckpt = checkpoint.load(path, network, args.arch, args.depth, args.image_size)
    if not args.model:
        if ckpt["method"] == "magnitude" and ckpt["stage"] == "finetuned" and "resume" in ckpt:
            args.model, args.save = ckpt["args"]["model"], args.save or str(Path(path).parent)
        else:
            args.model, args.resume = args.resume, ""
    ckpt["masks"] = zeros.kept(ckpt, args.keep_zeros, args.dense, needed=True)
    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    args.save = args.save or cli.default_folder(args.dataset, models.name(ckpt["arch"], ckpt["cfg"]),
                                                f"magnitude-finetuned-{args.retrain}")
    return ckpt


def retrain(args):
    check(args)
    ckpt = start_from(args)
    fill_in(args, RECIPES[args.retrain])
    train(args, ckpt, run_of(args, ckpt))


def run_of(args, ckpt):
    return Run("magnitude", "finetuned", models.name(ckpt["arch"], ckpt["cfg"]), ckpt["dense"], **vars(args))


def train(args, ckpt, run, model=None, start=""):
    """Trains the network of ckpt, or rewind.py's `model`, under its masks; start: where these weights come from."""
    kept = {"masks": ckpt["masks"] or None, "recipe": ckpt.get("recipe") or {}, "rule": ckpt.get("rule")}
    model, masks, dataset, train, test = training.masked(run, ckpt, ckpt["masks"], model, **cli.data_flags(args))
    parameters = dict(model.named_parameters())
    pruned, total = sum(int((~mask).sum()) for mask in masks.values()), compute_flops.count(model).total
    falls = f", schedule {' '.join(map(str, args.schedule))}" if args.schedule else ""
    say(f"  {args.retrain}{start}{falls}; {total.sparse_macs:,} sparse MACs\n"
        f"Zero parameters: {pruned}\nParameters: {total.params}")
    net = run.parallel(model)
    taught = teacher.load(run, args.teacher, args.ltea, network, dataset)

    # A fresh optimizer: the dense run's momentum would move pruned weights.
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    by_batch = args.retrain == "onecycle"
    if by_batch:
        steps = args.epochs * len(train)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(      # torch divides by pct_start * total_steps - 1
            optimizer, args.lr, total_steps=steps, pct_start=0.1 if steps != 10 else 0.2, div_factor=10,
            final_div_factor=100)
    else:
        scheduler = make_scheduler(optimizer, args.schedule, args.gamma, args.epochs)
    run.resume(model, optimizer, scheduler, masks)

    for epoch in run.epochs(args.epochs):
        model.train()
        for images, labels in run.bar(train.epoch(epoch)):
            with run.autocast():
                logits = net(images)
                loss = F.cross_entropy(logits, labels)
            loss = taught(loss, logits, images)              # the labels' loss without --teacher
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for name, mask in masks.items():             # pruned weights stay zero
                    parameters[name].mul_(mask)
            if by_batch:
                scheduler.step()
            run.track(loss=loss)
        if not by_batch:
            scheduler.step()
        run.log(epoch, **evaluate(model, test))
        run.save(epoch, model, optimizer, scheduler, **kept)

    moved = sum(int(parameters[name][~mask].count_nonzero()) for name, mask in masks.items())
    assert moved == 0, f"{moved} pruned weights are not zero any more"
    if pruned:
        say(f"{pruned:,} weights are pruned; all of them are still zero")
    run.finish(model, "finetuned.pth.tar", **kept)


def main(argv=None):
    retrain(flags().parse_args(argv))


if __name__ == "__main__":
    cli.script(main)
