"""A network as an ONNX file, in fp32 or int8, checked against torch. Needs onnx and onnxruntime.

images (batch, C, H, W), float32, normalized -> logits (batch, classes). The file's metadata has `mean` and `std`, which
an image whose pixels are 0 to 1 is normalized with. Batch norms are folded into the convolutions before them; one that
has none before it is written as a convolution of single channels, which every runtime fuses and computes in int8. A
network that is none of ours is written by torch.onnx.export, which needs onnxscript.

int8: each layer computes with bytes, its weights with one scale per output channel, its inputs with one scale per
tensor, from the smallest to the largest value on some training images ("static QDQ"; Jacob et al. 2018).
"""
import contextlib
import json
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common import UserError, compute_flops, models
from common.compact import compact
from common.evaluate import evaluate
from deploy import runtime
from deploy.graph import operations
from deploy.spread import spread

OPSET = 17
TOLERANCE = 1e-4                # of the largest logit
CALIBRATION = 512               # training images that the ranges of int8 come from
KINDS = {"conv": "Conv", "norm": "Conv", "linear": "Gemm", "relu": "Relu", "add": "Add", "concat": "Concat",
         "flatten": "Flatten", "max_pool": "MaxPool", "avg_pool": "AveragePool", "pad": "Pad", "skip": "Slice",
         "gather": "Gather"}


def packages():
    """The modules onnx and onnxruntime, which only an export needs. UserError where one is missing."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; pip install -r requirements-deploy.txt") from error
    return onnx, onnxruntime


def deployable(model):
    """The same network in the form that runs fastest: without channels of zeros, nothing gathered for a 1 x 1.

    Gathering channels for a 1 x 1 convolution or a linear layer costs more than the multiplications that it saves, so
    these read whole streams, with zero weights; for a 3 x 3 convolution it pays.
    """
    return spread(compact(model, 8), lambda layer: isinstance(layer, nn.Linear) or layer.kernel_size == (1, 1))


def write(model, path, facts=None):
    """Writes the network as ONNX in fp32, with a free batch size; facts: {name: text} for the file's metadata."""
    onnx, _ = packages()
    made = (by_torch if ":" in model.arch else by_operations)(model)
    onnx.helper.set_model_props(made, facts or {})
    onnx.checker.check_model(made)
    onnx.save(made, str(path))


def by_torch(model):
    """The ONNX model of any network. UserError where torch cannot make one."""
    images = torch.zeros(2, *models.input_shape(model.arch, model.cfg), device=next(model.parameters()).device)
    logging.disable(logging.WARNING)                         # of its own operators
    try:
        with contextlib.redirect_stdout(None), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.onnx.export(model, (images,), input_names=["images"], output_names=["logits"], dynamo=True,
                                     dynamic_shapes=({0: "batch"},), verbose=False).model_proto
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; pip install -r requirements-deploy.txt") from error
    except Exception as error:                               # somebody else's code may raise anything
        raise UserError(f"torch.onnx cannot export {model.arch}: {str(error).strip().partition(chr(10))[0]}") from error
    finally:
        logging.disable(logging.NOTSET)


