"""What every script does besides its paper: flags, device, precision, epochs that resume, log.csv, curve.png.

    parser = argparse.ArgumentParser(...); runtime.add_flags(parser, epochs=160, lr=0.1)
    run = runtime.start(args)
    run.resume(model, optimizer, scheduler)
    for epoch in run.epochs(args.epochs): ...
"""
import os
import platform
import random
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from common import UserError, checkpoint, compute_flops, data, plots

# Flags that may differ when a run is resumed; network and precision are compared as the checkpoint's cfg and run say.
FREE = ("data_dir", "device", "save", "resume", "overwrite", "test_batch_size", "compile", "arch", "depth", "precision")


def add_flags(parser, train=True, epochs=None, batch_size=None, lr=None, seed=1):
    """The flags that scripts share, with the paper's defaults; train=False: only those that reading needs."""
    one_line(parser)
    add = parser.add_argument
    add("--dataset", help="cifar10, cifar100, mnist, shapes10, shapes100, or a path to an .npz or a folder of pictures "
        "(default: the paper's, or what the checkpoint was trained on)")
    add("--data-dir", help="where the data sets lie (default: $DATA_DIR, else data/ in the repository)")
    add("--test-batch-size", type=positive, default=256, help="test pictures per batch")
    add("--subset", type=positive, help="this many training and test pictures, balanced (a trial run)")
    add("--device", help="cpu, cuda, cuda:1, mps (default: the accelerator if there is one)")
    if not train:
        return
    add("--epochs", type=positive, default=epochs)
    add("--batch-size", type=positive, default=batch_size)
    add("--lr", type=amount, default=lr, help="learning rate at the start")
    add("--seed", type=seed_number, default=seed)
    add("--save", help="folder to write to (default: logs/<dataset>-<network>-<what>)")
    add("--resume", default="", help="checkpoint.pth.tar to go on from; auto: the one in --save, if there is one")
    add("--overwrite", action="store_true", help="start anew in a folder that holds a run")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto",
        help="auto: bf16 where the hardware has it natively, else fp32")
    add("--compile", action="store_true", help="torch.compile the network")


def one_line(parser):
    """What argparse refuses becomes one line too, without the usage in front."""
    def refuse(message):
        raise UserError(f"{message} (--help lists the flags)")
    parser.error = refuse


def positive(text):
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def amount(text):
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError
    return number


def seed_number(text):
    number = int(text)
    if not -2**63 <= number < 2**63:
        raise ValueError
    return number


# argparse's messages: "invalid whole number above 0 value: '0'"
positive.__name__, amount.__name__, seed_number.__name__ = "whole number above 0", "number from 0 up", "64-bit number"


def script(main):
    """Runs main(); what the user can mend becomes one line on stderr and exit status 2."""
    try:
        main()
    except UserError as error:
        sys.exit(complain(error))
    except OSError as error:
        sys.exit(complain(f"{error.filename or ''}: {error.strerror or error}"))
    except ModuleNotFoundError as error:
        sys.exit(complain(f"{error.name} is not installed; pip install -r requirements.txt"))
    except torch.OutOfMemoryError:
        sys.exit(complain("out of memory; give a smaller --batch-size"))
    except KeyboardInterrupt:
        sys.exit(complain("stopped; --resume auto goes on from the last finished epoch", 130))


def complain(message, status=2):
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(message).split())}", file=sys.stderr)
    return status


def device_of(name=None):
    name = name or ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} is not available here") from error
    if device.type == "cpu":
        torch.set_flush_denormal(True)          # weights driven to zero pass through denormals, which are slow
    return device


