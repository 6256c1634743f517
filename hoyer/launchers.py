"""Shared by the scripts with the original's names: flags, numbers and file names of the original repository.

    element.py structure.py       LeNets, training          main.train
    cifar.py cifar_group.py       CIFAR, training           main.train
    prun_tune_T.py prun_tune_V.py cifar_prun_tune.py        prune.prune, then finetune.finetune

The LeNets' scripts write saves/<name>.pth and keep log, curve and the checkpoint to resume from in saves/<name>/.
"""
import argparse
import os
from functools import partial
from pathlib import Path

import torch

from common import UserError, cli
from common.evaluate import evaluate_checkpoint
from common.files import checkpoint
from common.schedule import check_schedule
from hoyer import finetune, main, networks, prune
from hoyer.networks import find, stem


def training_flags(doc, penalties):
    """The parser of a script that trains; penalties: what its --reg 0, 1, 2, ... mean."""
    parser, numbers = cli.parser(doc), {str(number): name for number, name in enumerate(penalties)}
    main.add_flags(parser)
    parser.add_argument("--reg", type=lambda text: numbers.get(text, text), choices=penalties, default="none",
                        help="the penalty, by number or name: " + ", ".join(map(" ".join, numbers.items())))
    return parser


def cifar_flags(parser):
    """The shared flags under the names of bearpaw/pytorch-classification."""
    add, same = parser.add_argument, dict(default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    add("-d", dest="dataset", **same)
    add("--train-batch", dest="batch_size", type=cli.positive, **same)
    add("--test-batch", dest="test_batch_size", type=cli.positive, **same)
    add("-c", "--checkpoint", dest="save", **same)
    add("--manualSeed", dest="seed", type=cli.seed_number, **same)
    add("--gpu-id", dest="device", type=lambda number: f"cuda:{int(number)}", **same)


def train_lenet(doc, argv, kind, penalties, weight_decay):
    """main.train into saves/<kind>_<decay>_<number of --reg>, LeNet-5 into saves/cnn/, with the network as a .pth
    beside."""
    parser = training_flags(doc, penalties)
    parser.set_defaults(weight_decay=weight_decay)
    args = parser.parse_args(argv)
    args.decay = args.decay if args.reg != "none" else 0.0
    _, arch, _ = main.starting_point(args)
    if not arch.startswith("lenet"):
        raise UserError(f"this script trains the LeNets, --arch mlp and cnn; for a {arch} use cifar_group.py")
    name = f"{kind}_{args.decay}_{penalties.index(args.reg)}"
    args.save = args.save or f"saves/{'cnn/' if arch == 'lenet5' else ''}{name}"
    main.train(cli.settings(main, args))
    keep(f"{args.save}/checkpoint.pth.tar", f"{args.save}.pth")


def train_cifar(doc, argv, penalties):
    """main.train, by default for a resnet; -e only evaluates the given file."""
    parser = training_flags(doc, penalties)
    cifar_flags(parser)
    parser.add_argument("-e", "--evaluate", action="store_true", help="only evaluate --model or --resume")
    args = parser.parse_args(argv)
    if not args.evaluate:
        if args.pretrained is None:
            args.arch = args.arch or "resnet"
        return main.train(cli.settings(main, args))
    path = args.pretrained or args.resume
    if path in ("", "auto"):
        raise UserError("-e evaluates a file: give it as --pretrained FILE or --resume FILE")
    evaluate_checkpoint(find(path), partial(networks.network, **networks.options(args)), args.arch, args.depth,
                        args.device, args.test_batch_size, **cli.data_flags(args))


def pruning_flags(doc, rule, sensitivity):
    """The parser of a script that prunes by this rule, with this sensitivity by default, and fine-tunes."""
    parser = cli.parser(doc)
    finetune.add_flags(parser)
    prune.add_flags(parser, sensitivity)
    parser.set_defaults(rule=rule)
    parser.add_argument("-e", "--evaluate", action="store_true", help="stop after pruning")
    return parser


def pruned_name(args):
    """File-name suffix for a pruning run: 0.01, or 0.01_group if it differs from the original's."""
    how = [word for word in (args.granularity, args.criterion) if word not in ("element", "magnitude")]
    return "_".join([str(args.sensitivity), *how])


def prune_once(args, resume, **changes):
    """Rank 0 prunes with prune.py's flags in args and the changes; other ranks wait. Returns the network's path.

    With `resume` an earlier command's network is kept; UserError if that command had other flags.
    """
    check_schedule(args.schedule)                            # before pruning, not only before fine-tuning
    flags = cli.settings(prune, args, **changes)
    flags.model, pruned = find(flags.model), Path(flags.save) / "pruned.pth.tar"
    if (world := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if int(os.environ.get("RANK", 0)) == 0:
        cli.output_folder(flags.save, flags.overwrite, resume)
        if resume and pruned.exists():
            was, names = checkpoint.load(pruned)["args"], ("model", "rule", "sensitivity", "granularity", "criterion")
            changed = [f"--{name} {was.get(name)}" for name in names if was.get(name) != getattr(flags, name)]
            if changed:
                raise UserError(f"{pruned} was pruned with {', '.join(changed)}; give the same, or another --save")
        else:
            prune.prune(flags)
    if world > 1:
        torch.distributed.all_reduce(torch.zeros(1))         # waits for all processes
    return str(pruned)


def prune_and_finetune(args):
    """prune.py and then finetune.py, with the flags of both in args; with -e prune.py alone."""
    pruned = prune_once(args, args.resume)
    if not args.evaluate:
        finetune.finetune(cli.settings(finetune, args, model=pruned))


def prune_and_finetune_lenet(doc, argv, rule, sensitivity):
    """Both into <model>_<rule>_<sensitivity>, with the fine-tuned network as a .pth beside; -e only prunes."""
    args = pruning_flags(doc, rule, sensitivity).parse_args(argv)
    args.save = args.save or f"{stem(find(args.model))}_{args.rule}_{pruned_name(args)}"
    prune_and_finetune(args)
    if not args.evaluate:
        keep(f"{args.save}/finetuned.pth.tar", f"{args.save}.pth")


def keep(file, path):
    """Saves the network of a run as one file, without the state for resuming."""
    if int(os.environ.get("RANK", 0)) == 0:
        ckpt = checkpoint.load(file)
        checkpoint.save(path, {name: value for name, value in ckpt.items() if name not in ("path", "resume")})
        print(f"wrote {path}")
