"""DeepHoyer: report the sparsity of a pruned network and extract the remaining small network.

    python compact.py --model saves/str_0.001_2_T_0.01.pth

Zeros alone save neither time nor memory. Filters, channels, neurons and input pixels that a group penalty has emptied
can be removed without changing the output (see common/compact.py). Papers write the rest of a LeNet as 353-45-11. The
original's sparsity report is printed first. The small network is checked against the large one and written to
<model>_compact.pth, with the masks of its pruned weights. Takes seconds.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import UserError, cli, compute_flops
from common.compact import compact_masked
from common.files import checkpoint
from hoyer.networks import find, network, stem
from hoyer.reports import compaction_report, sparsity_report


def main(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument("--model", metavar="FILE", required=True, help="pruned or fine-tuned network")
    parser.add_argument("--save", metavar="FILE", help="default: <model>_compact.pth")
    cli.add_network(parser, cli.RECORDED)
    parser.add_argument("--overwrite", action="store_true", help="write over an earlier file")
    parser.add_argument("--round-to", type=cli.positive, default=1, metavar="N",
                        help="round channels per layer up to a multiple of N, which runs faster")
    args = parser.parse_args(argv)
    ckpt = checkpoint.load(find(args.model), network, args.arch, args.depth)
    path = Path(args.save or f"{stem(ckpt['path'])}_compact.pth")
    if path.exists() and not args.overwrite:
        raise UserError(f"{path} is there already; give another --save, or --overwrite")
    model = checkpoint.to_model(ckpt)
    small, masks = compact_masked(model, ckpt.get("masks") or {}, args.round_to)
    dense = compute_flops.summary(compute_flops.dense_network(ckpt, model))
    print(sparsity_report(model))
    print(compaction_report(model, small, dense))
    path = checkpoint.save(path, checkpoint.of(
        small, "hoyer", ckpt["stage"], ckpt["dataset"], ckpt["epoch"], ckpt["prec1"], ckpt["best_prec1"],
        ckpt["args"], dense, masks=masks or None, run=ckpt.get("run")))
    print(f"wrote {path}")


if __name__ == "__main__":
    cli.script(main)