def has_bf16(device):
    """Native bfloat16 multiplication: CUDA 8.0 and up, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, t)() for t in tests if hasattr(torch.cpu, t))


def command():
    """The command line as anyone can repeat it: from the repository root, without where the data lie."""
    script = Path(sys.argv[0]).resolve()
    root = Path(__file__).resolve().parent.parent
    script = script.relative_to(root) if script.is_relative_to(root) else script.name
    words, rest = ["python", str(script)], iter(sys.argv[1:])
    for word in rest:
        if word == "--data-dir":
            next(rest, None)
        elif not word.startswith("--data-dir="):
            words.append(shlex.quote(word))
    return " ".join(words)


def facts(device, precision="fp32", minutes=0.0):
    """What a checkpoint remembers of how it was made; results/ledger.csv is filled from it."""
    return {"command": command(), "precision": precision, "hardware": hardware(device),
            "torch": str(torch.__version__), "date": time.strftime("%Y-%m-%d"), "minutes": round(minutes, 2)}


def hardware(device):
    """Such as 'AMD EPYC, 2 threads' or 'NVIDIA H200'."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return f"{name}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def seed_all(seed):
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state():
    state = {"torch": torch.get_rng_state(), "python": list(random.getstate()[1])}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state):
    torch.set_rng_state(state["torch"])
    random.setstate((3, tuple(state["python"]), None))
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"][:torch.cuda.device_count()])


@torch.no_grad()
def evaluate(model, loader, half=False):
    """{"loss": mean cross-entropy, "top1": percent, "top5": percent} over the loader, in fp32 unless half."""
    was_training = model.training
    model.eval()
    loss, top1, top5, seen = 0.0, 0, 0, 0
    for images, labels in loader:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            logits = model(images).float()
        loss += F.cross_entropy(logits, labels, reduction="sum").double()
        hit = logits.topk(min(5, logits.shape[1])).indices.eq(labels[:, None])
        top1, top5, seen = top1 + hit[:, 0].sum(), top5 + hit.sum(), seen + len(labels)
    model.train(was_training)
    return {"loss": float(loss / seen), "top1": 100 * int(top1) / seen, "top5": 100 * int(top5) / seen}


def ready_folder(folder, overwrite, resume=None):
    """The folder a run writes to, which its first checkpoint makes; one that holds another run is refused."""
    folder = Path(folder)
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {folder} ({there} is no folder or not writable); give another --save")
    if overwrite and resume:
        raise UserError("--resume goes on with a run and --overwrite starts it anew; choose one")
    resumes = resume == "auto" or resume and Path(resume).resolve().parent == folder.resolve()
    if (folder / "checkpoint.pth.tar").exists() and not overwrite and not resumes:
        raise UserError(f"{folder} already holds a run; --resume auto goes on with it, --overwrite starts anew")
    return folder


def changed(args, ckpt):
    """["--flag value", ...]: what the run of the checkpoint was given and args have otherwise."""
    return [f"--{name.replace('_', '-')} {ckpt['args'][name]}" for name, value in vars(args).items()
            if name not in FREE and ckpt["args"].get(name, value) != value]


