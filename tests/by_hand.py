"""Training written out from the formulas, for tests to compare the scripts' loops with."""
import torch
from torch import nn


def train_by_hand(model, loader, rates, momentum, weight_decay, s=0.0, masks=None):
    """SGD with momentum, one learning rate per epoch; changes the model.

    v <- momentum v + gradient + weight_decay w + s sign(w),  w <- mask (w - rate v),  s for batch norms' gammas only.
    """
    masks, velocity = masks or {}, {}
    gammas = [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    model.train()
    for epoch, rate in enumerate(rates):
        for images, labels in loader.epoch(epoch):
            loss = nn.functional.cross_entropy(model(images), labels)
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
