"""Files that others wrote: bare state_dicts, and checkpoints of the original and of other well-known repositories.

    ckpt = load("resnet18.pth", network)

The result is what checkpoint.load gives for our own files, which this reads as well. FORMATS says which names a
repository gives its layers; depth, widths and class count are read off the tensors' shapes.
"""
import re
from dataclasses import dataclass, field

from common import UserError, checkpoint, models
from common.shapes import complete, misfits, sized, told

WRAPPERS = ("state_dict", "model_state_dict", "net", "model")            # keys that may hold the weights
PREFIXES = ("module.", "model.", "net.", "_orig_mod.")                   # that may begin every name


@dataclass
class Format:
    """Names of layers: `has` are some that the file has, `lacks` some that it has not, `names` their way to ours.

    pixels: (mean, std) that the repository normalizes images with, where it is not CIFAR-10's as in common/data.py.
    """
    who: str
    arch: str
    has: str
    lacks: str = ""
    cfg: dict = field(default_factory=dict)
    names: tuple = ()
    pixels: tuple = ()


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR100 = ((0.507075, 0.486549, 0.440892), (0.267334, 0.256438, 0.276150))
LINEAR = ((r"^linear\.", "fc."), (r"\.shortcut\.", ".downsample."))
UNITS = ((r"^conv1\.0\.", "conv1."), (r"^conv1\.1\.", "bn1."), (r"^conv(\d)_x", lambda m: f"layer{int(m[1]) - 1}"),
         (r"residual_function\.([0369])\.", lambda m: f"conv{int(m[1]) // 3 + 1}."),
         (r"residual_function\.([147])\.", lambda m: f"bn{int(m[1]) // 3 + 1}."), (r"\.shortcut\.", ".downsample."))
FORMATS = (
    Format("kuangliu ResNet", "resnet_imagenet", "layer4 bn1 linear", names=LINEAR),
    Format("kuangliu PreActResNet", "resnet_imagenet", "layer4 linear", "bn1", {"preact": True}, LINEAR),
    Format("weiaicunzai ResNet", "resnet_imagenet", "conv1.0 conv5_x fc", names=UNITS, pixels=CIFAR100),
    Format("torchvision ResNet", "resnet_imagenet", "layer4 bn1 fc", pixels=IMAGENET),
    Format("four-stage pre-activation ResNet", "resnet_imagenet", "layer4 fc", "bn1", {"preact": True}),
    Format("akamaster ResNet", "resnet", "layer3 bn1 linear", "layer4 layer2.0.shortcut", {"shortcut": "slice"},
           LINEAR, IMAGENET),
    Format("akamaster ResNet, option B", "resnet", "layer3 bn1 linear layer2.0.shortcut", "layer4", {}, LINEAR,
           IMAGENET),
    Format("soft-mask WideResNet", "wideresnet", "layer3 bn1 fc layer2.0.downsample.weight", "layer4",
           {"variant": "softmask"}, ((r"^layer(\d)\.", r"block\1.layer."), (r"\.downsample\.", ".convShortcut."))),
    Format("chenyaofo or bearpaw ResNet", "resnet", "layer3 bn1 fc layer2.0.downsample.1", "layer4"),
    Format("l1-norm ResNet, padded shortcuts", "resnet", "layer3 bn1 fc", "layer4 layer2.0.downsample",
           {"shortcut": "pad"}),
    Format("slimming or bearpaw PreResNet", "preresnet", "layer3 bn fc", "layer4"),
    Format("bearpaw WideResNet", "wideresnet", "block3.layer bn1 fc"),
    Format("slimming or bearpaw DenseNet", "densenet", "dense3 bn fc"),
    Format("bearpaw ResNeXt", "resnext", "conv_1_3x3 stage_3 classifier"),
    Format("kuangliu MobileNetV2", "mobilenetv2", "layers.16 linear"),
    Format("bearpaw AlexNet", "alexnet", "features.6 features.8 features.10 classifier.weight", "features.1"),
    Format("torchvision or chenyaofo VGG", "vgg", "features.0 classifier.6", names=((r"^features\.", "feature."),),
           pixels=IMAGENET),
    Format("kuangliu or bearpaw VGG", "vgg", "features.0 classifier", "classifier.6",
           names=((r"^features\.", "feature."),)),
    Format("slimming or l1-norm VGG", "vgg", "feature.0 classifier"),
    Format("LeNet-300-100", "lenet300", "fc1 fc2 fc3", "conv1"),
    Format("LeNet-5", "lenet5", "conv1 conv2 fc1 fc2", "fc3"),
)


def load(path, network, arch=None, depth=None, image_size=None, quantized=False):
    """A validated checkpoint dictionary, whoever wrote the file; image_size: what its images are resized to, if any.

    quantized: take a quantized file, too. It can be evaluated, but not trained or pruned: what is written then would
    have neither its integers nor the rounding of what its layers read. The network is the file's. arch and depth are
    compared with it; what the file cannot say (whether a batch norm has a channel selection, where a stride is) is as
    network(arch, depth) -> (arch, cfg) has it. UserError otherwise.
    """
    path, ckpt = checkpoint.read(path)
    ckpt = checkpoint.validated(path, ckpt if "format" in ckpt else convert(path, ckpt, network, arch, depth))
    if not quantized and (ckpt.get("quant") or ckpt.get("activations")):
        raise UserError(f"{path} is quantized already; give the network that it was made from")
    agree(path, ckpt["arch"], ckpt["cfg"], network, arch, depth)
    if image_size:
        ckpt["cfg"] = {**ckpt["cfg"], "image_size": image_size}
    return ckpt


