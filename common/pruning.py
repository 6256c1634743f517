"""Before and after a paper's rule: opening the network to prune, recalibrating and saving the pruned one.

    source = pruning.load(args.model, network, **cli.prune_flags(args))
    ...                                                      choose, apply
    pruning.recalibrate(source, model, args.recalibrate)
    ...                                                      report
    pruning.save(source, small, "slimming", settings=vars(args), top1=top1, report=text, figure=draw(...))
"""
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from common import UserError, cli, compute_flops, data, models, plots
from common.data.arrays import balanced
from common.device import device_of, facts
from common.evaluate import against_record, evaluate, heading
from common.files import checkpoint, lock


class Source(NamedTuple):
    """A network to prune. dense: params, macs and cfg of the dense network that it comes from."""
    ckpt: dict
    model: torch.nn.Module
    dense: dict
    dataset: data.Dataset
    test: data.Loader
    folder: Path


def load(path, network, arch=None, depth=None, *, save=None, what="pruned", holds="pruned.pth.tar", overwrite=False,
         device=None, batch_size=256, name=None, image_size=None, **images):
    """The Source in the file `path`: its network on the CPU, test images on the device. Prints its size.

    network: the method's function (arch, depth) -> (arch, cfg); save: the folder to write to, by default
    logs/<dataset>-<network>-<what>; holds: the file that will be written there; name, image_size, images: as data.load
    takes them.
    """
    ckpt = checkpoint.load(path, network, arch, depth, image_size)
    name = name or checkpoint.dataset_of(ckpt)
    save = save or cli.default_folder(name, models.name(ckpt["arch"], ckpt["cfg"]), what)
    folder = cli.output_folder(save, overwrite, holds=holds)
    device = device_of(device)
    model = checkpoint.to_model(ckpt)
    print(heading(ckpt, model), flush=True)
    dataset = data.for_network(model, path, name, image_size=image_size, **images)
    test = data.Loader(dataset, "test", batch_size, device)
    if images.get("subset"):
        print(f"accuracies are those on {len(dataset.y_test):,} images (--subset)")
    against_record(ckpt, test, images.get("holdout"))
    return Source(ckpt, model, ckpt["dense"] or compute_flops.summary(model), dataset, test, folder)


def add_recalibrate(parser):
    parser.add_argument("--recalibrate", type=cli.positive, metavar="N", help="recompute the statistics of "
                        "the batch norms on N training images before evaluating and saving")


@torch.no_grad()
def recalibrate(source, model, count):
    """Recomputes the batch norms' statistics on `count` training images (None: does nothing): their mean over the
    batches, like torch's update_bn, but without dropout. Prints the accuracy before and after."""
    if count is None:
        return
    norms = {m: m.momentum for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats}
    if not norms:
        print(f"note: --recalibrate changes nothing: a {model.arch} has no batch norm")
        return
    if count < 2:
        raise UserError("--recalibrate 1: one image has no variance; give 2 or more")
    before, dataset = evaluate(model.to(source.test.device), source.test)["top1"], source.dataset
    chosen = balanced(dataset.y_train, count, dataset.num_classes)
    images = replace(dataset, x_train=dataset.x_train[chosen], y_train=dataset.y_train[chosen])
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None                                 # the mean of all batches
        norm.train()
    for batch, _ in data.Loader(images, "train", source.test.batch_size, source.test.device):
        model(batch)
    for norm, momentum in norms.items():
        norm.momentum = momentum
        norm.eval()
    after = evaluate(model, source.test)["top1"]
    print(f"batch norms recalibrated on {len(chosen)} training images: accuracy {before:.2f} % before, {after:.2f} % "
          "after")


def table(keep, before, after):
    """Text: parameters and MACs of every layer before and after (compute_flops' counts), then the size of each layer
    before and what is kept; keep: {layer: bool}."""
    lines = [compute_flops.table(after, before), "", f"{'layer':34} {'before':>9} {'kept':>9}"]
    return "\n".join(lines + [f"{name:34} {kept.numel():9,} {int(kept.sum()):9,}" for name, kept in keep.items()])


def save(source, model, method, *, settings, top1, report, figure, holds="pruned.pth.tar", stage="pruned", **more):
    """Writes the pruned network, prune.txt (the report) and prune.png (the figure); returns the network's path.

    settings: the script's flags; more: as checkpoint.of takes it, such as masks.
    """
    lock.take(source.folder)
    cli.output_folder(source.folder, settings["overwrite"], holds=holds)     # another process may have pruned meanwhile
    (source.folder / "prune.txt").write_text(f"{report}\n", encoding="utf-8")
    figure.savefig(source.folder / "prune.png", dpi=100)
    plots.pyplot().close(figure)
    settings = settings | {"dataset": settings["dataset"] or source.ckpt["dataset"],
                           "save": settings["save"] or str(source.folder)}
    path = checkpoint.save(source.folder / holds, checkpoint.of(
        model, method, stage, source.dataset.name, prec1=top1, best_prec1=top1, args=settings, dense=source.dense,
        run=facts(source.test.device), **more))
    lock.release(source.folder)
    print(f"wrote {path} ({path.stat().st_size:,} bytes), prune.txt and prune.png")
    return path
