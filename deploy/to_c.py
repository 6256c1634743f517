"""A network as one C file that multiplies only by the weights that are not zero. Needs a C compiler, nothing else.

    python deploy/export.py FILE model.c
    cc -O3 -march=native -o model model.c -lm
    ./model < images.f32 > logits.f32            # images one after the other: C x H x W floats each, normalized
    ./model 1000 < image.f32                     # milliseconds of processor time per image

    void logits(const float *image, float *out)

Each non-zero weight of a convolution adds a shifted copy of an input channel, times the weight, to an output channel:
contiguous memory, which compilers vectorize. Its shift is known here, so the file holds (shift, weight) pairs. Batch
norms are folded, selections are taken out. Grouped convolutions are not supported.
"""
import math
import re
from pathlib import Path

import torch

from common import UserError, models
from deploy.graph import operations
from deploy.spread import spread

TEMPLATE = Path(__file__).with_name("model.c")

def numbers(kind, name, values):
    text = [f"{v:.9g}f" if "." in f"{v:.9g}" or "e" in f"{v:.9g}" else f"{v:.9g}.f" for v in values] if (
        kind == "float") else map(str, values)
    return f"static const {kind} {name}[] = {{{', '.join(text) or '0'}}};"


def nonzeros(name, weight, shift_of):
    """Lines of C with the non-zero weights, output by output, and their shifts: shift_of(positions (n, dims - 1))."""
    place = weight.ne(0).nonzero()
    counts = torch.bincount(place[:, 0], minlength=len(weight)).cumsum(0).tolist()
    return [numbers("int", f"{name}_start", [0, *counts]),
            numbers("int", f"{name}_shift", shift_of(place[:, 1:]).tolist()),
            numbers("float", f"{name}_weight", weight[tuple(place.T)].tolist())]


