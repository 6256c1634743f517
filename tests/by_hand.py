"""For several tests: training written out from the formulas, and networks that look trained."""
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
