"""The soft-binary mask: a trained factor between 0 and 1 for every channel, and the loss that makes it 0 or 1.

    M = clamp(m + 0.5, 0, 1)                                       starts at 0.5; no gradient outside (0, 1)
    W <- W M,  gamma <- gamma M,  beta <- beta M                   of every layer and batch norm of that channel
    L <- L + delta (wg mean(M) - tw var(M) / mean(M))              delta = target - sparsity reached

wg pulls the mean of all masks down, tw pushes them apart, towards 0 and 1. The sparsity is counted, so no gradient
passes through delta. When more is removed than the target, delta is negative and both terms change sign. A channel with
M = 0 is exactly zero in every layer that reads it, so it can be removed.
"""
import copy

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from common import UserError
from common.models.layers import ChannelSelection
from softmask.cost import Cost, branches_of


def penalty(masks, delta, wg, tw):
    """delta (wg mean - tw var / mean) of mask entries (n,), with the unbiased variance: 0-d."""
    mean = masks.mean()
    return delta * (wg * mean - tw * masks.var() / mean)


class SoftMask(nn.Module):
    """A network of `common.models` under its masks: calling it is calling the network with masked parameters.

    The parameter m holds all masks. The layers that add up in a residual stream share one mask. All streams take it
    from one vector as wide as the widest stream: a stream of C channels has every (widest / C)-th entry. The loss
    counts that vector once for each of these layers, as in the original. With stage_masks each stream has a mask of its
    own, counted once. unstructured: a mask entry for every weight of all layers but the last instead of every channel.
    UserError where streams cannot share, where a channel selection has dropped channels, or where all are concatenated.
    """

    def __init__(self, model, stage_masks=False, unstructured=False):
        super().__init__()
        self.model = model
        if any(m.indices.numel() < m.width for m in model.modules() if isinstance(m, ChannelSelection)):
            raise UserError("a network that reads only some of its channels cannot be masked")
        self.records = [] if unstructured else [record for record in model.channels()
                                                if record.producers and record.plain]
        if not self.records and not unstructured:
            raise UserError(f"all channels of this {model.arch} are concatenated, which cannot be masked; give "
                            "--nfp to mask single weights")
        self.branches, lost = branches_of(model, self.records)
        self.cost = Cost(model, self.records, unstructured)
        self.scaled = {}         # parameter -> (mask number, channels per entry, branch number, shape (-1, 1, ...))
        if unstructured:
            self.names = self.cost.weights
            for i, name in enumerate(self.names):
                self.scaled[name] = i, 1, None, model.get_parameter(name).shape
        else:
            self.names = [record.producers[0][0] for record in self.records]
            for i, record in enumerate(self.records):
                norms = [norm for _, norm in record.producers] + [consumer.norm for consumer in record.consumers]
                for name, axis in record.index:              # of a traced network: also norms of parallel branches
                    layer = name.rpartition(".")[0]
                    norms += [layer] * (axis == 0 and isinstance(model.get_submodule(layer), _BatchNorm))
                for layer in dict.fromkeys([layer for layer, _ in record.producers] + norms):
                    for kind, p in model.get_submodule(layer).named_parameters() if layer else ():
                        shape = (-1, *[1] * (p.dim() - 1))
                        self.scaled[f"{layer}.{kind}"] = i, record.group_size, lost.get(layer), shape
            for row in self.cost.norms:                      # of a branch, on a stream that has no mask
                for kind in ("weight", "bias") if row in lost else ():
                    self.scaled.setdefault(f"{row}.{kind}", (None, 1, lost[row], (-1,)))

        # Which entries of m a mask has (used), and which the loss counts, with repetitions (counted).
        self.sizes = self.cost.sizes
        widths = [n for n, record in zip(self.sizes, self.records, strict=False) if record.stream and not stage_masks]
        shared, used, counted = torch.arange(max(widths, default=0)), [], []
        if any(len(shared) % width for width in widths):
            raise UserError(f"residual streams of {widths} channels cannot share one mask; give --stage-masks")
        end = len(shared)
        for i, n in enumerate(self.sizes):
            if self.records and self.records[i].stream and not stage_masks:
                used.append(shared[::len(shared) // n])
                counted += [shared] * len(self.records[i].producers)
            else:
                used.append(torch.arange(end, end + n))
                counted.append(used[-1])
                end += n
        self.m = nn.Parameter(torch.zeros(end))
        self.register_buffer("used", torch.cat(used), persistent=False)
        self.register_buffer("counted", torch.cat(counted), persistent=False)

    def entries(self):
        """M of all mask parameters (n,)."""
        return (self.m + 0.5).clamp(0, 1)

    def masks(self):
        """M of every record, or with unstructured masks of every weight: vectors in the order of `names`."""
        return self.entries()[self.used].split(self.sizes)

    def parameters_masked(self):
        """{name: masked tensor}. The batch norms of a residual branch that has lost a whole layer are zero: its
        block is only the shortcut."""
        masks, plain = self.masks(), dict(self.model.named_parameters())
        whole = [torch.stack([(masks[i] > 0).any() for i in inside]).all() for inside in self.branches]
        masked, done = {}, {}
        for name, (i, group, branch, shape) in self.scaled.items():
            if (i, branch) not in done:
                mask = self.m.new_ones(1) if i is None else masks[i].repeat_interleave(group) if group > 1 else masks[i]
                done[i, branch] = mask if branch is None else mask * whole[branch]
            masked[name] = plain[name] * done[i, branch].view(shape)
        return masked

    def forward(self, images):
        return functional_call(self.model, self.parameters_masked(), (images,))

    def counted_masks(self):
        """The mask entries (n,) whose mean and variance are in the loss."""
        return self.entries()[self.counted]

    def sparsity(self, flops=False):
        """The fraction of parameters (or FLOPs) that the masks remove, exact, 0-d."""
        alive = torch.stack([(mask > 0).sum() for mask in self.masks()])
        left, whole = (self.cost.flops(alive), self.cost.all_flops) if flops else (
            self.cost.params(alive), self.cost.all_params)
        return (whole - left) / whole

    @torch.no_grad()
    def folded(self):
        """The plain network with masked parameters, in evaluation mode, as checkpoints have it."""
        model = copy.deepcopy(self.model)
        model.load_state_dict({**self.model.state_dict(), **self.parameters_masked()})
        return model.eval()

    @torch.no_grad()
    def absorb(self):
        """Divides the network's parameters by their masks, so that under the masks it computes the same as before."""
        masked = self.parameters_masked()
        for name, p in self.model.named_parameters():
            if name in masked:
                p.copy_(torch.where(masked[name] == 0, p, p * p / masked[name]))         # p / M
