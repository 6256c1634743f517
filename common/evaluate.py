"""Accuracy on a test set, and the eval.py of every method."""
import sys

import torch
import torch.nn.functional as F

from common import UserError, cli, data, models, say
from common.device import device_of, in_half
from common.files import checkpoint
from common.models import counting


@torch.no_grad()
def evaluate(model, loader):
    """{"loss": mean cross-entropy, "top1": percent, "top5": percent} over the loader."""
    was_training = model.training
    model.eval()
    losses, top1, top5, seen = [], 0, 0, 0
    for images, labels in loader:
        logits = model(images).float()
        losses.append(F.cross_entropy(logits, labels, reduction="sum"))
        hit = logits.topk(min(5, logits.shape[1])).indices.eq(labels[:, None])
        top1, top5, seen = top1 + hit[:, 0].sum(), top5 + hit.sum(), seen + len(labels)
    model.train(was_training)
    loss = float(torch.stack(losses).cpu().double().sum())
    return {"loss": loss / seen, "top1": 100 * int(top1) / seen, "top5": 100 * int(top5) / seen}


def names_of(model, dataset=None):
    """The names of the classes: those of the file, or of the data set, else their numbers."""
    known = (model.images or {}).get("classes") or (dataset.classes if dataset else ())
    return list(known) or [str(i) for i in range(model.cfg["num_classes"])]


@torch.no_grad()
def per_class(model, loader, names):
    """Text: for each class its accuracy, its number of images and the class it is most often confused with."""
    confusion = torch.zeros(len(names), len(names), dtype=torch.int64)
    model.eval()
    for images, labels in loader:
        guesses = model(images).argmax(1)
        confusion.view(-1).index_add_(0, (labels * len(names) + guesses).cpu(), torch.ones_like(labels.cpu()))
    width = max(5, *map(len, names))
    lines = [f"{'class':{width}} {'images':>7} {'right, %':>9}  most often taken for"]
    for i, name in enumerate(names):
        row, count = confusion[i].clone(), int(confusion[i].sum())
        right, row[i] = int(row[i]), 0
        other = f"{names[int(row.argmax())]} ({int(row.max())})" if row.any() else ""
        lines.append(f"{name:{width}} {count:7} {100 * right / count if count else 0:9.2f}  {other}".rstrip())
    return "\n".join(lines)


def refuse_moved(argv):
    """UserError for a flag of eval.py that has become a script."""
    for flag in ("--export", "--latency", "--predict"):
        if any(word.partition("=")[0] == flag for word in argv or sys.argv[1:]):
            more = {"--export": " model.onnx", "--predict": " FOLDER"}.get(flag, "")
            raise UserError(f"{flag} is a script now: python deploy/{flag[2:]}.py FILE{more}")


def beside_record(ckpt, top1, count):
    """Text: the accuracy that the file records, if it does, for top1, what its network reaches here on count images;
    for a file of another repository with a note where that differs by more than a point, and than chance explains."""
    record = ckpt["best_prec1"] if ckpt["prec1"] is None else ckpt["prec1"]
    if record is None:
        return ""
    chance = 3 * (record * (100 - record) / count) ** 0.5
    text = f"; the file's record: {record:.2f} %"
    if ckpt["method"] != "original" or abs(record - top1) <= max(1, chance):
        return text
    return (f"{text}\nnote: that is {abs(record - top1):.2f} points off. Either these are other images, or they were "
            "normalized differently (--mean, --std), or the network has the same shapes and another forward pass "
            "(stride, pooling, activation, batch norm eps) than the line \"read as\" says; give your own network "
            "by --network FILE.py:NAME (docs/own-network.md)")


def against_record(ckpt, test, holdout=None):
    """Prints the accuracy of another repository's network before it is changed, beside that in its file; nothing if
    test has training images (holdout), which the record does not count."""
    if ckpt["method"] == "original" and ckpt["best_prec1"] is not None and not holdout:
        top1 = evaluate(checkpoint.to_model(ckpt).to(test.device), test)["top1"]
        say(f"{ckpt['path']} as it is: top-1 {top1:.2f} %{beside_record(ckpt, top1, len(test.labels))}")


def evaluate_file(argv, description, network):
    """Counts of a checkpoint, then its accuracy.

    network: the method's function (arch, depth) -> (arch, cfg) for files that do not say what they are.
    """
    refuse_moved(argv)
    parser = cli.parser(description, train=False, arch=cli.RECORDED)
    cli.add_file(parser, "--pruned", "--resume")
    add = parser.add_argument
    add("--half", action="store_true", help="evaluate in half precision (bf16) instead of fp32")
    add("--per-class", action="store_true", help="print accuracy and number of images of each class")
    args = parser.parse_args(argv)
    return evaluate_checkpoint(args.file, network, args.arch, args.depth, args.device,
                               args.test_batch_size, args.half, args.per_class, **cli.data_flags(args))


def heading(ckpt, model):
    """Text about a file, its network and its cost, which scripts print before they open any data."""
    return (f"{ckpt['path']}: {ckpt['method']} {ckpt['stage']}, {ckpt['arch']} {models.brief(model.cfg)}\n"
            f"{counts(ckpt, model)}")


def counts(ckpt, model):
    """Lines of text: parameters and cost of a checkpoint's network, and the fractions of its dense one."""
    total = counting.count(model).total
    lines = [f"  {total.params:,} parameters, {total.nonzeros:,} of them not zero; {total.macs:,} MACs, "
             f"{total.sparse_macs:,} with non-zero weights; FLOPs are 2 x MACs"]
    if ckpt["dense"]:
        dense = counting.dense_total(ckpt, model)
        lines.append(f"  {dense.params / max(1, total.nonzeros):.2f}x fewer parameters, "
                     f"{dense.macs / max(1, total.sparse_macs):.2f}x fewer MACs than the dense network "
                     "(zeros not counted)")
    return "\n".join(lines)


def evaluate_checkpoint(path, network, arch=None, depth=None, device=None, batch_size=256, half=False,
                        classes=False, name=None, image_size=None, **images):
    """Counts of a checkpoint, then its accuracy: top-1 and top-5 in percent, with `classes` of each class.

    name, image_size, images: as data.load takes them; name None: the data set that the file was trained on.
    """
    ckpt = checkpoint.load(path, network, arch, depth, image_size, quantized=True)
    device = device_of(device)
    model = checkpoint.to_model(ckpt).to(device)
    print(heading(ckpt, model), flush=True)
    name, size = name or checkpoint.dataset_of(ckpt), models.input_shape(model.arch, model.cfg)
    dataset = data.for_network(model, ckpt["path"], name, image_size=image_size, **images)
    if dataset.shape != size:
        print(counts(ckpt, model))
    test = data.Loader(dataset, "test", batch_size, device)
    evaluated = in_half(model) if half else model
    result = evaluate(evaluated, test)
    record = beside_record(ckpt, result["top1"], len(dataset.y_test))
    print(f"{dataset.name} test set, {len(dataset.y_test)} images, {'bf16' if half else 'fp32'}: "
          f"loss {result['loss']:.4f}, top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %{record}")
    if classes:
        print(per_class(evaluated, test, names_of(model, dataset)))
    return result
