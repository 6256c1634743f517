"""For several tests: scripts by name, training written out from the formulas, networks that look trained, their files,
and folders of images."""
import csv
import importlib
from itertools import repeat

import numpy as np
import torch
from PIL import Image
from torch import nn

from common import data, models
from common.files import checkpoint

METHODS = ("softmask", "hoyer", "slimming", "magnitude", "reweighted")
FILE = {"slimming": "--refine", "softmask": "--pruned"}                  # of finetune.py; --model in the others
SMALL = {  # a network of each architecture, without its number of classes
    "lenet300": {}, "lenet5": {}, "alexnet": {}, "vgg": dict(depth=11), "resnet": dict(depth=8),
    "preresnet": dict(depth=11, selection=True), "densenet": dict(depth=10, selection=True),
    "wideresnet": dict(depth=10, widen_factor=2, dropout=0.3), "resnext": dict(depth=11, cardinality=2),
    "mobilenetv2": dict(width_multiplier=0.5), "resnet_imagenet": dict(preact=True)}


def call(script, *flags):
    """Runs a script, such as "slimming.main", in this process."""
    importlib.import_module(script).main([*map(str, flags)])


def parsed(file, flags):
    """The flags as the script of this file parses them."""
    script = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    return script.parse(flags) if hasattr(script, "parse") else script.flags().parse_args(flags)


def save(path, model, method="slimming", stage="dense", **more):
    """A checkpoint of the model; its path."""
    return checkpoint.save(path, checkpoint.of(model, method, stage, "shapes10", **more))


def rows_of(path):
    """The lines of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def column(folder, name="lr"):
    """What a run's log.csv has of every epoch."""
    return [float(row[name]) for row in rows_of(folder / "log.csv")]


@torch.no_grad()
def pruned_by(masks, model):
    """The model, whose weights become zero where the masks are."""
    for name, mask in masks.items():
        model.get_parameter(name).mul_(mask)
    return model


CLASSES = ("cat", "cow", "dog")


def write_images(path, size=(20, 20), count=5, parts=("train", "test"), suffix="png", classes=CLASSES, seed=0):
    """Noise around a colour for each class; parts: folders with the class folders in them, "" for none."""
    rng = np.random.default_rng(seed)
    for part in parts:
        for label, cls in enumerate(classes):
            (path / part / cls).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 60, (size[1], size[0], 3)) + 80 * np.eye(3, dtype=int)[label % 3]
                Image.fromarray(pixels.astype(np.uint8)).save(path / part / cls / f"{part}{i}.{suffix}")
    return path


@torch.no_grad()
def assert_same_logits(a, b, tolerance=1e-4):
    """To this part of the largest logit, on random images of a's dtype; a and b: models or files."""
    a, b = (m if isinstance(m, nn.Module) else checkpoint.to_model(checkpoint.load(m)) for m in (a, b))
    images = torch.randn(4, *models.input_shape(a.arch, a.cfg), dtype=next(a.parameters()).dtype)
    one, other = a.eval()(images), b.eval()(images)
    assert (one - other).abs().max() <= tolerance * one.abs().max()


STEPS = ["--dataset", "shapes10", "--subset", "20", "--batch-size", "10", "--lr", "0.02", "--momentum", "0.8", "--wd",
         "0.1", "--precision", "fp32", "--device", "cpu", "--seed", "3"]


def shapes(subset=20, batch_size=10, seed=3):
    """What scripts train on with these flags."""
    return data.Loader(data.load("shapes10", subset=subset), "train", batch_size, crop=4, flip=True, seed=seed)


def train_by_hand(model, rates, momentum=0.0, weight_decay=0.0, loss=None, masks=None, q=None, adam=False,
                  loader=None):
    """SGD or Adam with a mask after every step, written out; changes the model.

    g = gradient of the loss + weight_decay w
    SGD   v <- momentum v + g,                             w <- mask (w - rate v)
    Adam  v <- 0.9 v + 0.1 g,  u <- 0.999 u + 0.001 g^2,   w <- mask (w - rate v' / (sqrt(u') + 1e-8)),
          v' = v / (1 - 0.9^t), u' = u / (1 - 0.999^t) in step t

    rates: for each epoch the learning rate, or a list of those of its steps.
    loss(logits, images, labels, epoch): without it the cross-entropy.
    q: a quantizer of the weights of convolutions and linear layers, under the straight-through estimator.
    """
    loss = loss or (lambda logits, images, labels, epoch: nn.functional.cross_entropy(logits, labels))
    loader = loader or shapes()
    masks, first, second, t = masks or {}, {}, {}, 0
    model.train()
    for epoch, rate in enumerate(rates):
        steps = rate if isinstance(rate, list) else repeat(rate)
        for lr, (images, labels) in zip(steps, loader.epoch(epoch), strict=False):
            t += 1
            rounded = {name: w + (q(w) - w).detach() for name, w in model.named_parameters() if q and w.dim() > 1}
            logits = torch.func.functional_call(model, rounded, (images,))
            gradients = torch.autograd.grad(loss(logits, images, labels, epoch), list(model.parameters()))
            with torch.no_grad():
                for (name, w), gradient in zip(model.named_parameters(), gradients, strict=True):
                    g = gradient + weight_decay * w
                    if adam:
                        first[name] = 0.9 * first.get(name, 0) + 0.1 * g
                        second[name] = 0.999 * second.get(name, 0) + 0.001 * g ** 2
                        root = (second[name] / (1 - 0.999 ** t)).sqrt()
                        step = first[name] / (1 - 0.9 ** t) / (root + 1e-8)
                    else:
                        step = first[name] = momentum * first.get(name, 0) + g
                    w.copy_(masks.get(name, 1) * (w - lr * step))


def assert_same_network(state, model, rtol=1e-3, atol=1e-4):
    """The tensors of a state_dict are the model's, as exactly as two orders of summation allow."""
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def as_original(model):
    """The state_dict as the original of slimming writes it: selections as 0/1 vectors."""
    state = model.state_dict()
    for name in [name for name in state if name.endswith("select.indices")]:
        width = model.get_submodule(name.rpartition(".")[0]).width
        state[name.replace("indices", "indexes")] = torch.zeros(width).index_fill(0, state.pop(name), 1)
    return state


def like_trained(model):
    """The model with random batch norms and biases, as after training: all channels differ, none is a constant."""
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.3)
            nn.init.normal_(m.running_mean, 0, 0.3)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
        elif isinstance(m, nn.Conv2d | nn.Linear) and m.bias is not None:
            nn.init.normal_(m.bias, 0, 0.1)
    return model
