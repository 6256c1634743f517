"""Robustness: kill the scripts, damage their files, let them run long; the figures of tests/reliability.md.

    python tests/reliability.py                          the long run: half an hour of one core
    python tests/reliability.py kills data --seed 5      two of its parts anew, on other random numbers

test_reliability.py and test_narrow.py have a short version of each part. Every script runs in a process of its own,
forked from this one, so that none waits for torch to load. Networks and data are as small as can be.
"""
import argparse
import csv
import importlib
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import mutations
import numpy as np
import torch
from by_hand import FILE, METHODS
from conftest import forked

from common import cli, device, plots
from common.files import checkpoint
from common.run import Run

PARTS = ("networks", "data", "images", "kills", "payloads", "memory", "narrow", "masks")
PRECISION = "bf16" if device.has_bf16(torch.device("cpu")) else "fp32"       # of masked steps
SMALL = "--device cpu --dataset tiny --test-batch-size 40"
TRAIN = f"{SMALL} --precision fp32 --batch-size 16 --epochs 3"
ONCE = "--device cpu --test-batch-size 40"                   # of a network or of data that somebody else hands over
TUNE = f"{ONCE} --batch-size 30 --epochs 1"


def table(text):
    """{name: (module, its flags)} of lines of these three; a line that is indented continues the one before."""
    for name, words in (("SMALL", SMALL), ("TRAIN", TRAIN), ("ONCE", ONCE), ("TUNE", TUNE)):
        text = text.replace(name, words)
    rows = [line.split(maxsplit=2) for line in text.replace("\n    ", " ").strip().splitlines()]
    return {name: (module, flags) for name, module, flags in rows}


