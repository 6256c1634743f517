"""Other repositories: the layer names of their networks, and the mean and std they normalize images with."""
import re
from collections.abc import Callable
from dataclasses import dataclass, field

CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100 = ((0.507075, 0.486549, 0.440918), (0.267334, 0.256438, 0.276150))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Mean and std that each repository's scripts use for 10 classes (CIFAR-10), for 100 (CIFAR-100) and for others; None:
# the data set's own. Slimming, l1-norm, DeepHoyer and soft mask use bearpaw's.
PIXELS = {
    "kuangliu": (CIFAR10, CIFAR10, None),
    "bearpaw": (CIFAR10, CIFAR10, None),
    "chenyaofo": (CIFAR10, ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)), None),
    "weiaicunzai": (CIFAR100, CIFAR100, CIFAR100),
    "akamaster": (IMAGENET, IMAGENET, IMAGENET),
    "torchvision": (IMAGENET, IMAGENET, IMAGENET),
    "": (None, None, None),
}


@dataclass
class Format:
    """Names of layers: the file has those in `has` and none in `lacks`; `names` translates them to ours.

    pixels: the key of PIXELS; fits: (cfg, whether the file is only a state_dict) -> bool, which tells two repositories
    with the same names apart.
    """
    who: str
    arch: str
    has: str
    lacks: str = ""
    cfg: dict = field(default_factory=dict)
    names: tuple = ()
    pixels: str = ""
    fits: Callable = lambda cfg, alone: True


LINEAR = ((r"^linear\.", "fc."), (r"\.shortcut\.", ".downsample."))
PREACT = ((r"^linear\.", "fc."), (r"\.(shortcut|downsample)\.0\.", ".convShortcut."))
FEATURES = ((r"^features\.", "feature."),)
UNITS = ((r"^conv1\.0\.", "conv1."), (r"^conv1\.1\.", "bn1."), (r"^conv(\d)_x", lambda m: f"layer{int(m[1]) - 1}"),
         (r"residual_function\.([0369])\.", lambda m: f"conv{int(m[1]) // 3 + 1}."),
         (r"residual_function\.([147])\.", lambda m: f"bn{int(m[1]) // 3 + 1}."), (r"\.shortcut\.", ".downsample."))
BLOCKS = ((r"^layer(\d)\.", r"block\1.layer."), (r"\.downsample\.", ".convShortcut."))
FORMATS = (
    Format("kuangliu ResNet", "resnet_imagenet", "layer4 bn1 linear", names=LINEAR, pixels="kuangliu"),
    Format("kuangliu PreActResNet", "resnet_imagenet", "layer4 linear", "bn1", {"preact": True}, PREACT, "kuangliu"),
    Format("weiaicunzai ResNet", "resnet_imagenet", "conv1.0 conv5_x fc", names=UNITS, pixels="weiaicunzai"),
    Format("torchvision ResNet", "resnet_imagenet", "layer4 bn1 fc", pixels="torchvision",
           fits=lambda cfg, alone: cfg["stem"] == "imagenet"),
    Format("torchvision ResNet for small images", "resnet_imagenet", "layer4 bn1 fc"),
    Format("four-stage pre-activation ResNet", "resnet_imagenet", "layer4 fc", "bn1", {"preact": True}, PREACT),
    Format("akamaster ResNet", "resnet", "layer3 bn1 linear", "layer4 layer2.0.shortcut", {"shortcut": "slice"},
           LINEAR, "akamaster"),
    Format("akamaster ResNet, option B", "resnet", "layer3 bn1 linear layer2.0.shortcut", "layer4", {}, LINEAR,
           "akamaster"),
    Format("soft-mask WideResNet", "wideresnet", "layer3 bn1 fc layer2.0.downsample.weight", "layer4",
           {"variant": "softmask"}, BLOCKS, "bearpaw"),
    Format("chenyaofo ResNet", "resnet", "layer3 bn1 fc layer2.0.downsample.1", "layer4", pixels="chenyaofo",
           fits=lambda cfg, alone: alone),
    Format("bearpaw ResNet", "resnet", "layer3 bn1 fc layer2.0.downsample.1", "layer4", pixels="bearpaw"),
    Format("l1-norm ResNet, padded shortcuts", "resnet", "layer3 bn1 fc", "layer4 layer2.0.downsample",
           {"shortcut": "pad"}, pixels="bearpaw"),
    Format("slimming or bearpaw PreResNet", "preresnet", "layer3 bn fc", "layer4", pixels="bearpaw"),
    Format("bearpaw WideResNet", "wideresnet", "block3.layer bn1 fc", pixels="bearpaw"),
    Format("slimming or bearpaw DenseNet", "densenet", "dense3 bn fc", pixels="bearpaw"),
    Format("bearpaw ResNeXt", "resnext", "conv_1_3x3 stage_3 classifier", pixels="bearpaw"),
    Format("kuangliu MobileNetV2", "mobilenetv2", "layers.16 linear", pixels="kuangliu"),
    Format("bearpaw AlexNet", "alexnet", "features.6 features.8 features.10 classifier.weight", "features.1",
           pixels="bearpaw"),
    Format("torchvision VGG", "vgg", "features.0 classifier.6", names=FEATURES, pixels="torchvision",
           fits=lambda cfg, alone: cfg["pool"] == 7),
    Format("weiaicunzai VGG", "vgg", "features.0 classifier.6", names=FEATURES, pixels="weiaicunzai",
           fits=lambda cfg, alone: cfg["head"][0] == 4096),
    Format("chenyaofo VGG", "vgg", "features.0 classifier.6", names=FEATURES, pixels="chenyaofo"),
    Format("kuangliu or bearpaw VGG", "vgg", "features.0 classifier", "classifier.6", names=FEATURES,
           pixels="kuangliu"),
    Format("slimming or l1-norm VGG", "vgg", "feature.0 classifier", pixels="bearpaw"),
    Format("LeNet-300-100", "lenet300", "fc1 fc2 fc3", "conv1"),
    Format("LeNet-5", "lenet5", "conv1 conv2 fc1 fc2", "fc3"),
)


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
