"""How long the commands on stdin will take on this machine, for run_all.sh: for each the minutes left before it begins.

The first command of each method is run on 512 images; an epoch takes as many times longer as it has more images.
Reading torch and the data, which every command does, takes as long as it took here.
"""
import contextlib
import csv
import importlib
import io
import sys
import tempfile
import time
from pathlib import Path

began = time.time()
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli

IMAGES = 512


def log(folder):
    """The rows of the log.csv of a training, [] before its first epoch."""
    path = Path(folder) / "log.csv"
    return list(csv.DictReader(path.open())) if path.exists() else []


def timed(script, flags):
    """Seconds per image of a training script with these flags."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        module.main([*flags, "--subset", str(IMAGES), "--epochs", "1", "--save", folder])
        return float(log(folder)[0]["seconds"]) / IMAGES


def main():
    seconds, methods, fixed = [], {}, 0
    commands = sys.stdin.read().splitlines()
    for command in commands:
        script, *flags = command.split()
        given = dict(zip(flags, flags[1:], strict=False))
        method, training = script.split("/")[0], "--resume" in given
        if method not in methods:
            methods[method] = timed(script, flags), given
            fixed = fixed or time.time() - began
        per_image, first = methods[method]
        images = int(first.get("--subset", 10_000))
        epochs = int(given.get("--epochs", first["--epochs"])) - len(log(given["--save"])) if training else 0
        seconds.append(fixed + epochs * images * per_image)
    for i, command in enumerate(commands):
        print(f"{max(1, round(sum(seconds[i:]) / 60))} min\t{command}")


if __name__ == "__main__":
    cli.script(main)
