"""Commands that read each other's files: what is up to date, and running the rest; for compare.py and choose.py."""
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from common.files import checkpoint


@dataclass(eq=False)                                        # a stage can be a key
class Stage:
    """One command ('': the file is there), the file it reads ('' for none) and makes, its epochs (0: pruning)."""
    group: str
    command: str
    reads: str
    makes: str
    epochs: int = 0
    row: str = ""           # its method in the table, '' for what is only on the way to another
    weights: float = 0      # what was asked to be left, in percent; 0: nothing was
    macs: float = 0
    seed: int = 0

    @property
    def folder(self):
        return Path(self.makes).parent


def finished(stage):
    """Whether the stage's file is there with all its epochs, and up to date."""
    made, reads = Path(stage.makes), Path(stage.reads)
    if not stage.command:
        return made.exists()
    if not made.exists() or stage.reads and not reads.exists() or outdated(stage, made):
        return False
    return not stage.epochs or checkpoint.load(made, quantized=True)["epoch"] == stage.epochs


def outdated(stage, made):
    """What is wrong with a file that this stage has made, or '' (flags may stand in any order)."""
    before, now = checkpoint.load(made, quantized=True)["run"]["command"], stage.command
    if sorted(shlex.split(before)) != sorted(shlex.split(now)):
        return "was made by another command"
    reads = Path(stage.reads)
    return f"is older than {reads}" if reads.is_file() and reads.stat().st_mtime > made.stat().st_mtime else ""


def up_to_date(everything):
    """The stages that are finished, and all before them."""
    done = {"": None}
    for stage in everything:
        if stage.reads in done and finished(stage):
            done[stage.makes] = stage
    return [stage for stage in done.values() if stage]


def run(todo, data_dir, seconds_an_epoch, jobs=1):
    """Runs what is not finished, so many at once, each as soon as what it reads is there; the stages that failed."""
    place = {stage: number for number, stage in enumerate(todo, 1)}
    waiting, running, failed = list(todo), {}, []
    try:
        while waiting or running:
            for stage in [stage for stage, process in running.items() if process.poll() is not None]:
                if running.pop(stage).returncode:
                    failed.append(stage)
            for stage in list(waiting):
                if len(running) == jobs or stage.reads in [other.makes for other in [*waiting, *running]]:
                    continue
                waiting.remove(stage)
                lost = stage.reads in [other.makes for other in failed]
                if not lost and finished(stage):
                    continue
                minutes = f", about {stage.epochs * seconds_an_epoch / 60:.0f} min" if stage.epochs else ""
                print(f"\n== {place[stage]} of {len(todo)}: {stage.folder}{minutes}\n{stage.command}", flush=True)
                begun = stage.folder / "checkpoint.pth.tar"
                wrong = stage.epochs and begun.exists() and outdated(stage, begun)
                if lost or wrong:
                    print(f"left out: {stage.reads} is not finished" if lost else
                          f"left out: {begun} {wrong}; remove {stage.folder} to train it again")
                    failed.append(stage)
                    continue
                running[stage] = start(stage, data_dir, f"{stage.folder}.txt" if jobs > 1 else None)
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
