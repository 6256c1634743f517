"""DeepHoyer: training with a penalty that makes weights sparse, single ones or whole groups.

Yang, Wen, Li, "DeepHoyer: Learning Sparser Neural Network with Differentiable Scale-Invariant Sparsity Measures",
ICLR 2020. The loss is the data loss plus one strength times the penalties of all weight tensors,

    L(W) = cross-entropy(W)  +  decay * sum over layers l of R(W_l)

with R one of the penalties in regularizers.py: Hoyer-Square, R(w) = (sum |w|)^2 / sum w^2, its group version, and
what the paper compares with. prune.py then zeroes what ended up small, finetune.py trains the rest.

    python main.py --save logs/dense                                                   LeNet-300-100 on MNIST, dense
    python main.py --reg hs --decay 1e-4 --pretrained logs/dense/checkpoint.pth.tar    sparse weights
    python main.py --arch cnn --reg group-hs --decay 1e-3                              sparse filters, LeNet-5
    python main.py --arch resnet56 --reg group-hs --decay 1e-3                         CIFAR-10

The original's element.py, structure.py, cifar.py and cifar_group.py are this script under other names and with its
numbers for --reg. Expect about 98.4 % for a dense LeNet-300-100 and 99.2 % for LeNet-5 after the 250 epochs; an epoch
of the former takes a few seconds on a CPU core. README.md has the recipes and the measured table.
"""
import argparse
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from common import UserError, checkpoint, cli, compute_flops, data, models, originals
from common.evaluate import evaluate, evaluate_file
from common.run import Run
from hoyer import regularizers
from hoyer.networks import find, network

# What the original does where the command line says nothing.
MNIST = dict(dataset="mnist", epochs=250, batch_size=100, lr=1e-3, schedule=[])
CIFAR = dict(dataset="cifar10", epochs=300, batch_size=128, lr=0.1, schedule=[150, 225], weight_decay=5e-4)
BLOCKS = {"BasicBlock": "basic", "Bottleneck": "bottleneck"}


def add_flags(parser):
    """What training and fine-tuning share, and the CIFAR trainer's names for the shared flags."""
    cli.add_flags(parser, seed=12345678)
    add, same = parser.add_argument, dict(default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add("-d", dest="dataset", **same)
    add("--train-batch", dest="batch_size", type=cli.positive, **same)
    add("--test-batch", dest="test_batch_size", type=cli.positive, **same)
    add("-c", "--checkpoint", dest="save", **same)
    add("--manualSeed", dest="seed", type=int, **same)
    add("--gpu-id", dest="device", type=lambda number: f"cuda:{int(number)}", **same)
    add("-a", "--arch", help="mlp, cnn (the LeNets); alexnet, vgg11 to vgg19_bn, resnet, preresnet, wrn, resnext, "
        "densenet (default: mlp, or what the file holds)")
    add("--depth", type=int, help="default: 20 for resnet, 110 for preresnet, 28 for wrn, 29 for resnext, 100 for "
        "densenet")
    add("--schedule", nargs="*", type=mark, metavar="EPOCH", help="epochs after which the rate falls by "
        "--gamma, or the word cosine (default: never for the LeNets, 150 225 for the others)")
    add("--gamma", type=cli.nonnegative, default=0.1)
    add("--momentum", type=cli.nonnegative, default=0.9, help="of SGD, for all but the LeNets, which have Adam")
    add("--weight-decay", "--wd", type=cli.nonnegative)
    add("--holdout", type=int, default=0, metavar="N", help="leave out the last N training pictures and report on them "
        "instead of on the test set: for choosing --decay and thresholds")


def read_flags(parser, argv):
    args = parser.parse_args(argv)
    if args.schedule and "cosine" in args.schedule[1:] + args.schedule[:-1]:
        raise UserError("--schedule takes epoch numbers or the word cosine, not both")
    return args


def parse(argv, script):
    parser = cli.parser(__doc__)
    add_flags(parser)
    add = parser.add_argument
    add("--reg", default="none", help="none, l1, hoyer, hs, tl1, group-lasso, group-hoyer or group-hs; the original "
        "names of this script also take its numbers")
    add("--decay", type=cli.nonnegative, default=1e-3, help="strength of the penalty")
    add("--pretrained", "--model", nargs="?", const="", metavar="FILE", help="begin with this network; without FILE "
        "with the LeNet that --reg 0 --decay 0.0 left in saves/")
    add("-e", "--evaluate", action="store_true", help="only evaluate --pretrained or --resume")
    add("--drop", dest="dropout", type=float, help="dropout of wrn")
    add("--block-name", choices=BLOCKS, help="of resnet and preresnet: 6n+2 or 9n+2 layers (default: BasicBlock)")
    add("--cardinality", type=int, help="groups of resnext (default: 8)")
    add("--widen-factor", type=int, help="of wrn and resnext (default: 4)")
    add("--growthRate", dest="growth", type=int, help="of densenet (default: 12)")
    add("--compressionRate", dest="compression", type=int, help="of densenet (default: 2)")
    add("--faithful", action="store_true", help="group lasso of LeNet-5 by kernel position, as in the original")
    args = read_flags(parser, argv)
    args.reg = regularizers.named(args.reg, script)
    args.decay = args.decay if args.reg != "none" else 0.0
    return args


def mark(text):
    return text if text == "cosine" else int(text)


mark.__name__ = "epoch number or the word cosine"            # argparse: "invalid epoch number or the word cosine: 'x'"


def apply_recipe(args, recipe):
    """Fills in what the command line left out."""
    for name, value in recipe.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def scheduler_of(optimizer, args):
    if args.schedule == ["cosine"]:                          # to zero at the end: small weights stop jittering
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, args.schedule, args.gamma)


