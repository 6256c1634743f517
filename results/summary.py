"""One table and one plot of several checkpoints: accuracy, size, bytes, measured milliseconds, MicroNet score.

    python results/summary.py logs/demo/slimming/*/*.pth.tar --plot comparison.png --csv comparison.csv

Accuracy is the last epoch's on the test set, or right after pruning. Non-zero weights (of convolutions and linear
layers) and MACs are in percent of the dense network's; MACs do not count zero weights. KiB is the size of a file with
this network alone. Milliseconds are medians of fp32 forward passes of 1 and 128 images on this machine, the networks
taking turns; networks of one shape are measured once. The score is by the challenge's rules.
"""
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import UserError, cli, compute_flops, models, plots, scores
from common.device import device_of
from common.files import checkpoint
from deploy.measure import milliseconds, text

COLUMNS = {  # of the table: title and format
    "method": ("method", ""), "stage": ("stage", ""), "way": ("way", ""), "network": ("network", ""),
    "epochs": ("epochs", ""), "accuracy": ("top-1 %", ".2f"), "weights_left": ("weights", ".2f"),
    "macs_left": ("MACs %", ".2f"), "params": ("parameters", ","), "nonzeros": ("non-zero", ","),
    "kib": ("KiB", ",.1f"), "ms_1": ("ms at 1", ".2f"), "ms_128": ("at 128", ".1f"), "score": ("score", ".5f")}


def measure(ckpts, device):
    """A dictionary for each checkpoint, with the columns of the table and more."""
    networks = [checkpoint.to_model(ckpt).to(device) for ckpt in ckpts]
    # a mask or another training does not change the time of a network
    shapes = [(ckpt["arch"], str(ckpt["cfg"]), "activations" in ckpt) for ckpt in ckpts]
    distinct = dict(zip(shapes, networks, strict=True))
    times = [dict(zip(distinct, milliseconds([*distinct.values()], batch), strict=True))
             for batch in (1, 128)]
    rows = []
    for ckpt, model, shape in zip(ckpts, networks, shapes, strict=True):
        total, dense = compute_flops.count(model).total, compute_flops.dense_total(ckpt, model)
        args, run = ckpt["args"], ckpt.get("run") or {}
        rows.append({
            "file": str(ckpt["path"]), "method": ckpt["method"], "stage": ckpt["stage"],
            "way": "random" if args.get("criterion") == "random" else args.get("retrain") or "",
            "dataset": Path(ckpt["dataset"] or "").stem, "network": models.name(ckpt["arch"], ckpt["cfg"]),
            "epochs": ckpt["epoch"] or "", "accuracy": ckpt["prec1"],
            "weights_left": 100 * total.weights / dense.weights, "macs_left": 100 * total.sparse_macs / dense.macs,
            "dense_macs_left": 100 * total.macs / dense.macs, "params": total.params,
            "nonzeros": total.nonzeros, "macs": total.macs, "sparse_macs": total.sparse_macs,
            "kib": size(ckpt) / 1024, "ms_1": times[0][shape], "ms_128": times[1][shape],
            "score": score_of(ckpt, model),
            "published_score": scores.published(total.nonzeros, 2 * total.sparse_macs)[-1],
            "seed": args.get("seed", ""), "peak_lr": args.get("lr", ""),
            "trained_on": f"{run['precision']}, {run['hardware']}" if run else "", "command": run.get("command", "")})
    return rows


def score_of(ckpt, model):
    """MicroNet score, or None where the network runs something that its rules do not count."""
    try:
        return scores.of_checkpoint(ckpt, model).score
    except UserError as error:
        print(f"note: {ckpt['path']} has no score; {error}")
        return None


def size(ckpt):
    """Bytes of a file that holds this network and no optimizer state."""
    with tempfile.TemporaryDirectory() as folder:
        return checkpoint.save(Path(folder) / "network.pth.tar", {
            name: value for name, value in ckpt.items() if name not in ("resume", "path")}).stat().st_size


def table(rows):
    """(header, cells), empty where there is no value."""
    return [title for title, _ in COLUMNS.values()], [
        ["" if row[name] in ("", None) else f"{row[name]:{form}}" for name, (_, form) in COLUMNS.items()]
        for row in rows]


def draw(path, rows, title):
    """Plots accuracy against remaining weights (networks with scattered zeros) and against MACs (narrower ones).

    Each method has a line through its pruned networks, crosses for random pruning and a dotted line for its dense
    network. UserError where no network is pruned.
    """
    plt = plots.pyplot()
    rows = [row for row in rows if row["accuracy"] is not None]
    made = [row for row in rows if row["stage"] in ("pruned", "finetuned", "quantized")]
    groups = {"weights": [row for row in made if row["dense_macs_left"] > 99.9],
              "MACs": [row for row in made if row["dense_macs_left"] <= 99.9]}
    groups = {left: chosen for left, chosen in groups.items() if chosen}
    if not groups:
        raise UserError("nothing to plot: none of these networks is pruned")
    figure, panels = plt.subplots(1, len(groups), figsize=(5.5 * len(groups), 4.2), layout="constrained", sharey=True,
                                  squeeze=False)
    figure.suptitle(title)
    colours = {method: f"C{i}" for i, method in enumerate(dict.fromkeys(row["method"] for row in rows))}
    for axis, (left, chosen) in zip(panels[0], groups.items(), strict=True):
        for method, random in dict.fromkeys((row["method"], row["way"] == "random") for row in chosen):
            points = sorted((row[f"{left.lower()}_left"], row["accuracy"]) for row in chosen
                            if (row["method"], row["way"] == "random") == (method, random))
            axis.plot(*zip(*points, strict=True), "x--" if random else "o-", color=colours[method],
                      label=f"{method}, random" if random else method)
        for row in rows:
            if row["stage"] == "dense" and any(row["method"] == other["method"] for other in chosen):
                axis.axhline(row["accuracy"], color=colours[row["method"]], linewidth=1, linestyle=":",
                             label=f"{row['method']}, dense")
        axis.grid(alpha=0.3)
        axis.tick_params(labelleft=True)
        axis.legend(fontsize=8)
        axis.set(xlabel=f"{left} left (%)", title="channels" if left == "MACs" else "single weights")
        if left == "weights":
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter("{x:g}")
    panels[0, 0].set_ylabel("test accuracy (%)")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(argv=None):
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE")
    add("--plot", metavar="PNG")
    add("--csv")
    add("--device")
    args = parser.parse_args(argv)
    rows = measure([checkpoint.load(file, quantized=True) for file in args.files], device_of(args.device))
    print(text(*table(rows), words=4))
    if args.plot:
        draw(args.plot, rows, "accuracy against size")
        print(f"wrote {args.plot}")
    if args.csv:
        write(args.csv, rows)


def write(path, rows):
    plots.write_csv(Path(path), rows)
    print(f"wrote {path}")


if __name__ == "__main__":
    cli.script(main)
