"""A trained network for a data set with other classes."""
from common import models, say
from common.models import counting


def to_classes(ckpt, dataset):
    """The checkpoint with a last layer for the classes of dataset, reinitialized if it had another number of them, or
    other names."""
    had, count = ckpt["cfg"]["num_classes"], dataset.num_classes
    names = (ckpt.get("images") or {}).get("classes")
    if had == count and (not names or not dataset.classes or names == list(dataset.classes)):
        return ckpt
    cfg, state, dense = {**ckpt["cfg"], "num_classes": count}, ckpt["state_dict"], ckpt["dense"]
    other = models.sketch(ckpt["arch"], **{**cfg, "num_classes": had + 1}).state_dict()
    last = {name: tensor for name, tensor in models.build(ckpt["arch"], **cfg).state_dict().items()
            if other[name].shape != state[name].shape}
    say(f"note: {ckpt['path']} has {had} classes, {dataset.name} has {count}{' others' * (had == count)}: "
        f"{' and '.join(last)} are reinitialized")
    if dense:
        dense = counting.summary(models.build(ckpt["arch"], **{**dense["cfg"], "num_classes": count}))
    masks = {name: mask for name, mask in ckpt.get("masks", {}).items() if name not in last}
    images = {"classes": list(dataset.classes), "mean": list(dataset.mean), "std": list(dataset.std)}
    return {**ckpt, "cfg": cfg, "state_dict": {**state, **last}, "dense": dense, "masks": masks, "images": images}
