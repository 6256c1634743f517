"""One table of several checkpoints: stage, epochs, accuracy, parameters, MACs, and measured milliseconds.

    python results/summary.py logs/demo/slimming/*/*.pth.tar

Accuracy is the last epoch's on the test set, or right after pruning. Milliseconds are medians of fp32 forward passes
of 1 and 128 images on this machine, the networks taking turns; networks of one shape are measured once.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import checkpoint, cli, compute_flops, models
from common.device import device_of
from common.evaluate import milliseconds


def stage_of(ckpt):
    """The stage, and what tells two of the same method apart: 'pruned at random', 'finetuned, lr-rewind'."""
    if ckpt["args"].get("criterion") == "random":
        return f"{ckpt['stage']} at random"
    way = ckpt["args"].get("retrain")                        # of magnitude
    return f"{ckpt['stage']}, {way}" if way else ckpt["stage"]


def main(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--device")
    args = parser.parse_args(argv)
    device = device_of(args.device)
    ckpts = [checkpoint.load(file) for file in args.files]
    networks = [checkpoint.to_model(ckpt).to(device) for ckpt in ckpts]

    # a mask or another training does not change the time of a network
    shapes = [(ckpt["arch"], str(ckpt["cfg"]), "activations" in ckpt) for ckpt in ckpts]
    distinct = dict(zip(shapes, networks, strict=True))
    times = [dict(zip(distinct, milliseconds([*distinct.values()], batch, rounds=7), strict=True))
             for batch in (1, 128)]

    print(f"{'method':10} {'stage':20} {'network':12} {'data':8} {'epochs':>6} {'accuracy':>9} {'parameters':>10} "
          f"{'non-zeros':>10} {'MACs':>11} {'ms, batch 1':>11} {'batch 128':>9}")
    for ckpt, model, shape in zip(ckpts, networks, shapes, strict=True):
        total = compute_flops.count(model).total
        print(f"{ckpt['method']:10} {stage_of(ckpt):20} {models.name(ckpt['arch'], ckpt['cfg']):12} "
              f"{Path(ckpt['dataset']).stem:8} {ckpt['epoch'] or '':>6} {ckpt['prec1']:7.2f} % {total.params:10,} "
              f"{total.nonzeros:10,} {total.macs:11,} {times[0][shape]:11.2f} {times[1][shape]:9.1f}")


if __name__ == "__main__":
    cli.script(main)
