"""All five methods on one network, one data set and one budget: the commands, run in turn, and one table and plot.

    bash run_all.sh compare --dry-run             the commands, with an estimate of their time
    bash run_all.sh compare                       runs them; a comparison that was stopped continues
    bash run_all.sh compare slimming hoyer        the dense network and these alone, such as for two at once
    bash run_all.sh compare --jobs 16             so many commands at once, for a GPU that one small network leaves idle
    bash run_all.sh compare --table               only the table and plot, of what is finished

Every method starts from the same dense network and has EPOCHS further epochs, half of them with its penalty and half to
fine-tune, all of them to fine-tune where it has none; batch size, weight decay and learning-rate schedule are the same.
Each prunes at the threshold that leaves what is asked for. Two networks to compare with: the dense one trained on for
EPOCHS more, and random channels after half the epochs without a penalty, fine-tuned for the other half.
Everything is in logs/compare/; after an edit here remove the folders of that stage and of those after it.
"""
import csv
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import UserError, checkpoint, cli
from common.device import device_of
from results import summary, tables_compare

# ---- what is compared
DATASET, ARCH, DENSE_EPOCHS, EPOCHS, SEEDS = "cifar10", "resnet20", 20, 20, (1,)
WEIGHTS = (0.1, 0.3, 0.05)                                   # fractions of the weights that are left
MACS = (0.5, 0.3)                                            # fractions of the MACs that are left
RECIPE = f"--dataset {DATASET} --batch-size 128 --weight-decay 5e-4"
DENSE_LR, LR = 0.3, 0.1                                      # highest learning rates of the cycles
ADAM_OFF = "--optmzr sgd --alpha 0 --smooth-eps 0"           # reweighted with the recipe of the others
# Chosen on the last 5,000 training images, at 10 % of the weights and half the MACs; see the README.
SLIMMING, HOYER_SQUARE, GROUP_HS, REWEIGHTED, FILTERS = "3e-4", "3e-5", "1e-3", "1e-5", "2e-3"
CHANNEL_MASKS, WEIGHT_MASKS = ("--wg 4 --tw 16 --wme 0 --swa-start 999",             # 999: never averaged
                               "--wg 1000 --tw 4000 --wme 0 --swa-start 999")
SECONDS = 70                                                 # an epoch of ResNet-20 on one core of an AMD EPYC, in bf16
FOLDER = "logs/compare"
# ----

ALL = ("magnitude", "random", "reweighted", "hoyer", "softmask", "slimming", "chain")


@dataclass(eq=False)                                        # a stage can be a key
class Stage:
    """One command: its words, the file it reads ('' for none) and makes, the epochs it trains (0: pruning)."""
    group: str
    command: str
    reads: str
    makes: str
    epochs: int = 0
    row: str = ""           # its method in the table, '' for what is only on the way to another
    target: tuple = ("", 0)                                  # what was asked for: ("weights", 10) or ("macs", 50), %
    seed: int = 0


