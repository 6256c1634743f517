"""Cost of soft masks: a training step with them beside one without, taking turns.

    python benchmarks/softmask_step.py

The ratio of the medians is what to look at; it should stay below 1.10. The images are noise.
"""
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from common import cli, models
from common.device import device_of, has_bf16
from softmask.mask import SoftMask, penalty
from softmask.networks import network

NETWORKS = {"WRN-16-4": ("wideresnet", 16, 4), "ResNet-20": ("resnet", 20, None)}
BATCH, ROUNDS = 64, 15


def step(net, optimizer, images, labels, masked):
    with torch.autocast(images.device.type, torch.bfloat16, enabled=has_bf16(images.device)):
        logits = net(images)
    loss = F.cross_entropy(logits.float(), labels)
    if masked:
        loss = loss + penalty(net.counted_masks(), 0.4 - net.sparsity(), 30, 10)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def main(argv=None):
    cli.parser(__doc__).parse_args(argv)
    device = device_of()
    images = torch.randn(BATCH, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 100, (BATCH,), device=device)
    for name, what in NETWORKS.items():
        arch, cfg = network(*what)
        runs = []
        for masked in (False, True):
            torch.manual_seed(0)
            model = models.build(arch, num_classes=100, **cfg).to(device, memory_format=torch.channels_last)
            net = SoftMask(model).to(device) if masked else model
            runs.append((net, torch.optim.SGD(net.parameters(), 0.01, momentum=0.9), masked, []))
        for turn in range(ROUNDS + 2):                       # the first two turns warm up
            for net, optimizer, masked, times in runs:
                start = time.perf_counter()
                step(net, optimizer, images, labels, masked)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if turn > 1:
                    times.append(1000 * (time.perf_counter() - start))
        plain, with_masks = (statistics.median(times) for *_, times in runs)
        print(f"{name:10} batch {BATCH}: {plain:8.1f} ms a step, {with_masks:8.1f} ms with masks, "
              f"ratio {with_masks / plain:.3f}")


if __name__ == "__main__":
    cli.script(main)
