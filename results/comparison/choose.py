"""How the coefficients of compare.py were chosen: a few values each, on a validation set.

    python results/comparison/choose.py                runs the commands and prints a line for each value

A dense network is trained on 45,000 images; from it each penalty is trained for 3 epochs on 15,000 of them, in as many
steps as 3 epochs of the whole set have, pruned to 10 % of the weights or half the MACs, and tested without fine-tuning
on the last 5,000 training images, on which nothing was trained. Finished commands are not repeated.
"""
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from common import UserError, cli, data
from common.files import checkpoint
from results.comparison.compare import ADAM_OFF, ARCH, DATASET, seconds_an_epoch
from results.comparison.stages import Stage, run, up_to_date

WEIGHTS, MACS = "10 % of the weights", "50 % of the MACs"
VALUES = {  # penalty: (its coefficient, what pruning keeps, the values), for soft masks wg,tw
    "slim": ("slimming, s", MACS, ("0.0003", "0.001", "0.003")),
    "hs": ("Hoyer-Square, decay", WEIGHTS, ("1e-5", "3e-5", "1e-4")),
    "ghs": ("group-HS, decay", MACS, ("1e-4", "3e-4", "1e-3")),
    "rew": ("reweighted, lambda", WEIGHTS, ("3e-6", "1e-5")),
    "rewf": ("reweighted filters, lambda", MACS, ("5e-4", "2e-3")),
    "soft": ("soft masks of channels, wg, tw", MACS, ("4,16", "2,8", "8,32")),
    "nfp": ("soft masks of weights, wg, tw", WEIGHTS, ("1000,4000", "300,1200", "3000,12000"))}
ALL, PART = "logs/compare/validation.npz", "logs/compare/validation15k.npz"
DENSE = "logs/search/dense/checkpoint.pth.tar"


def commands(name, value):
    """(training, pruning) of one value: script and flags."""
    wg, _, tw = value.partition(",")
    masks = f"--wg {wg} --tw {tw} --wme 0 --swa-start 999"
    sgd = f"--rew {ADAM_OFF} --lr-scheduler onecycle --lam {value}"
    cycle, weights, macs = "--schedule onecycle", "--keep-weights 0.1", "--keep-macs 0.5"
    return {
        "slim": (f"slimming/main.py -sr --s {value} {cycle}", f"slimming/prune.py {macs}"),
        "hs": (f"hoyer/main.py --reg hs --decay {value} {cycle}", f"hoyer/prune.py {weights}"),
        "ghs": (f"hoyer/main.py --reg group-hs --decay {value} {cycle}",
                f"hoyer/prune.py {macs} --granularity channel"),
        "rew": (f"reweighted/main.py {sgd}", f"reweighted/prune.py {weights}"),
        "rewf": (f"reweighted/main.py {sgd} --sparsity-type filter", f"reweighted/prune.py {macs}"),
        "soft": (f"softmask/main.py --pflops --target 0.5 {masks} {cycle}", f"softmask/prune.py {macs}"),
        "nfp": (f"softmask/main.py --nfp --target 0.9 {masks} {cycle}", f"softmask/prune.py {weights}")}[name]


def stages():
    """The dense network, then training and pruning of every value."""
    made = [Stage("", f"python magnitude/main.py --dataset {ALL} --batch-size 128 --weight-decay 5e-4 --arch {ARCH} "
                  f"--epochs 6 --lr 0.3 --schedule onecycle --save {Path(DENSE).parent} --resume auto", "", DENSE, 6)]
    for name, (_, _, values) in VALUES.items():
        for value in values:
            folder, (train, prune) = f"logs/search15/{name}-{value}", commands(name, value)
            file = "pruned_model.pth.tar" if "softmask" in prune else "pruned.pth.tar"
            trained = f"{folder}/checkpoint.pth.tar"
            made.append(Stage(name, f"python {train} --dataset {PART} --batch-size 43 --weight-decay 5e-4 --pretrained "
                              f"{DENSE} --epochs 3 --lr 0.1 --resume auto --save {folder}", DENSE, trained, 3))
            made.append(Stage(name, f"python {prune} --model {trained} --save {folder}/cut --overwrite", trained,
                              f"{folder}/cut/{file}", 0, value))
    return made


def coefficients(ledger):
    """(header, cells): what was tried, from the ledger's rows of the prunings."""
    accuracy = {row["args"].get("save"): row["accuracy"] for row in ledger}
    tried = {name: [f"{stage.row}: {accuracy[str(stage.folder)]}" for stage in stages()
                    if stage.group == name and stage.row] for name in VALUES}
    return ["coefficient", "kept", "value: top-1 on the validation set right after pruning, %"], [
        [title, left, "; ".join(tried[name])] for name, (title, left, _) in VALUES.items()]


def split(dataset):
    """Writes the two data sets, whose test images are the validation set."""
    Path(ALL).parent.mkdir(parents=True, exist_ok=True)
    for path, count in ((ALL, 45_000), (PART, 15_000)):
        if not Path(path).exists():
            np.savez(path, x_train=dataset.x_train[:count], y_train=dataset.y_train[:count],
                     x_test=dataset.x_train[-5000:], y_test=dataset.y_train[-5000:])


def main(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument("--data-dir", type=os.path.abspath)
    args = parser.parse_args(argv)
    os.chdir(ROOT)                                           # where the commands and their folders are
    split(data.load(DATASET, args.data_dir))
    todo = stages()
    failed = run(todo, args.data_dir, seconds_an_epoch(todo))
    for stage in up_to_date(todo):
        if stage.row:
            print(f"{stage.group:5} {stage.row:12} {checkpoint.load(stage.makes)['prec1']:.2f} %")
    if failed:
        raise UserError(f"failed or left out: {', '.join(str(stage.folder) for stage in failed)}")


if __name__ == "__main__":
    cli.script(main)
