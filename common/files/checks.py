"""What a file promises is compared with what it is before memory is given to it.

    seal(path)              appends the SHA-256 of a file of torch.save to it
    archive(path)           before torch.load: that sum, and the sizes that the zip archive declares
    tensors(value, path)    after it: dense tensors that are not larger than the file, nothing nested without end
    fields(ckpt, path)      types and ranges of what a checkpoint of ours holds
    weights(state, masks, path), compare(model, state, path)                 its tensors with one another and a network
    arrays(path, keys)      before np.load: the sizes that the headers of an .npz declare

All but the first raise an error that names what is wrong.
"""
import errno
import hashlib
import math
import os
import zipfile

import numpy as np
import torch

from common import UserError
from common.models.layers import ChannelSelection

SEAL = b"sha256 "                                            # the comment of the zip archive: this and 64 hex digits
LENGTH = len(SEAL) + 64
NODES = 5_000_000                                            # values in a file, lists and dictionaries included
AGAIN = "copy or make it again"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)             # of an OSError: no room, no quota, too large a file


def digest_of(file, size):
    """Hex SHA-256 of the next `size` bytes of an open file."""
    digest = hashlib.sha256()
    while size > 0 and (block := file.read(min(size, 2 ** 20))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()


def seal(path):
    """Ends a zip archive with a comment: the SHA-256 of all bytes before it. torch.load reads it as ever."""
    with open(path, "r+b") as file:
        file.seek(-2, os.SEEK_END)                           # the comment's length is the last field of an archive
        file.write(LENGTH.to_bytes(2, "little"))
        size = file.tell()
        file.seek(0)
        digest = digest_of(file, size)
        file.seek(size)
        file.write(SEAL + digest)


def why_unwritten(error, partial):
    """What an OSError, or the RuntimeError that torch.save makes of it, says of the disk; partial: the file begun."""
    if isinstance(error, RuntimeError):                      # torch does not say why: one more byte will
        try:
            with open(partial, "ab") as file:
                file.write(bytes(2 ** 20))
        except OSError as reason:
            error = reason
    if getattr(error, "errno", None) in FULL:
        return "the disk is full; make room, what was there before is as it was"
    return error


def archive(path):
    """UserError where a zip archive is damaged, or declares more than it holds; other files pass.

    A file without our sum is one of somebody else, or an early one of ours: its records have CRC-32 sums.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(4)
        file.seek(max(size - LENGTH, 0))
        end = file.read()
        sealed = end.startswith(SEAL)
        file.seek(0)
        if sealed and digest_of(file, size - LENGTH) != end[len(SEAL):]:
            raise UserError(f"{path} is damaged: it is not what its checksum says; {AGAIN}")
    if head != b"PK\x03\x04":
        return
    try:
        with zipfile.ZipFile(path) as records:
            if any(record.filename.endswith("/constants.pkl") for record in records.infolist()):
                raise UserError(f"{path} is a TorchScript archive, which is a program; save the state_dict() of "
                                "torch.jit.load(FILE) with torch.save")
            if sum(record.file_size for record in records.infolist()) > size:
                raise UserError(f"{path} declares more bytes than it has, as a zip bomb does; save it with torch.save")
            if not sealed and (end[-22:-18], end[-2:]) != (b"PK\5\6", b"\0\0"):         # not the end without comment
                raise UserError(f"{path} is damaged: its checksum cannot be read; {AGAIN}")
            bad = None if sealed else records.testzip()
    except UserError:
        raise
    except Exception as error:                               # zipfile has many words for a broken archive
        raise UserError(f"{path} is truncated, or was not written by torch.save; {AGAIN}") from error
    if bad:
        raise UserError(f"{path} is damaged: the CRC-32 of {bad} is not that of its content; {AGAIN}")


def tensors(value, path):
    """UserError where a tensor is not dense, where tensors claim more than the file, or nesting has no end.

    A tensor may claim a shape that its few bytes are repeated to fill, so shapes are compared with the file's size.
    """
    most, claimed, nodes, todo = 4 * os.path.getsize(path) + 2 ** 26, 0, 0, [("", value)]
    while todo:
        name, item = todo.pop()
        nodes += 1
        if isinstance(item, torch.Tensor):
            if item.layout != torch.strided or item.device.type != "cpu" or item.is_quantized or item.is_nested:
                raise UserError(f"{path}: {name} is no dense tensor on the CPU; save it as one")
            claimed += math.prod(item.shape) * item.element_size()
        elif isinstance(item, dict):
            todo += [(f"{key}" if isinstance(key, str) else name, inner) for key, inner in item.items()]
        elif isinstance(item, list | tuple | set):
            todo += [(name, inner) for inner in item]
        if claimed > most:
            raise UserError(f"{path}: {name} and what comes with it are to fill {claimed:,} bytes, the file has "
                            f"{os.path.getsize(path):,}; {AGAIN}")
        if nodes + len(todo) > NODES:
            raise UserError(f"{path} holds more than {NODES:,} values in lists and dictionaries; it is no checkpoint")


def weights(state, masks, path):
    """UserError that says where a weight is NaN or infinite, and which mask is not that of a weight."""
    for name, mask in masks.items():
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or (
                name not in state or mask.shape != state[name].shape):
            raise UserError(f"{path}: its mask of {name} matches no weight; {AGAIN}")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            places = (~tensor.isfinite()).nonzero()
            first = tuple(places[0].tolist())
            raise UserError(f"{path}: {name}{list(first)} is {float(tensor[first])} ({len(places)} such values in this "
                            "tensor); use an earlier checkpoint, or train again with a smaller --lr")


def compare(model, state, path):
    """UserError for the first tensor that is missing, too much, or of another shape or kind than in the model."""
    own = model.state_dict()
    for name in own:
        if name not in state:
            raise UserError(f"{path} has no {name}; it is not a {model.arch} with {model.cfg}")
        if state[name].shape != own[name].shape:
            raise UserError(f"{path}: {name} is {tuple(state[name].shape)}, the {model.arch} has "
                            f"{tuple(own[name].shape)}; another depth, width or class count")
        if state[name].is_floating_point() != own[name].is_floating_point():
            raise UserError(f"{path}: {name} is of {state[name].dtype}, the {model.arch} has {own[name].dtype}")
    extra = [name for name in state if name not in own]
    if extra:
        raise UserError(f"{path} has {extra[0]}, which a {model.arch} with {model.cfg} has not")
    for name, m in model.named_modules():
        indices = state[f"{name}.indices"] if isinstance(m, ChannelSelection) else torch.zeros(0)
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < m.width:
            raise UserError(f"{path}: {name}.indices selects channels {int(indices.min())} to {int(indices.max())} of "
                            f"{m.width}")


PERCENT = ((int, float, type(None)), "a percentage", lambda v: v is None or 0 <= v <= 100)
COUNT = ((int,), "a number from 0 up", lambda v: 0 <= v < 2 ** 63)
TEXT = ((str,), "text of one line", lambda v: v.isprintable() and len(v) < 5000)
TABLE = ((dict,), "a dictionary", lambda v: all(isinstance(key, str) for key in v))
FIELDS = {"method": TEXT, "arch": TEXT, "dataset": TEXT, "rule": TEXT, "epoch": COUNT, "prec1": PERCENT,
          "best_prec1": PERCENT, "args": TABLE, "cfg": TABLE, "run": TABLE, "resume": TABLE, "masks": TABLE,
          "soft_masks": TABLE, "activations": TABLE, "recipe": TABLE}
EMPTY = ("dataset", "rule", "prec1", "best_prec1", "recipe", "activations")  # these may be None


def fields(ckpt, path):
    """UserError for the first entry of a checkpoint dictionary that has another type or range than it should."""
    for name, (types, what, fits) in FIELDS.items():
        value = ckpt.get(name)
        if name in ckpt and not (value is None and name in EMPTY) and (
                isinstance(value, bool) or not isinstance(value, types) or not fits(value)):
            raise UserError(f"{path}: its {name} is not {what}; {AGAIN}")
    dense = ckpt.get("dense")
    if dense is not None and not (isinstance(dense, dict) and isinstance(dense.get("cfg"), dict) and all(
            isinstance(dense.get(key), int) and 0 < dense[key] < 2 ** 63 for key in ("params", "macs"))):
        raise UserError(f"{path}: its dense is not {{params, macs, cfg}} of a network; {AGAIN}")
    for name, value in (ckpt.get("soft_masks") or {}).items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise UserError(f"{path}: its soft mask of {name} is no tensor of numbers; {AGAIN}")


def arrays(path, keys):
    """ValueError where an array of an .npz has another size than its header says, or the file unpacks to far more than
    images do; KeyError where one is missing."""
    with zipfile.ZipFile(path) as records:
        found = [records.getinfo(f"{key}.npy") for key in keys]
        unpacked, size = sum(record.file_size for record in found), os.path.getsize(path)
        if unpacked > 2 ** 28 + 20 * size:
            raise ValueError(f"{size:,} bytes that unpack to {unpacked:,}, as a zip bomb does")
        for key, record in zip(keys, found, strict=True):
            with records.open(record) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
                left = record.file_size - file.tell()
                if not dtype.hasobject and math.prod(shape) * dtype.itemsize != left:
                    raise ValueError(f"{key} is to be {dtype} {shape}, but has {left:,} bytes")
