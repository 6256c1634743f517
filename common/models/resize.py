"""Layers of other sizes in a network that exists: the same modules, narrower tensors."""
import copy

import torch
from torch import nn


def twin(model, device):
    """A copy on another device, which shares no tensor: on "meta" it takes no memory."""
    tensors = [v for m in model.modules() for found in (m._parameters, m._buffers, vars(m)) for v in found.values()
               if isinstance(v, torch.Tensor)]
    memo = {}
    for t in tensors:
        new = torch.empty_like(t, device=device) if device == "meta" else t.detach().to(device, copy=True)
        memo[id(t)] = nn.Parameter(new, t.requires_grad) if isinstance(t, nn.Parameter) else new.detach()
    return copy.deepcopy(model, memo)


@torch.no_grad()
def resize(model, shapes):
    """Gives layers the shapes {tensor's name: shape}, in place, with zeros in the new tensors. Returns the model."""
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        old = getattr(owner, leaf)
        new = torch.zeros(*shape, dtype=old.dtype, device=old.device)
        if leaf in owner._parameters:
            owner._parameters[leaf] = nn.Parameter(new, old.requires_grad)
        else:
            owner._buffers[leaf] = new
    for m in model.modules():
        weight = m._parameters.get("weight")
        if weight is None:
            weight = m._buffers.get("running_mean")
        if weight is None:
            continue
        if isinstance(m, nn.modules.conv._ConvNd) and not m.transposed:
            if m.groups > 1:                                 # whole groups are removed
                m.groups = m.groups * len(weight) // m.out_channels
            m.out_channels, m.in_channels = len(weight), weight.shape[1] * m.groups
        elif isinstance(m, nn.Linear):
            m.out_features, m.in_features = weight.shape
        elif isinstance(m, nn.modules.batchnorm._NormBase):
            m.num_features = len(weight)
        elif isinstance(m, nn.PReLU):
            m.num_parameters = len(weight)
    return model
