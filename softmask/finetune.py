"""Soft-binary mask: continue training the narrow network, without masks.

    python finetune.py --pruned logs/cifar100-wrn_34_9-softmask-sparse/pruned_model.pth.tar --epochs 20

The original stops after pruning. Network, widths and data set come from the file; single weights that a mask prunes
(--nfp, or another method) are set back to zero after every step. The last epoch's network is finetuned.pth.tar.

--wbit 4 trains the network that quantize_model.py will make with the same flags (straight-through estimator, Bengio et
al. 2013): loss and gradient are those of rounded weights q(w), and the optimizer changes w. Accuracies are those of
q(w), which finetuned.pth.tar holds; checkpoint.pth.tar and model_best.pth.tar hold w.
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
from common.schedule import WORDS, make_scheduler
from softmask.networks import network
from softmask.quantizers import METHODS, rounded


def parse(argv=None):
    parser = cli.parser(__doc__, epochs=20, batch_size=64, lr=0.01, seed=1, arch=cli.RECORDED)
    add = parser.add_argument
    add("--pruned", "--model", dest="pruned", metavar="FILE", required=True, help="pruned_model.pth.tar")
    zeros.add_flags(parser)
    teacher.add_flags(parser)
    add("--momentum", type=cli.nonnegative, default=0.9)
    add("--weight-decay", "--wd", type=cli.nonnegative, default=1e-4)
    add("--schedule", choices=WORDS, default="cosine", help="learning rate schedule")
    add("--length", type=int, help="side of the square that Cutout blanks (default: 8 for cifar100, else 0)")
    add("--wbit", type=cli.bits, metavar="BITS", help="round weights to 2 to 16 bits in training")
    add("--method", choices=tuple(METHODS), help="quantizer for --wbit (default: linear)")
    add("--per-channel", action="store_true", help="round with a scale or a codebook for each output channel")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    if not args.wbit and (args.method or args.per_channel):
        raise UserError("--method and --per-channel need --wbit")
    ckpt = checkpoint.load(args.pruned, network, args.arch, args.depth, args.image_size)
    masks = zeros.kept(ckpt, args.keep_zeros, args.dense)    # True: kept
    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    args.length = args.length if args.length is not None else 8 * (Path(args.dataset).stem == "cifar100")
    run = Run("softmask", "finetuned", models.name(ckpt["arch"], ckpt["cfg"]), ckpt["dense"], **vars(args))

    model, masks, dataset, train, test = training.masked(run, ckpt, masks, cutout=args.length, **cli.data_flags(args))
    net = run.parallel(model)
    taught = teacher.load(run, args.teacher, args.ltea, network, dataset)
    parameters = dict(model.named_parameters())
    weights = [m.weight for m in model.modules() if args.wbit and isinstance(m, nn.Conv2d | nn.Linear)]
    quantizer = args.method or "linear", args.wbit, args.per_channel

    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    scheduler = make_scheduler(optimizer, [args.schedule], 0.1, args.epochs)
    run.resume(model, optimizer, scheduler, masks)

    for epoch in run.epochs(args.epochs):
        model.train()
        for images, labels in run.bar(train.epoch(epoch)):
            with rounded(weights, *quantizer):               # w + (q(w) - w).detach() with --wbit, else w
                with run.autocast():
                    logits = net(images)
                    loss = F.cross_entropy(logits, labels)
                loss = taught(loss, logits, images)          # the labels' loss without --teacher
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            with torch.no_grad():
                for name, mask in masks.items():             # pruned weights stay zero
                    parameters[name].mul_(mask)
            run.track(loss=loss)
        scheduler.step()
        with rounded(weights, *quantizer):
            run.log(epoch, **evaluate(model, test))
        run.save(epoch, model, optimizer, scheduler, masks=masks or None)
    with rounded(weights, *quantizer):
        run.finish(model, "finetuned.pth.tar", masks=masks or None)


if __name__ == "__main__":
    cli.script(main)
