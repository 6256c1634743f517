"""DeepHoyer: what is printed of a pruned network and of the small one that compaction leaves."""
from torch import nn

from common import compute_flops
from common.models.narrow import prove


def sparsity_report(model):
    """The original's report as text: non-zeros of every tensor but the batch norms', and of its groups.

    dim0 counts the inputs of a layer that any weight reads, dim1 its outputs that any weight feeds.
    """
    lines, alive, total, weights, nonzero_weights = [], 0, 0, 0, 0
    for layer, module in model.named_modules():
        for leaf, tensor in module.named_parameters(recurse=False):
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                continue
            name, count, size = f"{layer}.{leaf}", int(tensor.count_nonzero()), tensor.numel()
            alive, total = alive + count, total + size
            lines.append(f"{name:20} | nonzeros = {count:7} / {size:7} ({100 * count / size:6.2f}%) | "
                         f"total_pruned = {size - count:7} | shape = {tuple(tensor.shape)}")
            if tensor.dim() > 1:
                weights, nonzero_weights = weights + size, nonzero_weights + count
                nonzero = tensor.detach().ne(0)
                groups = [("dim0", nonzero.transpose(0, 1).flatten(1).any(1)), ("dim1", nonzero.flatten(1).any(1))]
                counts = [f"{dim} = {int(g.sum()):7} / {len(g):7} ({100 * int(g.sum()) / len(g):6.2f}%)"
                          for dim, g in groups]
                lines.append(f"{name:20} | {' | '.join(counts)}")
    rate = total / alive if alive else float("inf")
    lines.append(f"alive: {alive}, pruned : {total - alive}, total: {total}, Compression rate : {rate:10.2f}x  "
                 f"({100 * (total - alive) / total:6.2f}% pruned)")
    rate = weights / nonzero_weights if nonzero_weights else float("inf")
    lines.append(f"weights alone, as papers count: {nonzero_weights} of {weights} left "
                 f"({100 * nonzero_weights / weights:.2f}%, {rate:.2f}x)")
    return "\n".join(lines)


def architecture(model):
    """'353-45-11' for a LeNet; the list of widths for others."""
    return ("-" if model.arch.startswith("lenet") else " ").join(map(str, model.cfg.get("widths") or []))


def compaction_report(model, small, dense):
    """Widths, parameters and MACs of the compacted network, and how far its logits are from the masked one's."""
    total, widths = compute_flops.count(small).total, architecture(small)
    return (f"compacted: {f'{widths}, ' if widths else ''}{total.params:,} parameters of {dense['params']:,} "
            f"({100 * total.params / dense['params']:.2f}%), {total.macs:,} MACs of {dense['macs']:,} "
            f"({100 * total.macs / dense['macs']:.2f}%); its logits differ by "
            f"{prove(model, small):.1e} of the largest")
