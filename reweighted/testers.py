"""The original's report of a pruned network: the zeros of every layer, the totals in its words, and the accuracy.

    python testers.py                              the bundled network
    python testers.py FILE --bits 8

Storage is what the original counts, in words of 32 bits: the remaining weights and four numbers for each channel
of a batch norm at --bits, and one bit for every weight to say where the zeros are,

    (non-zeros + batch norms) * bits / 32 + weights / 32

check_model_operations.py counts by the challenge's rules too. Expect half a minute.
"""
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch import nn

from common import UserError, cli, data
from common.device import device_of
from common.evaluate import beside_record, evaluate
from common.files import checkpoint
from reweighted.networks import network

BUNDLED = "chkpt/cifar100_mobilenetv2.pt"
LEGACY_LINEAR = 128_000                                      # 1280 x 100: of the network at width 1


class Totals(NamedTuple):
    """Weights of convolutions and of linear layers without biases, and batch norms at four numbers a channel."""
    conv: int
    conv_nonzeros: int
    linear: int
    linear_nonzeros: int
    norms: int

    @property
    def weights(self):
        return self.conv + self.linear

    @property
    def nonzeros(self):
        return self.conv_nonzeros + self.linear_nonzeros

    def storage(self, bits):
        """Words of 32 bits."""
        return (self.nonzeros + self.norms) * bits / 32 + self.weights / 32


def totals(model, legacy=False):
    """The Totals of a network; legacy: with the original's constant for the linear layer, none of it zero."""
    if legacy and model.arch != "mobilenetv2":
        raise UserError(f"--legacy-count is the original's constant for mobilenetv2; this is a {model.arch}")

    def sizes(kind):
        weights = [m.weight for m in model.modules() if isinstance(m, kind)]
        return sum(w.numel() for w in weights), sum(int(w.count_nonzero()) for w in weights)

    linear = (LEGACY_LINEAR, LEGACY_LINEAR) if legacy else sizes(nn.Linear)
    norms = sum(4 * m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    return Totals(*sizes(nn.Conv2d), *linear, norms)


def describe(model, masks=None, bits=16, legacy=False):
    """The report as text. masks: {name: bool}; their zeros are told apart from weights that are zero by chance."""
    t = totals(model, legacy)
    conv_rate = f"{t.conv / t.conv_nonzeros:.4f}" if t.conv_nonzeros else "infinite"
    rate = f"{t.weights / t.nonzeros:.4f}" if t.nonzeros else "infinite"
    lines = [f"{'weight':30} {'non-zeros':>10} {'zeros':>10} {'total':>10} {'sparsity':>9}"]
    for name, m in model.named_modules():
        if isinstance(m, nn.Conv2d):
            total, left = m.weight.numel(), int(m.weight.count_nonzero())
            lines.append(f"{name + '.weight':30} {left:10} {total - left:10} {total:10} {1 - left / total:9.4f}")
    lines += ["", f"total weights: {t.weights}, total number of zeros: {t.weights - t.nonzeros}, "
              f"non-zeros: {t.nonzeros}, zero sparsity is: {1 - t.nonzeros / t.weights:.4f}"]
    if legacy:                                               # with the linear layer in it, whatever the words say
        lines.append(f"only consider conv layers, compression rate is: {rate}")
    else:
        lines += [f"compression rate is: {rate}", f"only consider conv layers, compression rate is: {conv_rate}"]
    lines += [f"total parameters is: {t.weights + t.norms}",
              f"total bitmask number(32bit) is: {t.weights / 32:g}" if t.weights % 32 else
              f"total bitmask number(32bit) is: {t.weights // 32}",
              f"batchnorm parameters number is: {t.norms}",
              f"total non-zero parameters is: {t.nonzeros + t.norms}",
              f"total parameters for storage is: {t.storage(bits):.1f} (at {bits} bits)"]
    if masks:
        masked = sum(int((~mask).sum()) for mask in masks.values())
        lines.append(f"masked weights: {masked}")
    return "\n".join([*lines, "=" * 60])


def main(argv=None):
    parser = cli.parser(__doc__, train=False, arch=cli.RECORDED)
    cli.add_file(parser, default=BUNDLED)
    add = parser.add_argument
    add("--bits", type=cli.positive, default=16, help="bits of the values in the line on storage "
        "(default: 16)")
    add("--legacy-count", action="store_true", help="128,000 weights in the linear layer, as the original counts")
    args = parser.parse_args(argv)
    ckpt = checkpoint.load(args.file, network, args.arch, args.depth, args.image_size, quantized=True)
    device = device_of(args.device)
    model = checkpoint.to_model(ckpt).to(device)
    print(describe(model, ckpt.get("masks"), args.bits, args.legacy_count), flush=True)

    args.dataset = args.dataset or checkpoint.dataset_of(ckpt)
    dataset = data.for_network(model, ckpt["path"], **cli.data_flags(args))
    result = evaluate(model, data.Loader(dataset, "test", args.test_batch_size, device))
    right = round(result["top1"] / 100 * len(dataset.y_test))
    print(f"Test set loss: {result['loss']:.4f},  * Acc@1: {right}/{len(dataset.y_test)} ({result['top1']:.2f}%)"
          f"{beside_record(ckpt, result['top1'], len(dataset.y_test))}")
    return result


if __name__ == "__main__":
    cli.script(main)
