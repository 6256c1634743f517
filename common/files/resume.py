"""Continue a run from its checkpoint.pth.tar: which settings may change, and restoring its state.

A run can get more --epochs if its learning rates do not depend on their number.
"""
import math
import warnings

import torch

from common import UserError, models, say
from common.device import set_random_state
from common.files import checkpoint

# Flags that may differ when a run is resumed; network and precision are compared as the checkpoint's cfg and run say.
FREE = ("data_dir", "device", "save", "resume", "overwrite", "test_batch_size", "compile", "arch", "depth", "precision")


def changed(settings, ckpt, world=1):
    """["--flag value", "no --flag", ...]: settings of the checkpoint's run that differ from `settings`. More epochs are
    not a change, nor is a batch split among another number of processes.
    """
    had, processes = ckpt["args"], (ckpt.get("run") or {}).get("processes", 1)
    free = set(FREE)
    if isinstance(had.get("epochs"), int) and settings["epochs"] > had["epochs"]:
        free.add("epochs")
    if world != processes and had.get("batch_size") == settings["batch_size"] * world / processes:
        free.add("batch_size")
    def words(flag, value):
        value = " ".join(map(str, value)) if isinstance(value, list) else value
        return f"no {flag}" if value is None else f"{flag} {value}"
    return [words(f"--{name.replace('_', '-')}", had[name]) for name, value in settings.items()
            if name not in free and had.get(name, value) != value]


def load(path, run, model, masks=None):
    """The checkpoint to continue, of the same run as `run`. UserError otherwise.

    masks: of the network to fine-tune; a run that had different ones is refused.
    """
    ckpt = checkpoint.load(path)
    if not ckpt.get("resume"):
        raise UserError(f"{path} holds no optimizer state to resume from; checkpoint.pth.tar of the run does")
    made = ckpt.get("run") or {}
    flags = changed(run.settings, ckpt, run.world)
    if made.get("precision", run.precision) != run.precision:
        flags.append(f"--precision {made['precision']}")
    if flags or ckpt["cfg"] != model.cfg:
        had = ", ".join(flags) or models.brief(ckpt["cfg"])
        raise UserError(f"{path} is of another run (it had {had}); give the same flags, or another --save")
    previous = ckpt.get("masks", {})
    if masks is not None and not (previous.keys() == masks.keys()
                                  and all(torch.equal(previous[name], mask.cpu()) for name, mask in masks.items())):
        raise UserError(f"{path}: refuses to resume with different masks than the network to fine-tune has now; "
                        "--overwrite starts again")
    processes, batch = made.get("processes", 1), run.settings["batch_size"]
    if processes != run.world:
        was, size = ckpt["args"].get("batch_size", batch) * processes, batch * run.world
        same = "as before" if was == size else (f"where they had {was}: --batch-size {was // run.world} keeps them, "
                                                "else --lr and the number of steps an epoch mean something else")
        say(f"note: this run had {processes} processes and has {run.world} now; its steps have {size} images "
            f"{same}; batch norms see {batch} at a time")
    return ckpt


def put_back(path, ckpt, epochs, model, optimizer, scheduler=None, more=None):
    """Weights, optimizer, scheduler and random numbers as they were; more: {name: object}. UserError where one does not
    fit, or where more epochs would have had other learning rates."""
    state = ckpt["resume"]
    checkpoint.fit(model, ckpt["state_dict"], path)
    try:
        if scheduler:
            own, theirs = scheduler.state_dict(), state["scheduler"]
            kinds = [{k: type(v) for k, v in one.items() if k != "milestones"} for one in (own, theirs)]
            if kinds[0] != kinds[1]:
                raise ValueError(f"the scheduler is no {type(scheduler).__name__}")
            if epochs > ckpt["args"].get("epochs", epochs):
                replay(path, ckpt, epochs, optimizer, scheduler)
            scheduler.load_state_dict(theirs)
        optimizer.load_state_dict(state["optimizer"])
        for parameter, numbers in optimizer.state.items():
            if any(isinstance(t, torch.Tensor) and t.dim() and t.shape != parameter.shape for t in numbers.values()):
                raise ValueError("the optimizer's tensors are those of another network")
        for name, thing in (more or {}).items():
            thing.load_state_dict(state[name])
        set_random_state(state["random"])
        if not all(isinstance(row, dict) and {"epoch", "lr", "seconds"} <= row.keys() for row in state["rows"]):
            raise ValueError("the log has no rows")
    except UserError:
        raise
    except Exception as error:                               # a damaged state makes torch raise anything
        raise UserError(f"{path}: its state to resume from does not fit this run ({error}); --overwrite starts "
                        "again") from error


def replay(path, ckpt, epochs, optimizer, scheduler):
    """Steps the fresh scheduler through the finished epochs. UserError if a learning rate differs from the run's, or
    would later, as with schedules that are stretched over --epochs."""
    state, done = ckpt["resume"], ckpt["epoch"]
    stretched = "the schedule goes by --epochs; more of them need a run of their own, with another --save"
    was = [row["lr"] for row in state["rows"][:done]] + [state["optimizer"]["param_groups"][0]["lr"]]
    steps = state["scheduler"]["last_epoch"] // max(done, 1)
    for epoch, lr in enumerate(was):
        now = optimizer.param_groups[0]["lr"]
        if not math.isclose(now, lr, rel_tol=1e-5, abs_tol=1e-12):
            raise UserError(f"{path}: of {epochs} epochs number {epoch + 1} would have had the learning rate "
                            f"{now:.4g}, it had {lr:.4g}, for {stretched}")
        with warnings.catch_warnings():                      # of steps without an optimizer's
            warnings.simplefilter("ignore")
            for _ in range(steps):
                scheduler.step()
    if scheduler.state_dict().get("T_max") != state["scheduler"].get("T_max"):     # a cosine that starts as flat
        raise UserError(f"{path}: {stretched}")
