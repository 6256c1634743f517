"""DeepHoyer: train with a penalty that makes weights sparse, single ones or whole groups.

Yang, Wen, Li, "DeepHoyer: Learning Sparser Neural Network with Differentiable Scale-Invariant Sparsity Measures",
ICLR 2020. The loss is the data loss plus one coefficient times the penalties of all weight tensors,

    L(W) = cross-entropy(W)  +  decay * sum over layers l of R(W_l)

with R one of the penalties in regularizers.py: Hoyer-Square, R(w) = (sum |w|)^2 / sum w^2, its group version, and
those that the paper compares with. prune.py then zeroes the small weights, finetune.py trains the others.

    python main.py --save logs/dense                                                   LeNet-300-100 on MNIST, dense
    python main.py --reg hs --decay 1e-4 --pretrained logs/dense/checkpoint.pth.tar    sparse weights
    python main.py --arch cnn --reg group-hs --decay 1e-3                              sparse filters, LeNet-5
    python main.py --arch resnet56 --reg group-hs --decay 1e-3                         CIFAR-10

Expect about 98.4 % for a dense LeNet-300-100 and 99.2 % for LeNet-5 after the 250 epochs; an epoch of the former takes
a few seconds on a CPU core. README.md has recipes and results.
"""
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch.nn.functional as F

from common import UserError, cli, data, models, say, training, zeros
from common.evaluate import evaluate
from common.run import Run
from common.schedule import make_scheduler
from hoyer import networks
from hoyer.finetune import add_training, hits, optimizer_of
from hoyer.regularizers import GROUP, PENALTIES, penalized

RECIPES = {  # the original's, for flags that are not given
    "LeNet": dict(dataset="mnist", epochs=250, batch_size=100, lr=1e-3, schedule=[], weight_decay=0.0),
    "LeNet, groups": dict(dataset="mnist", epochs=250, batch_size=100, lr=1e-3, schedule=[], weight_decay=1e-4),
    "CIFAR": dict(dataset="cifar10", epochs=300, batch_size=128, lr=0.1, schedule=[150, 225], weight_decay=5e-4),
}


def add_flags(parser):
    """All flags of training but --reg, whose numbers differ between the original's scripts."""
    cli.add_flags(parser, True, "300, LeNets: 250", "128, LeNets: 100", "0.1, LeNets: 0.001", seed=12345678)
    networks.add_flags(parser)
    zeros.add_flags(parser, keep=False)
    add_training(parser, "5e-4; LeNets 1e-4 with group penalties, else 0")
    add = parser.add_argument
    add("--decay", type=cli.nonnegative, default=1e-3, help="coefficient of the penalty (default: 1e-3)")
    add("--pretrained", "--model", nargs="?", const="", metavar="FILE", help="start from this network; without FILE "
        "from the LeNet of element.py --reg 0 --decay 0.0 in saves/")


def flags():
    parser = cli.parser(__doc__)
    add_flags(parser)
    parser.add_argument("--reg", choices=("none", *PENALTIES), default="none", help="the penalty")
    parser.set_defaults(decay=None)
    return parser


def starting_point(args):
    """(checkpoint to start from or None, arch, cfg)."""
    options = networks.options(args)
    network = partial(networks.network, **options)
    if args.pretrained is None:
        return None, *network(args.arch or "mlp", args.depth)
    path = networks.find(args.pretrained or f"saves/{'cnn/' if args.arch == 'cnn' else ''}elt_0.0_0.pth")
    if not args.pretrained and not Path(path).is_file():
        raise UserError(f"no dense network {path}; train it with element.py --reg 0 --decay 0.0, "
                        "or name another: --pretrained FILE")
    ckpt = training.load(path, network, args.arch, args.depth, args.image_size, args.dense)
    for name, value in options.items():
        if value is not None and ckpt["cfg"].get(name) != value:
            raise UserError(f"{path} has {name} {ckpt['cfg'].get(name)}, not {value}; leave it out")
    return ckpt, ckpt["arch"], ckpt["cfg"]


def train(args):
    """Trains into the folder args.save; args: those of `flags`."""
    args.decay = args.decay if args.reg != "none" else 0.0
    ckpt, arch, cfg = starting_point(args)
    args.dataset = args.dataset or ckpt and ckpt["dataset"]
    lenet = "LeNet, groups" if args.reg in GROUP else "LeNet"
    recipe = RECIPES[lenet if arch.startswith("lenet") else "CIFAR"]
    vars(args).update({name: value for name, value in recipe.items() if getattr(args, name) is None})

    name, what = models.name(arch, cfg), f"hoyer-{args.reg}-{args.decay}" if args.decay else "hoyer-dense"
    args.save = args.save or cli.default_folder(args.dataset, name, what)
    run = Run("hoyer", "sparse" if args.decay else "dense", name, **vars(args))
    dataset = data.for_arch(arch, cfg, holdout=args.holdout, start=ckpt, **cli.data_flags(args))
    train, test = run.loaders(dataset, **data.augmentation(arch))
    model = training.network(run, ckpt, arch, cfg, dataset)
    net = run.parallel(model)

    # the penalty R and the tensors W_l that it acts on
    regularizer = PENALTIES.get(args.reg)
    tensors = penalized(model, args.reg) if args.decay else []
    if tensors:
        say(f"  penalty: {args.decay:g} x {args.reg}, summed over {len(tensors)} tensors")

    optimizer = optimizer_of(args, model)
    # Where it ends at zero (cosine, onecycle), small weights stop jittering.
    scheduler = make_scheduler(optimizer, args.schedule, args.gamma, args.epochs)
    run.resume(model, optimizer, scheduler)

    for epoch in run.epochs(args.epochs):
        model.train()
        for images, labels in run.bar(train.epoch(epoch)):
            with run.autocast():
                logits = net(images)
                loss = F.cross_entropy(logits, labels)
            penalty = sum(regularizer(w) for w in tensors)   # sum over l of R(W_l), in fp32
            optimizer.zero_grad()
            (loss + args.decay * penalty).backward()
            optimizer.step()
            run.track(loss=loss, reg=penalty, **hits(logits.detach(), labels))
        scheduler.step()
        run.log(epoch, **evaluate(model, test))
        run.save(epoch, model, optimizer, scheduler)
    run.finish(model)


def main(argv=None):
    args = flags().parse_args(argv)
    if args.decay is not None and args.reg == "none":
        raise UserError("--decay is the coefficient of a penalty; name it with --reg")
    args.decay = 1e-3 if args.decay is None else args.decay
    train(args)


if __name__ == "__main__":
    cli.script(main)
