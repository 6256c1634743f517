"""Magnitude pruning: training the weights that are left, in six ways.

    python finetune.py --resume logs/cifar10-resnet56-pruned/pruned.pth.tar                         as the original
    python finetune.py --resume logs/cifar10-resnet56-pruned/pruned.pth.tar --retrain lr-rewind     better

Whatever the way, after every step each pruned weight is set back to zero,

    w <- mask * (w - rate * step)

so that neither momentum nor weight decay nor rounding revives one; the end of the run checks that none has moved.

    --retrain      starts from                  learning rate                       epochs (E: of the dense run)
    small          the pruned weights           0.001 throughout (Han et al.)       40
    onecycle       the pruned weights           up to 0.1 and down, batch by batch  40
    lr-rewind      the pruned weights           that of the dense run's last ones   E
    weight-rewind  the dense run at epoch k     that of the dense run from k on     E - k
    scratch-e      fresh weights                the dense run's                     E
    scratch-b      fresh weights                the dense run's, stretched          E x (dense MACs / sparse MACs)

weight-rewind takes its weights from --rewind-to: early.pth.tar of the dense run, or its init.pth.tar, the first weights
(k = 0), for the lottery ticket of Frankle & Carbin (ICLR 2019). Both ways to rewind: Renda, Frankle, Carbin, "Comparing
Rewinding and Fine-tuning in Neural Network Pruning", ICLR 2020. Scratch is the control: Liu, Sun, Zhou, Huang, Darrell,
"Rethinking the Value of Network Pruning", ICLR 2019.

    python finetune.py --iterative --percent 0.9 --resume DENSE --retrain lr-rewind --save DIR

prunes 20 % of what is left and retrains, again and again until 10 % are left.

--resume names the network to start from, as in the original; --model does so too, and then --resume means what it means
in every other script: with --model FILE --resume auto a command that was stopped goes on. Expect, for ResNet-56 on
CIFAR-10 with 10.7 % of its weights, 92.2 % with a small rate and 93.6 % with lr-rewind, dense 93.5 % (Renda et al.). An
epoch takes as long as a dense one.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import nn

from common import UserError, checkpoint, cli, compute_flops, data, models, originals
from common.evaluate import evaluate
from common.run import Run
from magnitude.networks import network
from magnitude.prune import add_rule, prune, recipe_of

SHORT = {"small": {"epochs": 40, "batch_size": 64, "lr": 0.001, "schedule": []},
         "onecycle": {"epochs": 40, "batch_size": 128, "lr": 0.1, "schedule": []}}
RULE = ("percent", "scope", "per_layer", "floor", "criterion", "faithful", "seed")
USUAL = {"batch_size": 64, "gamma": 0.1, "momentum": 0.9, "weight_decay": 1e-4}


def parse(argv=None):
    parser = cli.parser(__doc__)
    cli.add_flags(parser)                                # epochs, batch size and rate: see plan()
    add_rule(parser.add_argument_group("with --iterative, as in prune.py"))
    add = parser.add_argument
    add("-d", dest="dataset", default=argparse.SUPPRESS, help="--dataset")
    add("--save_dir", dest="save", default=argparse.SUPPRESS, help="--save")
    add("--model", metavar="FILE", help="the network to start from; --resume is then free for auto")
    add("-a", "--arch", help="compared with what the file holds")
    add("--depth", type=int)
    add("--retrain", choices=(*SHORT, "lr-rewind", "weight-rewind", "scratch-e", "scratch-b"), default="small")
    add("--rewind-to", metavar="FILE", help="of weight-rewind: early.pth.tar or init.pth.tar of the dense run")
    add("--iterative", action="store_true", help="prune a dense network to --percent step by step")
    add("--schedule", type=int, nargs="+", metavar="EPOCH", help="epochs at which the rate falls (of the dense run, "
        "where the rate is the dense run's)")
    add("--gamma", type=cli.nonnegative, help="factor by which it falls")
    add("--momentum", type=cli.nonnegative)
    add("--weight-decay", "--wd", type=cli.nonnegative)
    return parser.parse_args(argv)


def plan(args, recipe, start=0, stretch=1.0):
    """Fills in the epochs and the learning rate of the table above where no flag says otherwise.

    recipe: how the dense network was trained; start: the epoch whose weights come back; stretch: of scratch-b.
    UserError where the file does not tell the recipe, or has too few epochs.
    """
    given = {name: value for name in (*USUAL, "lr", "schedule", "epochs")
             if (value := getattr(args, name)) is not None}
    if args.retrain in SHORT:
        unused = [f"--{name}" for name in ("schedule", "gamma", "momentum") if name in given]
        if args.retrain == "onecycle" and unused:
            raise UserError(f"--retrain onecycle has a cycle of its own for rate and momentum; leave out {unused[0]}")
        vars(args).update({**USUAL, **SHORT[args.retrain], **given})
        return
    missing = [f"--{name}" for name in ("epochs", "lr", "schedule") if name not in {**recipe, **given}]
    if missing:
        raise UserError(f"the file does not say how its dense network was trained; give {', '.join(missing)}")
    dense, settings = recipe.get("epochs", args.epochs), {**USUAL, **recipe, **given}
    if args.retrain.startswith("scratch"):                   # the whole schedule, stretched to as many epochs
        epochs = args.epochs if "epochs" in recipe and args.epochs else round(dense * stretch)
        settings["schedule"] = [mark * epochs // dense for mark in settings["schedule"] if mark * epochs >= dense]
    else:                                                    # rewinding: from epoch `start` on, or the last epochs
        epochs = args.epochs or dense - start
        first = start if args.retrain == "weight-rewind" else dense - epochs
        if epochs < 1 or first < 0 or first + epochs > dense:
            raise UserError(f"the dense run had {dense} epochs, and {epochs} from epoch {first} on are none of them; "
                            "give other --epochs or another --rewind-to")
        settings["lr"] *= settings["gamma"] ** sum(mark <= first for mark in settings["schedule"])
        settings["schedule"] = [mark - first for mark in settings["schedule"] if mark > first]
    vars(args).update({**settings, "epochs": epochs})


@torch.no_grad()
def draw_fresh(model, masks):
    """What is left of a convolution is drawn from N(0, sqrt(2 / n)), n = weights left / channels read: its fan-out."""
    for name, m in model.named_modules():
        left = int(masks[f"{name}.weight"].sum()) if f"{name}.weight" in masks else 0
        if isinstance(m, nn.Conv2d) and left:
            nn.init.normal_(m.weight, 0, (2 * m.weight.shape[1] / left) ** 0.5)


@torch.no_grad()
def clear(parameters, pruned):
    """Sets the pruned weights to zero: pruned, {name: bool, True where the weight is gone}."""
    for name, gone in pruned.items():
        parameters[name].masked_fill_(gone, 0)


def main(argv=None):
    args = parse(argv)
    if not (args.model or args.resume):
        raise UserError("--resume FILE is needed: the pruned.pth.tar that prune.py wrote")
    if args.resume == "auto" and not (args.model or args.save):
        raise UserError("--resume auto goes on with the run in --save; give that folder, or --model")
    if (args.retrain == "weight-rewind") != bool(args.rewind_to):
        raise UserError("--retrain weight-rewind and --rewind-to FILE go together")
    if args.iterative:
        return iterate(args)
    if args.per_layer or args.floor or args.scope != "conv" or args.criterion != "magnitude":
        raise UserError("--scope, --per-layer, --floor and --criterion are for --iterative, or for prune.py")
    retrain(args)


def retrain(args):
    # --resume alone is the network to start from, or a checkpoint.pth.tar of this script to go on with
    source = args.model or (Path(args.save) / "checkpoint.pth.tar" if args.resume == "auto" else args.resume)
    ckpt = originals.load(source, network, args.arch, args.depth)
    if not args.model:
        if ckpt["method"] == "magnitude" and ckpt["stage"] == "finetuned" and "resume" in ckpt:
            args.model, args.save = ckpt["args"]["model"], args.save or str(Path(source).parent)
        else:
            args.model, args.resume = args.resume, ""
    if not ckpt.get("masks"):
        raise UserError(f"{source} holds no masks; prune it with prune.py first (a file that an original repository "
                        "pruned: with its --percent and --faithful)")
    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    name = f"{ckpt['arch']}{ckpt['cfg'].get('depth', '')}"
    args.save = args.save or f"logs/{Path(args.dataset).stem}-{name}-finetuned-{args.retrain}"
    run = Run(args, "magnitude", "finetuned", name, dense=ckpt["dense"])

    # network: where it starts from
    model, start, stretch = checkpoint.to_model(ckpt), 0, 1.0
    masks, recipe = ckpt["masks"], ckpt.get("recipe") or {}
    origin = {"masks": masks, "recipe": recipe, "rule": ckpt.get("rule")}
    if args.retrain == "weight-rewind":
        early = originals.load(args.rewind_to, network, args.arch, args.depth)
        checkpoint.fit(model, early["state_dict"], args.rewind_to)
        start = early["epoch"]
    elif args.retrain.startswith("scratch"):
        fresh = models.build(ckpt["arch"], **ckpt["cfg"]).state_dict()
        chosen = {name: w for name, w in model.state_dict().items() if name.endswith("select.indices")}
        model.load_state_dict({**fresh, **chosen})           # which channels a slimmed layer reads is no weight
        draw_fresh(model, masks)
    model = run.place(model)
    parameters = dict(model.named_parameters())
    pruned = {name: ~mask.to(run.device) for name, mask in masks.items()}
    clear(parameters, pruned)
    total = compute_flops.count(model).total
    if args.retrain == "scratch-b":                          # as many multiplications as the dense training had
        stretch = (ckpt["dense"] or {"macs": total.macs})["macs"] / total.sparse_macs
    plan(args, recipe, start, stretch)
    run.describe(model)
    zeros = sum(int(gone.sum()) for gone in pruned.values())
    falls = f", the rate falls after epochs {', '.join(map(str, args.schedule))}" if args.schedule else ""
    print(f"  {args.retrain}{falls}; {total.sparse_macs:,} sparse MACs\nZero parameters: {zeros}\n"
          f"Parameters: {total.params}", flush=True)
    net = run.parallel(model)

    # data
    lenet = ckpt["arch"].startswith("lenet")
    dataset = data.load(args.dataset, args.data_dir, lenet, args.subset)
    data.check_fit(dataset, model, source)
    train, test = run.loaders(dataset, crop=0 if lenet else 4, flip=not lenet)       # a mirrored digit is none

    # A fresh optimizer: the dense run's momentum would pull at weights that are gone.
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    if args.retrain == "onecycle":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=args.epochs * len(train),
                                                        pct_start=0.1, div_factor=10, final_div_factor=100)
    else:
        scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, args.schedule, args.gamma)
    run.resume(model, optimizer, scheduler, masks)

    for epoch in run.epochs(args.epochs):
        model.train()
        for images, labels in run.bar(train.epoch(epoch)):
            with run.autocast():
                loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            clear(parameters, pruned)                        # what was pruned stays zero
            if args.retrain == "onecycle":
                scheduler.step()
            run.track(loss=loss)
        if args.retrain != "onecycle":
            scheduler.step()
        run.log(epoch, **evaluate(model, test))
        run.save(epoch, model, optimizer, scheduler, **origin)

    moved = sum(int(parameters[name][gone].count_nonzero()) for name, gone in pruned.items())
    assert moved == 0, f"{moved} pruned weights are not zero any more"
    print(f"{zeros:,} weights are pruned, none of them has moved")
    run.finish(model, "finetuned.pth.tar", **origin)


def ladder(percent):
    """The shares pruned after each round: 20 % of what is left goes, until `percent` is reached."""
    left, shares = 1.0, []
    while 0.8 * left > 1 - percent + 1e-9:
        left *= 0.8
        shares.append(round(1 - left, 6))
    return [*shares, percent]


def iterate(args):
    """Rounds of prune() and retrain(), each in a folder of its own; finished ones are not repeated."""
    if not 0 <= args.percent < 1:
        raise UserError(f"--percent {args.percent:g} is not in [0, 1)")
    if args.retrain.startswith("scratch"):
        raise UserError(f"--iterative prunes what was trained, --retrain {args.retrain} draws new weights; choose one")
    goes_on, source = args.resume == "auto", args.model or args.resume
    if source == "auto":
        first = Path(args.save) / "round-01" / "pruned.pth.tar"
        if not first.exists():
            raise UserError(f"{args.save} holds no rounds to go on with; give the dense network as --model")
        source = checkpoint.load(first)["args"]["resume"]
    ckpt = originals.load(source, network, args.arch, args.depth)
    if ckpt["method"] == "magnitude" and ckpt["stage"] != "dense":
        raise UserError(f"{source} is {ckpt['stage']} already; --iterative starts from the dense network")
    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    name = f"{ckpt['arch']}{ckpt['cfg'].get('depth', '')}"
    args.save, args.model = args.save or f"logs/{Path(args.dataset).stem}-{name}-iterative-{args.retrain}", None
    start = originals.load(args.rewind_to, network, args.arch, args.depth)["epoch"] if args.rewind_to else 0
    plan(argparse.Namespace(**vars(args)), recipe_of(ckpt) or {}, start)                 # refuses what cannot be
    root, epochs, minutes, lines = Path(args.save), 0, 0.0, []
    earlier = [*root.glob("round-*/*.pth.tar"), *root.glob("finetuned.pth.tar")]
    if earlier and not goes_on and not args.overwrite:
        raise UserError(f"{root} already holds rounds; --resume auto goes on with them, --overwrite starts anew")
    for number, percent in enumerate(ladder(args.percent), 1):
        folder = root / f"round-{number:02}"
        pruned, tuned = folder / "pruned.pth.tar", folder / "finetuned.pth.tar"
        step = argparse.Namespace(**{**vars(args), "resume": str(source), "save": str(folder), "percent": percent})
        print(f"\nround {number}: {100 * percent:.2f} % pruned, in {folder}")
        if goes_on and pruned.exists():
            cut = made_with(pruned, step, RULE)
            if cut["cfg"] != ckpt["cfg"] or any(
                    not torch.equal(cut["state_dict"][name], weight * cut["masks"].get(name, 1))
                    for name, weight in ckpt["state_dict"].items()):
                raise UserError(f"{pruned} was not made from {source}; give the network that it was made from, or "
                                "another --save")
        else:
            prune(step)
            if number == 1:                                  # lest a later --resume auto takes them for its own
                for file in {*earlier} - {pruned}:
                    file.unlink()
        again = argparse.Namespace(**{**vars(args), "model": str(pruned), "resume": "auto", "save": str(folder),
                                      "percent": percent, "overwrite": False})
        if tuned.exists():
            plan(again, recipe_of(ckpt) or {}, start)
            made_with(tuned, again, (*RULE, "retrain", "rewind_to", "subset", "epochs", "lr", "schedule", *USUAL))
        else:
            retrain(again)
        source, ckpt = tuned, checkpoint.load(tuned)
        epochs, minutes = epochs + ckpt["epoch"], minutes + ckpt["run"]["minutes"]
        lines.append(f"{100 * percent:10.2f} % {checkpoint.load(pruned)['prec1']:12.2f} % {ckpt['prec1']:12.2f} %")
    print("\n".join(["", f"{'pruned':>12} {'accuracy cut':>14} {'retrained':>14}", *lines]))
    done = {k: v for k, v in ckpt.items() if k != "path"} | {"epoch": epochs}            # of all rounds together
    done["run"]["minutes"] = minutes
    print(f"wrote {checkpoint.save(root / 'finetuned.pth.tar', done)}")


def made_with(path, args, flags):
    """The checkpoint; UserError where it was made with other flags."""
    ckpt = checkpoint.load(path)
    other = [f"--{flag.replace('_', '-')} {ckpt['args'].get(flag)}" for flag in flags
             if ckpt["args"].get(flag) != getattr(args, flag)]
    if other:
        raise UserError(f"{path} was made with {', '.join(other)}; give the same, or another --save")
    return ckpt


if __name__ == "__main__":
    cli.script(main)
