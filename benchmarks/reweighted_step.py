"""Cost of the reweighted penalty in a training step, for MobileNetV2 and ResNet-20, in fp32.

    python benchmarks/reweighted_step.py

Steps with and without the penalty take turns on one network, forward, backward and Adam in both. The ratio of the
medians is what to look at, or that of the fastest steps on a machine with other work: below 1.05 is wanted. The penalty
touches each weight a few times, a convolution once for each position and image, so a small batch makes it look worse.
Needs no data set: the images are noise.
"""
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import nn

from common import cli, models
from reweighted import penalties

NETWORKS = {"mobilenetv2": {"width_multiplier": 1.3}, "resnet": {"depth": 20}}


def steps(arch, batch, rounds, device):
    """(seconds of each step without, with the penalty) of `rounds` pairs of steps."""
    model = models.build(arch, num_classes=100, **NETWORKS[arch]).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    gammas = penalties.coefficients(weights)
    images = torch.randn(batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    labels, times = torch.randint(0, 100, (batch,), device=device), ([], [])
    for turn in range(rounds + 2):                           # the first two turns warm up
        for penalty in (False, True) if turn % 2 else (True, False):
            start = time.perf_counter()
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            if penalty:
                for w, gamma in zip(weights, gammas, strict=True):
                    w.grad.add_(penalties.gradient(w, gamma), alpha=1e-6)
            optimizer.step()
            if images.is_cuda:
                torch.cuda.synchronize(device)
            if turn > 1:
                times[penalty].append(time.perf_counter() - start)
    return times


def main(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument("--batch-size", type=cli.positive, default=64)
    parser.add_argument("--rounds", type=cli.positive, default=15)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    for arch in NETWORKS:
        times = steps(arch, args.batch_size, args.rounds, args.device)
        (median, median_with), (least, least_with) = map(statistics.median, times), map(min, times)
        print(f"{arch:12} {1000 * median:8.1f} ms a step, {1000 * median_with:8.1f} ms with the penalty: "
              f"{median_with / median:.3f}x; the fastest {least_with / least:.3f}x", flush=True)


if __name__ == "__main__":
    cli.script(main)
