"""Robustness: kill the scripts, damage their files, let them run long; the figures of tests/reliability.md.

    python tests/reliability.py                          the long run: half an hour of one core
    python tests/reliability.py kills data --seed 5      two of its parts anew, on other random numbers

test_reliability.py has a short version of each part. Every script runs in a process of its own, forked from this one,
so that none waits for torch to load. Networks and data are as small as can be.
"""
import argparse
import csv
import importlib
import math
import os
import random
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

from common import cli, device, plots
from common.files import checkpoint

PARTS = ("networks", "data", "images", "kills", "payloads", "memory", "narrow", "masks")
SMALL = "--device cpu --dataset tiny --test-batch-size 40"
TRAIN = f"{SMALL} --precision fp32 --batch-size 16 --epochs 3"
PRECISION = "bf16" if device.has_bf16(torch.device("cpu")) else "fp32"       # of masked steps
STEPS = {  # what writes, each after what it reads; {b}: the folder of what the steps before wrote, {s}: where to write
    "slimming-main": ("slimming.main", f"-sr --arch densenet --depth 7 {TRAIN} --save {{s}}"),
    "slimming-prune": ("slimming.prune", f"{SMALL} --model {{b}}/slimming-main/checkpoint.pth.tar --percent 0.4 "
                                         "--save {s}"),
    "slimming-mask": ("slimming.mask", f"{SMALL} --model {{b}}/slimming-main/checkpoint.pth.tar --percent 0.4 "
                                       "--save {s}"),
    "slimming-finetune": ("slimming.finetune", f"{TRAIN} --refine {{b}}/slimming-mask/pruned.pth.tar --save {{s}}"),
    "hoyer-main": ("hoyer.main", f"--arch resnet8 --reg hs --decay 1e-4 {TRAIN} --save {{s}}"),
    "hoyer-prune": ("hoyer.prune", f"{SMALL} --model {{b}}/hoyer-main/checkpoint.pth.tar --sensitivity 0.02 "
                                   "--save {s}"),
    "hoyer-finetune": ("hoyer.finetune", f"{TRAIN} --model {{b}}/hoyer-prune/pruned.pth.tar --save {{s}}"),
    "hoyer-compact": ("hoyer.compact", "--model {b}/hoyer-finetune/finetuned.pth.tar --save {s}/compact.pth.tar"),
    "hoyer-sweep": ("hoyer.sweep", f"{SMALL} --arch resnet8 --regs hs --decays 1e-4 --sensitivities 0.01 0.02 "
                                   "--epochs 2 --tune-epochs 2 --holdout 20 --save {s}"),
    "magnitude-main": ("magnitude.main", f"--arch resnet8 {TRAIN} --save {{s}}"),
    "magnitude-prune": ("magnitude.prune", f"{SMALL} --model {{b}}/magnitude-main/checkpoint.pth.tar --percent 0.8 "
                                           "--save {s}"),
    "magnitude-finetune": ("magnitude.finetune", f"{TRAIN} --model {{b}}/magnitude-prune/pruned.pth.tar --save {{s}} "
                                                 "--retrain onecycle"),
    "magnitude-iterative": ("magnitude.iterative", f"{TRAIN} --model {{b}}/magnitude-main/checkpoint.pth.tar "
                                                   "--percent 0.36 --retrain lr-rewind --save {s}"),
    "softmask-main": ("softmask.main", f"--arch resnet8 --target 0.3 --wme 0 --schedule cosine {TRAIN} --save {{s}}"),
    "softmask-prune": ("softmask.prune", f"{SMALL} --model {{b}}/softmask-main/checkpoint.pth.tar --save {{s}}"),
    "softmask-finetune": ("softmask.finetune", f"{TRAIN} --pruned {{b}}/softmask-prune/pruned_model.pth.tar "
                                               "--save {s}"),
    "softmask-quantize": ("softmask.quantize_model", f"{SMALL} --pruned {{b}}/magnitude-prune/pruned.pth.tar "
                                                     "--save {s}"),
    "reweighted-main": ("reweighted.main", f"--arch resnet8 {TRAIN} --save {{s}}"),
    "reweighted-rew": ("reweighted.main", f"--rew --pretrained {{b}}/reweighted-main/checkpoint.pth.tar {TRAIN} "
                                          "--save {s}"),
    "reweighted-prune": ("reweighted.prune", f"{SMALL} --model {{b}}/reweighted-rew/checkpoint.pth.tar --save {{s}}"),
    "reweighted-finetune": ("reweighted.finetune", f"{TRAIN} --model {{b}}/reweighted-prune/pruned.pth.tar "
                                                   "--save {s}"),
    "reweighted-quantize": ("reweighted.quantize_model", f"{SMALL} --model {{b}}/reweighted-finetune/finetuned.pth.tar "
                                                         "--save {s}"),
}
RESUMES = ("slimming-main", "slimming-finetune", "hoyer-main", "hoyer-finetune", "magnitude-main", "magnitude-finetune",
           "magnitude-iterative", "softmask-main", "softmask-finetune", "reweighted-main", "reweighted-rew",
           "reweighted-finetune")