def stages(seed):
    """All stages of one seed in order: what is most worth knowing first."""
    d, half, made = f"{FOLDER}/seed{seed}", EPOCHS // 2, []
    again = f"--lr {LR} --seed {seed} --resume auto"
    cycle, dense = "--schedule onecycle", f"{d}/dense/checkpoint.pth.tar"

    def add(group, script, flags, reads, save, file, epochs=0, *row):
        flags = f"{flags} --epochs {epochs}" if epochs else f"{flags} --dataset {DATASET} --overwrite"
        command = f"python {script} {flags} --save {d}/{save}"
        made.append(Stage(group, command, reads, f"{d}/{save}/{file}", epochs, *row))
        return made[-1].makes

    def train(group, script, flags, save, epochs=half, row=""):
        return add(group, script, f"{RECIPE} --pretrained {dense} {flags} {again}", dense, save, "checkpoint.pth.tar",
                   epochs, row)

    def prune(group, script, flags, model, save, file="pruned.pth.tar"):
        return add(group, script, f"--model {model} {flags}", model, save, file)

    def tune(group, script, flags, model, save, row, target, epochs=half, file="finetuned.pth.tar"):
        return add(group, script, f"{RECIPE} {flags} {model} {again}", model, save, file, epochs, row, target)

    made.append(Stage("", f"python magnitude/main.py {RECIPE} --arch {ARCH} {cycle} --lr {DENSE_LR} --seed {seed} "
                      f"--resume auto --epochs {DENSE_EPOCHS} --save {d}/dense", "", dense, DENSE_EPOCHS, "dense"))
    train("", "magnitude/main.py", cycle, "more", EPOCHS, "dense, trained on")

    for number, (weights, macs) in enumerate(zip(WEIGHTS, MACS + (None,) * len(WEIGHTS), strict=False)):
        w, m = f"{100 * weights:g}", f"{100 * macs:g}" if macs else ""
        of_weights, of_macs = ("weights", float(w)), ("macs", float(m or 0))
        kept, kept_macs = f"--keep-weights {weights:g}", f"--keep-macs {macs:g}" if macs else ""
        for name, criterion in (("magnitude", "magnitude"), ("random", f"random --seed {seed}")):
            file = prune(name, "magnitude/prune.py", f"{kept} --criterion {criterion}", dense, f"{name}-{w}/pruned")
            tune(name, "magnitude/finetune.py", f"{cycle} --model", file, f"{name}-{w}",
                 "random masks" if name == "random" else "magnitude", of_weights, EPOCHS)

        if not number:
            train("reweighted", "reweighted/main.py", f"--rew {ADAM_OFF} --lr-scheduler onecycle --lam {REWEIGHTED}",
                  "reweighted")
            train("hoyer", "hoyer/main.py", f"--reg hs --decay {HOYER_SQUARE} {cycle}", "hs")
            train("reweighted", "reweighted/main.py", f"--rew {ADAM_OFF} --lr-scheduler onecycle --lam {FILTERS} "
                  "--sparsity-type filter", "filters")
            train("hoyer", "hoyer/main.py", f"--reg group-hs --decay {GROUP_HS} {cycle}", "group-hs")
            train("slimming", "slimming/main.py", f"-sr --s {SLIMMING} {cycle}", "slimming")
            train("random", "magnitude/main.py", cycle, "half")
        file = prune("reweighted", "reweighted/prune.py", kept, f"{d}/reweighted/checkpoint.pth.tar",
                     f"reweighted-{w}/pruned")
        tune("reweighted", "reweighted/finetune.py", f"{ADAM_OFF} --lr-scheduler onecycle --model", file,
             f"reweighted-{w}", "reweighted L1", of_weights)
        file = prune("hoyer", "hoyer/prune.py", kept, f"{d}/hs/checkpoint.pth.tar", f"hs-{w}/pruned")
        tune("hoyer", "hoyer/finetune.py", f"{cycle} --model", file, f"hs-{w}", "Hoyer-Square", of_weights)
        train("softmask", "softmask/main.py", f"--nfp --target {1 - weights:.4g} {WEIGHT_MASKS} {cycle}",
              f"nfp-{w}/masks")
        file = prune("softmask", "softmask/prune.py", kept, f"{d}/nfp-{w}/masks/checkpoint.pth.tar", f"nfp-{w}/pruned",
                     "pruned_model.pth.tar")
        tune("softmask", "softmask/finetune.py", f"{cycle} --pruned", file, f"nfp-{w}",
             "soft mask", of_weights)
        if not macs:
            continue

        file = prune("slimming", "slimming/prune.py", kept_macs, f"{d}/slimming/checkpoint.pth.tar",
                     f"slimming-{m}/pruned")
        tune("slimming", "slimming/finetune.py", f"{cycle} --refine", file, f"slimming-{m}",
             "network slimming", of_macs)
        file = prune("hoyer", "hoyer/prune.py", f"{kept_macs} --granularity channel",
                     f"{d}/group-hs/checkpoint.pth.tar", f"group-hs-{m}/pruned")
        tune("hoyer", "hoyer/finetune.py", f"{cycle} --model", file, f"group-hs-{m}", "group-HS", of_macs,
             file="compact.pth.tar")
        file = prune("reweighted", "reweighted/prune.py", kept_macs, f"{d}/filters/checkpoint.pth.tar",
                     f"filters-{m}/pruned")
        tune("reweighted", "reweighted/finetune.py", f"{ADAM_OFF} --lr-scheduler onecycle --model", file,
             f"filters-{m}", "reweighted L1 of filters", of_macs)
        train("softmask", "softmask/main.py", f"--pflops --target {1 - macs:.4g} {CHANNEL_MASKS} {cycle}",
              f"masks-{m}/masks")
        file = prune("softmask", "softmask/prune.py", kept_macs, f"{d}/masks-{m}/masks/checkpoint.pth.tar",
                     f"masks-{m}/pruned", "pruned_model.pth.tar")
        tune("softmask", "softmask/finetune.py", f"{cycle} --pruned", file, f"masks-{m}",
             "soft mask of channels", of_macs)
        for name, start, epochs in (("random-channels", dense, EPOCHS), ("random-half", f"{d}/half/checkpoint.pth.tar",
                                                                         half)):
            file = prune("random", "slimming/prune.py", f"{kept_macs} --criterion random --seed {seed}", start,
                         f"{name}-{m}/pruned")
            tune("random", "slimming/finetune.py", f"{cycle} --refine", file, f"{name}-{m}",
                 "random channels" if epochs == EPOCHS else "random channels, half fine-tuning", of_macs, epochs)

    # one method reads the other's file
    slim = f"{d}/slimming-{100 * MACS[0]:g}/finetuned.pth.tar"
    file = prune("chain", "magnitude/prune.py", f"--keep-weights {WEIGHTS[0]:g}", slim, "chain/pruned")
    file = tune("chain", "magnitude/finetune.py", f"{cycle} --model", file, "chain",
                "slimming, then magnitude", ("", 0), EPOCHS)
    add("chain", "softmask/quantize_model.py", f"--pruned {file} --wbit 8", file, "chain/8bit",
        "quantized_model.pth.tar", 0, "slimming, then magnitude, then 8 bits")
    for stage in made:
        stage.seed = seed
    return made


