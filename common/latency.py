"""How long a network takes, measured so that two networks can be compared on a machine whose speed drifts."""
import statistics
import time

import torch

from common import models


@torch.inference_mode()
def milliseconds(networks, batch, rounds=15, seconds=0.02):
    """Median milliseconds of one forward pass in fp32 for each network, the networks taking turns.

    Each turn repeats the pass until `seconds` have gone by, so that short passes are timed as well as long ones.
    """
    placed = []
    for model in networks:
        device = next(model.parameters()).device
        model = model.eval().to(memory_format=torch.channels_last)
        images = torch.rand(batch, *models.input_shape(model.arch), device=device)
        placed.append((model, images.contiguous(memory_format=torch.channels_last), device, []))
    for turn in range(rounds + 2):                           # the first two turns warm up
        for model, images, device, times in placed:
            passes, start = 0, time.perf_counter()
            while not passes or time.perf_counter() - start < seconds:
                model(images)
                passes += 1
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
            if turn > 1:
                times.append(1000 * (time.perf_counter() - start) / passes)
    return [statistics.median(times) for *_, times in placed]
