"""Parameters, non-zeros, MACs and bytes of a network, layer by layer (models/counting.py says what is counted).

    python common/compute_flops.py chkpt/X.pth.tar
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import cli, models
from common.files import checkpoint
from common.models.counting import count, dense_network, dense_total, summary

__all__ = ["count", "dense_network", "dense_total", "summary", "table"]


def table(counted, before=None):
    """The rows as text; with `before` (the count of the dense network) each number stands beside what it was."""
    was = {row.name: row for row in before.rows} if before else {}
    lines = [f"{'layer':34} {'weight':20} {'params':>12} {'non-zeros':>12} {'MACs':>14} {'sparse MACs':>14}"
             + (f" {'params kept':>12}" if before else "")]
    for row in [*counted.rows, counted.total]:
        shape = "x".join(map(str, row.shape))
        line = (f"{row.name:34} {shape:20} {row.params:12,} {row.nonzeros:12,} {row.macs:14,} "
                f"{row.sparse_macs:14,}")
        if before:
            old = before.total if row.name == "total" else was[row.name]
            line += f" {100 * row.params / old.params:10.1f} %"
        lines.append(line)
    if counted.elsewhere:
        lines.append(f"{counted.elsewhere:,} of the MACs are outside of convolutions and linear layers")
    return "\n".join(lines)


def main(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument("file", help="a checkpoint of this repository")
    cli.add_network(parser, cli.RECORDED)
    parser.add_argument("--image-size", type=cli.positive, help="side of the images it is counted for")
    args = parser.parse_args(argv)
    ckpt = checkpoint.load(args.file, models.any_network, args.arch, args.depth, args.image_size, quantized=True)
    counted = count(checkpoint.to_model(ckpt))
    total = counted.total
    print(table(counted))
    print(f"{total.macs:,} MACs, {2 * total.macs / 1e9:.4f} GFLOPs (2 x MACs), {total.thop_flops / 1e9:.4f} as thop "
          f"counts (batch norms too); {total.bytes:,} bytes at 4 a parameter, {Path(ckpt['path']).stat().st_size:,} "
          f"in the file")


if __name__ == "__main__":
    cli.script(main)
