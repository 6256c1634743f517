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
from common.models.layers import input_shape, resize, twin

NAMED = {}                                                   # {spec: class or function} of files that a command named
SHARED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_state_dict_pre_hooks",
          "_state_dict_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")


class Own(nn.Module):
    """Images -> logits of any network, `wrapped`, whose dictionaries it shares: modules and tensors keep their names.

    Of several outputs the first is taken: auxiliary heads are computed, and not trained.
    """

    def __init__(self, net, arch, cfg):
        super().__init__()
        self.__dict__.update({name: net.__dict__[name] for name in SHARED}, wrapped=net)
        self.arch, self.cfg, self.traced = arch, cfg, None

    def forward(self, x):
        self.wrapped.training = self.training
        return next(t for t in tree_leaves(self.wrapped(x.contiguous())) if isinstance(t, torch.Tensor))

    def train(self, mode=True):
        self.training = mode
        self.wrapped.train(mode)                             # its own train() may keep batch norms as they are
        return self

    def channels(self):
        return self.records()[0]

    def records(self):
        """([Channels], {layer: why its channels are kept})."""
        if self.traced is None:
            from common.models.trace import trace  # of no use to the families

            self.traced = trace(self.wrapped, torch.zeros(1, *input_shape(self.arch, self.cfg)))
        return self.traced

    def resized(self, shapes):
        """The same network with layers of the shapes {tensor's name: shape}, in place; 0: as many as it had."""
        resize(self, shapes)
        had = self.cfg.get("shapes", {})                     # another axis may have been cut before
        both = {name: [n or before for n, before in zip(shape, had.get(name, shape), strict=True)]
                for name, shape in shapes.items()}
        self.cfg, self.traced = {**self.cfg, "shapes": {**had, **both}}, None
        return self

    def reads(self, shape):
        """Takes note of the (channels, height, width) of its images. UserError where it cannot read them."""
        logits = shape_of_logits(self, shape)
        if logits != (2, self.cfg["num_classes"]):
            raise UserError(f"{self.arch} gives {logits} for two images, not (2, {self.cfg['num_classes']}): one logit "
                            "per class")
        self.cfg, self.traced = {**self.cfg, "input": list(shape)}, None


def name(spec):
    """Reads a --network: the class or function in its file is imported. Returns the spec, for `build`."""
    where, _, what = spec.rpartition(":")
    if not where or not what:
        raise UserError(f"{spec}: give torchvision:NAME, timm:NAME or FILE.py:NAME")
    if where in ("torchvision", "timm"):
        return spec
    if not Path(where).is_file():
        raise UserError(f"{spec}: there is no file {where}")
    found = importlib.util.spec_from_file_location(Path(where).stem, where)
    module = importlib.util.module_from_spec(found)
    sys.path.insert(0, str(Path(where).resolve().parent))    # files beside it
    try:
        found.loader.exec_module(module)
    except Exception as error:                               # somebody else's code may raise anything
        raise UserError(f"{spec}: {where} cannot be imported ({type(error).__name__}: {error})") from error
    finally:
        sys.path.pop(0)
    if not callable(getattr(module, what, None)):
        raise UserError(f"{spec}: {where} has no class or function {what}")
    NAMED[spec] = getattr(module, what)
    return spec


def alike(spec, other):
    """Whether two specs name the same class of a file of the same name; it may be in another folder now."""
    return Path(spec).name == Path(other).name


