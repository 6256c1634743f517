"""DeepHoyer: accuracy against sparsity for every penalty, over coefficients and thresholds, and the best of each.

    python sweep.py --save logs/sweep                                    the element-wise penalties, LeNet-300-100
    python sweep.py --save logs/sweep --regs group-lasso group-hs        groups, from the same dense network
    python sweep.py --save logs/sweep --iterate --tune-epochs 20 --tune-wd 5e-4 --target 98.4

Train a dense network, and from it one network for each penalty and coefficient in --decays (main.py). Prune and
fine-tune each at every threshold in --sensitivities (prune.py, finetune.py); with --iterate each threshold starts from
the network of the one before. The last 5,000 training images are a validation set, and accuracies are those on it, so
choosing does not use the test set. sweep.csv has one row per network, earlier sweeps of the folder included; sweep.png
shows accuracy against the remaining weights and against the MACs of the compacted network. A threshold that would prune
every weight is skipped.

With --target, each penalty's sparsest network of this command (by weights; for groups by MACs) that reaches this
accuracy on the validation set is tested and written to chosen/: the fine-tuned network with its masks, its compacted
version as -compact, and the dense network. With --refit FILE, a dense network trained on all training images, the
chosen coefficient and thresholds are first trained once more from it, on all images, and that network is tested.
Nothing is chosen by the test set either way.

Repeat the command to continue a stopped sweep or to add values; finished trainings are not repeated. Expect the time of
(penalties x coefficients) x (--epochs + thresholds x --tune-epochs): with the defaults 8,050 epochs for the four
element-wise penalties and the dense network, hours of LeNet-300-100 on a CPU core.
"""
import csv
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import UserError, cli, compute_flops, data, plots
from common.device import command
from common.evaluate import evaluate
from common.files import checkpoint
from common.schedule import epoch_or_word
from hoyer import finetune, prune
from hoyer import main as training
from hoyer.launchers import prune_once
from hoyer.regularizers import ELEMENT, GROUP, PENALTIES

DECAYS = {  # around what works on MNIST
    "l1": (1e-5, 3e-5, 1e-4), "hoyer": (5e-4, 2e-3, 1e-2), "hs": (3e-5, 1e-4, 3e-4), "tl1": (1e-5, 3e-5, 1e-4),
    "group-lasso": (2e-4, 5e-4, 1e-3), "group-hoyer": (2e-3, 5e-3, 2e-2), "group-hs": (2e-4, 5e-4, 2e-3)}


def parse(argv=None):
    parser = cli.parser(__doc__, train=False)
    add = parser.add_argument
    add("--arch", help="mlp, cnn, or a CIFAR network such as resnet20 (default: mlp, or that of --pretrained)")
    add("--regs", nargs="+", choices=PENALTIES, default=list(ELEMENT), metavar="REG", help="penalties: "
        f"{', '.join(PENALTIES)} (default: the four element-wise ones)")
    add("--decays", nargs="+", type=cli.nonnegative, metavar="D", help="coefficients (default: three for each penalty)")
    add("--sensitivities", nargs="+", type=cli.nonnegative, default=[1e-3, 1e-2, 3e-2, 6e-2], metavar="T",
        help="thresholds")
    add("--granularity", choices=("element", "group"), default="element", help="as prune.py's (default: element)")
    add("--epochs", type=cli.positive, default=250, help="epochs of each training (default: 250)")
    add("--wd", type=cli.nonnegative, help="weight decay of the sparse training (default: main.py's)")
    add("--tune-epochs", type=cli.positive, default=100, help="epochs of each fine-tuning (default: 100)")
    add("--tune-lr", type=cli.nonnegative, default=1e-3, help="learning rate of the fine-tuning (default: 1e-3)")
    add("--tune-wd", type=cli.nonnegative, help="weight decay of the fine-tuning (default: finetune.py's)")
    add("--schedule", nargs="+", type=epoch_or_word, default=["cosine"], help="as main.py's, for both (default: "
        "cosine)")
    add("--seed", type=cli.seed_number, default=12345678, help="random seed (default: 12345678)")
    add("--holdout", type=cli.positive, default=5000, metavar="N", help="validation images: the last N of training "
        "(default: 5000)")
    add("--pretrained", "--model", metavar="FILE", help="a dense network to start from, trained with the same "
        "--holdout (default: one is trained)")
    add("--iterate", action="store_true", help="start each threshold from the network of the one before")
    add("--target", type=float, metavar="PERCENT", help="accuracy on the validation set of the networks to choose")
    add("--refit", metavar="FILE", help="dense network trained on all images; train the chosen networks again from it "
        "and test those")
    add("--save", default="logs/sweep", help="folder to write to")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    args.save = str(Path(args.save))                         # without a trailing slash
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("a sweep is one process; start it without torchrun")
    if args.refit and args.target is None:
        raise UserError("--refit retrains the networks that --target PERCENT chooses; add --target")
    rows, dense = earlier(args), args.pretrained or f"{args.save}/dense/checkpoint.pth.tar"
    given = [check_dense(args, path, holdout)
             for path, holdout in ((args.pretrained, args.holdout), (args.refit, 0)) if path]
    if len({(ckpt["arch"], ckpt["dataset"]) for ckpt in given}) > 1:
        raise UserError(f"{args.pretrained} and {args.refit} differ in network or data set")
    if not args.pretrained:
        train(args, f"{args.save}/dense", args.holdout)
    made = {reg: [] for reg in args.regs}
    for reg in args.regs:
        for decay in args.decays or DECAYS[reg]:
            for row, thresholds in trained(args, args.save, reg, decay, args.sensitivities, dense, args.holdout):
                rows[row["folder"]] = row
                write(args, list(rows.values()))
                made[reg].append((row, thresholds))
    if args.target is not None:
        ckpt = checkpoint.load(args.refit or dense)
        top1 = test_once(args, ckpt["path"], "dense")
        print(f"dense: test {top1:.2f} %; wrote {args.save}/chosen/dense.pth.tar")
        for reg in args.regs:
            choose(args, reg, made[reg], dense)


