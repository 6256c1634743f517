"""Images per second of the in-memory Loader beside torchvision's transforms under a DataLoader with two workers.

    python benchmarks/loader.py

Both crop (padding 4), flip and normalize the same 50,000 images of 32 x 32 in batches of 128 and do nothing else;
they take turns, and the ratio of the medians is what to look at. Needs no data set: the images are noise.
"""
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

from common import cli, data

COUNT, BATCH, ROUNDS = 50_000, 128, 3


class Images(torch.utils.data.Dataset):
    """As torchvision's CIFAR10 class does it: an array in memory, a PIL image for each item."""

    def __init__(self, pixels, labels, mean, std):
        from torchvision import transforms
        self.pixels, self.labels = pixels, labels
        self.transform = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(),
                                             transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.pixels[i])), int(self.labels[i])


def speed(batches):
    start, seen = time.perf_counter(), 0
    for images, _ in batches:
        seen += len(images)
    return seen / (time.perf_counter() - start)


def main(argv=None):
    cli.parser(__doc__).parse_args(argv)
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 10, COUNT))
    noise = data.Dataset("noise", pixels, labels, pixels[:10], labels[:10], 10, *data.STATISTICS["cifar10"])
    ours = data.Loader(noise, "train", BATCH, crop=4, flip=True)
    theirs = torch.utils.data.DataLoader(Images(pixels.numpy(), labels, noise.mean, noise.std), BATCH, shuffle=True,
                                         num_workers=2)
    speeds = {"Loader": [], "torchvision": []}
    for turn in range(ROUNDS):
        speeds["Loader"].append(speed(ours.epoch(turn)))
        speeds["torchvision"].append(speed(theirs))
    for name, values in speeds.items():
        print(f"{name:12} {statistics.median(values):10,.0f} images/s  (of {ROUNDS}: "
              f"{min(values):,.0f} to {max(values):,.0f})")
    print(f"ratio        {statistics.median(speeds['Loader']) / statistics.median(speeds['torchvision']):10.1f}")


if __name__ == "__main__":
    cli.script(main)