ONCE = "--device cpu --test-batch-size 40"                   # of a network or of data that somebody else hands over
READS = {  # what reads a network, {f}; the data set is what the network says, or {d}
    **{f"{method}-eval": (f"{method}.eval", f"{{f}} {ONCE}")
       for method in ("slimming", "hoyer", "magnitude", "softmask", "reweighted")},
    "deploy-latency": ("deploy.latency", f"{{f}} {ONCE}"),
    "slimming-prune": ("slimming.prune", f"--model {{f}} {ONCE} --save {{s}}"),
    "slimming-compact": ("slimming.compact", f"--model {{f}} {ONCE} --save {{s}}"),
    "slimming-finetune": ("slimming.finetune", f"--refine {{f}} {ONCE} --batch-size 30 --epochs 1 --save {{s}}"),
    "hoyer-main": ("hoyer.main", f"--pretrained {{f}} {ONCE} --batch-size 30 --epochs 1 --save {{s}}"),
    "hoyer-prune": ("hoyer.prune", f"--model {{f}} {ONCE} --sensitivity 0.01 --save {{s}}"),
    "hoyer-finetune": ("hoyer.finetune", f"--model {{f}} {ONCE} --batch-size 30 --epochs 1 --save {{s}}"),
    "hoyer-compact": ("hoyer.compact", "--model {f} --save {s}/compact.pth.tar"),
    "magnitude-prune": ("magnitude.prune", f"--model {{f}} {ONCE} --percent 0.9 --save {{s}}"),
    "magnitude-finetune": ("magnitude.finetune", f"--model {{f}} {ONCE} --batch-size 30 --epochs 1 --save {{s}}"),
    "magnitude-rewind": ("magnitude.rewind", f"--model {{f}} {ONCE} --batch-size 30 --epochs 1 --save {{s}}"),
    "softmask-main": ("softmask.main", f"--pretrained {{f}} --target 0.2 {ONCE} --batch-size 30 --epochs 1 "
                                       "--save {s}"),
    "softmask-prune": ("softmask.prune", f"--model {{f}} {ONCE} --save {{s}}"),
    "softmask-finetune": ("softmask.finetune", f"--pruned {{f}} {ONCE} --batch-size 30 --epochs 1 --save {{s}}"),
    "softmask-quantize": ("softmask.quantize_model", f"--pruned {{f}} {ONCE} --save {{s}}"),
    "reweighted-main": ("reweighted.main", f"--rew --pretrained {{f}} {ONCE} --batch-size 30 --epochs 1 --save {{s}}"),
    "reweighted-prune": ("reweighted.prune", f"--model {{f}} {ONCE} --save {{s}}"),
    "reweighted-finetune": ("reweighted.finetune", f"--model {{f}} {ONCE} --batch-size 30 --epochs 1 --save {{s}}"),
    "reweighted-quantize": ("reweighted.quantize_model", f"--model {{f}} {ONCE} --save {{s}}"),
    "reweighted-operations": ("reweighted.check_model_operations", "{f}"),
    "reweighted-testers": ("reweighted.testers", f"{{f}} {ONCE}"),
    "compute-flops": ("common.compute_flops", "{f}"),
}
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
            found.append("traceback" if self.status != -signal.SIGALRM else "hang")
        elif self.status == 2 and (self.stderr.count("\n") != 1 or ": error: " not in self.stderr):
            found.append("more than one line")
        if self.megabytes > limit:
            found.append(f"{self.megabytes:.0f} MB")
        return found