def by_operations(model):
    """The ONNX model of a network of common/models."""
    import onnx
    from onnx import TensorProto, helper
    constants, nodes = [], []

    def constant(name, values):
        values = np.asarray(values)
        values = values.astype(np.int64 if values.dtype == np.int64 else np.float32)
        constants.append(onnx.numpy_helper.from_array(values, name))
        return name

    for node in operations(model):
        inputs, settings, attributes = list(node.inputs), node.settings, {}
        if node.op in ("conv", "linear", "norm"):
            weight = node.weight.view(-1, 1, 1, 1) if node.op == "norm" else node.weight
            inputs += [constant(f"{node.name}.weight", weight.cpu()), constant(f"{node.name}.bias", node.bias.cpu())]
        if node.op == "conv":
            attributes = {"strides": [settings["stride"]] * 2, "pads": [settings["padding"]] * 4,
                          "group": settings["groups"]}
        elif node.op == "norm":
            attributes = {"group": len(node.weight)}
        elif node.op == "linear":
            attributes = {"transB": 1}
        elif node.op in ("concat", "flatten"):
            attributes = {"axis": 1}
        elif node.op == "pad":
            inputs.append(constant(f"{node.name}.pads", [0, settings["before"], 0, 0, 0, settings["after"], 0, 0]))
        elif node.op == "skip":
            for name, values in (("starts", [0, 0]), ("ends", [2 ** 31] * 2), ("axes", [2, 3]),
                                 ("steps", [settings["step"]] * 2)):
                inputs.append(constant(f"{node.name}.{name}", values))
        elif node.op == "gather":
            inputs.append(constant(f"{node.name}.indices", node.weight.cpu()))
            attributes = {"axis": 1}
        elif settings.get("size"):
            attributes = {"kernel_shape": [settings["size"]] * 2, "strides": [settings["stride"]] * 2,
                          "pads": [settings["padding"]] * 4}
        kind = "GlobalAveragePool" if settings.get("size") == 0 else KINDS[node.op]
        nodes.append(helper.make_node(kind, inputs, [node.name], node.name, **attributes))
    nodes[-1].output[0] = "logits"

    batch = ["batch", *models.input_shape(model.arch, model.cfg)]
    graph = helper.make_graph(
        nodes, model.arch, [helper.make_tensor_value_info("images", TensorProto.FLOAT, batch)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", model.cfg["num_classes"]])], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


@torch.no_grad()
def check(path, model, images):
    """How far ONNX Runtime's logits are from torch's, as a fraction of the largest. UserError if beyond TOLERANCE."""
    device, furthest = next(model.parameters()).device, 0.0
    run, _ = runtime.load("onnxruntime", str(path), torch.get_num_threads())
    for batch in (images, images[:1]):
        expected = model(batch.to(device)).cpu()
        given = torch.from_numpy(run(batch.cpu().numpy()))
        furthest = max(furthest, float((given - expected).abs().max() / expected.abs().max()))
    if not furthest <= TOLERANCE:
        raise UserError(f"{path}: ONNX Runtime's logits differ from torch's by {furthest:.1e} of the largest; at most "
                        f"{TOLERANCE:g} was expected. Do not use the file")
    return furthest


class Reader:
    """What quantize_static reads calibration images from."""

    def __init__(self, batches):
        self.batches = iter(batches)

    def get_next(self):
        images = next(self.batches, None)
        return None if images is None else {"images": images.cpu().numpy()}


def quantize(source, path, batches):
    """Writes the fp32 ONNX file `source` as int8 to path; batches: tensors of training images, for the ranges."""
    packages()
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    logging.disable(logging.WARNING)                         # it recommends a pre-processing that changes nothing here
    try:
        with contextlib.redirect_stdout(None):
            quantize_static(source, path, Reader(batches), quant_format=QuantFormat.QDQ, per_channel=True,
                            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)


def calibration(loader):
    """The first CALIBRATION images of a loader over the training set, in batches."""
    left = CALIBRATION
    for images, _ in loader:
        yield images[:left]
        left -= len(images)
        if left <= 0:
            return


def accuracy(run, loader):
    """Top-1 in percent of run, a function from images (numpy) to logits (numpy), over the loader."""
    hits = [run(images.cpu().numpy()).argmax(1) == labels.cpu().numpy() for images, labels in loader]
    return 100 * float(np.concatenate(hits).mean())


def export(model, path, dataset, train, test, int8=False):
    """Writes model (a hook that rounds a layer's inputs is left out) to path, checks it and says what it is.

    train, test: loaders. Returns ONNX Runtime's accuracy on the test set.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    plain = spread(model, lambda layer: False).eval()
    made = deployable(plain)
    macs = [compute_flops.count(m).total.macs for m in (plain, made)]
    images, _ = next(iter(test))
    facts = {"mean": json.dumps(list(dataset.mean)), "std": json.dumps(list(dataset.std)), "arch": model.arch}
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "fp32.onnx" if int8 else Path(path)
        write(made, whole, facts)
        difference = check(whole, plain, images[:16])
        if int8:
            quantize(whole, path, calibration(train))
        was = whole.stat().st_size
    run, _ = runtime.load("onnxruntime", str(path), torch.get_num_threads())
    top1 = accuracy(run, test)
    print(f"wrote {path}: {Path(path).stat().st_size:,} bytes{f' ({was:,} in fp32)' if int8 else ''}, "
          f"{macs[1]:,} MACs" + (f" ({macs[0]:,} in the checkpoint's form)" if macs[0] != macs[1] else "")
          + f"; {'before int8 ' if int8 else ''}its logits differ from torch's by {difference:.1e} of the largest\n"
          f"  ONNX Runtime {'int8' if int8 else 'fp32'}: top-1 {top1:.2f} %; torch fp32: top-1 "
          f"{evaluate(model, test)['top1']:.2f} %")
    if any(m._forward_pre_hooks for m in model.modules()):
        print("  the network's layers round their inputs; the file does not")
    return top1
