"""Damaged and made-up files, from a random number generator: checkpoints, data files, image folders, payload pickles.

Each function writes one and says in a few words what it did to it. Some come out harmless: those a script may accept.
"""
import copy
import io
import math
import os
import pickle
import shutil
import struct
import warnings
import zipfile
import zlib

import numpy as np
import torch
from PIL import Image

from common.files.archive import seal

NUMBERS = [0, -1, 1, 3, 10 ** 4, 10 ** 9, 10 ** 12, 2 ** 63, -2 ** 63, 10 ** 30, 0.5, -0.5, 1e300, math.nan, math.inf,
           True, False]
PLAIN = [None, "", "x", "\0", "a\nb", "../../etc/passwd", "x" * 10_000, "nan", [], {}, [[]], [1], [None], (1, 2),
         {1: 2}, {"x": {}}, ["M"] * 50, set(), b"bytes", 1j]


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                      # torch is to give these tensors up
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)


def tensors(rng, like=None):
    """Tensors that are not what they should be: of another kind, shape or content than `like`."""
    like = torch.ones(3) if like is None else like
    yield from (torch.zeros(0), torch.tensor(1.0), torch.tensor(-5), torch.zeros(2, 3, 4, 5, 6),
                torch.zeros(1).expand(10 ** 5, 10 ** 5), torch.zeros(1).expand(3 * 10 ** 8),
                torch.zeros(4, device="meta"), torch.ones(3, 3).to_sparse(), torch.ones(3, dtype=torch.complex64),
                quantized(), torch.nn.Parameter(torch.ones(3)))
    if like.numel():
        yield from (like[:-1] if like.dim() else like, like.flatten(), like.unsqueeze(0), like.double() * 1e300 * 1e300,
                    like.bool(), like.long() - 5, like.half(), like.float() * math.nan, like.double(), like.clone() * 0,
                    like.contiguous().view(-1)[:1].expand(like.numel()).view(like.shape), like.to(torch.bfloat16))
        if like.dim() > 1:
            yield like.transpose(0, 1)
        if like.is_floating_point():
            one = like.clone().view(-1)
            one[rng.randrange(len(one))] = rng.choice([math.nan, math.inf, -math.inf, 1e38])
            yield one.view(like.shape)
        elif like.dtype != torch.bool:
            yield like + 10 ** 6
            yield -like - 1


def places(value, path=(), depth=0):
    """(container, key, path) of everything inside dictionaries and lists; long lists by their ends."""
    if depth > 8 or not isinstance(value, dict | list):
        return
    keys = list(value) if isinstance(value, dict) else [*range(len(value))][:2] + [*range(len(value))][-1:]
    for key in keys:
        yield value, key, (*path, key)
        yield from places(value[key], (*path, key), depth + 1)


def content(rng, ckpt):
    """Changes one value of a checkpoint dictionary, at random; values near the top are as likely as all below."""
    found = list(places(ckpt))
    depths = sorted({len(path) for *_, path in found})
    deep = rng.choice(depths)
    container, key, path = rng.choice([place for place in found if len(place[2]) == deep])
    old, name = container[key], ".".join(map(str, path))
    how = rng.choice(["number", "plain", "tensor", "delete", "rename", "more"])
    if how == "number":
        container[key] = rng.choice(NUMBERS)
    elif how == "plain":
        container[key] = copy.copy(rng.choice(PLAIN))
    elif how == "tensor":
        container[key] = rng.choice(list(tensors(rng, old if isinstance(old, torch.Tensor) else None)))
    elif how == "delete":
        del container[key]
        return f"without {name}"
    elif how == "rename" and isinstance(container, dict):
        container[rng.choice(["x", "", 3, None, ("a", 1), f"{key}.weight"])] = container.pop(key)
        return f"{name} renamed"
    else:
        more = rng.choice([*NUMBERS, *PLAIN])
        if isinstance(container, dict):
            container[rng.choice(["masks", "quant", "soft_masks", "activations", "packed", "format", "x"])] = more
        else:
            container.extend([more] * rng.choice([1, 1000]))
        return f"more beside {name}: {str(more)[:40]}"
    value = container[key]
    shown = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)[:40]
    return f"{name} = {shown}"


