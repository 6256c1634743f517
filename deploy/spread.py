"""Taking channel selections out of a network: the layer after one reads the whole stream, with zero weights."""
import copy

import torch

from common import models


@torch.no_grad()
def spread(model, where=lambda layer: True):
    """A new network with the same logits in which layers read whole streams instead of selected channels.

    where(conv or linear) says whose selection goes. Its weight gets zero columns for the channels it did not read, and
    the batch norm before it zero gammas and betas there. More MACs, but no copy of the stream: for 1 x 1 convolutions
    that is faster, in every runtime measured.
    """
    modules, cfg = dict(model.named_modules()), copy.deepcopy(model.cfg)
    state = dict(model.state_dict())
    for record in model.channels():
        consumer = record.consumers[0]
        layer, select = modules[consumer.layer], modules.get(consumer.select)
        if record.producers or not where(layer):
            continue
        for key, position in record.places:
            cfg[key][position] = select.width
        weight = torch.zeros_like(layer.weight[:, :1]).repeat_interleave(select.width, 1)
        state[f"{consumer.layer}.weight"] = weight.index_copy(1, select.indices, layer.weight)
        state[f"{consumer.select}.indices"] = torch.arange(select.width)
        for name in ("weight", "bias") if consumer.norm else ():
            value = getattr(modules[consumer.norm], name)
            state[f"{consumer.norm}.{name}"] = torch.zeros_like(value).index_copy(0, select.indices,
                                                                                  value[select.indices])
    wide = models.build(model.arch, **cfg).to(next(model.parameters()))
    wide.images = getattr(model, "images", None)
    wide.load_state_dict(state)
    return wide.train(model.training)
