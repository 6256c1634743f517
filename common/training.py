"""Before the loop of a training script: the network it starts from, on the run's device, and its data.

    start = training.load(args.pretrained, network, args.arch, args.depth, args.image_size, args.dense)      main.py
    run = Run(...)
    model = training.network(run, start, arch, cfg, dataset)

    model, masks, dataset, train, test = training.masked(run, ckpt, masks, **images)                     finetune.py
"""
from common import data, models, say, zeros
from common.evaluate import against_record
from common.files import checkpoint
from common.models import counting


def load(path, network, arch=None, depth=None, image_size=None, dense=False):
    """The checkpoint of --pretrained, None without one; dense: train the zeros of another repository's file, too."""
    if not path:
        return None
    ckpt = checkpoint.load(path, network, arch, depth, image_size)
    if not ckpt.get("masks"):
        zeros.kept(ckpt, dense=dense)
    return ckpt


def network(run, start, arch, cfg, dataset):
    """The network of the checkpoint `start`, or a new one of arch and cfg without it, for the classes of the dataset.

    The run remembers the dense network's cost, and prints what it will do.
    """
    start = start and checkpoint.to_classes(start, dataset)
    model = checkpoint.to_model(start) if start else models.build(arch, **cfg | {"num_classes": dataset.num_classes})
    data.adapt(model, dataset, start["path"] if start else models.name(arch, cfg))
    model = run.place(model)
    run.dense = start and start["dense"] or counting.summary(model)
    run.describe(model)
    if start and start.get("masks"):
        say(f"note: all weights of {start['path']} are trained, pruned ones too; finetune.py keeps its masks")
    return model


def masked(run, ckpt, masks, model=None, cutout=0, **images):
    """(model, masks, dataset, training Loader, test Loader) for fine-tuning: model and masks on the run's device, and
    weights that a mask prunes at zero.

    masks: {parameter: bool}, True where it is trained; model: instead of the checkpoint's, with its shapes; images: as
    data.for_network takes them. Prints what the run will do.
    """
    model = model or checkpoint.to_model(ckpt)
    run.describe(model)
    dataset = data.for_network(model, ckpt["path"], **images)
    if model.cfg != ckpt["cfg"]:                             # images of another size than it usually reads
        run.describe(model)
    train, test = run.loaders(dataset, cutout=cutout, **data.augmentation(model.arch))
    if run.rank == 0:
        against_record(ckpt, test, images.get("holdout"))
    if ckpt["stage"] in ("dense", "sparse") and ckpt["method"] != "original" and not masks:
        say(f"note: {ckpt['path']} is {ckpt['stage']}, nothing in it is pruned")
    model, masks = run.place(model), {name: mask.to(run.device) for name, mask in masks.items()}
    for name, mask in masks.items():
        model.get_parameter(name).data.mul_(mask)
    return model, masks, dataset, train, test
