"""Adds a finished run to results/ledger.csv, and on request keeps its network in chkpt/.

    python results/add_run.py logs/cifar10-vgg13-slimming-dense/checkpoint.pth.tar
    python results/add_run.py logs/.../finetuned.pth.tar --keep chkpt/slimming-vgg13-cifar10.pth.tar

Everything in the row is read from the checkpoint or counted on its network; bytes are those of a file with the network
alone. A kept file holds the weights in half precision and no optimizer state; its accuracy, in the file and in the row,
is its own, on the whole test set. Its SHA-256 goes to chkpt/SHA256SUMS.
"""
import csv
import hashlib
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import UserError, cli, compute_flops, data, models, scores
from common.device import device_of
from common.evaluate import evaluate
from common.files import checkpoint
from results import ledger, summary


def keep(ckpt, path, data_dir=None, device=None):
    """Writes the kept file and its line in SHA256SUMS beside it; returns the checkpoint as it is there.

    UserError where the data set is missing, before anything is written.
    """
    with tempfile.TemporaryDirectory() as folder:
        rounded = checkpoint.load(checkpoint.save(Path(folder) / path.name, {
            k: v for k, v in ckpt.items() if k not in ("resume", "path")}, half=True), quantized=True)
    model = checkpoint.to_model(rounded).to(device_of(device))
    dataset = data.for_network(model, ckpt["path"], ckpt["dataset"], data_dir)
    rounded["prec1"] = evaluate(model, data.Loader(dataset, "test", 256, device_of(device)))["top1"]
    checkpoint.save(path, {k: v for k, v in rounded.items() if k != "path"}, half=True)
    sums = path.parent / "SHA256SUMS"
    lines = sums.read_text().splitlines() if sums.exists() else []
    lines = [line for line in lines if not line.endswith(f"  {path.name}")] + [f"{sha256(path)}  {path.name}"]
    sums.write_text("\n".join(sorted(lines, key=lambda line: line.split()[1])) + "\n")
    return checkpoint.load(path, quantized=True)


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def row_of(ckpt):
    """The ledger's row of a checkpoint; UserError where it does not say how it was made."""
    run, args = ckpt.get("run"), dict(ckpt["args"])
    if not run:
        raise UserError(f"{ckpt['path']} does not say how it was made (no 'run'); it is not a run of this repository")
    model = checkpoint.to_model(ckpt)
    total = compute_flops.count(model).total
    args |= {"rule": ckpt["rule"]} if "rule" in ckpt else {}
    args |= {"score": round(scores.of_checkpoint(ckpt, model).score, 5)} if ckpt["dataset"] == "cifar100" else {}
    return {"date": run["date"], "command": run["command"], "method": ckpt["method"], "stage": ckpt["stage"],
            "arch": models.name(ckpt["arch"], ckpt["cfg"]), "dataset": ckpt["dataset"],
            "epochs": ckpt["epoch"], "seed": args.get("seed", ""), "precision": run["precision"],
            "hardware": run["hardware"], "minutes": f"{run['minutes']:.1f}", "accuracy": f"{ckpt['prec1']:.2f}",
            "best_accuracy": f"{ckpt['best_prec1']:.2f}", "params": total.params, "nonzeros": total.nonzeros,
            "macs": total.sparse_macs, "bytes": summary.size(ckpt), "checkpoint": "", "sha256": "",
            "weights": total.weights, "widths": "-".join(map(str, ckpt["cfg"].get("widths", []))),
            "args": json.dumps(args)}


def main(argv=None):
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("file", metavar="FILE")
    add("--keep", metavar="chkpt/NAME.pth.tar", help="keep the network there; needs its data set")
    add("--data-dir", help="folder of the data sets (default: $DATA_DIR, else data/ in the repository)")
    add("--device")
    args = parser.parse_args(argv)
    ckpt = checkpoint.load(args.file, quantized=True)
    if args.keep:                                            # half precision may have rounded a weight to zero
        path = ROOT / args.keep
        row = row_of(keep(ckpt, path, args.data_dir, args.device))
        row |= {"sha256": sha256(path), "checkpoint": args.keep, "bytes": path.stat().st_size}
    else:
        row = row_of(ckpt)
    new = not ledger.PATH.exists()
    with open(ledger.PATH, "a", newline="") as file:
        writer = csv.DictWriter(file, ledger.COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(f"{row['method']} {row['stage']} {row['arch']} {row['dataset']}: {row['accuracy']} %, added to "
          f"{ledger.PATH.name}")


if __name__ == "__main__":
    cli.script(main)