def maker(spec):
    """The class or function of a spec that `name` has read, or of a name in torchvision or timm."""
    where, _, what = spec.rpartition(":")
    for named, made in NAMED.items():
        if alike(spec, named):
            return made
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
def build(spec, num_classes=10, input=None, shapes=None, image_size=None):
    """A freshly initialized network. input: (channels, height, width) of its images, if known yet; image_size: another
    height and width. shapes: {tensor's name: shape} of narrower tensors, 0 for whole axes. UserError if impossible."""
    made = maker(spec)
    if image_size:
        input = [*(input or [3])[:1], image_size, image_size]
    if input is not None and not (isinstance(input, list | tuple) and len(input) == 3 and all(
            isinstance(n, int) and 0 < n <= 4096 for n in input)):
        raise UserError(f"{spec}: its input is (channels, height, width) of an image, not {input}")
    parameters = inspect.signature(made).parameters.values()
    takes = any(p.name == "num_classes" or p.kind == p.VAR_KEYWORD for p in parameters)
    try:
        with torch.device("cpu"):                            # some code reads numbers while it builds
            net = made(**({"num_classes": num_classes} if takes else {}))
    except Exception as error:                               # somebody else's code may raise anything
        raise UserError(f"{spec} cannot be built: {type(error).__name__}: {error}") from error
    if not isinstance(net, nn.Module):
        raise UserError(f"{spec} gives a {type(net).__name__}, not a torch.nn.Module")
    model = Own(net, spec, {"num_classes": num_classes})
    for taken in {*net._modules, *net._parameters, *net._buffers} & {*dir(Own), *vars(model), "images"}:
        raise UserError(f"{spec} has a module or tensor called {taken}, which has another meaning here; rename it")
    if shapes:
        fitting(model.state_dict(), shapes, spec)
        model.resized(shapes)
    if input:
        model.reads(input)
    return model


def fitted(path, state, spec, image_size=None):
    """The network of a spec for a plain state_dict, the file `path`: with as many classes, and as narrow."""
    some, more = (build(spec, classes).state_dict() for classes in (10, 11))
    last = [name for name, tensor in some.items() if tensor.shape != more[name].shape and name in state]
    model = build(spec, state[last[0]].shape[0] if last and state[last[0]].dim() else 10)
    names = model.state_dict()
    for name in names.keys() ^ state.keys():
        raise UserError(f"{name} is in {path if name in state else spec} and not in {spec if name in state else path}")
    shapes = shapes_of(model, state)
    fitting(names, shapes, spec)
    model.resized(shapes)
    colors = next((tensor.shape[1] for tensor in state.values() if tensor.dim() == 4), 3)
    size = image_size or (32 if ".py:" in spec else 224)
    shape = 1 if colors == 1 else 3, size, size
    if not last:                                             # its code takes no num_classes
        model.cfg["num_classes"] = shape_of_logits(model, shape)[-1]
    model.reads(shape)
    return model


def shape_of_logits(model, input):
    """That of two images. UserError where the network cannot read them."""
    dtype = next(model.parameters()).dtype
    for device in ("meta", "cpu"):                           # meta tensors have no numbers; some code asks for them
        try:
            return tuple(twin(model, device).eval()(torch.zeros(2, *input, device=device, dtype=dtype)).shape)
        except Exception as error:                           # somebody else's code may raise anything
            if device == "cpu":
                raise UserError(f"{model.arch} cannot read images of {' x '.join(map(str, input))}: {error}") from error


def fitting(state, shapes, spec):
    """UserError for a shape that is larger than that of its tensor, or none."""
    for tensor, shape in shapes.items():
        if tensor not in state:
            raise UserError(f"{spec} has no {tensor}")
        own = tuple(state[tensor].shape)
        if not isinstance(shape, list | tuple) or len(shape) != len(own) or not all(
                isinstance(n, int) and 0 <= n <= most for n, most in zip(shape, own, strict=True)):
            raise UserError(f"{tensor} is to be {shape}, in {spec} it is {own}; a pruned network has no larger layers")


def shapes_of(model, state):
    """{tensor's name: shape} of a state_dict that is narrower than the model, 0 where it is as wide."""
    return {name: [n if n != whole else 0 for n, whole in zip(state[name].shape, t.shape, strict=True)]
            for name, t in model.state_dict().items() if name in state and state[name].dim() == t.dim()
            and state[name].shape != t.shape}