def run(module, words, cwd, limit=60.0, kill_after=None, before=None):
    """The Outcome of main(words) of a script in a fork; `before` is called in it first.

    At the limit, in seconds of computing, it is stopped: it hangs; one that only waits has ten times that, since the
    machine may be busy otherwise. kill_after: seconds of computing after which it is killed on purpose.
    """
    main, name = importlib.import_module(module).main, f"{module.replace('.', '/')}.py"
    with tempfile.TemporaryFile("w+") as said:
        began, pid = time.monotonic(), os.fork()
        if pid == 0:
            code = 70
            try:
                os.chdir(cwd)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(said.fileno(), 2)
                sys.stdout, sys.stderr, sys.argv = open(1, "w"), open(2, "w"), [str(ROOT / name), *words]
                torch.set_num_threads(1)
                if before:
                    before()
                cli.script(lambda: main(words))
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 70
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        pause, sent = 0.002, None
        while True:
            done, status, usage = os.wait4(pid, os.WNOHANG)
            if done:
                break
            seconds, megabytes = usage_of(pid)
            hangs = seconds > limit or time.monotonic() - began > 10 * limit
            if sent is None and (hangs or megabytes > 4000 or kill_after is not None and seconds > kill_after):
                sent = signal.SIGALRM if hangs else signal.SIGKILL
                os.kill(pid, signal.SIGKILL)
            time.sleep(pause)
            pause = min(pause * 1.2, 0.02)
        said.seek(0)
        status = os.waitstatus_to_exitcode(status)
        return Outcome(-sent if sent and status < 0 else status, said.read(), usage.ru_utime + usage.ru_stime,
                       usage.ru_maxrss / 1024)


