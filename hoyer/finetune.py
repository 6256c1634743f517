"""DeepHoyer: fine-tune the remaining weights, with the zeros fixed and the penalty off.

    python finetune.py --model logs/mnist-lenet300-hoyer-pruned/pruned.pth.tar

After every step the masks that prune.py stored set the pruned entries back to zero,

    w <- w - step,    w <- w * mask,

so that neither Adam's or SGD's momentum nor weight decay revives them. The last epoch's network is finetuned.pth.tar;
compact.pth.tar is the same without dead neurons, filters, channels and pixels (see compact.py). prune.py can prune
finetuned.pth.tar again.

Results are in README.md; an epoch costs the same as in training.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from common import cli, compute_flops, models, say, teacher, training, zeros
from common.compact import compact_masked
from common.evaluate import evaluate
from common.files import checkpoint
from common.run import Run
from common.schedule import epoch_or_word, make_scheduler
from hoyer.networks import network
from hoyer.reports import compaction_report, sparsity_report

RECIPES = {  # the original's, by network and pruning rule, for flags that are not given
    ("LeNet", "T"): dict(epochs=100, batch_size=100, lr=1e-4, schedule=[], weight_decay=0.0),
    ("LeNet", "V"): dict(epochs=100, batch_size=100, lr=1e-4, schedule=[], weight_decay=1e-4),
    ("CIFAR", "T"): dict(epochs=300, batch_size=128, lr=0.1, schedule=[150, 225], weight_decay=5e-4),
}


def add_training(parser, weight_decay):
    """The flags that main.py has too; weight_decay: the defaults, as text."""
    add = parser.add_argument
    add("--schedule", nargs="*", type=epoch_or_word, metavar="EPOCH", help="epochs after which the learning rate "
        "falls by --gamma, or cosine, or onecycle (default: never for the LeNets, 150 225 for the others)")
    add("--gamma", type=cli.nonnegative, default=0.1, help="default: 0.1")
    add("--momentum", type=cli.nonnegative, default=0.9, help="momentum of SGD; the LeNets use Adam (default: 0.9)")
    add("--weight-decay", "--wd", type=cli.nonnegative, help=f"default: {weight_decay}")
    add("--holdout", type=int, default=0, metavar="N", help="hold the last N training images out as a validation set "
        "and report on it instead of on the test set, to choose other flags by")


def add_flags(parser):
    """All flags but --model and those of zeros.py and teacher.py."""
    cli.add_flags(parser, True, "300, LeNets: 100", "128, LeNets: 100", "0.1, LeNets: 1e-4", 12345678, cli.RECORDED)
    add_training(parser, "5e-4; LeNets 1e-4 after --rule V, 0 after T")


def flags():
    parser = cli.parser(__doc__)
    add_flags(parser)
    zeros.add_flags(parser)
    teacher.add_flags(parser)
    parser.add_argument("--model", metavar="FILE", required=True, help="pruned.pth.tar of prune.py")
    return parser


@torch.no_grad()
def hits(logits, labels):
    """{"top1": percent, "top5": percent} of one batch."""
    right = logits.topk(min(5, logits.shape[1])).indices.eq(labels[:, None]).float()
    return {"top1": 100 * right[:, 0].mean(), "top5": 100 * right.sum(1).mean()}


def optimizer_of(args, model):
    """Adam for the LeNets, SGD for the others."""
    if model.arch.startswith("lenet"):
        return torch.optim.Adam(model.parameters(), args.lr, weight_decay=args.weight_decay, fused=True)
    return torch.optim.SGD(model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay)


def finetune(args):
    """Fine-tunes args.model under its masks, into the folder args.save; args: those of `flags`."""
    ckpt = checkpoint.load(args.model, network, args.arch, args.depth, args.image_size)
    kept = zeros.kept(ckpt, args.keep_zeros, args.dense, needed=True)            # {parameter: bool}
    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    rule = ckpt["args"].get("rule")                          # other methods store a different "rule"
    args.rule = rule if rule in ("T", "V") else None
    kind = "LeNet" if ckpt["arch"].startswith("lenet") else "CIFAR"
    recipe = RECIPES.get((kind, args.rule), RECIPES[kind, "T"])
    vars(args).update({name: value for name, value in recipe.items() if getattr(args, name) is None})
    run = Run("hoyer", "finetuned", models.name(ckpt["arch"], ckpt["cfg"]), ckpt["dense"], **vars(args))

    say("--- Finetuning ---")
    model, masks, dataset, train, test = training.masked(run, ckpt, kept, holdout=args.holdout, **cli.data_flags(args))
    net = run.parallel(model)
    taught = teacher.load(run, args.teacher, args.ltea, network, dataset)
    parameters = dict(model.named_parameters())

    optimizer = optimizer_of(args, model)
    scheduler = make_scheduler(optimizer, args.schedule, args.gamma, args.epochs)
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
            optimizer.step()
            with torch.no_grad():
                for name, mask in masks.items():             # pruned weights stay zero
                    parameters[name].mul_(mask)
            run.track(loss=loss, **hits(logits.detach(), labels))
        scheduler.step()
        run.log(epoch, **evaluate(model, test))
        run.save(epoch, model, optimizer, scheduler, masks=kept or None)

    if run.rank == 0:                                        # the remaining small network
        small, small_masks = compact_masked(model, kept)
        dense = compute_flops.summary(compute_flops.dense_network(ckpt, model))
        print(f"{sparsity_report(model)}\n{compaction_report(model, small, dense)}")
        ckpt_small = run.checkpoint(small, epoch=args.epochs, masks=small_masks or None)
        print(f"wrote {checkpoint.save(run.folder / 'compact.pth.tar', ckpt_small)}")
    run.finish(model, "finetuned.pth.tar", masks=kept or None)


def main(argv=None):
    finetune(flags().parse_args(argv))


if __name__ == "__main__":
    cli.script(main)
