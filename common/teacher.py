"""A teacher: a network whose outputs are learned beside the labels (Hinton et al. 2015, at temperature 1).

    taught = teacher.load(run, args.teacher, args.ltea, network, dataset)
    ...
    loss = taught(loss, logits, images)                      # (1 - ltea) loss + ltea (- sum p_teacher log p)
"""
import torch
import torch.nn.functional as F

from common import UserError, cli, data
from common.files import checkpoint

LTEA = 0.5


def add_flags(parser):
    add = parser.add_argument
    add("--teacher", metavar="FILE", help="distill from this network, of any method and the same classes")
    add("--ltea", type=cli.nonnegative, default=LTEA, help="weight of the teacher's loss; the labels' "
        f"loss has the weight 1 - LTEA (default: {LTEA:g})")


def check(path, ltea):
    """UserError if --ltea is not a weight, or there is no teacher."""
    if path is None and ltea != LTEA:
        raise UserError("--ltea needs --teacher")
    if ltea > 1:
        raise UserError(f"--ltea {ltea:g} is more than 1")


def load(run, path, ltea, network, dataset):
    """The function (loss, logits, images) -> loss with the teacher in the file `path`; without one it returns the loss.

    network: the method's function (arch, depth) -> (arch, cfg). Images are normalized as in the teacher's file.
    """
    check(path, ltea)
    if path is None:
        return lambda loss, logits, images: loss
    ckpt = checkpoint.load(path, network, quantized=True)
    model, trained_on = run.place(checkpoint.to_model(ckpt)), ckpt.get("images")
    data.adapt(model, dataset, path)
    shift, scale = 0, 1
    if trained_on and (list(trained_on["mean"]), list(trained_on["std"])) != (list(dataset.mean), list(dataset.std)):
        mean, std, to_mean, to_std = (torch.tensor(numbers, device=run.device).view(-1, 1, 1) for numbers in (
            dataset.mean, dataset.std, trained_on["mean"], trained_on["std"]))
        shift, scale = (mean - to_mean) / to_std, std / to_std

    def taught(loss, logits, images):
        with torch.no_grad(), run.autocast():
            told = model(images * scale + shift).float()
        return (1 - ltea) * loss + ltea * distillation(logits.float(), told)
    return taught


def distillation(logits, told):
    """Mean over the images of - sum softmax(told) log softmax(logits); both (N, classes)."""
    return -(F.softmax(told, 1) * F.log_softmax(logits, 1)).sum(1).mean()