def usage_of(pid):
    """(seconds of computing, megabytes) of a process so far."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return ((int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK"),
                int(words[21]) * os.sysconf("SC_PAGESIZE") / 2 ** 20)
    except (OSError, IndexError):                            # it has ended
        return 0, 0


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
            if outcome.status != -signal.SIGKILL:
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
    """What came of many runs."""
    files: int = 0
    runs: int = 0
    refused: int = 0
    slowest: float = 0.0
    largest: float = 0.0
    faults: list = field(default_factory=list)

    def add(self, what, outcome, save):
        self.runs += 1
        self.refused += outcome.status == 2
        self.slowest, self.largest = max(self.slowest, outcome.seconds), max(self.largest, outcome.megabytes)
        found = outcome.faults()
        if outcome.status == 2 and save.exists() and any(path.is_file() for path in save.rglob("*")):
            found.append(f"wrote {[path.name for path in save.rglob('*')]}")
        if found:
            self.faults.append(f"{what}: {', '.join(found)}: {outcome.stderr.strip()[-1500:]}")
        shutil.rmtree(save, ignore_errors=True)


def networks(base, folder, count, seed=0, scripts=None):
    """Every script that reads a network, on `count` damaged or made-up ones."""
    tally, rng = Tally(), random.Random(seed)
    bases = sorted(base.glob("*/*.pth.tar"))
    for number in range(count):
        file = folder / f"net-{number}.pth.tar"
        source = rng.choice(bases)
        what = mutations.network(rng, source, file)
        tally.files += 1
        reads = dict(READS)
        step = source.parent.name
        if source.name == "checkpoint.pth.tar" and step in RESUMES:
            reads["resume"] = (STEPS[step][0], f"{STEPS[step][1]} --resume {{f}}")
        for name in scripts or reads:
            module, words = reads[name]
            save = folder / "save"
            outcome = run(module, argv(words, b=base, f=file, s=save), base)
            tally.add(f"{name} on {source.parent.name}/{source.name}, {number} {what}", outcome, save)
        file.unlink()
    return tally


def data_sets(base, folder, count, make, seed=0, scripts=None):
    """Every script that reads data, on `count` damaged or made-up sets; make: mutations.arrays or mutations.images."""
    tally, rng = Tally(), random.Random(seed)
    for number in range(count):
        what, path = make(rng, base / "data" / "tiny.npz", folder / f"data-{number}")
        tally.files += 1
        for name in scripts or DATA:
            module, words = DATA[name]
            step = name if name in STEPS else f"{name.partition('-')[0]}-main"
            file = next(f for f in (base / step / "finetuned.pth.tar", base / step / "pruned.pth.tar",
                                    base / step / "checkpoint.pth.tar", base / step / "pruned_model.pth.tar",
                                    base / "slimming-main" / "checkpoint.pth.tar") if f.is_file())
            if name.endswith("-finetune"):                   # they take what is pruned
                file = next((base / f"{name.partition('-')[0]}-prune").glob("*.pth.tar"))
            save = folder / "save"
            outcome = run(module, argv(words, b=base, f=file, d=path, s=save), base)
            tally.add(f"{name} on data {number} {what}", outcome, save)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return tally


def payloads(base, folder, scripts=None):
    """Every script on every pickle that wants to run code: (Tally, how often one did)."""
    tally, ran = Tally(), 0
    for name, path, trace in mutations.payloads(base / "slimming-main" / "checkpoint.pth.tar", folder):
        tally.files += 1
        reads = DATA if path.suffix == ".npz" else READS
        for script in scripts or reads:
            module, words = reads[script]
            save = folder / "save"
            network = base / "slimming-main" / "checkpoint.pth.tar" if path.suffix == ".npz" else path
            outcome = run(module, argv(words, b=base, f=network, d=path, s=save), base)
            tally.add(f"{script} on {name}", outcome, save)
            ran += trace.exists()
            trace.unlink(missing_ok=True)
    return tally, ran


# 3. Left to run


def masked_steps(base, folder, steps):
    """Masked training of every method with momentum and weight decay in PRECISION: {method: (steps, masked, moved)}."""
    found = {}
    for method in ("slimming", "hoyer", "magnitude", "softmask", "reweighted"):
        pruned = "slimming-mask/pruned" if method == "slimming" else "magnitude-prune/pruned"
        name = {"slimming": "--refine", "softmask": "--pruned"}.get(method, "--model")
        more = "--optmzr sgd --warmup-epochs 0" if method == "reweighted" else ""
        if method == "magnitude":
            more = "--schedule 100000"
        epochs = math.ceil(steps / 30)                       # 60 images, 2 a step
        save = folder / f"masked-{method}"
        words = (f"{name} {base}/{pruned}.pth.tar {SMALL} --batch-size 2 --epochs {epochs} --precision {PRECISION} "
                 f"--lr 0.01 --momentum 0.9 --wd 0.0005 {more} --save {save}")
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
        from common.run import Run
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
    import test_reliability as tests
    found = {}
    for name in tests.FAMILIES:
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

    def line(part, what, wanted, found, fine, faults=()):
        nonlocal well
        well = well and fine
        lines[part] = f"| {what} | {wanted} | {found} |"
        print(*faults, lines[part], sep="\n", flush=True)
        write(lines)

    with tempfile.TemporaryDirectory() as temporary:
        base, folder = Path(temporary) / "base", Path(temporary) / "work"
        folder.mkdir()
        prepare(base)
        for part, what, make in (("networks", "checkpoints", None), ("data", "data files", mutations.arrays),
                                 ("images", "image folders", mutations.images)):
            if part in parts:
                count = int(100 * scale)
                tally = (data_sets(base, folder, count, make, seed) if make else networks(base, folder, count, seed))
                kinds = {kind: sum(f": {kind}" in fault or f", {kind}" in fault for fault in tally.faults)
                         for kind in ("traceback", "hang")}
                over = sum(" MB" in fault.partition(": ")[2].partition(":")[0] for fault in tally.faults)
                line(part, f"{tally.files} damaged or made-up {what}, each through every script that reads such "
                     f"({tally.runs:,} runs, {tally.refused:,} refused)", "0 tracebacks, 0 hangs, 0 over 2 GB, nothing "
                     "written by those refused", f"{kinds['traceback']} tracebacks, {kinds['hang']} hangs, {over} over "
                     f"2 GB, {len(tally.faults)} faults; the slowest {tally.slowest:.1f} s, the largest "
                     f"{tally.largest:,.0f} MB", not tally.faults, tally.faults)
        if "kills" in parts:
            count, found = kills(base, folder, int(100 * scale), seed)
            wrong = [f"{step}: {fault}" for step, faults in found.items() for fault in faults]
            line("kills", f"SIGKILLs over {len(found)} commands that write, at random times and at random writes, then "
                 "finished", "as if never killed, bit for bit", f"{count} kills, {len(wrong)} differences",
                 not wrong, wrong)
        if "payloads" in parts:
            tally, ran = payloads(base, folder)
            line("payloads", f"{tally.files} pickles that want to run code, through every script ({tally.runs:,} runs)",
                 "0 ran", f"{ran} ran, {len(tally.faults)} faults", not ran and not tally.faults, tally.faults)
        if "memory" in parts:
            taken = memory(base, folder, 50)
            grown = max(taken[30:]) - max(taken[10:30])
            line("memory", "memory of a training over 50 epochs", "flat after the first ten",
                 f"{max(taken[10:30]):.1f} MB in epochs 11 to 30, {max(taken[30:]):.1f} MB in 31 to 50", grown < 5)
        if "narrow" in parts:
            found = narrow_is_masked(int(100 * scale))
            wrong = [f"{name}: {text}" for name, text in found.items() if isinstance(text, str)]
            line("narrow", f"random widths and random masks in {len(found)} kinds of networks: narrow equals masked to "
                 "1e-9 in float64", "always", f"{sum(n for n in found.values() if isinstance(n, int)):,} networks, "
                 f"{len(wrong)} kinds with a difference", not wrong, wrong)
        if "masks" in parts:
            found = masked_steps(base, folder, int(10_000 * scale))
            moved = sum(m for _, _, m in found.values())
            line("masks", f"masked steps of each of {len(found)} methods with momentum, weight decay and {PRECISION}, "
                 f"{sum(n for _, n, _ in found.values()):,} masked weights", "0 moved",
                 f"{min(n for n, _, _ in found.values()):,} steps each, {moved} moved", not moved)
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
            "of each line (tests/test_reliability.py).", "", "| what was done | wanted | found |",
            "| --- | --- | --- |", *rows.values(), "", f"Last run: {', '.join(args.parts) or 'everything'}"
            f"{f', --scale {args.scale:g}' if args.scale != 1 else ''}, {facts['date']}, torch {facts['torch']}, "
            f"{facts['hardware']}, {seconds / 60:.0f} minutes of computing, beside other work; seed {args.seed}.", ""]))
    sys.exit(not report(args.parts or PARTS, args.seed, args.scale, write))


if __name__ == "__main__":
    main()
