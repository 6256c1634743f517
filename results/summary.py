"""One table of several checkpoints: stage, epochs, accuracy, parameters, MACs, and measured milliseconds.

    python results/summary.py logs/demo/slimming/*/*.pth.tar

Milliseconds are medians of fp32 forward passes of 1 and 128 pictures on this machine, the networks taking turns.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import checkpoint, cli, compute_flops
from common.device import device_of
from common.evaluate import milliseconds


def main(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--device")
    args = parser.parse_args(argv)
    device = device_of(args.device)
    ckpts = [checkpoint.load(file) for file in args.files]
    networks = [checkpoint.to_model(ckpt).to(device) for ckpt in ckpts]
    times = [milliseconds(networks, batch) for batch in (1, 128)]
    print(f"{'method':10} {'stage':10} {'network':13} {'data':9} {'epochs':>6} {'accuracy':>9} {'params':>11} "
          f"{'non-zeros':>11} {'MACs':>12} {'ms, batch 1':>12} {'batch 128':>10}")
    for ckpt, model, one, many in zip(ckpts, networks, *times, strict=True):
        total = compute_flops.count(model).total
        network = f"{ckpt['arch']}{ckpt['cfg'].get('depth', '')}"
        stage = ckpt["args"].get("retrain", ckpt["stage"])   # how magnitude/ fine-tuned
        print(f"{ckpt['method']:10} {stage:10} {network:13} {Path(ckpt['dataset']).stem:9} {ckpt['epoch'] or '':>6} "
              f"{ckpt['prec1']:7.2f} % {total.params:11,} {total.nonzeros:11,} "
              f"{total.macs:12,} {one:12.2f} {many:10.1f}")


if __name__ == "__main__":
    cli.script(main)
