"""Magnitude pruning: train the dense network that prune.py will prune.

Han, Pool, Tran, Dally, "Learning both Weights and Connections for Efficient Neural Networks", NIPS 2015. Their three
steps: train to learn which connections matter, remove those with a small weight w,

    keep w  <=>  |w| >= threshold

and retrain the others. This script is the first step, ordinary training; prune.py and finetune.py are the others.

    python main.py --dataset cifar10 --arch resnet56        (python cifar.py ... is the same)
    python main.py --pretrained FILE                        continue training any checkpoint

It also saves the weights that rewind.py can rewind to: init.pth.tar, before the first step, and early.pth.tar, after a
twentieth of the epochs (or after --rewind-epoch).

The original reports 93.42 % for ResNet-56 on CIFAR-10 with the defaults. One of the 160 epochs takes two and a half
minutes on two CPU cores with bf16, seconds on a GPU. README.md has results of shorter runs.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from common import UserError, cli, data, models, training, zeros
from common.evaluate import evaluate
from common.files import checkpoint
from common.run import Run
from common.schedule import epoch_or_word, make_scheduler
from magnitude.networks import network


def parse(argv=None):
    parser = cli.parser(__doc__, epochs=160, batch_size=64, lr=0.1, arch="vgg16, resnet20 to resnet110, preresnet110, "
                        "preresnet164, wrn_28_10, wrn_16_8, densenet, or another of common/models (default: resnet20, "
                        "or that of --pretrained)")
    add = parser.add_argument
    add("-d", dest="dataset", default=argparse.SUPPRESS, help="same as --dataset")
    add("--save_dir", dest="save", default=argparse.SUPPRESS, help="same as --save")
    add("--pretrained", "--model", metavar="FILE", help="start from this dense network, of any method")
    zeros.add_flags(parser, keep=False)
    add("--schedule", type=epoch_or_word, nargs="+", metavar="EPOCH", help="epochs at which the learning rate falls "
        "(default: half and three quarters of --epochs, so 80 120 of 160), or cosine, or onecycle")
    add("--gamma", type=cli.nonnegative, default=0.1, help="factor by which the learning rate falls (default: 0.1)")
    add("--momentum", type=cli.nonnegative, default=0.9, help="default: 0.9")
    add("--weight-decay", "--wd", type=cli.nonnegative, default=1e-4, help="default: 1e-4")
    add("--rewind-epoch", type=int, help="keep the weights after this epoch in early.pth.tar (default: a twentieth of "
        "--epochs, so 8 of 160)")
    return parser.parse_args(argv)


def milestones(epochs):
    """The epochs after which the learning rate falls, by default: half and three quarters."""
    return sorted({epochs // 2, epochs * 3 // 4} - {0})


def recipe_of(ckpt):
    """How the dense network was trained, if the file records it; rewind.py repeats that."""
    if ckpt["method"] == "magnitude" and ckpt["stage"] == "dense":
        wanted = ("epochs", "batch_size", "lr", "schedule", "gamma", "momentum", "weight_decay")
        had = {name: ckpt["args"][name] for name in wanted if name in ckpt["args"]}
        return had | ({} if had.get("schedule") or "epochs" not in had else {"schedule": milestones(had["epochs"])})
    return ckpt.get("recipe")


def main(argv=None):
    train(parse(argv))


def train(args):
    start = training.load(args.pretrained, network, args.arch, args.depth, args.image_size, args.dense)
    args.dataset = args.dataset or start and start["dataset"] or "cifar10"
    rewind_epoch = max(1, args.epochs // 20) if args.rewind_epoch is None else args.rewind_epoch
    if not 1 <= rewind_epoch <= args.epochs:
        raise UserError(f"--rewind-epoch {rewind_epoch} is not one of the {args.epochs} epochs")
    arch, cfg = (start["arch"], start["cfg"]) if start else network(args.arch or "resnet20", args.depth)
    run = Run("magnitude", "dense", models.name(arch, cfg), **vars(args))
    dataset = data.for_arch(arch, cfg, start=start, **cli.data_flags(args))
    train, test = run.loaders(dataset, **data.augmentation(arch))
    model = training.network(run, start, arch, cfg, dataset)
    net = run.parallel(model)

    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    scheduler = make_scheduler(optimizer, args.schedule or milestones(args.epochs), args.gamma, args.epochs)
    run.resume(model, optimizer, scheduler)
    if run.start == 0 and run.rank == 0:
        checkpoint.save(run.folder / "init.pth.tar", run.checkpoint(model, epoch=0))

    for epoch in run.epochs(args.epochs):
        model.train()
        for images, labels in run.bar(train.epoch(epoch)):
            with run.autocast():
                loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.track(loss=loss)
        scheduler.step()
        run.log(epoch, **evaluate(model, test))
        if epoch + 1 == rewind_epoch and run.rank == 0:
            checkpoint.save(run.folder / "early.pth.tar", run.checkpoint(model, epoch=epoch + 1))
        run.save(epoch, model, optimizer, scheduler)
    run.finish(model)


if __name__ == "__main__":
    cli.script(main)
