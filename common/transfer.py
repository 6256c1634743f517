"""A trained network for a data set with another number of classes."""
from common import compute_flops, models


def to_classes(ckpt, dataset):
    """The checkpoint with a last layer for the classes of dataset, reinitialized if it had another number of them."""
    had, count = ckpt["cfg"]["num_classes"], dataset.num_classes
    if had == count:
        return ckpt
    cfg, state, dense = {**ckpt["cfg"], "num_classes": count}, ckpt["state_dict"], ckpt["dense"]
    fresh = models.build(ckpt["arch"], **cfg).state_dict()
    last = {name: tensor for name, tensor in fresh.items() if tensor.shape != state[name].shape}
    print(f"note: {ckpt['path']} has {had} classes, {dataset.name} has {count}: {' and '.join(last)} are reinitialized")
    if dense:
        dense = compute_flops.summary(models.build(ckpt["arch"], **{**dense["cfg"], "num_classes": count}))
    masks = {name: mask for name, mask in ckpt.get("masks", {}).items() if name not in last}
    images = ckpt.get("images") and {**ckpt["images"], "classes": []}
    return {**ckpt, "cfg": cfg, "state_dict": {**state, **last}, "dense": dense, "masks": masks, "images": images}
