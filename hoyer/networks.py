"""Which network `--arch` means in this folder, with the original's options.

mlp and cnn are the LeNets of the MNIST experiments (LeNet-300-100 and LeNet-5), all others the CIFAR networks of
bearpaw/pytorch-classification. resnet and preresnet have 6n+2 layers, or 9n+2 with --block-name Bottleneck. Any other
name is that network of common/models.
"""
import re

from common import UserError, cli, models
from common.files import checkpoint

NETWORKS = {  # --arch: (arch of models.build, the options it has with their defaults, what is fixed)
    "mlp": ("lenet300", {}, {}),
    "cnn": ("lenet5", {}, {}),
    "alexnet": ("alexnet", {}, {}),
    "resnet": ("resnet", {"depth": 20, "block": "basic"}, {}),
    "preresnet": ("preresnet", {"depth": 110, "block": "basic"}, {}),
    "wrn": ("wideresnet", {"depth": 28, "widen_factor": 4, "dropout": 0.0}, {}),
    "resnext": ("resnext", {"depth": 29, "cardinality": 8, "widen_factor": 4}, {}),
    "densenet": ("densenet", {"depth": 100, "growth": 12, "compression": 2}, {"block": "bottleneck"}),
    **{f"vgg{depth}{bn}": ("vgg", {}, {"depth": depth, "variant": f"bearpaw{bn}"})
       for depth in (11, 13, 16, 19) for bn in ("", "_bn")},
}
BLOCKS = {"BasicBlock": "basic", "Bottleneck": "bottleneck"}


def add_flags(parser):
    add = parser.add_argument
    add("-a", "--arch", help="mlp, cnn (the LeNets); alexnet, vgg11 to vgg19_bn, resnet, preresnet, wrn, resnext, "
        "densenet, or another network of common/models (default: mlp, or that of the checkpoint)")
    add("--depth", type=cli.positive, help="default: 20 for resnet, 110 for preresnet, 28 for wrn, 29 for resnext, "
        "100 for densenet")
    add("--drop", dest="dropout", type=cli.fraction, help="dropout of wrn (default: 0)")
    add("--block-name", choices=BLOCKS, help="block of resnet and preresnet: 6n+2 or 9n+2 layers (default: "
        "BasicBlock)")
    add("--cardinality", type=cli.positive, help="groups of resnext (default: 8)")
    add("--widen-factor", type=cli.positive, help="width of wrn and resnext (default: 4)")
    add("--growthRate", dest="growth", type=cli.positive, help="growth rate of densenet (default: 12)")
    add("--compressionRate", dest="compression", type=cli.positive, help="compression of densenet (default: 2)")


def options(args):
    """{option: value} of the network besides arch and depth; None for flags that are not given."""
    return dict(dropout=args.dropout, block=BLOCKS.get(args.block_name), cardinality=args.cardinality,
                widen_factor=args.widen_factor, growth=args.growth, compression=args.compression)


def network(arch, depth=None, **options):
    """(arch, cfg) for `models.build` and `checkpoint.load`. UserError for an option that the network does not have."""
    asked, asked_depth = arch, depth
    if arch not in NETWORKS:
        arch, depth = models.split_name(arch, depth)         # resnet56 is --arch resnet --depth 56
    if arch in NETWORKS:
        name, defaults, fixed = NETWORKS[arch]
    else:                                                    # wrn_28_10 names all but the dropout
        (name, fixed), depth = models.any_network(asked, asked_depth), None
        defaults = {"dropout": 0.0} if name == "wideresnet" else {}
    given = {key: value for key, value in {"depth": depth, **options}.items() if value is not None}
    for key, value in given.items():
        if key not in defaults and fixed.get(key) != value:
            raise UserError(f"--arch {arch} has no {key.replace('_', ' ')} to choose; leave out {value!r}")
    return name, {**defaults, **given, **fixed}


def find(path):
    """The file, given with or without its suffix .pth or .pth.tar."""
    for suffix in ("", ".pth", ".pth.tar"):
        if checkpoint.locate(f"{path}{suffix}").is_file():
            return f"{path}{suffix}"
    return path


def stem(path):
    """The path without .pth or .pth.tar."""
    return re.sub(r"\.pth(\.tar)?$", "", str(path))