def flipped(rng, content, count):
    """The bytes with so many bits flipped."""
    content = bytearray(content)
    for _ in range(count):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def network(rng, source, path):
    """A file like the checkpoint `source`, with something wrong."""
    how = rng.choice(["flip", "cut", "zeros", "swap", "zip", *["content"] * 7, "bare", "legacy", "cfg", "cfg"])
    whole = source.read_bytes()
    size, at, end = len(whole), *sorted(rng.randrange(len(whole)) for _ in range(2))
    if how in ("flip", "cut", "zeros", "swap"):
        path.write_bytes({
            "flip": flipped(rng, whole, rng.choice([1, 1, 10])),
            "cut": whole[:rng.choice([end, rng.randrange(100), size - rng.randrange(200)])],
            "zeros": whole[:at] + bytes(rng.randrange(1, 5000)) + whole[at + rng.randrange(1, 5000):],
            "swap": whole[end:] + whole[at:end] + whole[:at]}[how])      # whole blocks in another order
        return how
    if how == "zip":
        return f"zip: {archive(rng, source, path)}"
    ckpt = torch.load(source, weights_only=True)
    if how == "content":
        what = ", ".join(content(rng, ckpt) for _ in range(rng.choice([1, 1, 1, 3])))
    elif how == "cfg":
        key = rng.choice(list(ckpt["cfg"]))
        value = ckpt["cfg"][key]
        if isinstance(value, list) and value and rng.random() < 0.7:
            value[rng.randrange(len(value))] = rng.choice([*NUMBERS, "M", None, [1]])
        else:
            ckpt["cfg"][key] = rng.choice([*NUMBERS, *PLAIN, [10 ** 9] * 9])
        what = f"cfg {key} = {str(ckpt['cfg'][key])[:60]}"
    elif how == "bare":                                      # of somebody else, without a word on what it is
        state = {k: v for k, v in ckpt["state_dict"].items() if isinstance(v, torch.Tensor)}
        ckpt = {"state_dict": state, "best_prec1": rng.choice([*NUMBERS, *PLAIN, 0.9]),
                "epoch": rng.choice([*NUMBERS, *PLAIN, 3]), "cfg": rng.choice([*PLAIN, [16] * 9])}
        what = f"bare, {content(rng, ckpt)}"
    else:
        what = f"legacy, {content(rng, ckpt)}"
    torch.save(ckpt, path, _use_new_zipfile_serialization=how != "legacy")
    if how in ("content", "cfg"):
        seal(path)
    return what


def archive(rng, source, path):
    """The records of a checkpoint in an archive that is not what it should be."""
    how = rng.choice(["deflated", "bomb", "missing", "twice", "renamed", "size", "empty", "other"])
    with zipfile.ZipFile(source) as old:
        records = {name: old.read(name) for name in old.namelist()}
    top = next(iter(records)).partition("/")[0]
    name = rng.choice(list(records))
    if how == "missing":
        del records[name]
    elif how == "renamed":
        records["../../x"] = records.pop(name)
    elif how == "empty":
        records[name] = b""
    elif how == "other":
        records[f"{top}/data.pkl"] = rng.choice([b"", b"\x80\x02}.", b"\x80\x02N.", pickle.dumps([1] * 9), b"junk"])
    elif how == "bomb":
        records[f"{top}/data/{rng.choice(['0', 'x'])}"] = bytes(2 ** 28)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if how in ("deflated", "bomb") else zipfile.ZIP_STORED) as new:
        for record, value in records.items():
            new.writestr(record, value)
        if how == "twice":
            new.writestr(name + " ", records[name])
    if how == "size":                                        # a record that says it is of 4 GB
        whole = bytearray(path.read_bytes())
        at = whole.rindex(b"PK\1\2")
        struct.pack_into("<II", whole, at + 20, *rng.choice([(2 ** 32 - 2,) * 2, (10, 2 ** 31), (2 ** 31, 10)]))
        path.write_bytes(whole)
    return f"{how} {name}"


# Data


