"""Learning-rate schedules by the epoch that several methods know, so that they can be compared under the same one."""
import math

import torch

from common import UserError, cli

WORDS = ("cosine", "onecycle")
epoch_or_word = cli.flag_type(f"an epoch number or one of {', '.join(WORDS)}",
                              lambda text: text if text in WORDS else int(text))


def onecycle(epochs):
    """epoch (from 0) -> learning rate as a factor of --lr: one cycle in `epochs` epochs (Smith & Topin, 2018).

    A fifth of the epochs rises linearly to 1, the others fall by half a cosine to near 0. With 10 epochs: 0.5, 1,
    0.97, 0.88, 0.75, 0.59, 0.41, 0.25, 0.12, 0.03.
    """
    rise = max(1, round(0.2 * epochs))

    def factor(epoch):
        if epoch < rise:
            return (epoch + 1) / rise
        return (1 + math.cos(math.pi * (epoch + 1 - rise) / (epochs + 1 - rise))) / 2
    return factor


def check_schedule(schedule):
    """UserError where words and epoch numbers are mixed; schedule: a list, or None."""
    if len(schedule or ()) > 1 and set(WORDS) & set(schedule):
        raise UserError(f"--schedule takes epoch numbers or one of the words {', '.join(WORDS)}, not both")


def make_scheduler(optimizer, schedule, gamma, epochs):
    """A torch scheduler that is stepped after every epoch.

    schedule: [epochs after which the learning rate is multiplied by gamma], ["cosine"] from --lr to 0, or
    ["onecycle"]. UserError where words and numbers are mixed.
    """
    check_schedule(schedule)
    if schedule == ["cosine"]:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    if schedule == ["onecycle"]:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, onecycle(epochs))
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, schedule, gamma)
