"""Reweighted L1: training of the dense network and, after pruning, of the remaining weights.

Adam, a linear warm-up and a cosine by the batch, mixup (Zhang et al. 2018) and label smoothing.
"""
import math
import random

import torch
import torch.nn.functional as F

from common import UserError, cli
from common.schedule import onecycle

LENGTH, WARMUP = 300, 5                                      # epochs of each phase of the original


def add_recipe(parser):
    """The flags of dense training and of masked retraining."""
    add = parser.add_argument
    add("--optmzr", choices=("adam", "sgd"), default="adam", help="optimizer (default: adam)")
    add("--momentum", type=cli.nonnegative, default=0.9, help="momentum of sgd (default: 0.9)")
    add("--weight-decay", "--wd", type=cli.nonnegative, default=1e-4, help="weight decay of sgd (default: 1e-4); "
        "adam has none")
    add("--lr-scheduler", choices=("cosine", "onecycle", "default"), default="cosine", help="learning rate of dense "
        "training and retraining (default: cosine). cosine: by the batch, to 4e-8; onecycle: by the epoch, in every "
        "phase; default: halved at epochs 30, 65, 100, 130, 160, 190, 220, 250, 280 of 300")
    add("--warmup-epochs", type=int, default=WARMUP, help="epochs of linear warm-up from --warmup-lr; 0 for "
        f"none (default: {WARMUP})")
    add("--warmup-lr", type=cli.nonnegative, default=1e-4, help="first learning rate of the warm-up (default: 1e-4)")
    add("--alpha", type=cli.nonnegative, default=0.3, help="alpha of mixup's Beta(alpha, alpha); 0 for none "
        "(default: 0.3)")
    add("--smooth-eps", type=cli.fraction, default=0.1, help="label smoothing; 0 for none (default: 0.1)")


def check(args, classes):
    """UserError where the recipe cannot be followed; classes: how many the data set has."""
    if args.warmup_epochs < 0:
        raise UserError(f"--warmup-epochs {args.warmup_epochs} is below 0")
    if args.lr_scheduler == "onecycle" and args.warmup_epochs not in (0, WARMUP):
        raise UserError(f"--warmup-epochs {args.warmup_epochs}: --lr-scheduler onecycle already has a warm-up")
    if args.smooth_eps * classes > classes - 1:
        raise UserError(f"--smooth-eps {args.smooth_eps:g} leaves the true class less than the others; of {classes} "
                        f"classes it may have at most {(classes - 1) / classes:g}")


def words(args):
    """A line on the recipe for the terminal."""
    whole = " (all that the run has)" if args.warmup_epochs >= args.epochs else ""
    warm = "" if args.lr_scheduler == "onecycle" else f", warm-up epochs {args.warmup_epochs}{whole}"
    return f"  {args.optmzr}, {args.lr_scheduler}{warm}; mixup {args.alpha:g}, label smoothing {args.smooth_eps:g}"


def mixed(images, labels, alpha):
    """Mixup (Zhang et al. 2018): (r x_i + (1 - r) x_j, y_i, y_j, r) with r from Beta(alpha, alpha)."""
    if not alpha:
        return images, labels, labels, 1.0
    ratio, other = random.betavariate(alpha, alpha), torch.randperm(len(images)).to(images.device)
    return torch.lerp(images[other], images, ratio), labels, labels[other], ratio


def smoothed_loss(logits, labels, others, ratio, eps):
    """Cross-entropy with mixup's two labels; 1 - eps on the true class, eps / (K - 1) on each other one."""
    classes = logits.shape[1]
    smoothing = eps * classes / (classes - 1)                # torch gives the true class eps / K too
    loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if ratio == 1:
        return loss
    return ratio * loss + (1 - ratio) * F.cross_entropy(logits, others, label_smoothing=smoothing)


def schedule(args, batches):
    """Learning rate of batch number `step`, as a factor of --lr: one cycle, or warm-up, then cosine or halvings."""
    if args.lr_scheduler == "onecycle":
        cycle = onecycle(args.epochs)
        return lambda step: cycle(step // batches)

    warm, total = args.warmup_epochs * batches, args.epochs * batches
    marks = [mark * total / LENGTH for mark in (30, 65, 100, 130, 160, 190, 220, 250, 280)]
    first, floor = args.warmup_lr / args.lr if args.lr else 1, min(4e-8 / args.lr, 1) if args.lr else 1

    def factor(step):
        if step < warm:
            return first + (1 - first) * step / warm
        if args.lr_scheduler == "default":
            return 0.5 ** sum(step >= mark for mark in marks)
        return floor + (1 - floor) * (1 + math.cos(math.pi * (step - warm) / max(total - warm, 1))) / 2
    return factor


def make_optimizer(args, model):
    if args.optmzr == "adam":
        return torch.optim.Adam(model.parameters(), args.lr)
    return torch.optim.SGD(model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