def npy(array, shape=None, descr=None):
    """The bytes of an .npy; shape, descr: what its header says instead."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr or array.dtype.str, "fortran_order": False,
                                                "shape": array.shape if shape is None else shape})
    return file.getvalue() + array.tobytes()


def arrays(rng, source, path):
    """(what was done, an .npz like `source` with something wrong)."""
    path = path.with_suffix(".npz")
    with np.load(source) as file:
        found = {key: file[key] for key in file.files}
    how = rng.choice(["flip", "cut", "header", "labels", "labels", "images", "images", "missing", "bomb", "objects",
                      "other"])
    key = rng.choice(list(found))
    x, y = rng.choice(["x_train", "x_test"]), rng.choice(["y_train", "y_test"])
    n, what = len(found[y]), ""
    if how == "labels":
        what, found[y] = rng.choice([
            ("2^64 - 1", np.full(n, 2 ** 64 - 1, np.uint64)), ("10^9", np.full(n, 10 ** 9)), ("-1", np.arange(n) - 1),
            ("one class", np.zeros(n, int)), ("floats", np.arange(n) / 3), ("nan", np.full(n, math.nan)),
            ("text", np.array(["cat"] * n)), ("bools", np.arange(n) % 2 == 0),
            ("big-endian", (np.arange(n) % 10).astype(">i8")), ("column", (np.arange(n) % 10)[:, None]),
            ("one-hot", np.eye(10, dtype=int)[np.arange(n) % 10]), ("bytes", (np.arange(n) % 10).astype(np.uint8)),
            ("few", np.arange(n // 2) % 10), ("none", np.zeros(0, int)),
            ("dates", np.arange(n).astype("M8[s]")), ("0-d", np.array(3)), ("999", np.arange(n) * 20)])
    elif how == "images":
        a = found[x]
        what, found[x] = rng.choice([
            ("floats", a / 255), ("colours first", a.transpose(0, 3, 1, 2)), ("flat", a.reshape(len(a), -1)),
            ("grey", a[..., 0]), ("four colours", np.concatenate([a, a[..., :1]], 3)), ("none", a[:0]),
            ("small", a[:, :1, :1]), ("no pixels", a[:, :0, :0]), ("wide", a[:, :, :20]), ("one", a[:1]),
            ("16 bits", a.astype(np.uint16)), ("bools", a > 9), ("black", a * 0), ("Fortran", np.asfortranarray(a)),
            ("0-d", np.array(3, np.uint8)), ("text", np.array(["x"])), ("fields", np.zeros(9, [("a", "u1")])),
            ("large", np.zeros((3, 900, 900, 3), np.uint8)), ("signed", a.view(np.int8))])
    elif how == "missing":
        del found[key]
    elif how == "objects":
        found[key] = np.array([{"a": 1}] * 5, dtype=object)
    np.savez(path, **found) if rng.random() < 0.7 else np.savez_compressed(path, **found)
    whole = path.read_bytes()
    if how == "flip":
        path.write_bytes(flipped(rng, whole, rng.choice([1, 3, 100])))
    elif how == "cut":
        path.write_bytes(whole[:rng.choice([rng.randrange(len(whole)), 0, 10, len(whole) - 5])])
    elif how in ("header", "bomb"):
        shape = rng.choice([(10 ** 12, 32, 32, 3), (2 ** 62, 4, 1, 1), (-5, 32, 32, 3), (10 ** 30,), (), (2 ** 31, 3)])
        descr = rng.choice(["|u1", "<i8", "|O", "|V1000000", "<U99999", "bad", "|u1"])
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if how == "bomb" else zipfile.ZIP_STORED) as file:
            for name, array in found.items():
                if name == key and how == "header":
                    junk = rng.choice([b"\x93NUMPY\x01\x00\xff\xff{", b"", b"\x93NUMPY\x09\x09", None, None, None])
                    file.writestr(f"{name}.npy", npy(array, shape, descr) if junk is None else junk)
                elif name == key:
                    with file.open(f"{name}.npy", "w") as record:
                        record.write(npy(np.zeros(0, np.uint8), (400_000, 32, 32, 1)))
                        for _ in range(100):
                            record.write(bytes(4000 * 1024))
                else:
                    file.writestr(f"{name}.npy", npy(array))
        what = f"{shape} {descr}" if how == "header" else ""
    elif how == "other":
        what, whole = rng.choice([("text", b"hello\n"), ("npy", npy(found["x_train"])), ("tar", b"\0" * 10240),
                                  ("zip", b"PK\5\6" + bytes(18)), ("pickle", pickle.dumps([1])),
                                  ("html", b"<!DOCTYPE>")])
        path.write_bytes(whole)
    return f"{how} {key if how not in ('labels', 'images') else what} {what}", path


def chunk(kind, body):
    """One part of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, colours=3, rows=b""):
    """A PNG whose header says this size, whatever rows there are."""
    kind = {1: 0, 3: 2, 4: 6}[colours]
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def images(rng, source, path):
    """(what was done, a folder of images with something wrong)."""
    with np.load(source) as file:
        for split in ("train", "test"):
            for i, (image, label) in enumerate(zip(file[f"x_{split}"], file[f"y_{split}"], strict=True)):
                folder = path / split / f"class{label}"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f"{i}.png")
    victims = sorted(path.rglob("*.png"))
    victim = rng.choice(victims)
    how = rng.choice(["flip", "flip", "cut", "text", "empty", "mode", "mode", "size", "huge", "link", "loop", "nested",
                      "no class", "one class", "names", "cache", "cache", "gif", "folder", "fifo", "bomb", "hidden"])
    whole, what = victim.read_bytes(), ""
    content = {"flip": flipped(rng, whole, rng.choice([1, 5])), "cut": whole[:rng.randrange(len(whole))],
               "text": b"hello", "empty": b"", "huge": png(100_000, 100_000)}        # of 10 gigapixels
    if how in content:
        victim.write_bytes(content[how])
    elif how == "mode":
        what = rng.choice(["L", "P", "RGBA", "LA", "CMYK", "I", "I;16", "F", "1", "YCbCr"])
        image = Image.new(what, (32, 32)) if what in ("I;16", "I", "F") else Image.open(victim).convert(what)
        name = victim.with_suffix({"CMYK": ".jpg", "YCbCr": ".jpg", "F": ".tiff", "I": ".tiff"}.get(what, ".png"))
        victim.unlink()
        image.save(name)
        if name.suffix == ".tiff":
            name.rename(victim)
    elif how == "size":
        what = rng.choice([(1, 1), (33, 32), (500, 20), (64, 64)])
        Image.open(victim).resize(what).save(victim)
    elif how == "bomb":                                      # under Pillow's own limit, and really there
        victim.write_bytes(png(9_000, 9_000, 1, bytes(9_001) * 9_000))
    elif how == "loop":
        (victim.parent / "loop").symlink_to(path)
    elif how == "nested":
        (victim.parent / "more").mkdir()
        victim.rename(victim.parent / "more" / "a.png")
    elif how == "no class":
        for file in victim.parent.iterdir():
            file.unlink()
    elif how == "one class":
        for folder in path.glob("*/class[1-9]"):
            shutil.rmtree(folder)
    elif how == "names":
        name = rng.choice([b"/\xff\xfe.png", b"/a\nb.png", b"/-rf.png", b"/.png"])
        os.rename(victim, os.fsencode(victim.parent) + name)
    elif how == "cache":
        what = rng.choice(["text", "cut", "other", "lies"])
        arrays = {"files": np.array([{}] * 3, dtype=object)} if what == "other" else {
            "files": np.array(["a"]), "x_train": np.zeros(3)}
        np.savez(path / "decoded-32.npz", **arrays)
        if what in ("text", "cut"):
            (path / "decoded-32.npz").write_bytes(b"hello" if what == "text" else source.read_bytes()[:5000])
    elif how == "gif":
        frames = [Image.new("P", (32, 32), i) for i in range(3)]
        frames[0].save(victim, "gif", save_all=True, append_images=frames[1:])
    elif how in ("link", "folder", "fifo"):
        victim.unlink()
        {"link": lambda: victim.symlink_to(rng.choice(["/nowhere.png", victim.name, "/dev/zero", ".."])),
         "folder": victim.mkdir, "fifo": lambda: os.mkfifo(victim)}[how]()
    elif how == "hidden":
        (victim.parent / ".DS_Store").write_bytes(b"x")
        (path / "train" / ".ipynb_checkpoints").mkdir()
    return f"{how} {what}", path


