"""Parts that several networks share: channel selection, widths with their defaults, initialization; layers of other
sizes in a network that exists."""
import copy

import torch
import torch.nn.functional as F
from torch import nn


class ChannelSelection(nn.Module):
    """Passes on the channels `indices` (dimension 1) of its input, in this order.

    It lets a layer read only part of a residual or dense stream that others read whole (Liu et al. 2017,
    section 4.3). A buffer, not a parameter: it is not trained and not counted.
    """

    def __init__(self, width, kept=None):
        super().__init__()
        assert kept is None or kept <= width, f"a selection of {kept} out of {width} channels"
        self.width = width
        self.register_buffer("indices", torch.arange(width if kept is None else kept))

    def forward(self, x, norm=None):
        """The selected channels of x; with a batch norm those of norm(x), the others not being computed."""
        i = self.indices
        if i.numel() == self.width:
            return x if norm is None else norm(x)
        x = select(x, i)
        if norm is None:
            return x
        mean, var, momentum = norm.running_mean[i], norm.running_var[i], norm.momentum
        if norm.training:
            norm.num_batches_tracked += 1
        if momentum is None:                                 # as in torch: the mean of all batches
            momentum = 1 / max(int(norm.num_batches_tracked), 1)
        x = F.batch_norm(x, mean, var, norm.weight[i], norm.bias[i], norm.training, momentum, norm.eps)
        if norm.training:
            norm.running_mean[i], norm.running_var[i] = mean, var
        return x


def select(x, indices):
    """Channels `indices` of x (N, C, ...), in the memory order of x: the rows of a matrix are what copies fastest."""
    if x.is_contiguous():
        return x.index_select(1, indices)
    last = x.movedim(1, -1)                                  # channels-last order
    rows = last.reshape(-1, x.shape[1]).index_select(1, indices)
    return rows.view(*last.shape[:-1], -1).movedim(-1, 1)


def read(select, norm, x):
    """What a layer reads of a stream through its batch norm, and through a selection where it has one."""
    return norm(x) if select is None else select(x, norm)


def fill(widths, default, what, least=1):
    """The widths of a network: the default, or as many numbers as it has, each at least `least`."""
    widths = list(default) if widths is None else list(widths)
    pools = [[width == "M" for width in listed] for listed in (widths, default)]
    assert pools[0] == pools[1], (
        f"{what} takes {len(default)} widths like {list(default)}; got {widths}")
    assert all(w == "M" or isinstance(w, int) and w >= least for w in widths), (
        f"{what}: a layer without channels in {widths}")
    return widths


def stages(streams, stem, factor, counts, what):
    """Channels of the stem and the stages; per stage its blocks: (channels, out, stride, begins with a projection).

    Each stage has twice the channels of the one before, the first `stem` times factor. Without a factor it continues
    the stem's stream. Projections go by place, not by number of channels: narrowed ones may coincide where the trained
    network has a projection.
    """
    default = [stem] + [stem * factor * 2 ** stage for stage in range(len(counts))]
    streams = fill(streams, default, f"{what} (streams)")
    assert factor > 1 or streams[0] == streams[1], (
        f"the stem and the first stage of {what} are one stream; got {streams}")
    plan = []
    for stage, (out, count) in enumerate(zip(streams[1:], counts, strict=True)):
        first = (streams[stage], out, 2 if stage else 1, stage > 0 or factor > 1)
        plan.append([first] + [(out, out, 1, False)] * (count - 1))
    return streams, plan


def initialize(model, gamma=1.0):
    """Convolutions from a normal distribution by their outputs (He et al. 2015), batch norms at gamma."""
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out")
        elif isinstance(m, nn.BatchNorm2d):
            nn.init.constant_(m.weight, gamma)


def input_shape(arch, cfg=None):
    """(channels, height, width) of one image: the LeNets read 28 x 28 grey, networks for ImageNet 224 x 224, others
    32 x 32 RGB; cfg["image_size"], where it says another."""
    if arch.startswith("lenet"):
        return (1, 28, 28)
    cfg = cfg or {}
    if "input" in cfg:                                       # a network that is none of ours
        return tuple(cfg["input"])
    usual = 224 if cfg.get("stem") == "imagenet" or cfg.get("pool", 1) > 1 else 32
    return (3, *[cfg.get("image_size", usual)] * 2)


def twin(model, device):
    """A copy on a device, which shares no tensor: on "meta" it takes no memory."""
    tensors = [v for m in model.modules() for found in (m._parameters, m._buffers, vars(m)) for v in found.values()
               if isinstance(v, torch.Tensor)]
    memo = {}
    for t in tensors:
        new = t.detach().to(device, copy=True)
        memo[id(t)] = nn.Parameter(new, t.requires_grad) if isinstance(t, nn.Parameter) else new
    return copy.deepcopy(model, memo)


@torch.no_grad()
def resize(model, shapes):
    """Gives layers the shapes {tensor's name: shape}, in place, with zeros in the new tensors. 0: as many as it had."""
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        old = getattr(owner, leaf)
        new = old.new_zeros([n or whole for n, whole in zip(shape, old.shape, strict=True)])
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
