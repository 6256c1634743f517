"""The original's launcher: dense training, the reweighted phase, pruning and masked retraining, one after the other.

    python training/main.py                         all four, in logs/cifar100-mobilenetv2_1.3/
    python training/main.py --rew                   the reweighted phase alone, from dense/ there or from --pretrained
    python training/main.py --masked-retrain        pruning and retraining alone, from reweighted/ there

It calls main.py, prune.py and finetune.py of this method with the original's flags; --resume auto continues a stopped
phase and skips finished ones, --pretrained FILE skips dense training. Expect three phases of 300 epochs.
"""
import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from common import UserError, cli, models, zeros
from common.files import checkpoint
from reweighted import finetune, main, penalties, prune, recipe
from reweighted.networks import network

PROFILES = Path(__file__).resolve().parent.parent / "profile"
# flags of the original that are always on here, that its flag with the number overwrote, or that had no effect there
NO_EFFECT = ("--warmup", "--mixup", "--smooth", "--combine-progressive", "--logger", "--verbose")
NO_EFFECT_WITH_NUMBER = ("--workers", "--log-interval", "--s", "--lr-decay")


def parse(argv=None):
    parser = cli.parser(__doc__, epochs=recipe.LENGTH, batch_size=64, lr=0.001,
                        arch="any network of common/models (default: mobilenetv2, or that of --pretrained)")
    recipe.add_recipe(parser)
    add = parser.add_argument
    add("--width", type=float, help="width multiplier of mobilenetv2 (default: 1.3)")
    add("--pretrained", "--model", metavar="FILE", help="a dense network of any method")
    zeros.add_flags(parser)
    phase = parser.add_mutually_exclusive_group().add_argument
    phase("--rew", action="store_true", help="run the reweighted phase alone")
    phase("--masked-retrain", action="store_true", help="run pruning and masked retraining alone")
    add("--sparsity-type", choices=("threshold", *penalties.GROUPS), help="irregular, filter, column or kernel in the "
        "reweighted phase; with --masked-retrain threshold, or the kind of which --config-file gives the ratios "
        "(default: irregular, then threshold)")
    add("--config-file", metavar="NAME", help="profile/NAME.yaml, or a file: a ratio for each layer, 0 for untouched")
    add("--lam", type=cli.nonnegative, help="lambda, as in main.py")
    add("--threshold", type=cli.nonnegative, help="threshold of prune.py (default: 1e-4)")
    add("--no-tricks", action="store_true", help="--lr-scheduler default, no warm-up, no mixup, no smoothing")
    add("--no-cuda", dest="device", action="store_const", const="cpu", help="--device cpu")
    add("--multi-gpu", action="store_true", help="refused: torchrun does that, see README.md")
    for flag in NO_EFFECT:
        add(flag, action="store_true", help=argparse.SUPPRESS)
    for flag in NO_EFFECT_WITH_NUMBER:
        add(flag, *(["-j"] if flag == "--workers" else []), type=float, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def run(args):
    if args.multi_gpu:
        raise UserError("--multi-gpu is not needed: torchrun --nproc-per-node N main.py (or finetune.py) trains on N")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not args.rew:
        raise UserError("several processes run one phase at a time: main.py, main.py --rew and finetune.py with "
                        "torchrun, prune.py between them without")
    if args.resume not in ("", "auto"):
        raise UserError("use --resume auto here: it continues the phases in --save")
    if args.no_tricks:
        vars(args).update(lr_scheduler="default", warmup_epochs=0, alpha=0.0, smooth_eps=0.0)
    folder_of = Path(args.dataset or ("pretrained" if args.pretrained else "cifar100")).stem
    if not (args.dataset or args.pretrained or args.rew or args.masked_retrain):
        args.dataset = "cifar100"                            # else it is that of the network to begin with
    arch, cfg = network(args.arch or "mobilenetv2", args.depth, args.width)
    if not args.save:
        name = Path(args.pretrained).stem.partition(".")[0] if args.pretrained else models.name(arch, cfg)
        args.save = f"logs/{folder_of}-{name}"
    folder, everything = Path(args.save), not (args.rew or args.masked_retrain)
    kind = args.sparsity_type or "irregular"
    if args.sparsity_type in ("threshold", "channel") and not args.masked_retrain:
        raise UserError(f"--sparsity-type {kind} is for --masked-retrain; give that, or one of the reweighted phase: "
                        f"{', '.join(penalties.LAMBDA)}")

    dense, sparse = args.pretrained or folder / "dense" / "checkpoint.pth.tar", folder / "reweighted/checkpoint.pth.tar"
    if everything and not args.pretrained:
        title("dense training")
        main.train(cli.settings(main, args, rew=False, sparsity_type="irregular", lam=None, save=f"{folder}/dense"))
    if not args.masked_retrain:
        title("reweighted L1")
        main.train(cli.settings(main, args, rew=True, pretrained=str(dense), sparsity_type=kind, arch=None, depth=None,
                                width=None, save=f"{folder}/reweighted"))
    if not args.rew:
        title("pruning")
        pruned = folder / "pruned" / "pruned.pth.tar"
        if args.resume and pruned.exists():
            had = checkpoint.load(pruned)["args"]
            if other := [f"{name} {had.get(name)}" for name, value in rule(args).items() if had.get(name) != value and (
                    name != "sparsity_type" or value)]:
                raise UserError(f"{pruned} was made with {', '.join(other)}; give the same, or another --save")
            print(f"{pruned} is there already")
        else:
            prune.prune(cli.settings(prune, args, model=str(sparse), arch=None, depth=None, save=str(pruned.parent),
                                     **rule(args)))
        title("masked retraining")
        finetune.retrain(cli.settings(finetune, args, model=str(pruned), arch=None, depth=None,
                                      dense=False, keep_zeros=False, save=f"{folder}/retrained"))


def rule(args):
    """How prune.py is to choose: by threshold, or the ratios of --config-file for the kind of --sparsity-type."""
    ratios = args.config_file
    if ratios and not Path(ratios).is_file():
        ratios = str(PROFILES / f"{ratios}.yaml")
    if not args.masked_retrain or args.sparsity_type in (None, "threshold"):
        threshold = 1e-4 if args.threshold is None else args.threshold
        return {"threshold": threshold, "ratios": ratios, "sparsity_type": None}
    if not ratios:
        raise UserError(f"--masked-retrain --sparsity-type {args.sparsity_type} needs a --config-file with the ratios")
    if args.threshold is not None:
        raise UserError("the ratios of --config-file determine how many weights are pruned; leave out --threshold")
    return {"threshold": None, "ratios": ratios, "sparsity_type": args.sparsity_type}


def title(text):
    print(f"\n== {text}", flush=True)


if __name__ == "__main__":
    cli.script(lambda: run(parse()))
