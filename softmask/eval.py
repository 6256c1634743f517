"""Soft-binary mask: score and accuracy of a network, as the original prints them, then by the challenge's rules.

    python eval.py --pruned chkpt/quantized_model.pth.tar --half --nbit 8
    python eval.py --pruned chkpt/pruned_model.pth.tar --freebie --half

    score = parameters / 36.5 M  +  FLOPs / 10.49 G                  fractions of WideResNet-28-10, smaller is better

The first block repeats the original's arithmetic: all parameters divided by 32 / --nbit, however they are stored, FLOPs
by its own counter (cost.py), those of convolutions halved by --freebie or --half. The last line counts the weights as
they are stored, by the rules of the MicroNet challenge (common/scores.py). --half evaluates in half precision (bf16).
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import UserError, cli, data, models, scores
from common.device import device_of, in_half
from common.evaluate import beside_record, evaluate, names_of, per_class, refuse_moved
from common.files import checkpoint
from softmask.cost import legacy_flops
from softmask.networks import network

RULE = "-" * 80


def parse(argv=None):
    parser = cli.parser(__doc__, train=False, arch=cli.RECORDED)
    parser.set_defaults(test_batch_size=64)
    cli.add_file(parser, "--pruned", "--resume")
    add = parser.add_argument
    add("--half", action="store_true", help="evaluate in half precision (bf16), and halve the FLOPs of convolutions")
    add("--nbit", type=cli.positive, default=32, help="bits of a parameter")
    add("--freebie", action="store_true", help="16-bit parameters and halved FLOPs for a network without quantization")
    add("--per-class", action="store_true", help="print accuracy and number of images of each class")
    return parser.parse_args(argv)


def describe(params, flops, halved, nbit, freebie, half):
    """The original's printout of its score, as a string: params and the two FLOPs are those of the network."""
    divisor = 32 / (16 if freebie else nbit)
    left = int(params / divisor)
    used = halved if freebie or half else flops
    a, b, score = scores.published(left, used)
    return "\n".join([
        RULE, f"Freebie 16-bit is {freebie}", f"Pytorch half-precision is {half}", f"Weight-bit is {nbit}",
        f"params count /  {divisor:g}",
        f"original param count {params} @ {params / 1e6:.2f} M", f"quantized param count {left} @ {left / 1e6:.2f} M",
        f"original FLOPs count {flops} @ {flops / 1e9:.2f} GFLOPs", f"FLOPs count {used} @ {used / 1e9:.2f} GFLOPs",
        RULE, f"Reference param count {scores.PARAMETERS} @ {scores.PARAMETERS / 1e6:.2f} M",
        f"Reference FLOPs count {scores.OPERATIONS} @ {scores.OPERATIONS / 1e9:.2f} GFLOPs",
        RULE, f"Score = Param/refParam + FLOPs/refFLOPs = {a:.5f} + {b:.5f} = {score:.5f}", RULE])


def by_the_rules(model, ckpt, freebie):
    """One line: storage and operations as the file has them. UserError for the freebie of a quantized network."""
    counted, activations = scores.of_checkpoint(ckpt, model, freebie=freebie), ckpt.get("activations") or {}
    read_at = 16 if freebie else max((entry["bits"] for entry in activations.values()), default=32)
    return (f"rules: {counted.storage:,.0f} words, {counted.mults:,.0f} multiplications and {counted.adds:,.0f} "
            f"additions of 32 bits (layers read {read_at} bits): {counted.storage / scores.PARAMETERS:.5f} + "
            f"{counted.operations / scores.OPERATIONS:.5f} = {counted.score:.5f}")


def tallies(model, ckpt, args):
    """(the original's printout, the line by the rules) of the checkpoint's network."""
    params, dense_cfg = sum(p.numel() for p in model.parameters()), (ckpt["dense"] or ckpt)["cfg"]
    flops, halved = (legacy_flops(model, dense_cfg, halve) for halve in (False, True))
    return (describe(params, flops, halved, args.nbit, args.freebie, args.half),
            by_the_rules(model, ckpt, args.freebie))


def main(argv=None):
    refuse_moved(argv)
    args = parse(argv)
    if args.nbit > 32 or args.freebie and args.nbit != 32:
        raise UserError(f"--nbit {args.nbit}" + (": the freebie is for networks without quantization, of 32 bits"
                                                 if args.freebie else " is more than 32"))
    ckpt = checkpoint.load(args.file, network, args.arch, args.depth, args.image_size, quantized=True)
    device = device_of(args.device)
    model = checkpoint.to_model(ckpt).to(device)
    printed, rules = tallies(model, ckpt, args)
    print(printed, flush=True)

    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    size = models.input_shape(model.arch, model.cfg)
    dataset = data.for_network(model, ckpt["path"], **cli.data_flags(args))
    if dataset.shape != size:
        printed, rules = tallies(model, ckpt, args)
        print(printed)
    test = data.Loader(dataset, "test", args.test_batch_size, device)
    evaluated = in_half(model) if args.half else model
    result = evaluate(evaluated, test)
    count = len(dataset.y_test)
    right = round(result["top1"] * count / 100)
    print(f"\nTest set: Average loss: {result['loss']:.4f}, Accuracy: {right}/{count} ({result['top1']:.2f}%)"
          f"{beside_record(ckpt, result['top1'], count)}\n")
    if args.per_class:
        print(per_class(evaluated, test, names_of(model, dataset)))
    print(f"published: {printed.splitlines()[-2].rpartition('FLOPs = ')[2]}\n{rules}")
    return result


if __name__ == "__main__":
    cli.script(main)
