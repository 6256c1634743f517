"""Prunes networks of torchvision and timm by the records of common/models/trace.py, and writes results/networks.md.

    pip install timm torch-pruning==1.6.1 torch-kirigami==0.2                      # optional, the columns beside ours
    python results/networks.py                             # all, ten minutes on one core
    python results/networks.py torchvision:resnet18 ...    # these rows again, or more of them

Half of all that can be removed is removed, by a random choice. Weights are random, and so are batch norms, gains and
layer scales; images have 64 x 64 pixels (inception 299 x 299). The rows are in results/networks.csv.
"""
import copy
import csv
import math
import sys
import time
from collections import Counter
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from torch import nn

from common import cli, models
from common.device import facts
from common.models.narrow import compare, narrow, silence
from common.models.own import Own
from deploy.measure import installed, markdown
from results import summary

NETWORKS = [f"torchvision:{name}" for name in """resnet18 resnet50 resnext50_32x4d wide_resnet50_2 vgg16_bn mobilenet_v2
    mobilenet_v3_small efficientnet_b0 densenet121 squeezenet1_1 googlenet inception_v3 regnet_y_400mf
    shufflenet_v2_x1_0 mnasnet1_0 convnext_tiny""".split()]
NETWORKS += [f"timm:{name}" for name in """resnet26d repvgg_a0 ghostnet_100 res2net50_26w_4s cspresnet50 skresnet18
    mixnet_s resnest14d""".split()]
COLUMNS = ["network", "channels, %", "s of tracing", "s of narrowing", "difference", "why the rest is kept"]
SEEDS = range(3)
ABOUT = """
Half of the channels that can be removed were removed, three random choices each. *channels*: fraction of the
convolutions' channels that are in layers which became narrower, without the layer of the logits. *difference*: the
largest between the logits of the masked and of the narrow network, for two random images in float64, as a fraction of
the largest logit; batch norms, gains and layer scales are random. The narrow network then ran forward and backward in
training mode. Seconds are processor time of one thread. Columns of other libraries: half of all that they offer, one
choice; masked is the network with the removed weights at zero; an error is the library's own, or of the network that it
left.
"""


@torch.no_grad()
def randomized(model, seed):
    """A copy in float64 whose batch norms, gains, layer scales and biases are random, as after training."""
    model = copy.deepcopy(model).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith(("bias", "running_mean")):
            tensor.normal_(0, 0.3, generator=generator)
        elif tensor.is_floating_point() and sum(n > 1 for n in tensor.shape) <= 1:
            tensor.uniform_(0.5, 1.5, generator=generator)
    return model


