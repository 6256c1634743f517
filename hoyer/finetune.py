"""DeepHoyer: training the weights that are left, with the zeros fixed and the penalty off.

    python finetune.py --model logs/mnist-lenet300-pruned/pruned.pth.tar

After every step the pruned entries are set back to zero by the masks that prune.py stored,

    w <- w - step,    w <- w * mask,

so that neither Adam's or SGD's momentum nor weight decay revives them. The last epoch's network is finetuned.pth.tar,
what is left of it when dead neurons, filters, channels and pixels are taken out is compact.pth.tar (see compact.py).

The original's prun_tune_T.py, prun_tune_V.py and cifar_prun_tune.py prune first, then fine-tune, and name the result
after the model:

    python prun_tune_T.py --model saves/elt_0.0001_3 --sensitivity 0.01       writes saves/elt_0.0001_3_T_0.01.pth

A model that was pruned and fine-tuned can be pruned further in the same way. README.md has what the LeNets lost, at
which sparsity; the time is that of training, epoch by epoch.
"""
import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from common import UserError, checkpoint, cli, data, originals
from common.evaluate import evaluate
from common.run import Run, output_folder
from hoyer import prune
from hoyer.compact import compact, compaction_report, sparsity_report
from hoyer.main import add_flags, apply_recipe, hits, pictures, read_flags, scheduler_of, test_line
from hoyer.networks import find, network, stem

LENET = dict(epochs=100, batch_size=100, lr=1e-4, weight_decay=0.0, schedule=[])
CIFAR = dict(epochs=300, batch_size=128, lr=0.1, weight_decay=5e-4, schedule=[150, 225])
SENSITIVITY = {"prun_tune_T": 1e-3, "prun_tune_V": 0.25, "cifar_prun_tune": 1e-4}


def parse(argv, script):
    parser = cli.parser(__doc__)
    add_flags(parser)
    if script:
        prune.add_flags(parser, SENSITIVITY[script])
        parser.add_argument("-e", "--evaluate", action="store_true", help="stop after pruning")
    else:
        parser.add_argument("--model", metavar="FILE", required=True, help="the pruned.pth.tar that prune.py wrote")
    parser.add_argument("--faithful", action="store_true", help="the best epoch on the test set is the result, as in "
        "the original's prun_tune_V and cifar_prun_tune; the former with its 50 epochs at 1e-3")
    return read_flags(parser, argv)


def prune_first(args, script):
    """The pruning half of the original scripts: prunes args.model into args.save, and makes that the args.model."""
    source = args.model = find(args.model)
    args.rule = "V" if script == "prun_tune_V" else "T"
    kind = "".join(f"_{word}" for word in (args.granularity, args.criterion) if word not in ("element", "magnitude"))
    if script == "cifar_prun_tune":
        args.save = args.save or str(Path(source).parent / f"finetune_{args.sensitivity}{kind}")
    args.save = args.save or f"{stem(source)}_{args.rule}_{args.sensitivity}{kind}"
    output_folder(args.save, args.overwrite, args.resume)
    pruned, names = Path(args.save) / "pruned.pth.tar", ("model", "rule", "sensitivity", "granularity", "criterion")
    if args.resume and pruned.exists():                      # what the run that goes on was pruned to
        was = checkpoint.load(pruned)["args"]
        changed = [f"--{name} {was.get(name)}" for name in names if was.get(name) != getattr(args, name)]
        if changed:
            raise UserError(f"{pruned} was pruned with {', '.join(changed)}; give the same, or another --save")
        args.model = str(pruned)
    else:
        args.model = str(prune.prune(argparse.Namespace(**vars(args))))


def main(argv=None, script=None):
    """script: prun_tune_T, prun_tune_V or cifar_prun_tune, for the original script of that name."""
    args = parse(argv, script)
    if script:
        prune_first(args, script)
        if args.evaluate:
            return
    ckpt = originals.load(find(args.model), network, args.arch, args.depth)
    if not ckpt.get("masks"):
        raise UserError(f"{args.model} holds no masks; prune it with prune.py first")
    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    lenet = ckpt["arch"].startswith("lenet")
    recipe = LENET if lenet else CIFAR
    if script == "prun_tune_V":
        recipe = recipe | {"weight_decay": 1e-4} | ({"epochs": 50, "lr": 1e-3} if args.faithful else {})
    apply_recipe(args, recipe)
    run = Run(args, "hoyer", "finetuned", f"{ckpt['arch']}{ckpt['cfg'].get('depth', '')}", ckpt["dense"])

    # data
    dataset = pictures(args, ckpt["arch"])
    train, test = run.loaders(dataset) if lenet else run.loaders(dataset, crop=4, flip=True)

    # network
    model = run.place(checkpoint.to_model(ckpt))
    data.check_fit(dataset, model, args.model)
    print("--- Finetuning ---")
    run.describe(model)
    net = run.parallel(model)
    parameters = dict(model.named_parameters())
    masks = {name: mask.to(run.device) for name, mask in ckpt["masks"].items()}

    if lenet:
        optimizer = torch.optim.Adam(model.parameters(), args.lr, weight_decay=args.weight_decay, fused=True)
    else:
        optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    scheduler = scheduler_of(optimizer, args)
    run.resume(model, optimizer, scheduler, masks)

    for epoch in run.epochs(args.epochs):
        model.train()
        for images, labels in run.bar(train.epoch(epoch)):
            with run.autocast():
                logits = net(images)
                loss = F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for name, mask in masks.items():             # zeros stay zero
                    parameters[name].mul_(mask)
            run.track(loss=loss, **hits(logits.detach(), labels))
        scheduler.step()
        run.log(epoch, **evaluate(model, test))
        run.save(epoch, model, optimizer, scheduler, masks=ckpt["masks"])

    if args.faithful and script != "prun_tune_T":
        model.load_state_dict(checkpoint.load(run.folder / "model_best.pth.tar")["state_dict"])
        run.prec1 = run.best
    print(test_line(evaluate(model, test), len(dataset.y_test), args))
    if run.rank == 0:
        small = compact(model)
        print(f"{sparsity_report(model)}\n{compaction_report(model, small, ckpt['dense'])}")
        path = checkpoint.save(run.folder / "compact.pth.tar", run.checkpoint(small, epoch=args.epochs))
        print(f"wrote {path}")
    run.finish(model, "finetuned.pth.tar", masks=ckpt["masks"])
    if run.rank == 0 and script in ("prun_tune_T", "prun_tune_V"):
        shutil.copyfile(run.folder / "finetuned.pth.tar", f"{args.save}.pth")
        print(f"wrote {args.save}.pth")


if __name__ == "__main__":
    cli.script(main)
