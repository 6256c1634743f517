"""The command line of every script: shared flags, argument types, the folder to write to, and errors in one line.

    parser = cli.parser(__doc__, epochs=160, batch_size=64, lr=0.1)

An error that the user can fix is raised as UserError anywhere in the code; `script` prints it and exits with status 2.
"""
import argparse
import contextlib
import difflib
import os
import sys
from pathlib import Path

import torch

from common import FULL, UserError
from common.files import lock
from common.models import own

when_stopped = "stopped"        # what Ctrl-C says; a run that can be continued says so here
RECORDED = "architecture, if the checkpoint does not record it"


def parser(doc, **shared):
    """An argument parser whose help is the script's docstring and whose errors are one line, without the usage.

    shared: what add_flags takes; it has these flags then.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)

    def refuse(message):
        wrong = message.removeprefix("unrecognized arguments: ").split()[0].partition("=")[0]
        near = difflib.get_close_matches(wrong, made._option_string_actions, 1, 0.75) if wrong.startswith("-") else []
        raise UserError(f"{message} ({f'did you mean {near[0]}? ' if near else ''}--help lists the flags)")
    made.error = refuse
    if shared:
        add_flags(made, **shared)
    return made


def add_network(parser, arch=None):
    """--network and, with a help text for it, --arch and --depth."""
    add = parser.add_argument
    add("--network", dest="arch", type=network, metavar="SPEC", help="your own network: FILE.py:NAME (runs that file), "
        "torchvision:NAME or timm:NAME; see docs/own-network.md")
    if arch:
        add("-a", "--arch", help=arch)
        add("--depth", type=positive, help="number of layers, if the name in --arch has none")


def add_file(parser, *names, default=None):
    """FILE, the checkpoint to read, or --model FILE, or that by further names."""
    add = parser.add_mutually_exclusive_group(required=not default).add_argument
    add("file", nargs="?", metavar="FILE", default=argparse.SUPPRESS, help="the checkpoint"
        + (f" (default: {default})" if default else ""))
    add("--model", *names, dest="file", metavar="FILE", default=default, help="same as the positional FILE")


def add_flags(parser, train=True, epochs=None, batch_size=None, lr=None, seed=1, arch=None, writes=None,
              resume="checkpoint.pth.tar to continue from; auto: the one in --save, if there is one"):
    """The flags that scripts share, with the paper's defaults (as text where they depend on other flags); train=False:
    only those for reading a network. arch: help for --arch; writes: the file that a script that does not train makes;
    resume: help for --resume.
    """
    add = parser.add_argument
    add_network(parser, arch)
    add("--dataset", help="cifar10, cifar100, mnist, shapes10, shapes100, or a path to an .npz or a folder of images "
        "(default: the paper's, or what the checkpoint was trained on)")
    add("--data-dir", help="folder with the data sets (default: $DATA_DIR, else data/ in the repository)")
    add("--image-size", type=positive, help="size to which a folder's images are resized and cropped (default: the "
        "network's; in training the size of the images, if all are square, of one size and at most 512 wide)")
    add("--mean", type=numbers, help="mean to normalize images with, one number per channel of pixels in [0, 1]: "
        "0.49,0.48,0.45 (default: what the network was trained with, else the data set's)")
    add("--std", type=numbers, help="standard deviation to normalize images with, in the same form")
    add("--test-batch-size", type=positive, default=256, help="test images per batch (default: %(default)s)")
    add("--subset", type=positive, help="for a trial run: number of training and of test images, classes balanced")
    add("--device", help="cpu, cuda, cuda:1, mps (default: the accelerator if there is one)")
    if train or writes:
        add("--save", help="folder to write to (default: in logs/, named after data set, network, method and stage)")
        add("--overwrite", action="store_true", help=f"write over an earlier {writes or 'run'} in --save")
    if not train:
        return
    for name, kind, default, what in (("--epochs", positive, epochs, "epochs to train"),
                                      ("--batch-size", positive, batch_size, "images per step"),
                                      ("--lr", nonnegative, lr, "initial learning rate")):
        add(name, type=kind, default=None if isinstance(default, str) else default, help=f"{what} (default: {default})")
    add("--seed", type=seed_number, default=seed, help=f"random seed (default: {seed})")
    add("--resume", default="", help=resume)
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="auto: bf16 where the hardware has it natively, else fp32")
    add("--compile", action="store_true", help="torch.compile the network")


def settings(script, given=None, **changes):
    """The flags of a script (a module with flags(), its parser) for another one that calls its functions: their
    defaults, then the values of `given` for those that both have, then the changes."""
    parser = script.flags()
    for action in parser._actions:
        action.required = False
    own = parser.parse_args([])
    unknown = changes.keys() - vars(own).keys()
    if unknown:
        raise TypeError(f"{script.__name__} has no flag {', '.join(sorted(unknown))}")
    shared = {name: value for name, value in vars(given or own).items() if name in own}
    vars(own).update(shared | changes)
    return own


def data_flags(args):
    """The flags that data.load, data.for_network and data.for_arch take, by name."""
    return {"name": args.dataset, "data_dir": args.data_dir, "image_size": args.image_size, "subset": args.subset,
            "mean": args.mean, "std": args.std}


def prune_flags(args):
    """The flags that pruning.load takes, by name."""
    return {"arch": args.arch, "depth": args.depth, "save": args.save, "overwrite": args.overwrite,
            "device": args.device, "batch_size": args.test_batch_size, **data_flags(args)}


# types of flags


def network(spec):
    try:
        return own.name(spec)
    except UserError as error:
        raise argparse.ArgumentTypeError(error) from error


def flag_type(name, read, fits=lambda value: True):
    """A type: read(text), refused where it does not fit as `'text' is not name`."""
    def checked(text):
        with contextlib.suppress(ValueError):
            if fits(value := read(text)):
                return value
        raise argparse.ArgumentTypeError(f"'{text}' is not {name}")
    return checked


positive = flag_type("a positive integer", int, lambda n: n >= 1)
nonnegative = flag_type("a number from 0 up", float, lambda x: 0 <= x < float("inf"))
fraction = flag_type("a fraction in [0, 1), such as 0.4 for 40 %", float, lambda x: 0 <= x < 1)
part = flag_type("a fraction in (0, 1], such as 0.5 for half", float, lambda x: 0 < x <= 1)
seed_number = flag_type("a 64-bit integer", int, lambda n: -2**63 <= n < 2**63)
bits = flag_type("a number of bits from 2 to 16", int, lambda n: 2 <= n <= 16)
bits_or_32 = flag_type("a number of bits from 2 to 16 (or 32: not quantized)", int, lambda n: 2 <= n <= 16 or n == 32)
numbers = flag_type("a list of numbers in [0, 1]", lambda text: [float(number) for number in text.split(",")],
                    lambda found: all(0 <= x <= 1 for x in found))


def default_folder(dataset, network, what):
    """logs/<dataset>-<network>-<what>; dataset may be a path."""
    return f"logs/{Path(dataset).stem}-{network}-{what}"


def check_writable(folder, flag):
    """UserError unless the folder, which need not exist yet, is writable; flag: the flag that names it."""
    there = next(p for p in (Path(folder), *Path(folder).absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {folder} ({there} is not a folder, or not writable); give another {flag}")


def output_folder(folder, overwrite, resume=None, holds="checkpoint.pth.tar"):
    """The folder to write to, created with its first file; UserError if it `holds` an earlier result."""
    folder = Path(folder)
    check_writable(folder, "--save")
    if overwrite and resume:
        raise UserError("--resume continues a run and --overwrite starts it again; choose one")
    resumes = resume == "auto" or resume and Path(resume).resolve().parent == folder.resolve()
    if (folder / holds).exists() and not overwrite and not resumes:
        if holds == "checkpoint.pth.tar":
            raise UserError(f"{folder} already holds a run; --resume auto continues it, --overwrite starts again, "
                            "another --save keeps it")
        raise UserError(f"{folder} already holds a {holds}; give another --save, or --overwrite")
    return folder


def script(main):
    """Runs main(); errors that the user can fix become one line on stderr and exit status 2."""
    if hasattr(sys.stdout, "reconfigure"):                   # a terminal may lack the letters of a name
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        sys.exit(complain(error))
    except BrokenPipeError:                                  # ... | head: nobody reads on; 141 as in a shell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno in FULL:
            sys.exit(complain(f"the disk is full ({error.filename or error.strerror}); make room and start again, with "
                              "--resume auto where a run had begun"))
        sys.exit(complain(f"{error.filename or 'a file'}: {error.strerror or error}"))
    except ModuleNotFoundError as error:
        sys.exit(complain(f"{error.name} is not installed; pip install -r requirements.txt"))
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "can't allocate memory" not in str(error):
            raise                                            # the last is what torch says of a CPU's
        sys.exit(complain("out of memory; give a smaller --batch-size, or --test-batch-size"))
    except KeyboardInterrupt:
        sys.exit(complain(when_stopped, 130))
    finally:
        lock.release()


def complain(message, status=2):
    line = " ".join(str(message).split())
    if len(line) > 1500:                                     # such as a list of a thousand widths
        line = f"{line[:1000]} ... {line[-400:]}"
    print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr)
    return status
