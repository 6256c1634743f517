"""Network slimming: fine-tuning the narrow network, with the defaults of main.py unless flags say otherwise.

    python finetune.py --refine logs/cifar10-vgg13-pruned/pruned.pth.tar

The original's spelling, python main.py --refine ..., is the same. The network, its widths and the data set come from
the file. With -sr the penalty of main.py goes on, for a network that is to be pruned again. A network pruned with
--mask keeps its shape: the gammas and betas of pruned channels are set back to zero after every step, so that neither
momentum nor weight decay revives them. Expect the accuracy of the baseline back after as many epochs as the baseline
had; the last epoch's network is finetuned.pth.tar.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import nn

from common import UserError, checkpoint, cli, data, originals
from common.evaluate import evaluate
from common.run import Run
from slimming.main import milestones, parse
from slimming.networks import network


def main(argv=None):
    args = parse(argv)
    if not args.refine:
        raise UserError("--refine FILE is needed: the pruned.pth.tar that prune.py wrote")
    finetune(args)


def finetune(args):
    ckpt = originals.load(args.refine, network, args.arch, args.depth)
    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    run = Run(args, "slimming", "finetuned", f"{ckpt['arch']}{ckpt['cfg'].get('depth', '')}",
                        dense=ckpt["dense"])

    # network
    model = run.place(checkpoint.to_model(ckpt))
    run.describe(model)
    net = run.parallel(model)
    parameters = dict(model.named_parameters())
    masks = {name: mask.to(run.device) for name, mask in ckpt.get("masks", {}).items()}
    gammas = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]

    # data
    dataset = data.load(args.dataset, args.data_dir, subset=args.subset)
    data.check_fit(dataset, model, args.refine)
    train, test = run.loaders(dataset, crop=4, flip=True)

    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones(args.epochs, args.faithful))
    run.resume(model, optimizer, scheduler, masks)

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
            with torch.no_grad():
                for name, mask in masks.items():             # what was pruned stays zero
                    parameters[name].mul_(mask)
            run.track(loss=loss)
        scheduler.step()
        run.log(epoch, **evaluate(model, test))
        run.save(epoch, model, optimizer, scheduler, masks=ckpt.get("masks"))
    run.finish(model, "finetuned.pth.tar", masks=ckpt.get("masks"))


if __name__ == "__main__":
    cli.script(main)
