"""For several tests: training written out from the formulas, networks that look trained, and their files."""
import csv

import torch
from torch import nn

from common import models
from common.files import checkpoint


def save(path, model, method="slimming", stage="dense", **more):
    """A checkpoint of the model; its path."""
    return checkpoint.save(path, checkpoint.of(model, method, stage, "shapes10", **more))


def column(folder, name="lr"):
    """What a run's log.csv has of every epoch."""
    with open(folder / "log.csv", newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


@torch.no_grad()
def assert_same_logits(a, b, tolerance=1e-4):
    """To this part of the largest logit, on random images of a's dtype; a and b: models or files."""
    a, b = (m if isinstance(m, nn.Module) else checkpoint.to_model(checkpoint.load(m)) for m in (a, b))
    images = torch.randn(4, *models.input_shape(a.arch, a.cfg), dtype=next(a.parameters()).dtype)
    one, other = a.eval()(images), b.eval()(images)
    assert (one - other).abs().max() <= tolerance * one.abs().max()


def train_by_hand(model, loader, rates, momentum, weight_decay, s=0.0, masks=None, q=None):
    """SGD with momentum, one learning rate per epoch; changes the model.

    v <- momentum v + gradient + weight_decay w + s sign(w),  w <- mask (w - rate v),  s for batch norms' gammas only.
    q: a quantizer of the weights of convolutions and linear layers, under the straight-through estimator.
    """
    masks, velocity = masks or {}, {}
    gammas = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    model.train()
    for epoch, rate in enumerate(rates):
        for images, labels in loader.epoch(epoch):
            rounded = {name: w + (q(w) - w).detach() for name, w in model.named_parameters() if q and w.dim() > 1}
            loss = nn.functional.cross_entropy(torch.func.functional_call(model, rounded, (images,)), labels)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for (name, w), gradient in zip(model.named_parameters(), gradients, strict=True):
                    penalty = s * w.sign() if any(w is gamma for gamma in gammas) else 0
                    velocity[name] = momentum * velocity.get(name, 0) + gradient + weight_decay * w + penalty
                    w.copy_(masks.get(name, 1) * (w - rate * velocity[name]))


def assert_same_network(state, model, rtol=1e-3, atol=1e-4):
    """The tensors of a state_dict are the model's, as exactly as two orders of summation allow."""
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


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