def translate(nodes, shape):
    """[(name, what it reads, floats, C code with <name> for a buffer)], the tables, floats of `plane` and `padded`."""
    shapes, steps, tables, plane, scratch = {"images": shape}, [], [], 1, 1
    same, uses = {}, [name for node in nodes for name in node.inputs]        # same: whose buffer a value is in
    fused = {node.inputs[0] for node in nodes if node.op == "relu" and uses.count(node.inputs[0]) == 1}
    for node in nodes:
        n, op, settings, inputs = node.name, node.op, node.settings, [same.get(name, name) for name in node.inputs]
        c, h, w = new = shapes[node.inputs[0]]
        x, size, code = inputs[0], c * h * w, ""
        if op == "conv":
            out, _, kernel, _ = node.weight.shape
            s, pad = settings["stride"], settings["padding"]
            if settings["groups"] > 1:
                raise UserError(f"{n} is a grouped convolution, which the C file cannot have; write model.onnx instead")
            rows, columns = -(-(h + 2 * pad) // s), -(-(w + 2 * pad) // s)
            new = (out, (h + 2 * pad - kernel) // s + 1, (w + 2 * pad - kernel) // s + 1)
            tables += nonzeros(n, node.weight, lambda p, s=s, rows=rows, columns=columns: (
                (p[:, 0] * s * s + p[:, 1] % s * s + p[:, 2] % s) * rows + p[:, 1] // s) * columns + p[:, 2] // s)
            tables.append(numbers("float", f"{n}_bias", node.bias.tolist()))
            plane, scratch = max(plane, new[1] * columns + 128), max(scratch, c * s * s * rows * columns + 128)
            reads = f"<{x}>"
            if s > 1 or pad or h * w % 16:                   # otherwise it reads x where it is
                code, reads = f"spread(<{x}>, padded, {c}, {h}, {w}, {pad}, {s}, {rows}, {columns});\n    ", "padded"
            code += (f"convolve({reads}, <{n}>, {out}, {new[1]}, {new[2]}, {columns}, {n}_start, {n}_shift, "
                     f"{n}_weight, {n}_bias, {int(n in fused)});")
        elif op == "linear":
            new = (len(node.weight), 1, 1)
            tables += [*nonzeros(n, node.weight, lambda p: p[:, 0]), numbers("float", f"{n}_bias", node.bias.tolist())]
            code = f"linear(<{x}>, <{n}>, {new[0]}, {n}_start, {n}_shift, {n}_weight, {n}_bias);"
        elif op == "norm":
            tables += [numbers("float", f"{n}_scale", node.weight.tolist()),
                       numbers("float", f"{n}_bias", node.bias.tolist())]
            code = f"norm(<{x}>, <{n}>, {c}, {h * w}, {n}_scale, {n}_bias);"
        elif op == "flatten":
            new, same[n] = (size, 1, 1), x
        elif op == "relu" and x in fused and any(step[0] == x and "convolve" in step[3] for step in steps):
            same[n] = x
        elif op == "relu":
            code = f"relu(<{x}>, <{n}>, {size});"
        elif op == "add":
            code = f"add(<{x}>, <{inputs[1]}>, <{n}>, {size});"
        elif op in ("max_pool", "avg_pool"):
            window, s, pad = settings["size"] or h, settings["stride"] or h, settings["padding"]
            new = (c, (h + 2 * pad - window) // s + 1, (w + 2 * pad - window) // s + 1)
            code = (f"pool(<{x}>, <{n}>, {c}, {h}, {w}, {new[1]}, {new[2]}, {window}, {s}, {pad}, "
                    f"{int(op == 'avg_pool')});")
        elif op == "skip":                                   # a pooling over one pixel
            step = settings["step"]
            new = (c, -(-h // step), -(-w // step))
            code = f"pool(<{x}>, <{n}>, {c}, {h}, {w}, {new[1]}, {new[2]}, 1, {step}, 0, 0);"
        elif op == "pad":
            new = (settings["before"] + c + settings["after"], h, w)
            code = (f"clear(<{n}>, {math.prod(new)}); memcpy(<{n}> + {settings['before'] * h * w}, "
                    f"<{x}>, sizeof(float) * {size});")
        elif op == "concat":
            new, at = (sum(shapes[name][0] for name in node.inputs), h, w), 0
            for name in inputs:
                code += f"memcpy(<{n}> + {at}, <{name}>, sizeof(float) * {math.prod(shapes[name])}); "
                at += math.prod(shapes[name])
        shapes[n] = new
        if n not in same:
            steps.append((n, inputs, math.prod(new), code.strip()))
    return steps, tables, plane, scratch


def buffers(steps):
    """({name: the C array it is in}, floats of each array): a value that nothing reads any more leaves its array."""
    place, sizes = {"images": "image"}, []
    for i, (name, _, floats, _) in enumerate(steps):
        needed = {place[read] for step in steps[i:] for read in step[1] if read in place}
        free = [j for j in range(len(sizes)) if f"b{j}" not in needed]
        if not free:
            free = [len(sizes)]
            sizes.append(0)
        sizes[free[0]] = max(sizes[free[0]], floats)
        place[name] = f"b{free[0]}"
    place[steps[-1][0]] = "out"
    return place, sizes


def source(model):
    """The C file as text. UserError where the network has grouped convolutions."""
    shape, classes = models.input_shape(model.arch, model.cfg), model.cfg["num_classes"]
    steps, tables, plane, scratch = translate(operations(spread(model).cpu().eval()), shape)
    place, sizes = buffers(steps)
    arrays = "".join(f"    static float b{i}[{size}];\n" for i, size in enumerate(sizes))
    body = "\n    ".join(re.sub(r"<(\w+)>", lambda m: place[m[1]], code) for *_, code in steps)
    if "padded" in body:
        arrays += f"    static float padded[{scratch}];\n"
    head = (f"/* {model.arch}: {math.prod(shape)} floats of an image -> {classes} logits; not for several threads at "
            f"once. */\n#define PLANE {plane}\n#define IMAGE {math.prod(shape)}\n#define CLASSES {classes}")
    text = TEMPLATE.read_text()
    for mark, part in (("HEAD", head), ("TABLES", "\n".join(tables)),
                       ("LAYERS", f"{arrays}    {body}")):
        text = text.replace(f"/* {mark} */", part)
    return text


def export(model, path):
    """Writes the C file and says how many weights are in it."""
    text = source(model)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror})") from error
    print(f"wrote {path}, {len(text):,} bytes; cc -O3 -march=native -o model {path} -lm")
