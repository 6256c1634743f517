"""Accuracy on a test set, and the eval.py of every method."""
import torch
import torch.nn.functional as F

from common import UserError, checkpoint, cli, compute_flops, data, deploy, keep, models, originals, predict
from common.device import device_of


@torch.no_grad()
def evaluate(model, loader, half=False):
    """{"loss": mean cross-entropy, "top1": percent, "top5": percent} over the loader, in fp32 unless half."""
    was_training = model.training
    model.eval()
    loss, top1, top5, seen = 0.0, 0, 0, 0
    for images, labels in loader:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
            logits = model(images).float()
        loss += F.cross_entropy(logits, labels, reduction="sum").double()
        hit = logits.topk(min(5, logits.shape[1])).indices.eq(labels[:, None])
        top1, top5, seen = top1 + hit[:, 0].sum(), top5 + hit.sum(), seen + len(labels)
    model.train(was_training)
    return {"loss": float(loss / seen), "top1": 100 * int(top1) / seen, "top5": 100 * int(top5) / seen}


def evaluate_file(argv, description, network):
    """Counts of a checkpoint, then its accuracy, then on request its speed.

    network: the method's function (arch, depth) -> (arch, cfg) for files that do not say what they are.
    """
    parser = cli.parser(description)
    cli.add_flags(parser, train=False)
    add = parser.add_argument
    add("file", nargs="?", metavar="FILE", help="the checkpoint")
    add("--model", "--pruned", "--resume", dest="named", metavar="FILE", help="the same")
    add("--arch", help="what the file cannot say, for one of another repository")
    add("--depth", type=int)
    add("--half", action="store_true", help="evaluate in bf16 instead of fp32")
    predict.add_flags(parser)
    deploy.add_flags(parser)
    args = parser.parse_args(argv)
    deploy.check(args)
    if not (args.file or args.named):
        raise UserError("which checkpoint? python eval.py FILE")
    return evaluate_checkpoint(args.file or args.named, args, network)


def heading(ckpt, model):
    """What is in a file and what its network has and costs, as text: what scripts print before they open any data."""
    return (f"{ckpt['path']}: {ckpt['method']} {ckpt['stage']}, {ckpt['arch']} {models.brief(model.cfg)}\n"
            f"{counts(ckpt, model)}")


def counts(ckpt, model):
    """What the network of a checkpoint has and costs, and what that is of its dense one, as lines of text."""
    total = compute_flops.count(model).total
    lines = [f"  {total.params:,} parameters, {total.nonzeros:,} of them not zero; {total.macs:,} MACs, "
             f"{total.sparse_macs:,} with non-zero weights; FLOPs are 2 x MACs"]
    if ckpt["dense"]:
        dense = keep.dense_total(ckpt, model)
        lines.append(f"  {dense.params / total.params:.2f}x fewer parameters, {dense.macs / total.macs:.2f}x fewer "
                     "MACs than the dense network")
    return "\n".join(lines)


def evaluate_checkpoint(path, args, network):
    """What evaluate_file prints of the file; args: its flags."""
    ckpt = originals.load(path, network, args.arch, args.depth, args.image_size, quantized=True)
    device = device_of(args.device)
    model = checkpoint.to_model(ckpt).to(device)
    print(heading(ckpt, model), flush=True)
    if args.predict:
        return predict.predict(model, ckpt, args, device)
    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    size = models.input_shape(model.arch, model.cfg)
    dataset = data.for_network(model, args, ckpt["path"])
    if dataset.shape != size:
        print(counts(ckpt, model))
    test = data.Loader(dataset, "test", args.test_batch_size, device)
    result = evaluate(model, test, args.half)
    record = f"; the file's record: {ckpt['prec1']:.2f} %" if ckpt["prec1"] is not None else ""
    print(f"{args.dataset} test set, {len(dataset.y_test)} images, {'bf16' if args.half else 'fp32'}: "
          f"loss {result['loss']:.4f}, top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %{record}")
    if args.per_class:
        print(predict.per_class(model, test, predict.names_of(model, dataset), args.half))
    deploy.deploy(args, ckpt, model, dataset, test)
    return result
