"""The eval.py of every method."""
import argparse

from common import UserError, checkpoint, compute_flops, data, latency, models, runtime


def evaluate_file(argv, description, network):
    """Counts of a checkpoint, then its accuracy, then on request its speed.

    network: the method's function (arch, depth) -> (arch, cfg) for files that do not say what they are.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    runtime.add_flags(parser, train=False)
    add = parser.add_argument
    add("file", nargs="?", metavar="FILE", help="the checkpoint")
    add("--model", "--pruned", "--resume", dest="named", metavar="FILE", help="the same")
    add("--arch", help="for a file of an original repository")
    add("--depth", type=int)
    add("--half", action="store_true", help="evaluate in bf16 instead of fp32")
    add("--latency", action="store_true", help="measure milliseconds per batch, beside the dense network's")
    args = parser.parse_args(argv)
    if not (args.file or args.named):
        raise UserError("which checkpoint? python eval.py FILE")
    ckpt = checkpoint.load(args.file or args.named, network, args.arch, args.depth)
    device = runtime.device_of(args.device)
    model = checkpoint.to_model(ckpt).to(device)
    total = compute_flops.count(model).total
    print(f"{ckpt['path']}: {ckpt['method']} {ckpt['stage']}, {ckpt['arch']} {runtime.brief(ckpt['cfg'])}\n"
          f"  {total.params:,} parameters, {total.nonzeros:,} of them not zero; {total.macs:,} MACs, "
          f"{total.sparse_macs:,} with non-zero weights; FLOPs are 2 x MACs", flush=True)
    if ckpt["dense"]:
        dense = ckpt["dense"]
        print(f"  {dense['params'] / total.params:.2f}x fewer parameters, {dense['macs'] / total.macs:.2f}x fewer MACs "
              "than the dense network")
    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    dataset = data.load(args.dataset, args.data_dir, ckpt["arch"].startswith("lenet"), args.subset)
    data.check_fit(dataset, model, ckpt["path"])
    test = data.Loader(dataset.x_test, dataset.y_test, dataset, args.test_batch_size, device)
    result = runtime.evaluate(model, test, args.half)
    record = f"; the file's record: {ckpt['prec1']:.2f} %" if ckpt["prec1"] is not None else ""
    print(f"{args.dataset} test set, {len(dataset.y_test)} pictures, {'bf16' if args.half else 'fp32'}: "
          f"loss {result['loss']:.4f}, top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %{record}")
    if args.latency:
        dense = models.build(ckpt["arch"], **(ckpt["dense"] or ckpt)["cfg"]).to(device)
        for batch in (1, 128):
            was, now = latency.milliseconds([dense, model], batch)
            print(f"batch {batch}: {now:.2f} ms, the dense network {was:.2f} ms, {was / now:.2f}x")
    return result