# What writes, each after what it reads; {b}: the folder of what the steps before wrote, {s}: where to write
STEPS = table("""
slimming-main slimming.main -sr --arch densenet --depth 7 TRAIN --save {s}
slimming-prune slimming.prune SMALL --model {b}/slimming-main/checkpoint.pth.tar --percent 0.4 --save {s}
slimming-mask slimming.mask SMALL --model {b}/slimming-main/checkpoint.pth.tar --percent 0.4 --save {s}
slimming-finetune slimming.finetune TRAIN --refine {b}/slimming-mask/pruned.pth.tar --save {s}
hoyer-main hoyer.main --arch resnet8 --reg hs --decay 1e-4 TRAIN --save {s}
hoyer-prune hoyer.prune SMALL --model {b}/hoyer-main/checkpoint.pth.tar --sensitivity 0.02 --save {s}
hoyer-finetune hoyer.finetune TRAIN --model {b}/hoyer-prune/pruned.pth.tar --save {s}
hoyer-compact hoyer.compact --model {b}/hoyer-finetune/finetuned.pth.tar --save {s}/compact.pth.tar
hoyer-sweep hoyer.sweep SMALL --arch resnet8 --regs hs --decays 1e-4 --sensitivities 0.01 0.02
    --epochs 2 --tune-epochs 2 --holdout 20 --save {s}
magnitude-main magnitude.main --arch resnet8 TRAIN --save {s}
magnitude-prune magnitude.prune SMALL --model {b}/magnitude-main/checkpoint.pth.tar --percent 0.8 --save {s}
magnitude-finetune magnitude.finetune TRAIN --model {b}/magnitude-prune/pruned.pth.tar --save {s} --retrain onecycle
magnitude-iterative magnitude.iterative TRAIN --model {b}/magnitude-main/checkpoint.pth.tar
    --percent 0.36 --retrain lr-rewind --save {s}
softmask-main softmask.main --arch resnet8 --target 0.3 --wme 0 --schedule cosine TRAIN --save {s}
softmask-prune softmask.prune SMALL --model {b}/softmask-main/checkpoint.pth.tar --save {s}
softmask-finetune softmask.finetune TRAIN --pruned {b}/softmask-prune/pruned_model.pth.tar --save {s}
softmask-quantize softmask.quantize_model SMALL --pruned {b}/magnitude-prune/pruned.pth.tar --save {s}
reweighted-main reweighted.main --arch resnet8 TRAIN --save {s}
reweighted-rew reweighted.main --rew --pretrained {b}/reweighted-main/checkpoint.pth.tar TRAIN --save {s}
reweighted-prune reweighted.prune SMALL --model {b}/reweighted-rew/checkpoint.pth.tar --save {s}
reweighted-finetune reweighted.finetune TRAIN --model {b}/reweighted-prune/pruned.pth.tar --save {s}
reweighted-quantize reweighted.quantize_model SMALL --model {b}/reweighted-finetune/finetuned.pth.tar --save {s}
""")
RESUMES = [name for name in STEPS if name.endswith(("-main", "-finetune", "-iterative", "-rew"))]
# What reads a network, {f}; the data set is what the network says, or {d}
READS = {f"{method}-eval": (f"{method}.eval", f"{{f}} {ONCE}") for method in METHODS} | table("""
deploy-latency deploy.latency {f} ONCE
slimming-prune slimming.prune --model {f} ONCE --save {s}
slimming-compact slimming.compact --model {f} ONCE --save {s}
slimming-finetune slimming.finetune --refine {f} TUNE --save {s}
hoyer-main hoyer.main --pretrained {f} TUNE --save {s}
hoyer-prune hoyer.prune --model {f} ONCE --sensitivity 0.01 --save {s}
hoyer-finetune hoyer.finetune --model {f} TUNE --save {s}
hoyer-compact hoyer.compact --model {f} --save {s}/compact.pth.tar
magnitude-prune magnitude.prune --model {f} ONCE --percent 0.9 --save {s}
magnitude-finetune magnitude.finetune --model {f} TUNE --save {s}
magnitude-rewind magnitude.rewind --model {f} TUNE --save {s}
softmask-main softmask.main --pretrained {f} --target 0.2 TUNE --save {s}
softmask-prune softmask.prune --model {f} ONCE --save {s}
softmask-finetune softmask.finetune --pruned {f} TUNE --save {s}
softmask-quantize softmask.quantize_model --pruned {f} ONCE --save {s}
reweighted-main reweighted.main --rew --pretrained {f} TUNE --save {s}
reweighted-prune reweighted.prune --model {f} ONCE --save {s}
reweighted-finetune reweighted.finetune --model {f} TUNE --save {s}
reweighted-quantize reweighted.quantize_model --model {f} ONCE --save {s}
reweighted-operations reweighted.check_model_operations {f}
reweighted-testers reweighted.testers {f} ONCE
compute-flops common.compute_flops {f}
""")
DATA = {name: (module, f"{words} --dataset {{d}}") for name, (module, words) in READS.items()
        if "--device" in words and name != "deploy-latency"}
DATA |= {name: (module, words.replace("--dataset tiny", "--dataset {d}").replace("--epochs 3", "--epochs 1"))
         for name, (module, words) in STEPS.items() if name.endswith("-main")}


@dataclass
class Outcome:
    """How a script ended: status (negative: killed by this signal), last words; seconds of computing, peak memory."""
    status: int
    stderr: str
    seconds: float
    megabytes: float

    def faults(self, limit=2000):
        """What is not as it should be: status 0, or 2 with one line."""
        found = []
        if "Traceback" in self.stderr or self.status not in (0, 2):
            found.append("hang" if -self.status in (signal.SIGALRM, signal.SIGXCPU) else "traceback")
        elif self.status == 2 and (self.stderr.count("\n") != 1 or ": error: " not in self.stderr):
            found.append("more than one line")
        if self.megabytes > limit:
            found.append(f"{self.megabytes:.0f} MB")
        return found