class Run:
    """One training run in one folder. `best` and `prec1` are top-1 percentages, `rows` what log.csv holds."""

    def __init__(self, args, method, stage, network, dense=None):
        self.args, self.method, self.stage, self.dense = args, method, stage, dense
        args.save = args.save or f"logs/{Path(args.dataset).stem}-{network}-{stage}"
        self.device = device_of(args.device)
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.world > 1:                                               # started by torchrun
            if self.device.type == "cuda":
                self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
                torch.cuda.set_device(self.device)
            torch.distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        self.precision = args.precision
        if args.precision == "auto":
            self.precision = "bf16" if has_bf16(self.device) else "fp32"
        self.folder = ready_folder(args.save, args.overwrite, args.resume) if self.rank == 0 else Path(args.save)
        self.rows, self.start, self.best, self.prec1, self.totals, self.next_curve = [], 0, 0.0, 0.0, {}, 0.0
        self.made = None                                     # how a run that is only repeated was made
        seed_all(args.seed)
        plots.pyplot()                                       # what is missing is missed now, not after the first epoch

    def describe(self, model):
        """Prints what the run will do, before it does it."""
        if self.rank:
            return
        total = compute_flops.count(model).total
        print(f"{self.method} {self.stage}: {model.arch} {brief(model.cfg)} on {self.args.dataset}\n"
              f"  {total.params:,} parameters, {total.macs:,} MACs, {2 * total.macs / 1e9:.4f} GFLOPs (2 x MACs)\n"
              f"  {self.args.epochs} epochs, batch {self.args.batch_size}, lr {self.args.lr:g}, seed {self.args.seed}, "
              f"{self.device}, {self.precision}, into {self.folder}", flush=True)

    def loaders(self, dataset, **augment):
        """(training Loader, test Loader) on the run's device; augment: crop, flip, cutout."""
        args, d = self.args, dataset
        if min(args.batch_size, len(d.y_train)) < 2:
            raise UserError("a batch of one picture has no variance for batch norm; give 2 or more")
        return (data.Loader(d.x_train, d.y_train, d, args.batch_size, self.device, shuffle=True, seed=args.seed,
                            rank=self.rank, world=self.world, **augment),
                data.Loader(d.x_test, d.y_test, d, args.test_batch_size, self.device))

    def place(self, model):
        """The model on the run's device, in the memory order that convolutions like."""
        return model.to(self.device, memory_format=torch.channels_last)

    def parallel(self, model):
        """What to call in the training loop: the model, compiled and, under torchrun, averaging its gradients."""
        if self.args.compile:
            model.compile()
        if self.world > 1:
            return torch.nn.parallel.DistributedDataParallel(model)
        return model

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def resume(self, model, optimizer, scheduler=None, masks=None):
        """Takes up the run in --resume, if there is one, exactly where its last finished epoch ended.

        masks: those that the network to fine-tune has; a run that had others is not gone on with.
        """
        self.optimizer = optimizer
        path = self.args.resume
        if path == "auto":
            path = self.folder / "checkpoint.pth.tar"
            if not path.is_file():
                return
        if not path:
            return
        ckpt = checkpoint.load(path)
        state = ckpt.get("resume")
        if not state:
            raise UserError(f"{path} holds no optimizer state to resume from; checkpoint.pth.tar of the run does")
        flags = changed(self.args, ckpt)
        if (precision := ckpt["run"]["precision"]) != self.precision:
            flags.append(f"--precision {precision}")
        if flags or ckpt["cfg"] != model.cfg:
            raise UserError(f"{path} is of another run (it had {', '.join(flags) or ckpt['cfg']}); give the same "
                            "flags, or another --save")
        was = ckpt.get("masks", {})
        if masks is not None and not (was.keys() == masks.keys()
                                      and all(torch.equal(was[name], mask.cpu()) for name, mask in masks.items())):
            raise UserError(f"{path} has other masks than the network it began with has now; --overwrite starts anew")
        checkpoint.fit(model, ckpt["state_dict"], path)
        optimizer.load_state_dict(state["optimizer"])
        if scheduler:
            scheduler.load_state_dict(state["scheduler"])
        set_random_state(state["random"])
        self.rows, self.start = state["rows"], ckpt["epoch"]
        self.best, self.prec1 = ckpt["best_prec1"], ckpt["prec1"]
        self.made = ckpt["run"] if self.start >= self.args.epochs else None
        print(f"resumed {path} after epoch {self.start} (best {self.best:.2f} %)", flush=True)

    def epochs(self, count):
        """Epoch numbers from where the run stands up to count - 1."""
        if self.start >= count and self.rank == 0 and not (self.folder / "checkpoint.pth.tar").exists():
            raise UserError(f"{self.args.resume} has all its {count} epochs, there is nothing to go on with")
        for epoch in range(self.start, count):
            self.totals, self.began = {}, time.time()
            self.lr = self.optimizer.param_groups[0]["lr"]
            yield epoch

    def bar(self, batches):
        """The batches, under a progress bar where the output is a terminal."""
        from tqdm import tqdm
        with tqdm(batches, leave=False, disable=None if self.rank == 0 else True, unit="batch") as self._bar:
            yield from self._bar

    def track(self, **scalars):
        """Adds to the epoch's means (0-dim tensors or numbers); no wait for the device but every 20th batch."""
        for name, value in scalars.items():
            value = value.detach().double() if isinstance(value, torch.Tensor) else value
            total, count = self.totals.get(name, (0.0, 0))
            self.totals[name] = total + value, count + 1
        if not self._bar.disable and self._bar.n % 20 == 0:
            self._bar.set_postfix({name: f"{float(t / n):.4f}" for name, (t, n) in self.totals.items()})

    def log(self, epoch, loss, top1, top5=None, **more):
        """One line on the terminal and one row in log.csv; a loss that is no number ends the run here."""
        means = {f"train_{name}": float(total / count) for name, (total, count) in self.totals.items()}
        bad = [value for value in (*means.values(), loss) if not np.isfinite(value)]
        if bad:
            kept = f"the files of epoch {epoch} are kept in {self.folder}; " if epoch else ""
            raise UserError(f"the loss is {bad[0]} in epoch {epoch + 1}; {kept}try a smaller --lr")
        self.prec1, self.best = top1, max(self.best, top1)
        row = {"epoch": epoch + 1, "lr": self.lr, **means, "test_loss": loss, "top1": top1}
        row |= ({"top5": top5} if top5 is not None else {}) | more | {"seconds": time.time() - self.began}
        self.rows.append({k: float(f"{v:.7g}") if isinstance(v, float) else v for k, v in row.items()})
        if self.rank == 0:
            shown = " ".join(f"{k} {v:.4f}" for k, v in {**means, "test_loss": loss, **more}.items())
            print(f"epoch {epoch + 1:3d}/{self.args.epochs} lr {row['lr']:.4g} {shown} top1 {top1:.2f} % "
                  f"best {self.best:.2f} % {row['seconds']:.1f} s", flush=True)

    def save(self, epoch, model, optimizer, scheduler=None, **more):
        """checkpoint.pth.tar (with the state to resume from), model_best.pth.tar, log.csv and curve.png."""
        if self.rank:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        plots.write_log(self.folder / "log.csv", self.rows)
        if epoch + 1 == self.args.epochs or time.perf_counter() > self.next_curve:   # drawing costs some 0.2 s
            plots.draw_curve(self.folder / "curve.png", self.rows, f"{self.method} {self.stage} {model.arch}")
            self.next_curve = time.perf_counter() + 10
        ckpt = self.checkpoint(model, epoch=epoch + 1, **more)
        if self.prec1 == self.best:
            checkpoint.save(self.folder / "model_best.pth.tar", ckpt)
        schedule = scheduler.state_dict() if scheduler else {}
        schedule.pop("milestones", None)                     # a Counter, which comes from the flags anyway
        state = {"optimizer": optimizer.state_dict(), "scheduler": schedule, "random": random_state(),
                 "rows": self.rows}
        # Last: a run that was stopped before it does this epoch, and its log, again.
        checkpoint.save(self.folder / "checkpoint.pth.tar", {**ckpt, "resume": state})

    def checkpoint(self, model, **more):
        made = self.made or facts(self.device, self.precision, sum(row["seconds"] for row in self.rows) / 60)
        return checkpoint.of(model, self.method, self.stage, self.args.dataset, prec1=self.prec1,
                             best_prec1=self.best, args=vars(self.args), dense=self.dense, run=made, **more)

    def finish(self, model, name="checkpoint.pth.tar", **more):
        """Says what was written; another name than checkpoint.pth.tar: the network without the optimizer state."""
        if self.rank == 0:
            if name != "checkpoint.pth.tar":
                checkpoint.save(self.folder / name, self.checkpoint(model, epoch=self.args.epochs, **more))
            print(f"last epoch {self.prec1:.2f} %, best {self.best:.2f} %; wrote {self.folder / name}", flush=True)
        if self.world > 1:
            torch.distributed.destroy_process_group()


def start(args, method, stage, network, dense=None):
    """The Run of a script. network: its name for the folder, such as vgg13; dense: what a checkpoint remembers."""
    return Run(args, method, stage, network, dense)


def brief(cfg):
    return " ".join(f"{k}={v}" for k, v in cfg.items() if not isinstance(v, list))