def check_dense(args, path, holdout):
    """The checkpoint; UserError unless it is a dense network trained on all images but the last `holdout`."""
    ckpt = checkpoint.load(path)
    if ckpt["stage"] != "dense":
        raise UserError(f"{path} is a {ckpt['stage']} network, not a dense one")
    for name, wanted in (("holdout", holdout), ("subset", args.subset)):
        if ckpt["args"].get(name) != wanted:
            raise UserError(f"{path} was trained with --{name} {ckpt['args'].get(name)}, not {wanted}: it must "
                            f"be trained on {'the same images as the sweep' if holdout else 'all images'}")
    return ckpt


def train(args, save, holdout, reg="none", decay=0.0, pretrained=None):
    """Trains as main.py does into the folder save, or continues the run that is there."""
    training.train(cli.settings(training, args, save=save, holdout=holdout, reg=reg, decay=decay, pretrained=pretrained,
                                weight_decay=args.wd if reg != "none" else None, resume="auto"))


def trained(args, save, reg, decay, sensitivities, dense, holdout):
    """One coefficient of one penalty, into folders of `save`: the sparse training, then pruning and fine-tuning for
    each threshold. Yields for each of these a row of sweep.csv and the thresholds up to there."""
    folder = f"{save}/{reg}-{decay}{tag('wd', args.wd, None)}{tag('epochs', args.epochs, 250)}"
    train(args, folder, holdout, reg, decay, dense)
    source, epochs = f"{folder}/checkpoint.pth.tar", args.epochs
    ckpt = checkpoint.load(source)
    minutes, wd = ckpt["run"]["minutes"], ckpt["args"]["weight_decay"]
    how = tag("wd", args.tune_wd, None) + tag("lr", args.tune_lr, 1e-3) + tag("epochs", args.tune_epochs, 100)
    taken = []                                               # the thresholds up to here
    for sensitivity in sensitivities:
        steps = [*taken, sensitivity] if args.iterate else [sensitivity]
        tuned = f"{folder}/{args.granularity}-{'-'.join(map(str, steps))}{how}"
        try:
            pruned = prune_once(args, "auto", model=source, sensitivity=sensitivity, save=tuned, holdout=holdout)
        except prune.NothingLeft as error:
            print(f"{reg}, coefficient {decay:g}: skipped, as {error}", flush=True)
            continue
        finetune.finetune(cli.settings(finetune, args, model=pruned, save=tuned, holdout=holdout, resume="auto",
                                       epochs=args.tune_epochs, lr=args.tune_lr, weight_decay=args.tune_wd))
        row = {"reg": reg, "decay": decay, "wd": wd, "seed": args.seed, "granularity": args.granularity,
               "sensitivity": sensitivity, **measured(args, tuned, epochs, minutes)}
        yield row, steps
        if args.iterate:
            taken, source, epochs, minutes = steps, f"{tuned}/finetuned.pth.tar", row["epochs"], row["minutes"]


def tag(name, value, usual):
    """Folder-name suffix for a setting that is not the default, such as '-wd0.0005'."""
    return f"-{name}{value:g}" if value != usual else ""


def earlier(args):
    """{folder: row} of an existing sweep.csv."""
    path = Path(args.save) / "sweep.csv"
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        return {row["folder"]: row for row in csv.DictReader(file) if (Path(args.save) / row["folder"]).is_dir()}


