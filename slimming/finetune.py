"""Network slimming: fine-tune the pruned network, with the same defaults as the training before it.

    python finetune.py --refine logs/cifar10-vgg13-slimming-pruned/pruned.pth.tar

The original's command, python main.py --refine FILE, does the same. Network, widths and data set come from the file.
-sr adds the penalty of main.py, to prune the network again later. A network that mask.py pruned keeps its shape: after
every step the gammas and betas of its masked channels are set back to zero,

    gamma <- mask * gamma,    beta <- mask * beta

so that neither momentum nor weight decay revives them. Expect the baseline's accuracy after as many epochs as the
baseline had. The last epoch's network is finetuned.pth.tar.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import nn

from common import UserError, cli, models, teacher, training, zeros
from common.evaluate import evaluate
from common.files import checkpoint
from common.run import Run
from common.schedule import epoch_or_word, make_scheduler
from slimming.networks import network


def parser_of(doc, arch):
    """The parser of the flags that main.py has too; arch: help for --arch."""
    parser = cli.parser(doc, epochs=160, batch_size=64, lr=0.1, arch=arch)
    add = parser.add_argument
    add("-sr", "--sparsity-regularization", dest="sr", action="store_true", help="train with the penalty on gammas")
    add("--s", type=cli.nonnegative, help="penalty coefficient (default: 1e-4; paper: 1e-4 for VGG, 1e-5 otherwise)")
    zeros.add_flags(parser)
    teacher.add_flags(parser)
    add("--momentum", type=cli.nonnegative, default=0.9, help="default: 0.9")
    add("--weight-decay", "--wd", type=cli.nonnegative, default=1e-4, help="default: 1e-4")
    add("--schedule", type=epoch_or_word, nargs="+", metavar="EPOCH", help="epochs after which the learning rate is "
        "divided by ten (default: half and three quarters of --epochs), or cosine, or onecycle")
    add("--faithful", action="store_true", help="milestones exactly at 0.5 and 0.75 of --epochs, as in the original: "
        "where these are not whole numbers (--epochs 99), the learning rate never drops")
    return parser


def checked(args):
    """args with --s filled in, or a UserError about flags that would be ignored."""
    if args.s is not None and not args.sr:
        raise UserError("--s is the coefficient of the penalty; give -sr, or leave it out")
    if args.faithful and args.schedule:
        raise UserError("--faithful only affects the default milestones; leave out --faithful or --schedule")
    args.s = 1e-4 if args.s is None else args.s
    return args


def milestones(epochs, faithful=False):
    """The epochs (from 0) at which the learning rate is divided by ten: half and three quarters of all."""
    marks = [0.5 * epochs, 0.75 * epochs]
    return sorted({int(m) for m in marks if m >= 1 and (m == int(m) or not faithful)})


def finetune(args):
    ckpt = checkpoint.load(args.refine, network, args.arch, args.depth, args.image_size)
    masks = zeros.kept(ckpt, args.keep_zeros, args.dense)    # True: kept
    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    run = Run("slimming", "finetuned", models.name(ckpt["arch"], ckpt["cfg"]), ckpt["dense"], **vars(args))

    # network and data
    model, masks, dataset, train, test = training.masked(run, ckpt, masks, **cli.data_flags(args))
    net = run.parallel(model)
    taught = teacher.load(run, args.teacher, args.ltea, network, dataset)
    gammas = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if args.sr and not gammas:
        raise UserError(f"-sr: a {model.arch} has no batch norm, whose gammas the penalty is on; other methods "
                        "need none")
    parameters = dict(model.named_parameters())

    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    marks = args.schedule or milestones(args.epochs, args.faithful)
    scheduler = make_scheduler(optimizer, marks, 0.1, args.epochs)
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
            if args.sr:
                for gamma in gammas:                         # d(s |gamma|) / d gamma = s sign(gamma)
                    gamma.grad.add_(args.s * gamma.detach().sign())
            optimizer.step()
            with torch.no_grad():
                for name, mask in masks.items():             # pruned weights stay zero
                    parameters[name].mul_(mask)
            run.track(loss=loss)
        scheduler.step()
        run.log(epoch, **evaluate(model, test))
        run.save(epoch, model, optimizer, scheduler, masks=masks or None)
    run.finish(model, "finetuned.pth.tar", masks=masks or None)


def parse(argv=None):
    parser = parser_of(__doc__, cli.RECORDED)
    parser.add_argument("--refine", "--model", metavar="FILE", required=True, help="the pruned network: pruned.pth.tar "
                        "of prune.py")
    return checked(parser.parse_args(argv))


def main(argv=None):
    finetune(parse(argv))


if __name__ == "__main__":
    cli.script(main)
