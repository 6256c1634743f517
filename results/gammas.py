"""Draws how the penalty of network slimming splits the gammas in two heaps, epoch by epoch: results/gammas.png.

    python results/gammas.py

Trains the demo's narrow VGG on built-in images, with the penalty and without, at a constant learning rate. Each panel
is a checkpoint; the next one continues from it with --resume auto. Minutes on two CPU cores.
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from common import cli, plots
from common.files import checkpoint
from slimming import main as slimming

EPOCHS = (1, 2, 4, 8)
RECIPE = "--arch vgg11_0.25 --dataset shapes10 --subset 5000 --batch-size 32 --lr 0.05 --schedule 99 --resume auto"
PENALTIES = {"no penalty": "", "s = 0.004": "-sr --s 0.004"}


def gammas(folder, flags, epochs):
    """|gamma| of every channel after this many epochs."""
    slimming.main([*RECIPE.split(), *flags.split(), "--epochs", str(epochs), "--save", str(folder)])
    model = checkpoint.to_model(checkpoint.load(folder / "checkpoint.pth.tar"))
    return torch.cat([m.weight.detach().abs() for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)])


def main(argv=None):
    cli.parser(__doc__).parse_args(argv)
    figure, axes = plots.pyplot().subplots(len(PENALTIES), len(EPOCHS), figsize=(11, 4.2), layout="constrained",
                                           sharex=True, sharey=True)
    for row, (name, flags) in zip(axes, PENALTIES.items(), strict=True):
        for axis, epochs in zip(row, EPOCHS, strict=True):
            values = gammas(ROOT / "logs" / "gammas" / name.replace(" ", ""), flags, epochs)
            axis.hist(values.numpy(), bins=40, range=(0, 1.2), color="tab:blue")
            axis.set(yscale="log", title=f"{name}, epoch {epochs}")
    figure.supxlabel("|gamma|")
    figure.supylabel("channels")
    path = ROOT / "results" / "gammas.png"
    figure.savefig(path, dpi=90)
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    cli.script(main)