def measured(args, folder, epochs, minutes):
    """Validation accuracy, weights left (without biases) and MACs left, each in percent, and the cost of all sparse
    training; epochs, minutes: before this fine-tuning."""
    tuned, small = (checkpoint.load(f"{folder}/{name}.pth.tar") for name in ("finetuned", "compact"))
    model = checkpoint.to_model(tuned)
    dense = compute_flops.dense_total(tuned, model)
    left = compute_flops.count(model).total.weights / dense.weights
    macs = compute_flops.count(checkpoint.to_model(small)).total.macs / dense.macs
    return {"accuracy": round(tuned["prec1"], 2), "weights_left": round(100 * left, 3),
            "macs_left": round(100 * macs, 3), "widths": " ".join(map(str, small["cfg"].get("widths", []))),
            "epochs": epochs + tuned["epoch"], "minutes": round(minutes + tuned["run"]["minutes"], 2),
            "folder": str(Path(folder).relative_to(args.save))}


def choose(args, reg, made, dense):
    """Tests the sparsest of one penalty's networks that is good enough on the validation set, and keeps it.

    made: [(row of sweep.csv, thresholds), ...]; dense: the file that they all started from.
    """
    good = [(row, steps) for row, steps in made if row["accuracy"] >= args.target]
    for suffix in ("", "-compact"):                          # of an earlier choice
        Path(f"{args.save}/chosen/{reg}{suffix}.pth.tar").unlink(missing_ok=True)
    if not good:
        print(f"{reg}: no network reaches {args.target} % on the validation set; try smaller coefficients or smaller "
              "thresholds")
        return
    best, steps = min(good, key=lambda pair: pair[0]["macs_left" if reg in GROUP else "weights_left"])
    print(f"{reg}: coefficient {best['decay']:g}, threshold {best['sensitivity']:g} chosen, {best['accuracy']:.2f} % "
          "on the validation set")
    if args.refit:
        again = list(trained(args, f"{args.save}/refit", reg, best["decay"], steps, args.refit, 0))
        if not again or again[-1][1] != steps:
            print(f"{reg}: trained on all images it did not get to the chosen thresholds, so it is not tested")
            return
        best, dense = again[-1][0], args.refit
    tuned = checkpoint.load(f"{args.save}/{best['folder']}/finetuned.pth.tar")
    settings = {name: value for name, value in vars(args).items() if name != "data_dir"} | {
        name: best[name] for name in ("reg", "decay", "wd", "granularity", "sensitivity")} | {
        "refit": bool(args.refit), "tune_wd": tuned["args"]["weight_decay"], "pretrained": dense}
    spent = {"minutes": best["minutes"], "command": command()}
    for name, suffix in (("finetuned", ""), ("compact", "-compact")):
        top1 = test_once(args, f"{args.save}/{best['folder']}/{name}.pth.tar", f"{reg}{suffix}", best["epochs"], spent,
                         settings)
    print(f"{reg}{', refit' if args.refit else ''}: {best['weights_left']} % of the weights, {best['macs_left']} % of "
          f"the MACs in {best['widths']}, test {top1:.2f} %; wrote {args.save}/chosen/{reg}.pth.tar", flush=True)


def test_once(args, path, name, epochs=None, facts=None, settings=None):
    """Writes the network to chosen/<name>.pth.tar with its accuracy on the test set; returns that.

    epochs, facts, settings: instead of the file's own `epoch`, in its `run`, and instead of its `args`.
    """
    ckpt = checkpoint.load(path)
    model = checkpoint.to_model(ckpt)
    dataset = data.for_network(model, path, ckpt["dataset"], args.data_dir, subset=args.subset)
    top1 = evaluate(model, data.Loader(dataset, "test", args.test_batch_size))["top1"]
    kept = {k: v for k, v in ckpt.items() if k not in ("path", "resume")}
    checkpoint.save(f"{args.save}/chosen/{name}.pth.tar", {
        **kept, "prec1": top1, "best_prec1": top1, "epoch": epochs or ckpt["epoch"],
        "run": ckpt["run"] | (facts or {}), "args": settings or ckpt["args"]})
    return top1


def write(args, rows):
    """sweep.csv and sweep.png of all rows so far."""
    plots.write_csv(Path(args.save) / "sweep.csv", rows)
    plt = plots.pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    for axis, column, label in zip(axes, ("weights_left", "macs_left"),
                                   ("weights left (%)", "MACs of the compacted network left (%)"), strict=True):
        for reg, marker in zip(PENALTIES, "os^vDP*", strict=True):
            mine = [row for row in rows if row["reg"] == reg]
            if mine:
                axis.plot([float(row[column]) for row in mine], [float(row["accuracy"]) for row in mine], marker,
                          fillstyle="none", label=reg)
        axis.set_xlabel(label)
        axis.set_xscale("log", subs=(2, 5))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("{x:g}")
        axis.tick_params(axis="x", which="minor", labelsize=7)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"accuracy on the {args.holdout} validation images (%)")
    axes[0].legend()
    figure.savefig(Path(args.save) / "sweep.png", dpi=100)
    plt.close(figure)
    print(f"wrote {args.save}/sweep.csv and sweep.png: {len(rows)} networks", flush=True)


if __name__ == "__main__":
    cli.script(main)