def run(module, words, cwd, limit=60.0, kill_after=0, before=None):
    """The Outcome of main(words) of a script in a fork; `before` is called in it first.

    At the limit, in seconds of computing, it is stopped: it hangs; one that only waits has ten times that, since the
    machine may be busy otherwise. kill_after: seconds of computing after which it is killed on purpose, by SIGPROF.
    """
    main, name = importlib.import_module(module).main, f"{module.replace('.', '/')}.py"

    def work():
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_DATA, (2 ** 33, resource.RLIM_INFINITY))
        signal.alarm(math.ceil(10 * limit))
        signal.setitimer(signal.ITIMER_PROF, kill_after)
        sys.argv = [str(ROOT / name), *words]
        torch.set_num_threads(1)
        if before:
            before()
        cli.script(lambda: main(words))
    with tempfile.TemporaryFile("w+") as said, open(os.devnull, "w") as nothing:
        _, status, usage = os.wait4(forked(work, cwd, nothing, said), 0)
        said.seek(0)
        return Outcome(os.waitstatus_to_exitcode(status), said.read(), usage.ru_utime + usage.ru_stime,
                       usage.ru_maxrss / 1024)


def argv(words, **places):
    return [word.format(**places) for word in words.split()]


# The networks and data that all parts begin with


def prepare(folder, steps=tuple(STEPS)):
    """A folder `data` with tiny.npz, and one folder for each step, run as it should be; {step: seconds}."""
    os.environ["DATA_DIR"] = str(folder / "data")
    plots.pyplot()                                           # what scripts import late comes once, before the forks
    importlib.import_module("torch._dynamo")
    (folder / "data").mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 10
    images = (rng.integers(0, 60, (100, 32, 32, 3)) + 19 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(folder / "data" / "tiny.npz", x_train=images[:60], y_train=labels[:60], x_test=images[60:],
             y_test=labels[60:])
    took = {}
    for step in steps:
        module, words = STEPS[step]
        outcome = run(module, argv(words, b=folder, s=folder / step), folder)
        if outcome.status or outcome.stderr:
            raise RuntimeError(f"{step} ended with {outcome.status}: {outcome.stderr}")
        took[step] = outcome.seconds
    return took


TIMES = ("seconds", "minutes", "date", "command", "train_data", "train_batch", "path", "args", "run", "model", "save")


def same(a, b):
    """Equal to the last bit, whatever they are made of; only times, paths and the sign of a pruned zero may differ."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k not in TIMES)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def differences(first, second):
    """What two folders of results do not have in common: files, and contents of checkpoints, logs and reports."""
    names = [sorted(str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()) for f in (first, second)]
    found = [f"files {set(names[0]) ^ set(names[1])}"] if names[0] != names[1] else []
    for name in sorted(set(names[0]) & set(names[1])):
        a, b = first / name, second / name
        if name.endswith(".pth.tar") and not same(*(checkpoint.load(file, quantized=True) for file in (a, b))):
            found.append(name)
        if name.endswith("log.csv"):
            rows = [[{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(open(p))]
                    for p in (a, b)]
            found += [name] * (rows[0] != rows[1])
    return found


# 1. Kills


def count_writes(folder, then):
    """Calls then(n) at the n-th file or folder that this process opens for writing, renames or removes in `folder`."""
    counted = [0]

    def hook(event, args):
        writes = event in ("os.rename", "os.remove", "os.mkdir") or event == "open" and isinstance(
            args[1], str) and set(args[1]) & set("wa+x")
        if writes and str(args[0]).startswith(str(folder)):
            counted[0] += 1
            then(counted[0])
    sys.addaudithook(hook)


def kills(base, folder, count, seed=0, steps=tuple(STEPS)):
    """Kills the scripts `count` times, at random times and at random writes, and lets them finish; {step: [faults]}."""
    rng, killed, found, trial = random.Random(seed), 0, {step: [] for step in steps}, 0
    writes, took = {}, {}
    for step in steps:                                       # how long it takes, and how often it writes
        module, words = STEPS[step]
        tally, save = folder / "tally", folder / "whole" / step
        outcome = run(module, argv(words, b=base, s=save), base, before=lambda save=save, tally=tally: count_writes(
            save, lambda n: os.write(os.open(tally, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), str(n).encode())))
        writes[step], took[step] = int(tally.read_text()), outcome.seconds
        assert not differences(base / step, save), step
    while killed < count:
        step = steps[trial % len(steps)]
        trial += 1
        module, words = STEPS[step]
        save, again = folder / f"trial-{trial}", 0
        words = argv(words, b=base, s=save) + ["--resume", "auto"] * (step in RESUMES)
        while again < 3 and killed < count:
            again += 1
            if rng.random() < 0.5:
                outcome = run(module, words, base, kill_after=rng.uniform(0.02, took[step]))
            else:
                at = rng.randint(1, writes[step])
                outcome = run(module, words, base, before=lambda at=at, save=save: count_writes(
                    save, lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == at else None))
            if outcome.status >= 0:
                break
            killed += 1
            if rng.random() < 0.6:
                break
        outcome = run(module, words, base)
        finished = outcome.status == 2 and ("already holds a" in outcome.stderr or "is there already" in outcome.stderr)
        if outcome.status and not (finished and step not in RESUMES):
            found[step].append(f"ended with {outcome.status}: {outcome.stderr.strip()[-300:]}")
        found[step] += differences(base / step, save)
        shutil.rmtree(save, ignore_errors=True)
    return killed, found


# 2. Damaged and made-up files


@dataclass
class Tally:
    """What came of many runs; ran: how often code in a pickle did."""
    files: int = 0
    runs: int = 0
    refused: int = 0
    ran: int = 0
    slowest: float = 0.0
    largest: float = 0.0
    faults: list = field(default_factory=list)


def through(base, folder, cases, scripts=None):
    """The Tally of every script, or of these, on every case: (what it is, the table of scripts that read such, the file
    in the place of {f}, the data in that of {d}, the file that its code would write). Who makes a case removes it."""
    tally, save = Tally(), folder / "save"
    for what, reads, file, path, trace in cases:
        tally.files += 1
        for name in scripts or reads:
            module, words = reads[name]
            outcome = run(module, argv(words, b=base, f=file or network_for(base, name), d=path, s=save), base)
            tally.runs += 1
            tally.refused += outcome.status == 2
            tally.slowest = max(tally.slowest, outcome.seconds)
            tally.largest = max(tally.largest, outcome.megabytes)
            found, wrote = outcome.faults(), [p.name for p in save.rglob("*") if p.is_file()]
            found += [f"wrote {wrote}"] * (outcome.status == 2 and bool(wrote))
            if found:
                tally.faults.append(f"{name} on {what}: {', '.join(found)}: {outcome.stderr.strip()[-1500:]}")
            if trace and trace.exists():
                tally.ran += 1
                trace.unlink()
            shutil.rmtree(save, ignore_errors=True)
    return tally


def network_for(base, name):
    """A file of `base` that a script on data can begin with."""
    method = name.partition("-")[0]
    if name.endswith("-finetune"):                           # they take what is pruned
        return next((base / f"{method}-prune").glob("*.pth.tar"))
    step = name if name in STEPS else f"{method}-main"
    return next(f for f in (base / step / "finetuned.pth.tar", base / step / "pruned.pth.tar",
                            base / step / "checkpoint.pth.tar", base / step / "pruned_model.pth.tar",
                            base / "slimming-main" / "checkpoint.pth.tar") if f.is_file())


def networks(base, folder, count, seed=0):
    """Cases: `count` damaged or made-up networks."""
    rng, bases = random.Random(seed), sorted(base.glob("*/*.pth.tar"))
    for number in range(count):
        file, source = folder / f"net-{number}.pth.tar", rng.choice(bases)
        what, step, reads = mutations.network(rng, source, file), source.parent.name, READS
        if source.name == "checkpoint.pth.tar" and step in RESUMES:
            reads = READS | {"resume": (STEPS[step][0], f"{STEPS[step][1]} --resume {{f}}")}
        yield f"{step}/{source.name}, {number} {what}", reads, file, None, None
        file.unlink()


def data_sets(base, folder, count, make, seed=0):
    """Cases: `count` damaged or made-up data sets; make: mutations.arrays or mutations.images."""
    rng = random.Random(seed)
    for number in range(count):
        what, path = make(rng, base / "data" / "tiny.npz", folder / f"data-{number}")
        yield f"data {number} {what}", DATA, None, path, None
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def payloads(base, folder):
    """Cases: pickles that want to run code, as networks and in data."""
    network = base / "slimming-main" / "checkpoint.pth.tar"
    for name, path, trace in mutations.payloads(network, folder):
        data = path.suffix == ".npz"
        yield name, DATA if data else READS, network if data else path, path, trace


# 3. Left to run


def masked_steps(base, folder, steps):
    """Masked training of every method with momentum and weight decay in PRECISION: {method: (steps, masked, moved)}."""
    found = {}
    for method in METHODS:
        pruned = "slimming-mask/pruned" if method == "slimming" else "magnitude-prune/pruned"
        more = {"reweighted": "--optmzr sgd --warmup-epochs 0", "magnitude": "--schedule 100000"}.get(method, "")
        epochs = math.ceil(steps / 30)                       # 60 images, 2 a step
        save = folder / f"masked-{method}"
        words = (f"{FILE.get(method, '--model')} {base}/{pruned}.pth.tar {SMALL} --batch-size 2 --epochs {epochs} "
                 f"--precision {PRECISION} --lr 0.01 --momentum 0.9 --wd 0.0005 {more} --save {save}")
        outcome = run(f"{method}.finetune", words.split(), base, limit=7200)
        if outcome.status:
            raise RuntimeError(f"{method}: {outcome.stderr}")
        ckpt, before = checkpoint.load(save / "checkpoint.pth.tar"), checkpoint.load(base / f"{pruned}.pth.tar")
        state, masks = ckpt["state_dict"], before["masks"]
        trained = sum(int((state[k][m] != before["state_dict"][k][m]).sum()) for k, m in masks.items())
        assert trained and ckpt["run"]["precision"] == PRECISION
        found[method] = (30 * epochs, sum(int((~m).sum()) for m in masks.values()),
                         sum(int(state[k][~m].count_nonzero()) for k, m in masks.items()))
    return found


def memory(base, folder, epochs):
    """Megabytes of a training process after each epoch."""
    log, save = folder / "memory", folder / "memory-run"

    def watch():
        run_save = Run.save

        def save_and_note(self, *args, **more):
            run_save(self, *args, **more)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            with open(log, "a") as file:
                file.write(f"{pages * os.sysconf('SC_PAGESIZE') / 2 ** 20}\n")
        Run.save = save_and_note
    module, words = STEPS["slimming-main"]
    outcome = run(module, [*argv(words, b=base, s=save), "--epochs", str(epochs)], base, limit=7200, before=watch)
    if outcome.status:
        raise RuntimeError(outcome.stderr)
    return [float(line) for line in log.read_text().split()]


def narrow_is_masked(count):
    """{family: how many networks of random widths with random masks were as `narrow` makes them, or what went wrong}"""
    import test_narrow as tests
    found = {}
    for name in tests.NETS:
        try:
            found[name] = tests.narrow_examples(name, count)
        except Exception:
            found[name] = traceback.format_exc()
    return found


# The report


def report(parts, seed, scale=1.0, write=lambda lines: None):
    """The long run of these parts; write({part: its line in tests/reliability.md}) after each. Whether all is as it
    should be."""
    lines, well = {}, True

    def line(part, what, wanted, found, faults):
        nonlocal well
        well = well and not faults
        lines[part] = f"| {what} | {wanted} | {found} |"
        print(*faults, lines[part], sep="\n", flush=True)
        write(lines)

    def damaged(part, what, cases):
        if part not in parts:
            return
        tally = through(base, folder, cases)
        tracebacks, hangs = (sum(f": {kind}" in fault or f", {kind}" in fault for fault in tally.faults)
                             for kind in ("traceback", "hang"))
        over = sum(" MB" in fault.partition(": ")[2].partition(":")[0] for fault in tally.faults)
        line(part, f"{tally.files} damaged or made-up {what}, each through every script that reads such "
             f"({tally.runs:,} runs, {tally.refused:,} refused)", "0 tracebacks, 0 hangs, 0 over 2 GB, nothing written "
             "by those refused", f"{tracebacks} tracebacks, {hangs} hangs, {over} over 2 GB, {len(tally.faults)} "
             f"faults; the slowest {tally.slowest:.1f} s, the largest {tally.largest:,.0f} MB", tally.faults)

    with tempfile.TemporaryDirectory() as temporary:
        base, folder, count = Path(temporary) / "base", Path(temporary) / "work", int(100 * scale)
        folder.mkdir()
        prepare(base)
        damaged("networks", "checkpoints", networks(base, folder, count, seed))
        damaged("data", "data files", data_sets(base, folder, count, mutations.arrays, seed))
        damaged("images", "image folders", data_sets(base, folder, count, mutations.images, seed))
        if "kills" in parts:
            killed, found = kills(base, folder, count, seed)
            wrong = [f"{step}: {fault}" for step, faults in found.items() for fault in faults]
            line("kills", f"kills of {len(found)} commands that write, at random times and at random writes, then "
                 "finished", "as if never killed, bit for bit", f"{killed} kills, {len(wrong)} differences", wrong)
        if "payloads" in parts:
            tally = through(base, folder, payloads(base, folder))
            line("payloads", f"{tally.files} pickles that want to run code, through every script ({tally.runs:,} runs)",
                 "0 ran", f"{tally.ran} ran, {len(tally.faults)} faults", tally.faults + ["code ran"] * tally.ran)
        if "memory" in parts:
            taken = memory(base, folder, 50)
            before, after = max(taken[10:30]), max(taken[30:])
            line("memory", "memory of a training over 50 epochs", "flat after the first ten",
                 f"{before:.1f} MB in epochs 11 to 30, {after:.1f} MB in 31 to 50",
                 ["it grows"] * (after - before > 5))
        if "narrow" in parts:
            found = narrow_is_masked(count)
            wrong = [f"{name}: {text}" for name, text in found.items() if isinstance(text, str)]
            line("narrow", f"random widths and random masks in {len(found)} kinds of networks: narrow equals masked to "
                 "1e-9 in float64", "always", f"{sum(n for n in found.values() if isinstance(n, int)):,} networks, "
                 f"{len(wrong)} kinds with a difference", wrong)
        if "masks" in parts:
            found = masked_steps(base, folder, int(10_000 * scale))
            moved = {method: m for method, (_, _, m) in found.items() if m}
            line("masks", f"masked steps of each of {len(found)} methods with momentum, weight decay and {PRECISION}, "
                 f"{sum(n for _, n, _ in found.values()):,} masked weights", "0 moved",
                 f"{min(n for n, _, _ in found.values()):,} steps each, {sum(moved.values())} moved",
                 [f"{method}: {m} moved" for method, m in moved.items()])
    return well


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all; report)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="a tenth of everything: 0.1")
    args = parser.parse_args()
    torch.set_num_threads(1)
    facts, path = device.facts(torch.device("cpu")), ROOT / "tests" / "reliability.md"

    earlier = [row for row in path.read_text().splitlines() if row.startswith("| ")][2:] if args.parts else []

    def write(lines):
        seconds = time.process_time() + sum(os.times()[2:4])
        rows = dict(zip(PARTS, earlier, strict=False)) | lines
        path.write_text("\n".join([
            "# Robustness tests", "", "Written by `python tests/reliability.py`; the tests have a short version "
            "of each line (test_reliability.py, test_narrow.py).", "", "| what was done | wanted | found |",
            "| --- | --- | --- |", *rows.values(), "", f"Last run: {', '.join(args.parts) or 'everything'}"
            f"{f', --scale {args.scale:g}' if args.scale != 1 else ''}, {facts['date']}, torch {facts['torch']}, "
            f"{facts['hardware']}, {seconds / 60:.0f} minutes of computing, beside other work; seed {args.seed}.", ""]))
    sys.exit(not report(args.parts or PARTS, args.seed, args.scale, write))


if __name__ == "__main__":
    main()
