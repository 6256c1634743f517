"""End-to-end pruning with a soft-binary weight mask: masks in [0, 1] gradually switch channels off during
training.

    L = CE + delta (wg mean(M) - tw var(M) / mean(M)),     M = clamp(m + 0.5, 0, 1),     delta = target - sparsity

M multiplies the weights of a channel and its batch norms (mask.py). The sparsity is the fraction of all parameters that
masks of 0 remove, exact at every step. From --swa-start on, the weights and masks of the epochs are averaged, and the
average is evaluated and saved, with batch norm statistics estimated again (stochastic weight averaging).

    python main.py --target 0.4 --wg 30 --tw 10 --wme 50 --mwd 5e-4 --swa-start 161      WideResNet-34-9 on CIFAR-100
    python main.py                                                                       the same without masks, dense

The narrow network is pruned_model.pth.tar in --save (prune.py makes it). The original reports 80.28 % for its 300
epochs, 12 hours on a GPU of 2019; README.md has shorter runs.
"""
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, update_bn

from common import UserError, cli, data, models, say, teacher, training, zeros
from common.evaluate import evaluate
from common.run import Run
from common.schedule import onecycle
from softmask import prune
from softmask.mask import SoftMask, penalty
from softmask.networks import network


def parse(argv=None):
    parser = cli.parser(__doc__, epochs=300, batch_size=64, lr=0.01, arch="any network of common/models: resnet20, "
                        "vgg, preresnet56, ... (default: wideresnet of depth 34, or that of --pretrained)")
    parser.set_defaults(test_batch_size=64)
    add = parser.add_argument
    add("--wf", type=cli.positive, help="widen factor of wideresnet (default: 9)")
    add("--d", type=cli.fraction, default=0.0, help="dropout of wideresnet (with --pretrained: the file's)")
    add("--momentum", type=cli.nonnegative, default=0.9, help="default: 0.9")
    add("--weight-decay", "--wd", type=cli.nonnegative, default=1e-4, help="default: 1e-4")
    add("--schedule", choices=("constant", "cosine", "onecycle", "swa"), default="constant", help="learning rate "
        "schedule (default: constant); swa: linearly to --swa-lr between 50 and 90 %% of --swa-start")
    add("--target", type=cli.fraction, help="fraction of the parameters to remove (default: train without masks)")
    add("--wg", type=cli.nonnegative, default=30.0, help="coefficient of the masks' mean (default: 30)")
    add("--tw", type=cli.nonnegative, default=10.0, help="coefficient of their variance / mean (default: 10)")
    add("--wme", type=int, default=50, help="epochs before the penalty on the masks begins (default: 50)")
    add("--mwd", type=cli.nonnegative, default=5e-4, help="weight decay of m, which pulls masks to 0.5 (default: 5e-4)")
    add("--pflops", action="store_true", help="--target is a fraction of the FLOPs")
    add("--ftarget", type=cli.fraction, help="additional target: fraction of the FLOPs to remove")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--stage-masks", action="store_true", help="a mask for each stage of a residual network, counted "
                       "once")
    kind.add_argument("--nfp", action="store_true", help="no filter pruning: a mask for every single weight")
    add("--lseps", type=cli.fraction, default=0.0, help="label smoothing (default: 0)")
    add("--confp", type=cli.nonnegative, default=0.0, help="confidence penalty: adds this times sum p log p "
        "(default: 0)")
    add("--pretrained", "--model", metavar="FILE", help="start from this dense checkpoint, of any method")
    zeros.add_flags(parser, keep=False)
    teacher.add_flags(parser)
    add("--swa-start", type=int, default=161, help="first epoch to average, counted from 0 (default: 161)")
    add("--swa-lr", type=cli.nonnegative, help="last learning rate of --schedule swa (default: half of --lr)")
    add("--length", type=int, help="side of the square that Cutout blanks (default: 8 for cifar100, else 0)")
    return parser.parse_args(argv)


def factor(args, epoch):
    """The learning rate of an epoch, as a multiple of --lr."""
    if args.schedule == "cosine":
        return (1 + math.cos(math.pi * epoch / args.epochs)) / 2
    if args.schedule == "onecycle":
        return onecycle(args.epochs)(epoch)
    if args.schedule == "swa":
        last = args.swa_lr / args.lr if args.swa_lr is not None and args.lr else 0.5
        way = min(max((epoch / max(args.swa_start, 1) - 0.5) / 0.4, 0), 1)
        return 1 + way * (last - 1)
    return 1.0


def confidence(logits):
    """Mean over the images of sum p log p, which is minus the entropy of the prediction; logits (N, classes)."""
    log_p = F.log_softmax(logits, 1)
    return (log_p.exp() * log_p).sum(1).mean()


def check(args):
    """UserError for flags that would be ignored, or contradict one another."""
    own = parse([])
    for name in ("ftarget", "pflops", "stage_masks", "nfp", "wg", "tw", "wme", "mwd"):
        if args.target is None and getattr(args, name) != getattr(own, name):
            raise UserError(f"--{name.replace('_', '-')} needs --target")
    if args.swa_lr is not None and args.schedule != "swa":
        raise UserError("--swa-lr is the last learning rate of --schedule swa")
    if args.pretrained and (args.wf or args.d):
        raise UserError("--pretrained says which network it is; leave out --wf and --d")