def pictures(args, arch):
    """The data set for this network, with --holdout the last training pictures in place of the test set."""
    dataset, n = data.load(args.dataset, args.data_dir, arch.startswith("lenet"), args.subset), args.holdout
    if not 0 <= n < len(dataset.y_train):
        raise UserError(f"--holdout {n}: there are {len(dataset.y_train)} training pictures")
    if n:
        x, y = dataset.x_train, dataset.y_train
        if len(y[:-n].unique()) < len(y.unique()) or len(y[-n:].unique()) == 1:
            raise UserError(f"--holdout {n} would take whole classes, or one only: {args.dataset} seems to be in the "
                            "order of its classes; bring it into a random one")
        dataset = replace(dataset, x_train=x[:-n], y_train=y[:-n], x_test=x[-n:], y_test=y[-n:])
    return dataset


def test_line(result, count, args):
    """The original's line for a result of runtime.evaluate on `count` pictures."""
    right = round(result["top1"] * count / 100)
    return (f"{'Held-out' if args.holdout else 'Test'} set: Average loss: {result['loss']:.4f}, "
            f"Accuracy: {right}/{count} ({result['top1']:.2f}%)")


@torch.no_grad()
def hits(logits, labels):
    """{"top1": percent, "top5": percent} of one batch."""
    right = logits.topk(min(5, logits.shape[1])).indices.eq(labels[:, None]).float()
    return {"top1": 100 * right[:, 0].mean(), "top5": 100 * right.sum(1).mean()}


def options_of(args):
    """What the command line says of the network besides arch and depth; None where it says nothing."""
    return dict(dropout=args.dropout, block=BLOCKS.get(args.block_name), cardinality=args.cardinality,
                widen_factor=args.widen_factor, growth=args.growth, compression=args.compression)


def evaluate_only(args):
    """-e of the CIFAR trainer: eval.py on the file that training would begin or go on with."""
    path = args.pretrained or args.resume
    if path in ("", "auto"):
        raise UserError("-e evaluates a file: give it as --pretrained FILE or --resume FILE")
    given = {name: getattr(args, name) for name in ("dataset", "data_dir", "device", "subset", "arch", "depth")}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]
    evaluate_file([find(path), *flags], __doc__, partial(network, **options_of(args)))


def starting_point(args, script):
    """(checkpoint to begin with or None, arch, cfg)."""
    options = options_of(args)
    if args.pretrained is None:
        default = "resnet" if script in ("cifar", "cifar_group") else "mlp"
        return None, *network(args.arch or default, args.depth, **options)
    path = find(args.pretrained or f"saves/{'cnn/' if args.arch == 'cnn' else ''}elt_0.0_0.pth")
    if not args.pretrained and not Path(path).is_file():
        raise UserError(f"no dense network {path}; train it with element.py --reg 0 --decay 0.0, "
                        "or name another: --pretrained FILE")
    ckpt = originals.load(path, partial(network, **options), args.arch, args.depth)
    for name, value in options.items():
        if value is not None and ckpt["cfg"].get(name) != value:
            raise UserError(f"{path} has {name} {ckpt['cfg'].get(name)}, not {value}; leave it out")
    if ckpt.get("masks"):
        print(f"note: all weights of {path} are trained, pruned ones too; finetune.py keeps its masks")
    args.dataset = args.dataset or ckpt["dataset"]
    return ckpt, ckpt["arch"], ckpt["cfg"]


