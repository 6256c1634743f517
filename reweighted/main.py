"""Reweighted L1: train a dense network, then drive its weights towards zero, the small ones harder.

Candes, Wakin, Boyd, "Enhancing Sparsity by Reweighted l1 Minimization", 2008, as the MicroNet submission
LinLabNEU/reweight_pruning3 used it in 2019. The second phase adds to the cross-entropy

    lambda * sum over the weights of convolutions of  gamma |w|,      gamma = 1 / (|w| + eps)

and recomputes the coefficients gamma from the weights after every fifth of the run: epochs 61, 121, 181, 241 of 300.
Small weights get smaller, large ones hardly change, and the weights split into two groups; prune.py cuts between them.

    python main.py                                                                    dense
    python main.py --rew --pretrained logs/cifar100-mobilenetv2_1.3-reweighted-dense/checkpoint.pth.tar

then prune.py and finetune.py; training/main.py runs all four. The original reports 81.92 % for the dense MobileNetV2 on
CIFAR-100. An epoch of it takes ten minutes or more on two CPU cores. README.md has measured results.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from common import UserError, cli, data, models, say, training, zeros
from common.evaluate import evaluate
from common.files import checkpoint
from common.run import Run
from reweighted import penalties, recipe
from reweighted.networks import network
from reweighted.recipe import LENGTH, add_recipe, make_optimizer, mixed, schedule, smoothed_loss


def flags():
    parser = cli.parser(__doc__, epochs=LENGTH, batch_size=64, lr=0.001,
                        arch="any network of common/models (default: mobilenetv2, or that of --pretrained)")
    add_recipe(parser)
    add = parser.add_argument
    add("--width", type=float, help="width multiplier of mobilenetv2 (default: 1.3)")
    add("--rew", action="store_true", help="run the reweighted phase, from --pretrained")
    add("--pretrained", "--model", metavar="FILE", help="dense checkpoint of any method, for --rew")
    zeros.add_flags(parser)
    add("--sparsity-type", choices=tuple(penalties.LAMBDA), default="irregular", help="single weights, or groups, to "
        "penalize (default: irregular)")
    add("--lam", type=cli.nonnegative, help="lambda (default: the original's, "
        + ", ".join(f"{kind} {lam:g}" for kind, lam in penalties.LAMBDA.items()) + ", times 300 / --epochs)")
    add("--eps", type=cli.nonnegative, default=penalties.EPS, help="added to |w|: smaller weights are treated as zero "
        "(default: 0.001)")
    add("--faithful", action="store_true", help="with --rew, as in the original: gamma = 1 / (w + eps) without the "
        "absolute value; lambda, the learning rate times 0.98 an epoch and new gammas at epochs 61, 121, ... for any "
        "--epochs")
    return parser


def refreshes(epochs, faithful=False):
    """The epochs (from 1) at whose start the gammas are recomputed: after each fifth but the last."""
    length = LENGTH if faithful else epochs
    return sorted({fifth * length // 5 + 1 for fifth in (1, 2, 3, 4)} - {1} & set(range(1, epochs + 1)))


def reweighted_schedule(epochs, batches, faithful=False):
    """Learning rate of batch number `step` in the reweighted phase, as a factor of --lr.

    Each of 300 epochs has 0.98 times that of the one before, epochs 61, 121, 181 and 241 have 1.6 times. A shorter run
    has the same learning rates with fewer batches for each, so that it ends as low: a weight that is held at zero
    swings about it by the learning rate.
    """
    length, marks = epochs if faithful else LENGTH, refreshes(LENGTH)

    def factor(step):
        epoch = step * length // (epochs * batches) + 1
        jumps = sum(mark <= epoch for mark in marks)
        return 0.98 ** (epoch - jumps) * 1.6 ** jumps
    return factor


def check(args):
    """UserError for flags that would be ignored."""
    own = flags().parse_args([])
    names = ("width", "warmup_epochs", "warmup_lr") if args.rew else (
        "lam", "eps", "sparsity_type", "faithful", "keep_zeros")
    unused = [name for name in names if getattr(args, name) != getattr(own, name)]
    if args.rew and args.lr_scheduler == "default":
        unused.append("lr_scheduler")
    if unused:
        raise UserError(f"--{unused[0].replace('_', '-')} has no effect " + (
            "with --rew, which has the file's network and its own learning rates" if args.rew else
            "without --rew"))
    if args.eps < penalties.SMALLEST:
        raise UserError(f"--eps {args.eps:g}: gamma = 1 / (|w| + eps) of a weight of zero would be infinite; give "
                        f"{penalties.SMALLEST:g} or more")


def main(argv=None):
    args = flags().parse_args(argv)
    check(args)
    return train(args)


def train(args):
    if args.rew != bool(args.pretrained):
        raise UserError("--rew and --pretrained FILE go together: the second phase starts from a dense network")
    start = None
    if args.rew:
        start = checkpoint.load(args.pretrained, network, args.arch, args.depth, args.image_size)
        start["masks"] = zeros.kept(start, args.keep_zeros, args.dense)
        if args.lam is None:                                 # fewer steps need a larger lambda
            args.lam = penalties.LAMBDA[args.sparsity_type] * (1 if args.faithful else LENGTH / args.epochs)
    args.dataset = args.dataset or (checkpoint.dataset_of(start) if start else "cifar100")
    arch, cfg = (start["arch"], start["cfg"]) if start else network(args.arch or "mobilenetv2", args.depth, args.width)
    dataset = data.for_arch(arch, cfg, start=start, **cli.data_flags(args))
    recipe.check(args, dataset.num_classes)
    run = Run("reweighted", "sparse" if args.rew else "dense", models.name(arch, cfg), **vars(args))
    start = start and checkpoint.to_classes(start, dataset)
    masks = start.pop("masks") if start else {}              # kept in training
    model = training.network(run, start, arch, cfg, dataset)
    torch.manual_seed(args.seed)                             # mixup is the same for a new network and one of a file
    if not args.rew:
        say(recipe.words(args))
    net = run.parallel(model)
    train, test = run.loaders(dataset, **data.augmentation(model.arch))

    weights, kind = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)], args.sparsity_type
    if args.rew and not weights:
        raise UserError(f"{args.pretrained}: a {model.arch} has no convolution, and the penalty acts on their weights")
    parameters = dict(model.named_parameters())
    masks = {name: mask.to(run.device) for name, mask in masks.items()}
    optimizer = make_optimizer(args, model)
    if args.rew and args.lr_scheduler != "onecycle":
        factor = reweighted_schedule(args.epochs, len(train), args.faithful)
    else:
        factor = schedule(args, len(train))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    gammas = nn.ParameterList()                              # saved, so that a resumed run continues with them
    if args.rew:
        gammas.extend(penalties.coefficients(weights, kind, args.eps, args.faithful))
        when = ", ".join(map(str, refreshes(args.epochs, args.faithful)))
        say(f"  reweighted L1, {kind}, lambda {args.lam:g}; "
            f"{f'new coefficients at epochs {when}' if when else 'too few epochs for new coefficients'}")
    run.resume(model, optimizer, scheduler, masks, gammas=gammas)

    for epoch in run.epochs(args.epochs):
        model.train()
        if args.rew and epoch + 1 in refreshes(args.epochs, args.faithful):
            gammas = nn.ParameterList(penalties.coefficients(weights, kind, args.eps, args.faithful))
            say("reweighted l1 update")
        for images, labels in run.bar(train.epoch(epoch)):
            images, labels, others, ratio = mixed(images, labels, args.alpha)
            with run.autocast():
                loss = smoothed_loss(net(images), labels, others, ratio, args.smooth_eps)
            optimizer.zero_grad()
            loss.backward()
            if args.rew:
                for w, gamma in zip(weights, gammas, strict=True):
                    # d(lambda gamma |w|) / dw = lambda gamma sign(w); of groups lambda gamma w / ||w_g||
                    w.grad.add_(penalties.gradient(w, gamma, kind), alpha=args.lam)
            optimizer.step()
            scheduler.step()
            with torch.no_grad():
                for name, mask in masks.items():             # of a network that was pruned before
                    parameters[name].mul_(mask)
            run.track(loss=loss)
        more = {}
        if args.rew:
            more = {"penalty": args.lam * penalties.value(weights, gammas, kind),
                    "below_1e-4": float(torch.cat([w.detach().flatten().abs() < 1e-4 for w in weights]).float().mean())}
        run.log(epoch, **evaluate(model, test), **more)
        run.save(epoch, model, optimizer, scheduler, resume={"gammas": gammas}, masks=masks or None)
    run.finish(model, masks=masks or None)
    return run.folder / "checkpoint.pth.tar"


if __name__ == "__main__":
    cli.script(main)
