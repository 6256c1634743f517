"""Magnitude pruning: train the remaining weights as the dense network was trained, from rewound or fresh weights.

    python rewind.py --model logs/cifar10-resnet56-magnitude-pruned/pruned.pth.tar

    --retrain      starts from               learning rate                       epochs (E: of the dense run)
    lr-rewind      the pruned weights        the dense run's last ones           E, or --epochs (the default way)
    weight-rewind  the dense run at epoch k  the dense run's from epoch k on     E - k
    scratch-e      fresh weights             the dense run's                     E
    scratch-b      fresh weights             the dense run's, stretched          E x (dense MACs / sparse MACs)

The loop is finetune.py's, with w <- mask * w after every step. weight-rewind reads its weights from --rewind-to:
early.pth.tar of the dense run, or init.pth.tar, the first weights (k = 0), for the lottery ticket of Frankle & Carbin
(ICLR 2019).
Both ways to rewind: Renda, Frankle, Carbin, "Comparing Rewinding and Fine-tuning in Neural Network Pruning", ICLR 2020.
Scratch is the control: Liu, Sun, Zhou, Huang, Darrell, "Rethinking the Value of Network Pruning", ICLR 2019. See also
iterative.py, which prunes and rewinds in turns.

Renda et al. report 93.6 % for ResNet-56 on CIFAR-10 with 10.7 % of its weights and lr-rewind, 93.5 % dense. An epoch
takes as long as a dense one.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from common import UserError, cli, compute_flops, models, teacher, zeros
from common.files import checkpoint
from common.schedule import WORDS
from magnitude import finetune
from magnitude.networks import network

WAYS = ("lr-rewind", "weight-rewind", "scratch-e", "scratch-b")


def add_flags(parser, ways=WAYS):
    """The flags of rewind.py, also for iterative.py; their defaults are those of the dense run."""
    finetune.add_flags(parser, ways, *["the dense run's"] * 2, "the dense run's; the milestones before the epoch to "
                       "rewind to make it smaller")
    parser.add_argument("--rewind-to", metavar="FILE", help="early.pth.tar or init.pth.tar of the dense run, for "
                        "--retrain weight-rewind")


def flags():
    parser = cli.parser(__doc__)
    add_flags(parser)
    zeros.add_flags(parser)
    teacher.add_flags(parser)
    return parser


def check(args):
    """UserError if flags exclude each other."""
    finetune.check(args)
    if (args.retrain == "weight-rewind") != bool(args.rewind_to):
        raise UserError("--retrain weight-rewind and --rewind-to FILE go together")


def plan(args, recipe, k=0, stretch=1.0):
    """Fills in epochs, learning rate, schedule and other flags that are not given. recipe: how the dense network was
    trained; k: the epoch to rewind to; stretch: dense MACs / sparse MACs. UserError if the file does not record the
    recipe, or the dense run has too few epochs.
    """
    asked = args.epochs if "epochs" in recipe else None      # without a recipe --epochs is the dense run's
    finetune.fill_in(args, {"batch_size": 64, **finetune.REST, **recipe})
    missing = [f"--{name}" for name in ("epochs", "lr", "schedule") if getattr(args, name) is None]
    if missing:
        raise UserError(f"the file does not record how its dense network was trained; give {', '.join(missing)}")
    dense, marks = recipe.get("epochs", args.epochs), args.schedule
    word = bool(marks) and marks[0] in WORDS                 # a schedule without milestones
    if args.retrain.startswith("scratch"):                   # the whole schedule, in as many epochs
        args.epochs = asked or round(dense * stretch)
        args.schedule = marks if word else [m * args.epochs // dense for m in marks if m * args.epochs >= dense]
        return
    if args.retrain == "lr-rewind":                          # the last epochs of the dense run
        args.epochs = asked or dense
        k = dense - args.epochs
        if k < 0:
            raise UserError(f"the dense run had {dense} epochs, so {args.epochs} are too many; give fewer --epochs")
    else:                                                    # its epochs after k, or the first --epochs of them
        if k >= dense:
            raise UserError(f"the dense run had {dense} epochs, none of them after epoch {k}; give another --rewind-to")
        args.epochs = min(asked or dense, dense - k)
    if word and k:
        raise UserError(f"the dense run had --schedule {marks[0]}, which is repeated whole or not at all; give "
                        f"--epochs {dense}, or another --schedule")
    if not word:
        args.lr *= args.gamma ** sum(m <= k for m in marks)
        args.schedule = [m - k for m in marks if m > k]


@torch.no_grad()
def draw_fresh(model, masks):
    """Draws the remaining weights of a convolution from N(0, 2 / n), n = their number / input channels: its fan-out."""
    for name, m in model.named_modules():
        kept = int(masks[f"{name}.weight"].sum()) if f"{name}.weight" in masks else 0
        if isinstance(m, nn.Conv2d) and kept:
            nn.init.normal_(m.weight, 0, (2 * m.weight.shape[1] / kept) ** 0.5)


def retrain(args):
    check(args)
    ckpt = finetune.start_from(args)
    model, k, stretch = checkpoint.to_model(ckpt), 0, 1.0
    if args.retrain == "weight-rewind":
        early = checkpoint.load(args.rewind_to, network, args.arch, args.depth, args.image_size)
        k = early["epoch"]
    elif args.retrain == "scratch-b":                        # as many multiplications as the dense training had
        stretch = compute_flops.dense_total(ckpt, model).macs / compute_flops.count(model).total.sparse_macs
    plan(args, ckpt.get("recipe") or {}, k, stretch)
    run = finetune.run_of(args, ckpt)

    # the weights to start from
    if args.retrain == "weight-rewind":
        checkpoint.fit(model, early["state_dict"], args.rewind_to)
    elif args.retrain.startswith("scratch"):
        fresh = models.build(ckpt["arch"], **ckpt["cfg"]).state_dict()
        indices = {name: i for name, i in model.state_dict().items() if name.endswith("select.indices")}
        model.load_state_dict({**fresh, **indices})          # a channel selection has no weights
        draw_fresh(model, ckpt["masks"])

    finetune.train(args, ckpt, run, model, f" from epoch {k}" if args.rewind_to else "")


def main(argv=None):
    retrain(flags().parse_args(argv))


if __name__ == "__main__":
    cli.script(main)