def main(argv=None, script=None):
    """script: element, structure, cifar or cifar_group, for the original script of that name."""
    args = parse(argv, script)
    if args.evaluate:
        return evaluate_only(args)
    ckpt, arch, cfg = starting_point(args, script)
    lenet = arch.startswith("lenet")
    apply_recipe(args, MNIST | {"weight_decay": 1e-4 if args.reg in regularizers.GROUP else 0.0} if lenet else CIFAR)

    # where to: the LeNets' original scripts have names of their own
    name = f"{arch}{cfg.get('depth', '')}"
    if script in ("element", "structure"):
        if not lenet:
            raise UserError(f"{script}.py trains the LeNets, --arch mlp and cnn; for {name} take cifar_group.py")
        number = regularizers.NUMBERS[script].index(args.reg)
        args.save = args.save or (f"saves/{'cnn/' if arch == 'lenet5' else ''}{'elt' if script == 'element' else 'str'}"
                                  f"_{args.decay}_{number}")
    elif args.reg != "none":
        args.save = args.save or f"logs/{Path(args.dataset).stem}-{name}-{args.reg}-{args.decay}"
    run = Run(args, "hoyer", "sparse" if args.decay else "dense", name, ckpt and ckpt["dense"])

    # data: the LeNets see MNIST as it is
    dataset = pictures(args, arch)
    train, test = run.loaders(dataset) if lenet else run.loaders(dataset, crop=4, flip=True)

    # network
    model = checkpoint.to_model(ckpt) if ckpt else models.build(arch, **cfg | {"num_classes": dataset.num_classes})
    model = run.place(model)
    data.check_fit(dataset, model, ckpt["path"] if ckpt else "the network")
    run.dense = run.dense or compute_flops.summary(model)
    run.describe(model)
    net = run.parallel(model)
    if ckpt:
        print(test_line(evaluate(model, test), len(dataset.y_test), args), flush=True)

    # the penalty R and the tensors W_l that it acts on
    regularizer = (regularizers.ELEMENT | regularizers.GROUP).get(args.reg)
    if args.faithful and arch == "lenet5" and args.reg == "group-lasso":
        regularizer = regularizers.group_lasso_by_position
    penalized = regularizers.penalized(model, args.reg) if args.decay else []
    if penalized:
        print(f"  penalty: {args.decay:g} x {args.reg}, summed over {len(penalized)} tensors", flush=True)

    if lenet:
        optimizer = torch.optim.Adam(model.parameters(), args.lr, weight_decay=args.weight_decay, fused=True)
    else:
        optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    scheduler = scheduler_of(optimizer, args)
    run.resume(model, optimizer, scheduler)

    for epoch in run.epochs(args.epochs):
        model.train()
        last = time.perf_counter()
        for images, labels in run.bar(train.epoch(epoch)):
            waited = time.perf_counter() - last
            with run.autocast():
                logits = net(images)
                loss = F.cross_entropy(logits, labels)
            penalty = sum(regularizer(w) for w in penalized)             # sum over l of R(W_l), in fp32
            optimizer.zero_grad()
            (loss + args.decay * penalty).backward()
            optimizer.step()
            run.track(loss=loss, reg=penalty, **hits(logits.detach(), labels), data=waited,
                      batch=time.perf_counter() - last)
            last = time.perf_counter()
        scheduler.step()
        run.log(epoch, **evaluate(model, test))
        run.save(epoch, model, optimizer, scheduler)
    print(test_line(evaluate(model, test), len(dataset.y_test), args))
    run.finish(model)
    if script in ("element", "structure") and run.rank == 0:
        path = checkpoint.save(f"{args.save}.pth", run.checkpoint(model, epoch=args.epochs))
        print(f"wrote {path}")


if __name__ == "__main__":
    cli.script(main)
