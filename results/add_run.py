"""Adds a finished run to results/ledger.csv, and on request keeps its network in chkpt/.

    python results/add_run.py logs/cifar10-vgg13-dense/checkpoint.pth.tar
    python results/add_run.py logs/.../finetuned.pth.tar --keep chkpt/slimming-vgg13-cifar10.pth.tar

Everything in the row is read from the checkpoint or counted on its network. A kept file holds the weights in half
precision and no optimizer state, and its SHA-256 goes to chkpt/SHA256SUMS.
"""
import csv
import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import UserError, checkpoint, cli, compute_flops

LEDGER = ROOT / "results" / "ledger.csv"
COLUMNS = ("date,command,method,stage,arch,dataset,epochs,seed,precision,hardware,minutes,accuracy,best_accuracy,"
           "params,nonzeros,macs,bytes,checkpoint,sha256,setting,weights,widths").split(",")


def keep(ckpt, path):
    """Writes the kept file and its line in chkpt/SHA256SUMS; returns its SHA-256."""
    checkpoint.save(path, {k: v for k, v in ckpt.items() if k not in ("resume", "path")}, half=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    sums = path.parent / "SHA256SUMS"
    lines = sums.read_text().splitlines() if sums.exists() else []
    lines = [line for line in lines if not line.endswith(f"  {path.name}")] + [f"{digest}  {path.name}"]
    sums.write_text("\n".join(sorted(lines, key=lambda line: line.split()[1])) + "\n")
    return digest


def row_of(ckpt):
    model = checkpoint.to_model(ckpt)
    total, run, args = compute_flops.count(model).total, ckpt.get("run"), ckpt["args"]
    if not run:
        raise UserError(f"{ckpt['path']} does not say how it was made (no 'run'); it is no run of this repository")
    depth = ckpt["cfg"].get("depth", "")
    return {"date": run["date"], "command": run["command"], "method": ckpt["method"], "stage": ckpt["stage"],
            "arch": f"{ckpt['arch']}{depth}", "dataset": ckpt["dataset"], "epochs": ckpt["epoch"],
            "seed": args.get("seed", ""), "precision": run["precision"], "hardware": run["hardware"],
            "minutes": f"{run['minutes']:.1f}", "accuracy": f"{ckpt['prec1']:.2f}",
            "best_accuracy": f"{ckpt['best_prec1']:.2f}", "params": total.params, "nonzeros": total.nonzeros,
            "macs": total.sparse_macs, "bytes": total.bytes, "checkpoint": "", "sha256": "",
            "setting": run.get("setting") or ckpt.get("rule") or "", "weights": total.weights,
            "widths": "-".join(map(str, ckpt["cfg"].get("widths", [])))}


def main(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--keep", metavar="chkpt/NAME.pth.tar", help="keep the network there")
    args = parser.parse_args(argv)
    ckpt = checkpoint.load(args.file)
    if args.keep:                                            # half precision may have rounded a weight to zero
        path = ROOT / args.keep
        digest = keep(ckpt, path)
        row = row_of(checkpoint.load(path))
        row |= {"sha256": digest, "checkpoint": args.keep, "bytes": path.stat().st_size}
    else:
        row = row_of(ckpt)
    new = not LEDGER.exists()
    with open(LEDGER, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(f"{row['method']} {row['stage']} {row['arch']} {row['dataset']}: {row['accuracy']} %, added to {LEDGER.name}")


if __name__ == "__main__":
    cli.script(main)