# Pickles that want to run code


class Runs:
    """A pickle of it calls this on loading."""

    def __init__(self, call, *args):
        self.call = call, args

    def __reduce__(self):
        return self.call


def payloads(source, folder):
    """(name, path, the file that is there if its code ran) of each."""
    ckpt, trace = torch.load(source, weights_only=True), folder / "ran"
    calls = {"os.system": Runs(os.system, f"touch {trace}"), "exec": Runs(exec, f"open({str(trace)!r}, 'w')"),
             "eval": Runs(eval, f"open({str(trace)!r}, 'w')"), "open": Runs(open, str(trace), "w"),
             "getattr": Runs(getattr, Runs(__import__, "pathlib"), "Path"), "torch.load": Runs(torch.load, str(source)),
             "mkfifo": Runs(os.mkfifo, str(trace))}
    for name, call in calls.items():
        inside = {"alone": call, "weights": {**ckpt, "state_dict": {**ckpt["state_dict"], "x": call}},
                  "args": {**ckpt, "args": {"lr": call}}, "resume": {**ckpt, "resume": [call]},
                  "key": {**ckpt, "masks": {"a": {"b": [call]}}}}
        for where, value in inside.items():
            for form in ("zip", "legacy"):
                path = folder / f"{name}-{where}-{form}.pth.tar"
                torch.save(value, path, _use_new_zipfile_serialization=form == "zip")
                if form == "zip" and where == "args":
                    seal(path)
                yield path.name, path, trace
                path.unlink()
        path = folder / f"{name}.pth.tar"
        path.write_bytes(pickle.dumps(inside["weights"], protocol=2))
        yield f"{name}, a bare pickle", path, trace
        path.unlink()
        with np.load(os.path.join(os.environ["DATA_DIR"], "tiny.npz")) as file:
            np.savez(folder / f"{name}.npz", **{**file, "y_train": np.array([call] * 60, dtype=object)})
        yield f"{name}, in an npz", folder / f"{name}.npz", trace
        (folder / f"{name}.npz").unlink()