def agree(path, have, cfg, network, arch, depth):
    """UserError where the file holds another network than --arch and --depth say."""
    if not (arch or depth):
        return
    asked, asked_cfg = network(arch, depth) if arch else (have, {"depth": depth})
    said = {str(depth), *re.findall(r"\d+", arch or "")}     # the other numbers are defaults, asked for by nobody
    named = re.sub(r"[\d_]+(bn)?$", "", arch or "")
    if have not in (asked, named) or any(str(v) in said and cfg.get(k) != v for k, v in asked_cfg.items()):
        there = " ".join(f"{k} {v}" for k, v in cfg.items() if k in ("depth", "widen_factor"))
        raise UserError(f"{path} holds a {have} ({there}), not{f' --arch {arch}' if arch else ''}"
                        f"{f' --depth {depth}' if depth else ''}; leave them out to take it from the file")


def convert(path, ckpt, network, arch=None, depth=None):
    """Someone else's dictionary, the weights somewhere inside it, as a checkpoint."""
    outer, state = ckpt, ckpt
    for _ in range(4):                                       # a dictionary may hold itself
        if isinstance(state, dict) and not checkpoint.weights(state):
            outer, state = state, next((state[key] for key in WRAPPERS if key in state), {})
    if not state or not checkpoint.weights(state):
        raise UserError(f"{path} holds no weights (keys: {', '.join(map(str, list(ckpt)[:5]))})")
    asked = network(arch, depth) if arch else (None, {})
    model, state, form = recognize(path, cleaned(state), *asked)
    best = next((outer[key] for key in ("best_prec1", "best_acc", "acc") if key in outer), 0)
    best, epoch = number(best), number(outer.get("epoch"))
    mean, std = form.pixels or ((), ())
    if form.pixels == IMAGENET and "linear" not in form.has and models.input_shape(model.arch, model.cfg)[1] != 224:
        mean = std = ()                                      # torchvision's names in a network for CIFAR
    images = {"images": {"classes": [], "mean": list(mean), "std": list(std)}} if mean else {}
    return {"format": checkpoint.FORMAT, "method": "original", "arch": model.arch, "cfg": model.cfg, "dataset": None,
            "stage": "pruned" if isinstance(outer.get("cfg"), list) else "dense", "state_dict": state,
            "epoch": int(epoch), "prec1": None, "best_prec1": 100 * best if best <= 1 else best, "args": {},
            "dense": None, **images}


def number(value):
    """The value as a float, 0 where it is none."""
    try:
        return float(value) if abs(float(value)) < 1e9 else 0.0
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return 0.0


def cleaned(state):
    """The tensors under their bare names: without DataParallel's and other prefixes and what thop leaves."""
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return {name.replace(".module.", "."): tensor for name, tensor in state.items()
            if not name.endswith(("total_ops", "total_params"))}


def recognize(path, state, asked=None, asked_cfg=None):
    """(the network without its weights, its state_dict in our names, the format) of the first that fits.

    asked: an arch whose options are taken where the file does not say. UserError names the nearest format and the first
    two misfits.
    """
    def is_there(names):
        return [any(name.startswith(f"{sign}.") or name == sign for name in state) for sign in names.split()]

    likely = [f for f in FORMATS if all(is_there(f.has)) and not any(is_there(f.lacks))]
    nearest = None
    for form in likely or FORMATS:
        ours, theirs = translated(state, form.names)
        for options in ([asked_cfg, {}] if form.arch == asked else [{}]):
            try:
                model = sized(form.arch, {**options, **form.cfg, **told(form.arch, ours)}, ours)
            except (UserError, AssertionError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError):
                if likely and form is not likely[-1] or options:
                    continue
                model = models.sketch(form.arch, **form.cfg)
            filled = complete(model, ours)
            wrong = misfits(model, filled, theirs)
            if not wrong and likely:
                return model, filled, form
            if nearest is None or len(wrong) < len(nearest[0]):
                nearest = wrong, form, model
    wrong, form, model = nearest
    more = f" ({len(wrong) - 2} more)" if len(wrong) > 2 else ""
    raise UserError(f"{path} is none of the networks here. The nearest is {form.who} "
                    f"({models.name(model.arch, model.cfg)}), but {' and '.join(wrong[:2])}{more}. There are: "
                    f"{', '.join(f.who for f in FORMATS)}")


def translated(state, names):
    """({our name: tensor}, {our name: the file's}); 0/1 selection vectors become indices."""
    ours, theirs = {}, {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in names:
            new = re.sub(pattern, replacement, new)
        if new.endswith("select.indexes"):
            new, tensor = new.replace("indexes", "indices"), tensor.nonzero().flatten()
        ours[new], theirs[new] = tensor, name
    return ours, theirs
