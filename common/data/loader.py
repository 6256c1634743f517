"""Batches of a data set on the device; order, crops, flips and Cutout depend only on the seed and the epoch."""
import copy

import torch


class Loader:
    """Batches of a set kept on the device as uint8; no worker processes.

    split: "train" (shuffled) or "test" (in order). crop: pixels of zero padding for random crops; flip: random
    horizontal flips; cutout: side of a square set to zero. Order and augmentation of epoch e depend on (seed, e)
    alone, so a resumed run continues as if it had never stopped. Under torchrun each rank reads its part.
    """

    def __init__(self, dataset, split, batch_size, device="cpu", crop=0, flip=False, cutout=0, shuffle=None, seed=0,
                 rank=0, world=1):
        images, labels = getattr(dataset, f"x_{split}"), getattr(dataset, f"y_{split}")
        shuffle = split == "train" if shuffle is None else shuffle
        self.labels = labels.to(device)
        self.batch_size, self.device = batch_size, torch.device(device)
        self.crop, self.flip, self.cutout, self.shuffle, self.seed = crop, flip, cutout, shuffle, seed
        self.rank, self.world, self.e = rank, world, 0
        # Batch norm needs more than one image in a batch, and all ranks need equally many batches.
        smallest = len(labels) // world
        whole = smallest - smallest % batch_size
        self.count = whole if shuffle and whole and smallest - whole < 2 else len(range(rank, len(labels), world))
        images = torch.nn.functional.pad(images, (0, 0, crop, crop, crop, crop)).to(device)
        self.padded, (height, width, channels) = images, images.shape[1:]
        self.size = height - 2 * crop, width - 2 * crop
        # windows[i] is the row of pixels that begins at pixel i of all images end to end: cropping an image
        # is copying its rows, and no copy of the set is needed for it.
        span = self.size[1] * channels
        self.windows = images.as_strided((images.numel() // channels - self.size[1] + 1, span), (channels, 1))
        mean, std = (torch.tensor(v, dtype=torch.float32).repeat(self.size[1]) for v in (dataset.mean, dataset.std))
        self.scale, self.shift = (1 / (255 * std)).to(device), (-mean / std).to(device)

    def __len__(self):
        return len(range(0, self.count, self.batch_size))

    def epoch(self, e):
        """This Loader for epoch e. Its batches are (images, labels): float32 (B, C, H, W) in channels-last order and
        int64 (B,)."""
        other = copy.copy(self)
        other.e = e
        return other

    def __iter__(self):
        n, g = len(self.labels), torch.Generator().manual_seed((self.seed * 1_000_003 + self.e) % 2**63)
        order = torch.randperm(n, generator=g) if self.shuffle else torch.arange(n)
        top, left = torch.randint(0, 2 * self.crop + 1, (2, n), generator=g)
        mirrored = torch.rand(n, generator=g) < (0.5 if self.flip else 0)
        hole = torch.rand(2, n, generator=g)

        order = order[self.rank::self.world][:self.count]
        (height, width), (tall, wide) = self.size, self.padded.shape[1:3]
        corner = ((order * tall + top[order]) * wide + left[order]).to(self.device)
        rows = torch.arange(0, height * wide, wide, device=self.device)
        for start in range(0, len(order), self.batch_size):
            index = order[start:start + self.batch_size]
            first = corner[start:start + self.batch_size, None] + rows
            images = self.windows.index_select(0, first.flatten()).float().mul_(self.scale).add_(self.shift)
            images = images.view(len(index), height, width, -1)
            if self.flip:
                turn = mirrored[index].nonzero().flatten().to(self.device)
                images.index_copy_(0, turn, images.index_select(0, turn).flip(2))
            if self.cutout:
                blank = self._near(hole[0, index], height)[:, :, None] & self._near(hole[1, index], width)[:, None, :]
                images.masked_fill_(blank[..., None].to(self.device), 0)
            yield images.permute(0, 3, 1, 2), self.labels[index.to(self.device)]

    def _near(self, centre, side):
        """bool (B, side): which rows or columns lie in the cutout square around centre (B,), given in [0, 1)."""
        centre = (centre * side).long()[:, None]
        position = torch.arange(side)
        return (position >= centre - self.cutout // 2) & (position < centre + (self.cutout + 1) // 2)