def half(model, seed):
    """{first layer: keep} of all records: half of their units at random, but one at least."""
    generator, keep = torch.Generator().manual_seed(seed), {}
    for record in model.channels():
        first = record.producers[0][0]
        units = len(record.by_unit(first, torch.ones(len(model.get_submodule(first).weight))))
        order = torch.randperm(units, generator=generator)
        keep[first] = record.over_channels(order < max(1, units // 2))
    return keep


def share(model, small):
    """Percent of the convolutions' channels that are in layers which have become narrower. Layers that make the
    logits are not counted."""
    heads = {name for name, why in model.records()[1].items() if why.startswith("the output")}
    channels = [(len(m.weight), len(small.get_submodule(name).weight)) for name, m in model.named_modules()
                if isinstance(m, nn.modules.conv._ConvNd) and name not in heads]
    return 100 * sum(was for was, now in channels if now < was) / sum(was for was, _ in channels)


def of_ours(model):
    """Cells: percent of the channels, seconds of tracing and of narrowing, largest difference, why the rest stays."""
    start = time.process_time()
    _, stays = model.records()
    traced = time.process_time()
    small = narrow(model, half(model, 0))
    seconds = [traced - start, time.process_time() - traced]
    furthest = 0
    for seed in SEEDS:
        masked = randomized(model, seed)
        keep = half(masked, seed)
        silence(masked, keep)
        difference, why = compare(masked, narrow(masked, keep))
        if why:
            return [f"{share(model, small):.1f}", *(f"{s:.2f}" for s in seconds), why, ""]
        furthest = max(furthest, difference)
    kept = {name: why for name, why in stays.items() if not why.startswith("the output")}
    reasons = Counter(why.partition(" (")[0] for why in kept.values()).most_common(2)
    return [f"{share(model, small):.1f}", *(f"{s:.2f}" for s in seconds), f"{furthest:.0e}",
            "; ".join(f"{why}: {count} layers" for why, count in reasons)]


def described(error):
    return f"{type(error).__name__} ({str(error).partition(chr(10))[0].partition(';')[0][:60]})".replace("|", "/")


def by_torch_pruning(net, images, heads):
    import torch_pruning
    torch_pruning.pruner.BasePruner(net, images, torch_pruning.importance.RandomImportance(), pruning_ratio=0.5,
                                    ignored_layers=[net.get_submodule(name) for name in heads]).step()


def by_kirigami(net, images, heads):
    """Removes the first half of every axis that it lists; where it refuses, of every eighth of the axes it accepts."""
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import PlanningError, Pruner
    pruner = Pruner(net, graph=DependencyGraph.build(net, args=(images,)))
    axes, chosen, plan, why = {}, [], None, None
    for candidate in pruner.discover_candidates().candidates:
        axes.setdefault(candidate.axis, []).append(candidate.remove)
    halves = [[part for remove in found[:len(found) // 2] for part in remove] for found in axes.values()]
    try:
        plan = pruner.plan_remove(sum(halves, []))
    except PlanningError:
        for i in range(8):
            parts = sum(halves[i * len(halves) // 8:(i + 1) * len(halves) // 8], [])
            try:
                plan = pruner.plan_remove(chosen + parts)
                chosen += parts
            except PlanningError as error:
                why = error
    if plan is None:
        raise why
    pruner.apply(plan)


def of_peer(model, prune):
    """Cells of another library: percent of the channels, and the difference or the error.

    It prunes a network whose numbers are their own places in their tensors: those left say what was removed. The
    masked network has zeros in the place of all the others.
    """
    heads = [name for name, why in model.records()[1].items() if why.startswith("the output")]
    whole = randomized(model, 0)
    small = copy.deepcopy(model.wrapped).double().eval()
    with torch.no_grad():
        for tensor in small.state_dict().values():
            tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape))
    try:
        prune(small, torch.zeros(1, *models.input_shape(model.arch, model.cfg), dtype=torch.float64), heads)
    except Exception as error:                               # somebody else's code may raise anything
        return ["", "error: " + described(error)]
    masked, small = copy.deepcopy(whole), Own(small, model.arch, model.cfg)
    tensors, zeroed = whole.state_dict(), masked.state_dict()
    with torch.no_grad():
        for name, left in small.state_dict().items():
            places = left.long().flatten()
            left.copy_(tensors[name].flatten()[places].view(left.shape))
            if name.endswith(("weight", "bias")) or name in dict(whole.named_parameters()):
                gone = torch.ones(tensors[name].numel(), dtype=torch.bool).index_fill(0, places, False)
                zeroed[name].masked_fill_(gone.view(tensors[name].shape), 0)
    difference, why = compare(masked, small)
    error = why and not math.isfinite(difference)
    return [f"{share(model, small):.1f}", f"error: {why[:80]}" if error else f"{difference:.0e}"]


PEERS = {"torch-pruning": by_torch_pruning, "torch-kirigami": by_kirigami}


def row_of(spec):
    size = 299 if "inception" in spec else 64
    model = models.build(spec, num_classes=10, input=[3, size, size])
    row = dict(zip(COLUMNS, [spec, *of_ours(model)], strict=True))
    for package, prune in PEERS.items():
        cells = of_peer(model, prune) if installed(package.replace("-", "_")) else ["", "not installed"]
        row |= dict(zip((f"{package}: channels, %", f"{package}: difference"), cells, strict=True))
    return row


def write_page(rows):
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", *PEERS)
                         if installed(name.replace("-", "_")))
    (ROOT / "results/networks.md").write_text(
        f"# Networks of torchvision and timm\n\nMade by `python results/networks.py`, {date.today()}: "
        f"{facts(torch.device('cpu'))['hardware']}, {packages}.\n{ABOUT}\n"
        f"{markdown(list(next(iter(rows))), [row.values() for row in rows])}")


def main(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument("networks", nargs="*", metavar="SPEC", help="torchvision:NAME or timm:NAME (default: 24)")
    asked = parser.parse_args(argv).networks
    torch.set_num_threads(1)
    file = ROOT / "results/networks.csv"
    with open(file, newline="") as lines:
        rows = {row["network"]: row for row in csv.DictReader(lines)}
    for spec in asked or NETWORKS:
        rows[spec] = row_of(spec)
        print(*rows[spec].values(), sep=" | ", flush=True)
        rows = {name: rows[name] for name in sorted(rows, key=[*NETWORKS, *rows].index)}
        summary.write(file, list(rows.values()))
    write_page(rows.values())


if __name__ == "__main__":
    cli.script(main)
