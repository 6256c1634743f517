"""All five methods on one network, one data set and one budget: the commands, run in turn, and one table and plot.

    bash run_all.sh compare --dry-run             the commands, with an estimate of their time
    bash run_all.sh compare                       runs them; a comparison that was stopped continues
    bash run_all.sh compare slimming hoyer        the dense networks and these alone, such as for two at once
    bash run_all.sh compare --jobs 16             so many commands at once, for a GPU that one small network leaves idle
    bash run_all.sh compare --table               only the table and plot, of what is finished

Every method starts from the same dense network, DENSE, and has EPOCHS further epochs, half of them with its penalty and
half to fine-tune, all of them to fine-tune if it has none; batch size, weight decay and learning-rate schedule are the
same. Each method is pruned to the same budget. To compare with: the dense network after EPOCHS more, and random masks
and channels, fine-tuned for all epochs, or for half of them after dense training. The group "small" fine-tunes some of
these networks once more, from before fine-tuning, with a small learning rate.
Everything is in logs/compare/. Files made with other settings are neither used nor shown; the script names them, to be
removed by hand. The README's plot and table are of a copy of its comparison.csv here.
"""
import csv
import os
import sys
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import torch

from common import UserError, cli, compute_flops, data, models
from common.device import device_of, hardware
from common.evaluate import evaluate
from common.files import checkpoint
from deploy.measure import text
from magnitude.networks import network
from results import summary
from results.comparison import tables
from results.comparison.stages import Stage, run, up_to_date

# ---- what is compared
DATASET, ARCH, EPOCHS, SEEDS = "cifar10", "resnet20", 20, (1,)
DENSE = "data/resnet20-12fca82f.th"                          # the dense network; "" trains one of DENSE_EPOCHS a seed
FROM = "https://github.com/akamaster/pytorch_resnet_cifar10/tree/master/pretrained_models"
DENSE_EPOCHS, DENSE_LR = 20, 0.3
WEIGHTS = (0.1, 0.05)                                        # fractions of the weights that are left
MACS = (0.5, 0.73)                                           # fractions of the MACs that are left
CHAIN = (0.5, 0.1)                                           # MACs left by slimming, one of MACS; then weights left
RECIPE = f"--dataset {DATASET} --batch-size 128 --weight-decay 5e-4"
LR, SMALL_LR = 0.1, 0.01                                     # peaks of the learning-rate cycles
ADAM_OFF = "--optmzr sgd --alpha 0 --smooth-eps 0"           # reweighted with the recipe of the others
# Chosen on the last 5,000 training images, at 10 % of the weights and half the MACs; see the README.
SLIMMING, HOYER_SQUARE, GROUP_HS, REWEIGHTED, FILTERS = "3e-4", "3e-5", "1e-3", "1e-5", "2e-3"
CHANNEL_MASKS, WEIGHT_MASKS = ("--wg 4 --tw 16 --wme 0 --swa-start 999",             # 999: never averaged
                               "--wg 1000 --tw 4000 --wme 0 --swa-start 999")
SECONDS, SECONDS_MACS = 70, 40_551_040                       # an epoch of ResNet-20, one core of an AMD EPYC, in bf16
FOLDER = "logs/compare"
# ----

SMALL = ("magnitude", "random masks", "network slimming", "random channels", "random channels, half fine-tuning")
ALL = ("magnitude", "random", "reweighted", "hoyer", "softmask", "slimming", "chain", "small")


