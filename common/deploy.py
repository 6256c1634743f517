"""What every eval.py can do with a network besides evaluating it: --export, --int8 and --latency."""
import tempfile
from pathlib import Path

import torch

from common import UserError, cli, data, keep

# export, export_c and latency need packages that others do without, and are imported where they are asked for.


def add_flags(parser):
    add = parser.add_argument
    add("--export", metavar="FILE", help="write the network as model.onnx, or as model.c with its non-zero weights")
    add("--int8", action="store_true", help="with --export model.onnx: 8-bit weights and activations")
    add("--latency", action="store_true", help="measure milliseconds per batch, beside the dense network's, in torch "
        "and in the runtimes that are installed")


def check(args):
    """UserError, before anything is computed, for flags that do not fit and packages that are not there."""
    if args.int8 and not (args.export or "").endswith(".onnx"):
        raise UserError("--int8 is a way to --export model.onnx")
    if args.export and not args.export.endswith((".onnx", ".c")):
        raise UserError(f"--export {args.export}: the name ends in .onnx or .c")
    if args.export:
        cli.check_writable(Path(args.export).parent, "--export")
        if args.export.endswith(".onnx"):
            from common import export
            export.packages()


def deploy(args, ckpt, model, dataset, test):
    """Does what the flags ask for; model: the checkpoint's; test: the loader of the test set."""
    train = data.Loader(dataset, "train", test.batch_size, test.device)
    if args.export:
        Path(args.export).parent.mkdir(parents=True, exist_ok=True)
        if args.export.endswith(".onnx"):
            from common import export
            export.export(model, args.export, dataset, (train, test), args.int8)
        else:
            from common import export_c
            export_c.export(model, args.export)
    if args.latency:
        compare(ckpt, model, train, test)


def compare(ckpt, model, train, test):
    """Prints the milliseconds of the network and of the dense one in every runtime that is installed."""
    from common import export, latency
    dense = keep.dense_network(ckpt, model).to(test.device).eval()
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            cells += latency.cells_of("dense", export.deployable(dense), folder, train)
            cells += latency.cells_of("this", export.deployable(model), folder, train)
            latency.measure(cells)
            latency.score([cell for cell in cells if cell.network == "this"], test)
        finally:
            latency.close(cells)
    threads = torch.get_num_threads()
    print(f"{threads} thread{'s' * (threads > 1)}, {'processor time' if threads == 1 else 'wall clock'}; the dense "
          f"network has random weights\n{latency.text(*latency.rows(cells))}")
    if not latency.installed("onnxruntime") or not latency.installed("onnx"):
        print("for ONNX Runtime: pip install -r requirements-deploy.txt")