def main(argv=None):
    args = parse(argv)
    check(args)
    start = training.load(args.pretrained, network, args.arch, args.depth, args.image_size, args.dense)
    if not all(mask.all() for mask in (start or {}).get("masks", {}).values()):
        raise UserError(f"{args.pretrained} has pruned single weights, which training with soft masks would not keep "
                        "at zero; start from the network before pruning")
    arch, cfg = (start["arch"], start["cfg"]) if start else network(args.arch or "wideresnet", args.depth, args.wf,
                                                                    args.d)
    args.dataset = args.dataset or start and start["dataset"] or "cifar100"
    args.length = args.length if args.length is not None else 8 * (Path(args.dataset).stem == "cifar100")
    dataset = data.for_arch(arch, cfg, start=start, **cli.data_flags(args))
    run = Run("softmask", "dense" if args.target is None else "sparse", models.name(arch, cfg), **vars(args))
    train, test = run.loaders(dataset, **data.augmentation(arch), cutout=args.length)
    model = training.network(run, start, arch, cfg, dataset)
    net, groups = model, [{"params": list(model.parameters()), "weight_decay": args.weight_decay}]
    masked = args.target is not None
    if masked:
        net = SoftMask(model, args.stage_masks, args.nfp).to(run.device)
        groups.append({"params": [net.m], "weight_decay": args.mwd})
        if args.pretrained:
            net.absorb()                                     # computes the same as before
        say(f"  {net.m.numel():,} mask parameters, {net.counted.numel():,} entries in their loss; "
            f"{net.cost.all_flops:,} FLOPs with batch norms and biases")
    targets = ((args.target, args.pflops), (args.ftarget, True))                # (fraction, whether of the FLOPs)
    first = [f"from epoch {epoch + 1}" if epoch < args.epochs else "never" for epoch in (args.wme, args.swa_start)]
    say(f"  {f'mask loss: {first[0]}; ' if masked else ''}weights averaged: {first[1]}")
    if masked and args.wme >= args.epochs:
        say(f"note: no mask will close, since their penalty begins after --wme {args.wme} epochs; give a smaller --wme")
    call = run.parallel(net)
    taught = teacher.load(run, args.teacher, args.ltea, network, dataset)
    averaged = AveragedModel(net)

    optimizer = torch.optim.SGD(groups, args.lr, momentum=args.momentum)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: factor(args, epoch))
    run.resume(model, optimizer, scheduler, net=net, averaged=averaged)

    for epoch in run.epochs(args.epochs):
        net.train()
        for images, labels in run.bar(train.epoch(epoch)):
            with run.autocast():
                logits = call(images)
            logits = logits.float()
            loss = F.cross_entropy(logits, labels, label_smoothing=args.lseps)
            run.track(loss=loss)
            loss = taught(loss, logits, images)
            if args.confp:
                loss = loss + args.confp * confidence(logits)
            if masked:
                entries = net.counted_masks()
                run.track(mask=entries.mean(), sparsity=net.sparsity(args.pflops))
            for target, flops in targets:
                if target is not None and epoch >= args.wme:
                    delta = target - net.sparsity(flops)     # delta (wg mean(M) - tw var(M) / mean(M))
                    loss = loss + penalty(entries, delta, args.wg, args.tw)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()

        # evaluate and save the network of this epoch, later the average of the epochs
        current = net
        if epoch >= args.swa_start:
            averaged.update_parameters(net)
            with run.autocast():
                update_bn(train.epoch(epoch), averaged)
            current = averaged.module
        result, more, reached = current, {}, {}
        if masked:
            result = current.folded()
            reached = {"sparsity": float(current.sparsity()), "flops_gone": float(current.sparsity(flops=True))}
            more = stored(current, args.nfp)
        run.log(epoch, **evaluate(result, test), **reached)
        run.save(epoch, result, optimizer, scheduler, resume={"net": net, "averaged": averaged}, **more)
    run.finish(model)
    if masked and run.rank == 0:
        prune.prune(cli.settings(prune, args, model=str(run.folder / "checkpoint.pth.tar"), arch=None, depth=None,
                                 overwrite=True))


def stored(net, unstructured):
    """What a checkpoint holds besides the folded network: the mask values, {layer: (channels,)} or {weight: its shape},
    for prune.py; of single weights also bool masks, which every method's scripts keep."""
    soft = {name: mask.detach().clone() for name, mask in zip(net.names, net.masks(), strict=True)}
    if not unstructured:
        return {"soft_masks": soft}
    soft = {name: mask.view(net.model.get_parameter(name).shape) for name, mask in soft.items()}
    return {"soft_masks": soft, "masks": {name: mask > 0 for name, mask in soft.items()}}


if __name__ == "__main__":
    cli.script(main)
