"""Magnitude pruning in rounds: prune 20 % of the remaining weights, retrain, and repeat until --percent are pruned.

    python iterative.py --model DENSE --percent 0.9 --retrain lr-rewind --save DIR --resume auto

The fraction pruned after round r is

    1 - 0.8^r,  and --percent in the last round

(Frankle & Carbin, ICLR 2019; Renda, Frankle, Carbin, ICLR 2020; Han et al., NIPS 2015, prune in rounds too). A round is
one call of prune.py and one of finetune.py (--retrain small or onecycle) or rewind.py (lr-rewind or weight-rewind), in
DIR/round-01, DIR/round-02, ...; DIR/finetuned.pth.tar is the last round's network. --resume auto continues a stopped
command; finished rounds are not repeated.

Expect as many trainings as rounds: 11 for 90 %. At high sparsity the accuracy is above that of pruning all at once.
"""
import copy
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from common import UserError, cli, models
from common.files import checkpoint, lock
from magnitude import finetune, prune, rewind
from magnitude.main import recipe_of
from magnitude.networks import network

RULE = ("percent", "scope", "per_layer", "criterion", "faithful", "seed")
TRAINING = ("retrain", "rewind_to", "subset", "epochs", "lr", "schedule", "batch_size", "gamma", "momentum",
            "weight_decay")


def parse(argv=None):
    parser = cli.parser(__doc__)
    rewind.add_flags(parser, (*finetune.RECIPES, "lr-rewind", "weight-rewind"))
    rule = parser.add_argument_group("which weights are pruned, as in prune.py")
    rule.add_argument("--percent", type=cli.fraction, default=0.6, help="fraction of the weights that are zero after "
                      "the last round (default: 0.6)")
    prune.add_rule(rule, rule)
    args = parser.parse_args(argv)
    rewind.check(args)
    return args


def ladder(percent):
    """The fraction pruned after each round: 20 % of the rest, until `percent` is reached."""
    rest, fractions = 1.0, []
    while 0.8 * rest > 1 - percent + 1e-9:
        rest *= 0.8
        fractions.append(round(1 - rest, 6))
    return [*fractions, percent]


def start_from(args):
    """The path of the dense network; with --resume auto alone, the one that the rounds in --save started from."""
    if args.model or args.resume != "auto":
        return args.model or args.resume
    first = Path(args.save) / "round-01" / "pruned.pth.tar"
    if not first.exists():
        raise UserError(f"{args.save} holds no rounds to continue; give the dense network as --model")
    return checkpoint.load(first)["args"]["resume"]


def made_with(path, args, flags):
    """The checkpoint of an earlier round; UserError if it was made with other flags."""
    ckpt = checkpoint.load(path)
    other = [f"--{flag.replace('_', '-')} {ckpt['args'].get(flag)}" for flag in flags
             if ckpt["args"].get(flag) != vars(args).get(flag)]
    if other:
        raise UserError(f"{path} was made with {', '.join(other)}; give the same, or another --save")
    return ckpt


def check_origin(pruned, ckpt, source):
    """UserError if `pruned`, a checkpoint, is not the network `ckpt` of the file `source` under masks."""
    masks = pruned["masks"]
    if pruned["cfg"] != ckpt["cfg"] or any(not torch.equal(pruned["state_dict"][name], weight * masks.get(name, 1))
                                           for name, weight in ckpt["state_dict"].items()):
        raise UserError(f"{pruned['path']} was not made from {source}; give the network that it was made from, or "
                        "another --save")


def plan(args, dense, k):
    """Fills in flags that are not given, as the training will; UserError if it could not run. dense: checkpoint of the
    network to prune; k: the epoch to rewind to.
    """
    if args.retrain in rewind.WAYS:
        rewind.plan(args, recipe_of(dense) or {}, k)
    else:
        finetune.fill_in(args, finetune.RECIPES[args.retrain])


def main(argv=None):
    args = parse(argv)
    try:
        iterate(args)
    except KeyboardInterrupt:                                # replace the message, which names the round's folder
        started = args.save and (Path(args.save) / "round-01" / "pruned.pth.tar").exists()
        cli.when_stopped = f"stopped; --save {args.save} --resume auto continues" if started else "stopped"
        raise


def iterate(args):
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("iterative.py runs in one process; start it without torchrun")
    source = start_from(args)
    ckpt = checkpoint.load(source, network, args.arch, args.depth, args.image_size)
    if ckpt["method"] == "magnitude" and ckpt["stage"] != "dense":
        raise UserError(f"{source} is {ckpt['stage']} already; the rounds start from the dense network")
    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    args.save = args.save or cli.default_folder(args.dataset, models.name(ckpt["arch"], ckpt["cfg"]),
                                            f"magnitude-iterative-{args.retrain}")
    k = checkpoint.load(args.rewind_to, network, args.arch, args.depth)["epoch"] if args.rewind_to else 0
    plan(copy.copy(args), ckpt, k)                           # validates the plan before starting
    script = rewind if args.retrain in rewind.WAYS else finetune
    root, continues, epochs, minutes, lines = Path(args.save), args.resume == "auto", 0, 0.0, []
    earlier = [*root.glob("round-*/*.pth.tar"), *root.glob("finetuned.pth.tar")]
    if earlier and not continues and not args.overwrite:
        raise UserError(f"{root} already holds rounds; --resume auto continues them, --overwrite starts again")
    lock.take(root)

    for number, percent in enumerate(ladder(args.percent), 1):
        folder = root / f"round-{number:02}"
        pruned, tuned = folder / "pruned.pth.tar", folder / "finetuned.pth.tar"
        print(f"\nround {number}: {100 * percent:.2f} % pruned, in {folder}")
        step = cli.settings(prune, args, resume=str(source), save=str(folder), percent=percent)
        was_pruned = continues and pruned.exists()
        if was_pruned:
            check_origin(made_with(pruned, step, RULE), ckpt, source)
        else:
            prune.prune(step, "iterative")
            if number == 1:                                  # so that a later --resume auto does not read them
                for file in {*earlier} - {pruned}:
                    file.unlink()
        again = cli.settings(script, args, model=str(pruned), resume="auto", save=str(folder), overwrite=False)
        if was_pruned and tuned.exists():
            plan(again, ckpt, k)
            made_with(tuned, again, TRAINING)
            lock.take(folder)                                # nobody writes there; removes a killed run's lock
            lock.release(folder)
        else:
            script.retrain(again)
        source, ckpt = tuned, checkpoint.load(tuned)
        epochs, minutes = epochs + ckpt["epoch"], minutes + ckpt["run"]["minutes"]
        lines.append(f"{100 * percent:10.2f} % {checkpoint.load(pruned)['prec1']:12.2f} % {ckpt['prec1']:12.2f} %")

    print("\n".join(["", f"{'pruned':>12} {'accuracy cut':>14} {'retrained':>14}", *lines]))
    done = {key: value for key, value in ckpt.items() if key != "path"} | {"epoch": epochs}  # of all rounds together
    done["run"]["minutes"] = minutes
    print(f"wrote {checkpoint.save(root / 'finetuned.pth.tar', done)}")
    lock.release(root)


if __name__ == "__main__":
    cli.script(main)
