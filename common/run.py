"""A training run in one folder: device, precision, processes, epochs that resume, log.csv, curve.png, checkpoints.

    run = Run("slimming", "sparse", "vgg13", **vars(args))
    run.resume(model, optimizer, scheduler)
    for epoch in run.epochs(args.epochs):
        for images, labels in run.bar(train.epoch(epoch)):
            ...
            run.track(loss=loss)
        run.log(epoch, **evaluate(model, test))
        run.save(epoch, model, optimizer, scheduler)
    run.finish(model)

Every line but the loops may be left out.
"""
import time
from pathlib import Path

import numpy as np
import torch

from common import UserError, cli, data, models, plots, say
from common.device import facts, has_bf16, process, random_state, seed_all
from common.files import checkpoint, lock, resume
from common.models import counting


class Run:
    """One training run in one folder. `best` and `prec1` are top-1 percentages, `rows` what log.csv holds, `totals`
    {name: (sum, number of batches)} of the epoch.

    network: its name for the folder, such as vgg13; dense: {params, macs, cfg} of the dense network, for the files;
    settings: the flags of cli.add_flags and the script's own, by name, which the checkpoints keep.
    """

    def __init__(self, method, stage, network, dense=None, /, **settings):
        self.settings, self.method, self.stage, self.dense = settings, method, stage, dense
        settings["save"] = settings["save"] or cli.default_folder(settings["dataset"], network, f"{method}-{stage}")
        self.device, self.rank, self.world = process(settings["device"])
        self.precision = settings["precision"]
        if self.precision == "auto":
            self.precision = "bf16" if has_bf16(self.device) else "fp32"
        self.folder = Path(settings["save"])
        if self.rank == 0:
            cli.check_writable(self.folder, "--save")
            lock.take(self.folder)                           # from here on no other process trains into the folder
            try:
                cli.output_folder(self.folder, settings["overwrite"], settings["resume"])
            except UserError:
                lock.release(self.folder)
                raise
        self.rows, self.start, self.best, self.prec1, self.next_curve = [], 0, 0.0, 0.0, 0.0
        self.totals, self.optimizer, self.progress, self.began = {}, None, None, time.time()
        self.lr = settings["lr"]
        self.made = None                                     # metadata of a run that already finished
        seed_all(settings["seed"])
        if self.rank == 0:
            plots.pyplot()                                   # a missing matplotlib is noticed before the first epoch

    def describe(self, model):
        """Prints what the run will do, before it does it."""
        total, s = counting.count(model).total, "s" * (self.settings["epochs"] > 1)
        say(f"{self.method} {self.stage}: {model.arch} {models.brief(model.cfg)} on {self.settings['dataset']}\n"
            f"  {total.params:,} parameters, {total.macs:,} MACs, {2 * total.macs / 1e9:.4f} GFLOPs (2 x MACs)\n"
            f"  {{epochs}} epoch{s}, batch {{batch_size}}, lr {{lr:g}}, seed {{seed}}, ".format(**self.settings) +
            f"{self.device}, {self.precision}, into {self.folder}")
        if self.precision == "bf16" and not has_bf16(self.device):
            say(f"  note: {self.device} has no native bf16; emulated, a step can take 20 times as long as with "
                "--precision fp32")

    def loaders(self, dataset, **augment):
        """(training Loader, test Loader) on the run's device; augment: crop, flip, cutout."""
        settings = self.settings
        settings["dataset"] = dataset.name                   # a path from the root, which is found from everywhere
        if min(settings["batch_size"], len(dataset.y_train)) < 2:
            raise UserError("a batch of one image has no variance for batch norm; give 2 or more")
        return (data.Loader(dataset, "train", settings["batch_size"], self.device, seed=settings["seed"],
                            rank=self.rank, world=self.world, **augment),
                data.Loader(dataset, "test", settings["test_batch_size"], self.device))

    def place(self, model):
        """The model on the run's device, in the memory format that convolutions like; others' code may call view, which
        needs the default one."""
        own = ":" in model.arch
        return model.to(self.device, memory_format=torch.preserve_format if own else torch.channels_last)

    def parallel(self, model):
        """What to call in the training loop: the model, compiled and, under torchrun, averaging its gradients."""
        if self.settings["compile"]:
            model.compile()
        if self.world > 1:
            return torch.nn.parallel.DistributedDataParallel(model)
        return model

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def resume(self, model, optimizer, scheduler=None, masks=None, **more):
        """Continues the run in --resume, if there is one, exactly where its last finished epoch ended.

        masks: of the network to fine-tune; a run that had different ones is refused. more: objects with a
        state_dict of their own (an averaged model), restored under these names.
        """
        self.optimizer = optimizer
        auto = self.settings["resume"] == "auto"
        path = self.folder / "checkpoint.pth.tar" if auto else self.settings["resume"]
        if not path or auto and not path.is_file():
            return
        try:
            ckpt = resume.load(path, self, model, masks)
            resume.put_back(path, ckpt, self.settings["epochs"], model, optimizer, scheduler, more)
        except UserError:
            lock.release(self.folder)
            raise
        self.rows, self.start = ckpt["resume"]["rows"], ckpt["epoch"]
        self.best, self.prec1 = ckpt["best_prec1"] or 0.0, ckpt["prec1"] or 0.0
        self.made = ckpt.get("run") if self.start >= self.settings["epochs"] else None
        say(f"resumed {path} after epoch {self.start} (best {self.best:.2f} %)")

    def epochs(self, count):
        """Epoch numbers from where the run stands up to count - 1."""
        if self.start >= count and self.rank == 0 and not (self.folder / "checkpoint.pth.tar").exists():
            lock.release(self.folder)
            raise UserError(f"{self.settings['resume']} has all its {count} epochs, there is nothing left to do")
        for epoch in range(self.start, count):
            self.totals, self.began = {}, time.time()
            self.lr = self.optimizer.param_groups[0]["lr"] if self.optimizer else self.lr
            yield epoch

    def bar(self, batches):
        """The batches, under a progress bar where the output is a terminal."""
        from tqdm import tqdm
        with tqdm(batches, leave=False, disable=None if self.rank == 0 else True, unit="batch") as self.progress:
            yield from self.progress

    def track(self, **scalars):
        """Adds to the epoch's means (0-dim tensors or numbers); no wait for the device but every 20th batch."""
        for name, value in scalars.items():
            if isinstance(value, torch.Tensor):
                value = value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64)
            total, count = self.totals.get(name, (0.0, 0))
            self.totals[name] = total + value, count + 1
        if self.progress is not None and not self.progress.disable and self.progress.n % 20 == 0:
            self.progress.set_postfix({name: f"{float(t / n):.4f}" for name, (t, n) in self.totals.items()})

    def log(self, epoch, loss, top1, top5=None, **more):
        """One line on the terminal and one row in log.csv; a loss that is not finite ends the run here."""
        means = {f"train_{name}": float(total / count) for name, (total, count) in self.totals.items()}
        bad = [value for value in (*means.values(), loss) if not np.isfinite(value)]
        if bad:
            kept = f"the files of epoch {epoch} are kept in {self.folder}; " if epoch else ""
            raise UserError(f"the loss is {bad[0]} in epoch {epoch + 1}; {kept}try a smaller --lr")
        self.prec1, self.improved = top1, top1 > self.best or not self.rows
        self.best = max(self.best, top1)
        row = {"epoch": epoch + 1, "lr": self.lr, **means, "test_loss": loss, "top1": top1}
        row |= ({"top5": top5} if top5 is not None else {}) | more | {"seconds": time.time() - self.began}
        self.rows.append({k: float(f"{v:.7g}") if isinstance(v, float) else v for k, v in row.items()})
        shown = " ".join(f"{k} {v:.4f}" for k, v in {**means, "test_loss": loss, **more}.items())
        say(f"epoch {epoch + 1:3d}/{self.settings['epochs']} lr {row['lr']:.4g} {shown} top1 {top1:.2f} % "
            f"best {self.best:.2f} % {row['seconds']:.1f} s")

    def save(self, epoch, model, optimizer, scheduler=None, resume=None, **more):
        """checkpoint.pth.tar (with the state to resume from), model_best.pth.tar, log.csv and curve.png.

        resume: {name: object with a state_dict}, what else `resume` restores; more: goes into both files.
        """
        if self.rank:
            return
        if self.rows:
            plots.write_csv(self.folder / "log.csv", self.rows)
            if epoch + 1 == self.settings["epochs"] or time.perf_counter() > self.next_curve:    # drawing takes 0.2 s
                plots.draw_curve(self.folder / "curve.png", self.rows, f"{self.method} {self.stage}: "
                                 f"{models.name(model.arch, model.cfg)} on {Path(self.settings['dataset']).stem}")
                self.next_curve = time.perf_counter() + 10
        ckpt = self.checkpoint(model, epoch=epoch + 1, **more)
        if self.rows and self.improved:                      # of equally good epochs the first
            checkpoint.save(self.folder / "model_best.pth.tar", ckpt)
        schedule = scheduler.state_dict() if scheduler else {}
        schedule.pop("milestones", None)                     # a Counter, restored from the flags anyway
        state = {"optimizer": optimizer.state_dict(), "scheduler": schedule, "random": random_state(),
                 "rows": self.rows, **{name: thing.state_dict() for name, thing in (resume or {}).items()}}
        # Last: a run that was stopped before it does this epoch, and its log, again.
        checkpoint.save(self.folder / "checkpoint.pth.tar", {**ckpt, "resume": state})
        how = "" if self.settings["resume"] == "auto" else " with --resume auto"
        cli.when_stopped = (f"stopped after epoch {epoch + 1}; the same command{how}"
                            f"{' instead of --overwrite' if self.settings['overwrite'] else ''} continues")

    def checkpoint(self, model, **more):
        made = self.made or facts(self.device, self.precision, sum(row["seconds"] for row in self.rows) / 60) | {
            "processes": self.world}
        prec1, best = (self.prec1, self.best) if self.rows else (None, None)
        return checkpoint.of(model, self.method, self.stage, self.settings["dataset"], prec1=prec1,
                             best_prec1=best, args=self.settings, dense=self.dense, run=made, **more)

    def finish(self, model, name="checkpoint.pth.tar", **more):
        """Says what was written; another name than checkpoint.pth.tar: the network without the optimizer state."""
        if self.rank == 0 and name != "checkpoint.pth.tar":
            checkpoint.save(self.folder / name, self.checkpoint(model, epoch=self.settings["epochs"], **more))
        accuracy = [f"last epoch {self.prec1:.2f} %, best {self.best:.2f} %"] if self.rows else []
        wrote = [f"wrote {self.folder / name}"] if (self.folder / name).exists() else []
        if accuracy + wrote:
            say("; ".join(accuracy + wrote))
        cli.when_stopped = "stopped"
        lock.release(self.folder)
        if self.world > 1:
            torch.distributed.destroy_process_group()
