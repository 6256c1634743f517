"""Network slimming: train with a sparsity penalty on the scales of batch norm.

Liu, Li, Shen, Huang, Yan, Zhang, "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017. Every
channel already has its own factor, the gamma of its batch norm. Training adds an L1 penalty on them (equation 1),

    L = sum over (x, y) of l(f(x, W), y)  +  s * sum over gamma of |gamma|

so that the gammas of unimportant channels end near zero; prune.py removes those channels.

    python main.py --dataset cifar10 --arch vgg --depth 13                            baseline
    python main.py -sr --s 0.0001 --dataset cifar10 --arch vgg --depth 13             sparsity
    python main.py -sr --pretrained FILE                                              start from any checkpoint
    python main.py --refine logs/.../pruned.pth.tar                                   the same as finetune.py

Expect about 94 % for VGG-13 on CIFAR-10 with the defaults, with or without the penalty. One of the 160 epochs takes
three to four minutes on two CPU cores with bf16, seconds on a GPU. README.md has measured results of shorter runs.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import nn

from common import UserError, cli, data, models, teacher, training
from common.evaluate import evaluate
from common.run import Run
from common.schedule import make_scheduler
from slimming.finetune import checked, finetune, milestones, parser_of
from slimming.networks import OPTIONS, network


def parse(argv=None):
    parser = parser_of(__doc__, "vgg (default depth 19), resnet (164, preactivation and bottleneck), densenet (40), or "
                       "another network of common/models, such as resnet18 (default: vgg, or the file's)")
    start = parser.add_mutually_exclusive_group().add_argument
    start("--pretrained", "--model", metavar="FILE", help="start from this dense checkpoint, of any method")
    start("--refine", metavar="FILE", help="fine-tune this pruned network, as finetune.py does")
    return checked(parser.parse_args(argv))


def main(argv=None):
    args = parse(argv)
    if (args.keep_zeros or args.teacher) and not args.refine:
        raise UserError("--keep-zeros and --teacher are for --refine FILE, which fine-tunes a pruned network")
    teacher.check(args.teacher, args.ltea)
    if args.refine:
        finetune(args)
    else:
        train(args)


def train(args):
    start = training.load(args.pretrained, network, args.arch, args.depth, args.image_size, args.dense)
    args.dataset = args.dataset or start and start["dataset"] or "cifar100"
    arch, cfg = (start["arch"], start["cfg"]) if start else network(args.arch or "vgg", args.depth)
    named = models.split_name(args.arch or "vgg", args.depth)[0]
    family = named if named in OPTIONS and not start else arch           # the folder's resnet is a preresnet
    run = Run("slimming", "sparse" if args.sr else "dense", models.name(family, cfg), **vars(args))
    dataset = data.for_arch(arch, cfg, start=start, **cli.data_flags(args))
    train, test = run.loaders(dataset, **data.augmentation(arch))
    model = training.network(run, start, arch, cfg, dataset)
    net = run.parallel(model)
    gammas = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if args.sr and not gammas:
        raise UserError(f"-sr: a {arch} has no batch norm, whose gammas the penalty is on; other methods need none")

    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    marks = args.schedule or milestones(args.epochs, args.faithful)
    scheduler = make_scheduler(optimizer, marks, 0.1, args.epochs)
    run.resume(model, optimizer, scheduler)

    for epoch in run.epochs(args.epochs):
        model.train()
        for images, labels in run.bar(train.epoch(epoch)):
            with run.autocast():
                loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            if args.sr:
                for gamma in gammas:                         # d(s |gamma|) / d gamma = s sign(gamma)
                    gamma.grad.add_(args.s * gamma.detach().sign())
            optimizer.step()
            run.track(loss=loss)
        scheduler.step()
        run.log(epoch, **evaluate(model, test))
        run.save(epoch, model, optimizer, scheduler)
    run.finish(model)


if __name__ == "__main__":
    cli.script(main)
