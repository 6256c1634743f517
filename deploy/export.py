"""Write a network as an ONNX file, in fp32 or int8, or as one C file with its non-zero weights.

    python deploy/export.py FILE model.onnx
    python deploy/export.py FILE model.onnx --int8
    python deploy/export.py FILE model.c

FILE: a checkpoint of any method. An ONNX file is compared with torch and evaluated on the test set; int8 takes its
ranges from training images. A C file needs no data. to_onnx.py and to_c.py say what the files contain.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import UserError, cli
from deploy import network, to_c, to_onnx


def main(argv=None):
    parser = network.parser(__doc__)
    parser.add_argument("out", metavar="OUT", help="file to write: its name ends in .onnx or .c")
    parser.add_argument("--int8", action="store_true", help="8-bit weights and activations, in an .onnx file")
    args = parser.parse_args(argv)
    if not args.out.endswith((".onnx", ".c")):
        raise UserError(f"{args.out}: the name of the file to write ends in .onnx or .c")
    if args.int8 and args.out.endswith(".c"):
        raise UserError(f"--int8 is for .onnx files, not for {args.out}")
    cli.check_writable(Path(args.out).parent, "OUT")
    if args.out.endswith(".onnx"):
        to_onnx.packages()
    ckpt, model = network.load(args)
    if args.out.endswith(".onnx"):
        to_onnx.export(model, args.out, *network.images(args, ckpt, model), args.int8)
    else:
        to_c.export(model, args.out)


if __name__ == "__main__":
    cli.script(main)