def stages(seed):
    """All stages of one seed in order: what is most worth knowing first."""
    d, half, made = f"{FOLDER}/seed{seed}", EPOCHS // 2, []
    rest = EPOCHS - half
    again = f"--lr {LR} --seed {seed} --resume auto"
    cycle, dense = "--schedule onecycle", DENSE or f"{d}/dense/checkpoint.pth.tar"
    sgd = f"{ADAM_OFF} --lr-scheduler onecycle"

    def add(group, script, flags, reads, save, file, epochs=0, row="", **asked):
        flags = f"{flags} --epochs {epochs}" if epochs else f"{flags} --dataset {DATASET} --overwrite"
        command = f"python {script} {flags} --save {d}/{save}"
        made.append(Stage(group, command, reads, f"{d}/{save}/{file}", epochs, row, seed=seed, **asked))
        return made[-1].makes

    def train(group, script, flags, save, epochs=half, row=""):
        return add(group, script, f"{RECIPE} --pretrained {dense} {flags} {again}", dense, save, "checkpoint.pth.tar",
                   epochs, row)

    def prune(group, script, flags, model, save, file="pruned.pth.tar"):
        return add(group, script, f"--model {model} {flags}", model, save, file)

    def tune(group, script, flags, model, save, row, epochs=rest, file="finetuned.pth.tar", **asked):
        return add(group, script, f"{RECIPE} {flags} {model} {again}", model, save, file, epochs, row, **asked)

    if DENSE:
        made.append(Stage("", "", "", DENSE, row="dense"))
    else:
        add("", "magnitude/main.py", f"{RECIPE} --arch {ARCH} {cycle} --lr {DENSE_LR} --seed {seed} --resume auto", "",
            "dense", "checkpoint.pth.tar", DENSE_EPOCHS, "dense")
    train("", "magnitude/main.py", cycle, "more", EPOCHS, "dense, same extra training")

    for number, (weights, macs) in enumerate(zip_longest(WEIGHTS, MACS)):
        if weights:
            w, kept, asked = f"{100 * weights:g}", f"--keep-weights {weights:g}", {"weights": round(100 * weights, 6)}
            for name, criterion in (("magnitude", "magnitude"), ("random", f"random --seed {seed}")):
                file = prune(name, "magnitude/prune.py", f"{kept} --criterion {criterion}", dense, f"{name}-{w}/pruned")
                tune(name, "magnitude/finetune.py", f"{cycle} --model", file, f"{name}-{w}",
                     "random masks" if name == "random" else "magnitude", EPOCHS, **asked)
            if not number:
                train("reweighted", "reweighted/main.py", f"--rew {sgd} --lam {REWEIGHTED}", "reweighted")
                train("hoyer", "hoyer/main.py", f"--reg hs --decay {HOYER_SQUARE} {cycle}", "hs")
            file = prune("reweighted", "reweighted/prune.py", kept, f"{d}/reweighted/checkpoint.pth.tar",
                         f"reweighted-{w}/pruned")
            tune("reweighted", "reweighted/finetune.py", f"{sgd} --model", file, f"reweighted-{w}", "reweighted L1",
                 **asked)
            file = prune("hoyer", "hoyer/prune.py", kept, f"{d}/hs/checkpoint.pth.tar", f"hs-{w}/pruned")
            tune("hoyer", "hoyer/finetune.py", f"{cycle} --model", file, f"hs-{w}", "Hoyer-Square", **asked)
            file = train("softmask", "softmask/main.py", f"--nfp --target {1 - weights:.4g} {WEIGHT_MASKS} {cycle}",
                         f"nfp-{w}/masks")
            file = prune("softmask", "softmask/prune.py", kept, file, f"nfp-{w}/pruned", "pruned_model.pth.tar")
            tune("softmask", "softmask/finetune.py", f"{cycle} --pruned", file, f"nfp-{w}", "soft mask", **asked)
        if macs:
            m, kept, asked = f"{100 * macs:g}", f"--keep-macs {macs:g}", {"macs": round(100 * macs, 6)}
            if not number:
                filters = f"--rew {sgd} --lam {FILTERS} --sparsity-type filter"
                train("reweighted", "reweighted/main.py", filters, "filters")
                train("hoyer", "hoyer/main.py", f"--reg group-hs --decay {GROUP_HS} {cycle}", "group-hs")
                train("slimming", "slimming/main.py", f"-sr --s {SLIMMING} {cycle}", "slimming")
                train("random", "magnitude/main.py", cycle, "half")
            file = prune("slimming", "slimming/prune.py", kept, f"{d}/slimming/checkpoint.pth.tar",
                         f"slimming-{m}/pruned")
            slim = tune("slimming", "slimming/finetune.py", f"{cycle} --refine", file, f"slimming-{m}",
                        "network slimming", **asked)
            file = prune("hoyer", "hoyer/prune.py", f"{kept} --granularity channel",
                         f"{d}/group-hs/checkpoint.pth.tar", f"group-hs-{m}/pruned")
            tune("hoyer", "hoyer/finetune.py", f"{cycle} --model", file, f"group-hs-{m}", "group-HS",
                 file="compact.pth.tar", **asked)
            file = prune("reweighted", "reweighted/prune.py", kept, f"{d}/filters/checkpoint.pth.tar",
                         f"filters-{m}/pruned")
            tune("reweighted", "reweighted/finetune.py", f"{sgd} --model", file, f"filters-{m}",
                 "reweighted L1 of filters", **asked)
            file = train("softmask", "softmask/main.py", f"--pflops --target {1 - macs:.4g} {CHANNEL_MASKS} {cycle}",
                         f"masks-{m}/masks")
            file = prune("softmask", "softmask/prune.py", kept, file, f"masks-{m}/pruned", "pruned_model.pth.tar")
            tune("softmask", "softmask/finetune.py", f"{cycle} --pruned", file, f"masks-{m}", "soft mask of channels",
                 **asked)
            for name, start, epochs, row in (
                    ("random-channels", dense, EPOCHS, "random channels"),
                    ("random-half", f"{d}/half/checkpoint.pth.tar", rest, "random channels, half fine-tuning")):
                file = prune("random", "slimming/prune.py", f"{kept} --criterion random --seed {seed}", start,
                             f"{name}-{m}/pruned")
                tune("random", "slimming/finetune.py", f"{cycle} --refine", file, f"{name}-{m}", row, epochs, **asked)
            if CHAIN and macs == CHAIN[0]:                   # one method reads the other's file
                asked["weights"] = round(100 * CHAIN[1], 6)
                file = prune("chain", "magnitude/prune.py", f"--keep-weights {CHAIN[1]:g}", slim, "chain/pruned")
                file = tune("chain", "magnitude/finetune.py", f"{cycle} --model", file, "chain",
                            "slimming, then magnitude", EPOCHS, **asked)
                add("chain", "softmask/quantize_model.py", f"--pruned {file} --wbit 8", file, "chain/8bit",
                    "quantized_model.pth.tar", row="slimming, then magnitude, then 8 bits", **asked)
    first = {*((round(100 * w, 6), 0) for w in WEIGHTS[:1]), *((0, round(100 * m, 6)) for m in MACS[:1])}
    for stage in list(made):                                 # where the choice must carry the result
        if stage.row in SMALL and (stage.weights, stage.macs) in first:
            command = stage.command.replace(f"--lr {LR} ", f"--lr {SMALL_LR} ")
            made.append(replace(stage, group="small", command=f"{command}-small",
                                makes=f"{stage.folder}-small/finetuned.pth.tar"))
    return made