def finished(stage):
    """Whether the stage's file is there, made with these flags in any order, and newer than what it reads."""
    made, reads = Path(stage.makes), Path(stage.reads)
    if not made.exists() or stage.reads and (not reads.exists() or reads.stat().st_mtime > made.stat().st_mtime):
        return False
    ckpt = checkpoint.load(made)
    same = sorted(shlex.split(ckpt["run"]["command"])) == sorted(shlex.split(stage.command))
    return same and (not stage.epochs or ckpt["epoch"] == stage.epochs)


def seconds_an_epoch(todo):
    """What an epoch of the dense network took here, or before there is one SECONDS."""
    log = Path(todo[0].makes).parent / "log.csv"
    if not log.exists():
        return SECONDS
    with open(log, newline="") as file:
        times = sorted(float(row["seconds"]) for row in csv.DictReader(file))
    return times[len(times) // 2]


def run(todo, data_dir, jobs=1):
    """Runs what is not finished, so many at once, each as soon as what it reads is there; the commands that failed."""
    an_epoch, place = seconds_an_epoch(todo), {stage: number for number, stage in enumerate(todo, 1)}
    waiting, running, failed = list(todo), {}, []
    try:
        while waiting or running:
            for stage in [stage for stage, process in running.items() if process.poll() is not None]:
                if running.pop(stage).returncode:
                    failed.append(stage.command)
            for stage in list(waiting):
                if len(running) == jobs or stage.reads in [other.makes for other in [*waiting, *running]]:
                    continue
                waiting.remove(stage)
                if finished(stage):
                    continue
                minutes = f", about {stage.epochs * an_epoch / 60:.0f} min" if stage.epochs else ""
                folder = Path(stage.makes).parent
                print(f"\n== {place[stage]} of {len(todo)}: {folder.relative_to(FOLDER)}{minutes}\n{stage.command}",
                      flush=True)
                if stage.reads and not Path(stage.reads).exists():
                    print(f"left out: {stage.reads} is missing")
                    failed.append(stage.command)
                    continue
                running[stage] = start(stage, data_dir, f"{folder}.txt" if jobs > 1 else None)
            time.sleep(0.1)
    finally:                                                 # Ctrl-C reaches them, too
        for process in running.values():
            process.wait()
    return failed


def start(stage, data_dir, output):
    """The process that runs the stage; output: the file for what it prints (None: the terminal)."""
    words = [sys.executable, *shlex.split(stage.command)[1:], *(["--data-dir", data_dir] if data_dir else [])]
    if not output:
        return subprocess.Popen(words)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    with open(output, "w") as file:
        return subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)


def parse(argv=None):
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("groups", nargs="*", metavar="METHOD", help=f"{', '.join(ALL)} (default: all)")
    add("--dry-run", action="store_true", help="print the commands and how long they will take")
    add("--jobs", type=cli.positive, default=1, metavar="N", help="commands at once (default 1); more than one print "
        "into FOLDER.txt beside their folders")
    add("--table", action="store_true", help="run nothing; the table and plot of what is finished")
    add("--data-dir", help="where the data sets are (default: $DATA_DIR, else data/ in the repository)")
    args = parser.parse_args(argv)
    unknown = [group for group in args.groups if group not in ALL]
    if unknown:
        raise UserError(f"{unknown[0]} is not one of {', '.join(ALL)}")
    return args


def main(argv=None):
    args = parse(argv)
    everything = [stage for seed in SEEDS for stage in stages(seed)]
    todo = [stage for stage in everything if not args.groups or stage.group in ("", *args.groups)]
    if args.dry_run:
        an_epoch, hours = seconds_an_epoch(todo), 0.0
        for stage in todo:
            took = 0 if finished(stage) else stage.epochs * an_epoch / 60
            hours += took / 60
            print(f"{'finished' if finished(stage) else f'{took:5.0f} min'}  {stage.command}")
        print(f"{len(todo)} commands, about {hours:.1f} hours at {an_epoch:.0f} seconds an epoch")
        return
    failed = [] if args.table else run(todo, args.data_dir, args.jobs)
    rows = [stage for stage in everything if stage.row and finished(stage)]
    if rows:
        measured = summary.measure([stage.makes for stage in rows], device_of(None))
        for row, stage in zip(measured, rows, strict=True):
            row |= {"name": stage.row, "asked": stage.target[0], "target": stage.target[1],
                    "seed": stage.seed}
        summary.write(f"{FOLDER}/comparison.csv", measured)
        print(tables_compare.text(measured))
        tables_compare.draw(f"{FOLDER}/comparison.png", measured)
        print(f"wrote {FOLDER}/comparison.csv and comparison.png")
    if failed:
        raise UserError(f"{len(failed)} of {len(todo)} commands failed: {'; '.join(failed)}")


if __name__ == "__main__":
    cli.script(main)
