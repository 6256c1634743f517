"""Networks that are none of ours, by a name that says where their class is.

    torchvision:resnet18        timm:resnet26d        FILE.py:NAME, a class or function in a file of yours

They are built with num_classes=..., where they take that, and pruned by the records that trace.py finds. A file names
its network and holds no code. The code of a FILE.py runs only where the command names it, with --network.
"""
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from common import UserError
from common.models.resize import resize, twin
from common.models.trace import trace

NAMED = {}                                                   # {spec: class or function} of files that a command named
SHARED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_state_dict_pre_hooks",
          "_state_dict_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")


class Own(nn.Module):
    """Images -> logits of any network, `wrapped`. It shares that one's dictionaries, so that modules and tensors keep
    their names, and attributes such as `cfg` are not mixed up with those of a stranger's class.

    Of several outputs the first is taken: auxiliary heads are computed, and not trained.
    """

    def __init__(self, net, arch, cfg):
        super().__init__()
        self.__dict__.update({name: net.__dict__[name] for name in SHARED}, wrapped=net)
        self.arch, self.cfg, self.traced = arch, cfg, None

    def forward(self, x):
        self.wrapped.training = self.training
        return next(t for t in tree_leaves(self.wrapped(x)) if isinstance(t, torch.Tensor))

    def channels(self):
        return self.records()[0]

    def records(self):
        """([Channels], {layer: why its channels are kept})."""
        if self.traced is None:
            self.traced = trace(self.wrapped, torch.zeros(1, *self.cfg["input"]))
        return self.traced

    def resized(self, shapes):
        """The same network with layers of the shapes {tensor's name: shape}, in place."""
        resize(self, shapes)
        self.cfg, self.traced = {**self.cfg, "shapes": {**self.cfg.get("shapes", {}), **shapes}}, None
        return self


def name(spec):
    """Reads a --network: the class or function in its file is imported. Returns the spec, for `build`."""
    where, _, what = spec.rpartition(":")
    if not where or not what:
        raise UserError(f"--network {spec}: give torchvision:NAME, timm:NAME or FILE.py:NAME")
    if where in ("torchvision", "timm"):
        return spec
    if not Path(where).is_file():
        raise UserError(f"--network {spec}: there is no file {where}")
    found = importlib.util.spec_from_file_location(Path(where).stem, where)
    module = importlib.util.module_from_spec(found)
    sys.path.insert(0, str(Path(where).resolve().parent))    # files beside it
    try:
        found.loader.exec_module(module)
    except Exception as error:                               # somebody else's code may raise anything
        raise UserError(f"--network {spec}: {where} cannot be imported ({type(error).__name__}: {error})") from error
    finally:
        sys.path.pop(0)
    if not callable(getattr(module, what, None)):
        raise UserError(f"--network {spec}: {where} has no class or function {what}")
    NAMED[spec] = getattr(module, what)
    return spec


def maker(spec):
    """The class or function of a spec that `name` has read, or of a name in torchvision or timm."""
    where, _, what = spec.rpartition(":")
    if spec in NAMED:
        return NAMED[spec]
    if where not in ("torchvision", "timm"):
        raise UserError(f"the network is {what} of {where}, and loading it runs that file: name it with --network "
                        f"{spec}")
    try:
        if where == "torchvision":
            from torchvision import models
            if what not in models.list_models(module=models):            # detectors and the like have their own
                raise ValueError(f"torchvision.models has no classifier {what}")
            return lambda num_classes: models.get_model(what, weights=None, num_classes=num_classes)
        import timm
        if not timm.is_model(what):
            raise ValueError(f"timm has no {what}")
        return lambda num_classes: timm.create_model(what, pretrained=False, num_classes=num_classes)
    except (ImportError, ValueError) as error:
        raise UserError(f"{spec}: {error}") from error


@torch.no_grad()
def build(spec, num_classes=10, input=(3, 32, 32), shapes=None):
    """A freshly initialized network of a spec. input: (channels, height, width) of its images. shapes: {tensor's name:
    shape} where a pruned network is narrower. UserError names what cannot be built."""
    made = maker(spec)
    if not (isinstance(input, list | tuple) and len(input) == 3 and all(
            isinstance(n, int) and 0 < n <= 4096 for n in input)):
        raise UserError(f"{spec}: its input is (channels, height, width) of an image, not {input}")
    parameters = inspect.signature(made).parameters.values()
    takes = any(p.name == "num_classes" or p.kind == p.VAR_KEYWORD for p in parameters)
    try:
        net = made(**({"num_classes": num_classes} if takes else {}))
    except Exception as error:                               # somebody else's code may raise anything
        raise UserError(f"{spec} cannot be built: {type(error).__name__}: {error}") from error
    if not isinstance(net, nn.Module):
        raise UserError(f"{spec} gives a {type(net).__name__}, not a torch.nn.Module")
    model = Own(net, spec, {"num_classes": num_classes, "input": list(input)})
    for taken in {*net._modules, *net._parameters, *net._buffers} & {*dir(Own), *vars(model), "images"}:
        raise UserError(f"{spec} has a module or tensor called {taken}, which has another meaning here; rename it")
    if shapes:
        model.resized(fitting(model.state_dict(), shapes, spec))
    logits = shape_of_logits(model, input)
    if logits != (2, num_classes):
        raise UserError(f"{spec} gives {logits} for two images, not (2, {num_classes}): one logit per class")
    return model


def shape_of_logits(model, input):
    """That of two images. UserError where the network cannot read them."""
    for device in ("meta", "cpu"):                           # meta tensors have no numbers; some code asks for them
        try:
            return tuple(twin(model, device).eval()(torch.zeros(2, *input, device=device)).shape)
        except Exception as error:                           # somebody else's code may raise anything
            if device == "cpu":
                raise UserError(f"{model.arch} cannot read images of {' x '.join(map(str, input))}: {error}") from error


def fitting(state, shapes, spec):
    """The shapes, none of which is larger than that of the tensor; UserError otherwise."""
    for tensor, shape in shapes.items():
        if tensor not in state:
            raise UserError(f"{spec} has no {tensor}")
        own = tuple(state[tensor].shape)
        if not isinstance(shape, list | tuple) or len(shape) != len(own) or not all(
                isinstance(n, int) and 0 < n <= most for n, most in zip(shape, own, strict=True)):
            raise UserError(f"{tensor} is to be {shape}, in {spec} it is {own}; a pruned network has no larger layers")
    return {tensor: list(shape) for tensor, shape in shapes.items()}


def shapes_of(model, state):
    """{tensor's name: shape} of a state_dict that is narrower than the dense model."""
    own = model.state_dict()
    return {tensor: list(t.shape) for tensor, t in state.items() if tensor not in own or t.shape != own[tensor].shape}