def further_epochs(stage, makers):
    """Epochs of the stage's network after the dense one; makers: {file: its stage}."""
    return 0 if stage.row == "dense" else stage.epochs + further_epochs(makers[stage.reads], makers)


def seconds_an_epoch(todo):
    """What an epoch of the first network took here; before there is one SECONDS, more for larger networks."""
    log = next(stage for stage in todo if stage.epochs).folder / "log.csv"
    if not log.exists():
        arch, cfg = network(ARCH, None)
        return SECONDS * compute_flops.count(models.build(arch, **cfg)).total.macs / SECONDS_MACS
    with open(log, newline="") as file:
        times = sorted(float(row["seconds"]) for row in csv.DictReader(file))
    return times[len(times) // 2]


def parse(argv=None):
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("groups", nargs="*", metavar="METHOD", help=f"{', '.join(ALL)} (default: all)")
    add("--dry-run", action="store_true", help="print the commands and how long they will take")
    add("--jobs", type=cli.positive, default=1, metavar="N", help="commands at once (default 1); more than one print "
        "into FOLDER.txt beside their folders")
    add("--table", action="store_true", help="run nothing; the table and plot of what is finished")
    add("--data-dir", type=os.path.abspath, help="folder of the data sets (default: $DATA_DIR, else data/ in the "
        "repository)")
    args = parser.parse_args(argv)
    unknown = [group for group in args.groups if group not in ALL]
    if unknown:
        raise UserError(f"{unknown[0]} is not one of {', '.join(ALL)}")
    return args


def dense_file(data_dir, device):
    """The checkpoint of DENSE, with its accuracy on the test set."""
    ckpt = checkpoint.load(DENSE, network, ARCH)
    model = checkpoint.to_model(ckpt).to(device)
    dataset = data.for_network(model, DENSE, DATASET, data_dir)
    return ckpt | {"dataset": DATASET, "prec1": evaluate(model, data.Loader(dataset, "test", 256, device))["top1"]}


def chosen(everything, groups):
    """The stages of these groups, of all where there are none, and those that they read."""
    made, needed = [], set()
    for stage in reversed(everything):
        if not groups or stage.group in ("", *groups) or stage.makes in needed:
            made.append(stage)
            needed.add(stage.reads)
    return made[::-1]


def main(argv=None):
    args = parse(argv)
    if EPOCHS < 2:
        raise UserError(f"EPOCHS = {EPOCHS}: a penalty and fine-tuning need one each")
    if CHAIN and CHAIN[0] not in MACS:
        raise UserError(f"CHAIN begins with {CHAIN[0]:g} of the MACs, which is not in MACS; () leaves the chain out")
    os.chdir(ROOT)                                           # where the commands and their folders are
    everything = [stage for seed in SEEDS for stage in stages(seed)]
    todo = chosen(everything, args.groups)
    if not args.dry_run and DENSE and not Path(DENSE).exists():
        raise UserError(f"{DENSE} is not there; {FROM} has it, and DENSE = '' in {Path(__file__).name} trains one")
    todo = [stage for stage in todo if stage.command]
    if args.dry_run:
        an_epoch, done = seconds_an_epoch(todo), up_to_date(everything)
        for stage in todo:
            print(f"{'finished' if stage in done else f'{stage.epochs * an_epoch / 60:5.0f} min'}  {stage.command}")
        hours = an_epoch / 3600 * sum(stage.epochs for stage in todo if stage not in done)
        print(f"{len(todo)} commands, about {hours:.1f} hours one after the other at {an_epoch:.0f} seconds an epoch")
        return
    failed = [] if args.table else run(todo, args.data_dir, seconds_an_epoch(todo), args.jobs)
    device, rows = device_of(None), [stage for stage in up_to_date(everything) if stage.row]
    if rows:
        makers = {stage.makes: stage for stage in everything}
        measured = summary.measure([checkpoint.load(stage.makes, quantized=True) if stage.command else
                                    dense_file(args.data_dir, device) for stage in rows], device)
        for row, stage in zip(measured, rows, strict=True):
            row |= {"name": stage.row, "weights_asked": stage.weights, "macs_asked": stage.macs,
                    "seed": stage.seed or "", "start": DENSE or f"{DENSE_EPOCHS} epochs, peak {DENSE_LR:g}",
                    "further_epochs": further_epochs(stage, makers), "hardware": hardware(device),
                    "torch": torch.__version__}
        Path(FOLDER).mkdir(parents=True, exist_ok=True)
        summary.write(f"{FOLDER}/comparison.csv", measured)
        print(text(*tables.table(measured), words=2))
        tables.draw(f"{FOLDER}/comparison.png", measured)
        print(f"wrote {FOLDER}/comparison.png")
    elif not failed:
        print(f"nothing is finished yet in {FOLDER}")
    if failed:
        print("\nfailed or left out:", *(f"  {stage.folder}" for stage in failed), sep="\n")
        raise UserError(f"{len(failed)} of {len(todo)} commands failed or were left out; with --jobs, FOLDER.txt says "
                        "why")


if __name__ == "__main__":
    cli.script(main)
