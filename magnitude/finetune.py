"""Magnitude pruning: training the weights that are left, in six ways.

    python finetune.py --resume logs/cifar10-resnet56-pruned/pruned.pth.tar                         as the original
    python finetune.py --resume logs/cifar10-resnet56-pruned/pruned.pth.tar --retrain lr-rewind     better

Whatever the way, every step ends by setting each pruned weight back to zero,

    w <- mask * (w - learning rate * step)

so that neither momentum nor weight decay nor rounding revives one; the end of the run checks that none has moved.

    --retrain      starts from                  learning rate                       epochs (E: of the dense run)
    small          the pruned weights           0.001 throughout (Han et al.)       40
    onecycle       the pruned weights           up to 0.1 and down, batch by batch  40
    lr-rewind      the pruned weights           that of the dense run's last ones   E
    weight-rewind  the dense run at epoch k     that of the dense run from k on     E - k
    scratch-e      fresh weights                the dense run's                     E
    scratch-b      fresh weights                the dense run's, stretched          E x (dense MACs / sparse MACs)

weight-rewind takes its weights from --rewind-to: early.pth.tar of the dense run, or its init.pth.tar, the first weights
(k = 0), for the lottery ticket of Frankle & Carbin (ICLR 2019). Both ways to rewind: Renda, Frankle, Carbin, "Comparing
Rewinding and Fine-tuning in Neural Network Pruning", ICLR 2020. Scratch is the control: Liu, Sun, Zhou, Huang, Darrell,
"Rethinking the Value of Network Pruning", ICLR 2019. iterative.py prunes and retrains in turns.

--resume names the network to start from, as in the original; --model does so too, and then --resume means what it means
in every other script: with --model FILE --resume auto a command that was stopped continues. Expect, for ResNet-56 on
CIFAR-10 with 10.7 % of its weights, 92.2 % with a small learning rate and 93.6 % with lr-rewind, dense 93.5 % (Renda et
al.). An epoch takes as long as a dense one.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import nn

from common import UserError, cli, compute_flops, data, keep, models, zeros
from common.evaluate import against_record, evaluate
from common.files import checkpoint, originals
from common.run import Run
from common.schedule import WORDS, epoch_or_word, make_scheduler
from magnitude.networks import network

RETRAIN = ("small", "onecycle", "lr-rewind", "weight-rewind", "scratch-e", "scratch-b")


def add_training(parser):
    """The flags that say how the weights that are left are trained; iterative.py has them too."""
    cli.add_flags(parser)                                    # no defaults: those depend on --retrain, see fill_in()
    add = parser.add_argument
    add("-d", dest="dataset", default=argparse.SUPPRESS, help="--dataset")
    add("--save_dir", dest="save", default=argparse.SUPPRESS, help="--save")
    add("--model", metavar="FILE", help="the network to start from; --resume is then free for auto")
    add("-a", "--arch", help="compared with what the file holds")
    add("--depth", type=int)
    add("--retrain", choices=RETRAIN, default="small")
    add("--rewind-to", metavar="FILE", help="of weight-rewind: early.pth.tar or init.pth.tar of the dense run")
    add("--schedule", type=epoch_or_word, nargs="+", metavar="EPOCH", help="epochs at which the learning rate falls "
        "(of the dense run, where the learning rate is the dense run's), or cosine, or onecycle")
    add("--gamma", type=cli.nonnegative, help="factor by which it falls")
    add("--momentum", type=cli.nonnegative)
    add("--weight-decay", "--wd", type=cli.nonnegative)


def check(args):
    """UserError where flags exclude each other."""
    if not (args.model or args.resume):
        raise UserError("--resume FILE is needed: the network to start from")
    if args.resume == "auto" and not (args.model or args.save):
        raise UserError("--resume auto continues the run in --save; give that folder, or --model")
    if (args.retrain == "weight-rewind") != bool(args.rewind_to):
        raise UserError("--retrain weight-rewind and --rewind-to FILE go together")
    unused = [f"--{name}" for name in ("schedule", "gamma", "momentum") if getattr(args, name) is not None]
    if args.retrain == "onecycle" and unused:
        raise UserError("--retrain onecycle has a cycle of its own for learning rate and momentum; leave out "
                        f"{unused[0]}")


def flags():
    parser = cli.parser(__doc__)
    add_training(parser)
    zeros.add_flags(parser)
    return parser


def parse(argv=None):
    return flags().parse_args(argv)


def plan(args, recipe, k=0, stretch=1.0):
    """(epochs, learning rate, milestones) of args.retrain, where --epochs, --lr and --schedule do not say otherwise.

    recipe: how the dense network was trained; k: the epoch whose weights come back; stretch: dense MACs / sparse MACs.
    UserError where the file does not tell the recipe, or the dense run has too few epochs.
    """
    def flag(name, default):
        return default if getattr(args, name) is None else getattr(args, name)

    def dense_from(first):
        """The dense run's learning rate at epoch `first`, and after how many more epochs it falls."""
        if word and first:
            raise UserError(f"the dense run had --schedule {marks[0]}, which is repeated whole or not at all; give "
                            f"--epochs {dense}, or another --schedule")
        if word:
            return lr, marks
        return lr * args.gamma ** sum(m <= first for m in marks), [m - first for m in marks if m > first]

    missing = [f"--{name}" for name in ("epochs", "lr", "schedule") if flag(name, recipe.get(name)) is None]
    if missing and args.retrain not in ("small", "onecycle"):
        raise UserError(f"the file does not say how its dense network was trained; give {', '.join(missing)}")
    lr, marks = flag("lr", recipe.get("lr")), flag("schedule", recipe.get("schedule"))
    word = bool(marks) and marks[0] in WORDS                 # a schedule without epochs at which anything falls
    dense = recipe.get("epochs", args.epochs)                # E of the table
    asked = args.epochs if "epochs" in recipe else None      # without a recipe --epochs is the dense run's
    match args.retrain:
        case "small":
            return flag("epochs", 40), flag("lr", 0.001), flag("schedule", [])
        case "onecycle":
            return flag("epochs", 40), flag("lr", 0.1), []
        case "lr-rewind":                                    # the last epochs of the dense run
            epochs = asked or dense
            if epochs > dense:
                raise UserError(f"the dense run had {dense} epochs, so {epochs} are too many; give fewer --epochs")
            return epochs, *dense_from(dense - epochs)
        case "weight-rewind":                                # its epochs after k, or the first --epochs of them
            if k >= dense:
                raise UserError(f"the dense run had {dense} epochs, none of them after epoch {k}; give another "
                                "--rewind-to")
            return min(asked or dense, dense - k), *dense_from(k)
        case "scratch-e" | "scratch-b":                      # the whole schedule, in as many epochs
            epochs = asked or round(dense * stretch)
            return epochs, lr, marks if word else [m * epochs // dense for m in marks if m * epochs >= dense]


def fill_in(args, recipe, k=0, stretch=1.0):
    """Sets in args what no flag said: epochs, lr and schedule by plan(), and the other settings of the training."""
    rest = {"batch_size": 128 if args.retrain == "onecycle" else 64, "gamma": 0.1, "momentum": 0.9,
            "weight_decay": 1e-4}
    if args.retrain not in ("small", "onecycle"):            # what the dense run had
        rest |= {name: recipe[name] for name in rest if name in recipe}
    vars(args).update({name: value for name, value in rest.items() if getattr(args, name) is None})
    args.epochs, args.lr, args.schedule = plan(args, recipe, k, stretch)


@torch.no_grad()
def draw_fresh(model, masks):
    """Draws the weights left in a convolution from N(0, 2 / n), n = weights left / input channels: its fan-out."""
    for name, m in model.named_modules():
        left = int(masks[f"{name}.weight"].sum()) if f"{name}.weight" in masks else 0
        if isinstance(m, nn.Conv2d) and left:
            nn.init.normal_(m.weight, 0, (2 * m.weight.shape[1] / left) ** 0.5)


@torch.no_grad()
def apply(masks, parameters):
    """w <- mask * w for every weight that has a mask."""
    for name, mask in masks.items():
        parameters[name].mul_(mask)


def start_from(args):
    """The checkpoint to start from, and its path. --resume alone names it, or a run of this script to continue."""
    path = args.model or (Path(args.save) / "checkpoint.pth.tar" if args.resume == "auto" else args.resume)
    ckpt = originals.load(path, network, args.arch, args.depth, args.image_size)
    if not args.model:
        if ckpt["method"] == "magnitude" and ckpt["stage"] == "finetuned" and "resume" in ckpt:
            args.model, args.save = ckpt["args"]["model"], args.save or str(Path(path).parent)
        else:
            args.model, args.resume = args.resume, ""
    ckpt["masks"] = zeros.kept(ckpt, args.keep_zeros, args.dense)
    if not ckpt["masks"] and not args.dense:
        raise UserError(f"{path} holds no masks; prune it with prune.py first")
    return ckpt, path


def main(argv=None):
    retrain(parse(argv))


def retrain(args):
    check(args)
    ckpt, path = start_from(args)
    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    name = models.name(ckpt["arch"], ckpt["cfg"])
    args.save = args.save or cli.default_folder(args.dataset, name, f"finetuned-{args.retrain}")
    model, k, stretch = checkpoint.to_model(ckpt), 0, 1.0
    origin = {"masks": ckpt["masks"] or None, "recipe": ckpt.get("recipe") or {}, "rule": ckpt.get("rule")}
    if args.retrain == "weight-rewind":
        early = originals.load(args.rewind_to, network, args.arch, args.depth, args.image_size)
        k = early["epoch"]
    elif args.retrain == "scratch-b":                        # as many multiplications as the dense training had
        stretch = keep.dense_total(ckpt, model).macs / compute_flops.count(model).total.sparse_macs
    fill_in(args, origin["recipe"], k, stretch)
    run = Run("magnitude", "finetuned", name, ckpt["dense"], **vars(args))

    # network: where it starts from
    if args.retrain == "weight-rewind":
        checkpoint.fit(model, early["state_dict"], args.rewind_to)
    elif args.retrain.startswith("scratch"):
        fresh = models.build(ckpt["arch"], **ckpt["cfg"]).state_dict()
        indices = {name: i for name, i in model.state_dict().items() if name.endswith("select.indices")}
        model.load_state_dict({**fresh, **indices})          # which channels a slimmed layer reads is not a weight
        draw_fresh(model, ckpt["masks"])
    model = run.place(model)
    parameters = dict(model.named_parameters())
    masks = {name: mask.to(run.device) for name, mask in ckpt["masks"].items()}              # True: kept
    apply(masks, parameters)
    total = compute_flops.count(model).total
    run.describe(model)
    pruned = sum(mask.numel() - int(mask.sum()) for mask in masks.values())
    falls = f", schedule {' '.join(map(str, args.schedule))}" if args.schedule else ""
    rewound = f" from epoch {k}" if args.rewind_to else ""
    run.print(f"  {args.retrain}{rewound}{falls}; {total.sparse_macs:,} sparse MACs\n"
              f"Zero parameters: {pruned}\nParameters: {total.params}")
    net = run.parallel(model)

    # data
    dataset = data.for_network(model, path, **cli.data_flags(args))
    train, test = run.loaders(dataset, **data.augmentation(model.arch))
    if run.rank == 0:
        against_record(ckpt, test)

    # A fresh optimizer: the dense run's momentum would pull at weights that are pruned.
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    if args.retrain == "onecycle":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.epochs * len(train),
                                                        pct_start=0.1, div_factor=10, final_div_factor=100)
    else:
        scheduler = make_scheduler(optimizer, args.schedule, args.gamma, args.epochs)
    run.resume(model, optimizer, scheduler, masks)

    for epoch in run.epochs(args.epochs):
        model.train()
        for images, labels in run.bar(train.epoch(epoch)):
            with run.autocast():
                loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            apply(masks, parameters)                         # what was pruned stays zero
            if args.retrain == "onecycle":
                scheduler.step()
            run.track(loss=loss)
        if args.retrain != "onecycle":
            scheduler.step()
        run.log(epoch, **evaluate(model, test))
        run.save(epoch, model, optimizer, scheduler, **origin)

    moved = sum(int(parameters[name][~mask].count_nonzero()) for name, mask in masks.items())
    assert moved == 0, f"{moved} pruned weights are not zero any more"
    run.print(f"{pruned:,} weights are pruned, none of them has moved")
    run.finish(model, "finetuned.pth.tar", **origin)


if __name__ == "__main__":
    cli.script(main)
