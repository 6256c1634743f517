"""Files of torch.save: written whole or not at all, read without running code or taking more memory than they have.

    write(path, dictionary)     with its SHA-256 as the comment of the zip archive; torch.load reads it as ever
    dictionary = read(path)     UserError that names what is wrong
"""
import hashlib
import math
import os
import pickle
import warnings
import zipfile

import numpy as np
import torch

from common import FULL, UserError

SEAL = b"sha256 "                                            # the comment of the zip archive: this and 64 hex digits
LENGTH = len(SEAL) + 64
NODES = 5_000_000                                            # values in a file, lists and dictionaries included
AGAIN = "copy or make it again"
# Originals may hold an accuracy as a numpy number, which is plain data too; numpy 1 had its function elsewhere.
MAKES_NUMBER = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS = [*{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"}, np.dtype, MAKES_NUMBER,
                 (MAKES_NUMBER, "numpy.core.multiarray.scalar")]


def write(path, dictionary):
    """Writes to a temporary file, then renames: a stopped run leaves the old file or the new one, never half."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left_over in path.parent.glob(f".{path.name}.*.partial"):    # of a run that was killed while writing
            left_over.unlink(missing_ok=True)
        with open(partial, "wb") as file:
            torch.save(dictionary, file)
        seal(partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:                 # torch raises one of its own while it handles an OSError
        full = any(getattr(e, "errno", None) in FULL for e in (error, error.__context__))
        why = "the disk is full; make room, what was there before is as it was" if full else error
        raise UserError(f"cannot write {path} ({why})") from error
    finally:
        if partial.exists():
            partial.unlink()


def seal(path):
    """Ends a zip archive with a comment: the SHA-256 of all bytes before it."""
    with open(path, "r+b") as file:
        file.seek(-2, os.SEEK_END)                           # the comment's length is the last field of an archive
        file.write(LENGTH.to_bytes(2, "little"))
        size = file.tell()
        file.seek(0)
        digest = digest_of(file, size)
        file.seek(size)
        file.write(SEAL + digest)


def digest_of(file, size):
    """Hex SHA-256 of the next `size` bytes of an open file."""
    digest = hashlib.sha256()
    while size > 0 and (block := file.read(min(size, 2 ** 20))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()


def read(path):
    """The dictionary of a file written by torch.save, loaded without running code. UserError otherwise."""
    if not path.is_file():
        raise UserError(f"{path} is a folder; give a file in it" if path.is_dir() else f"no checkpoint {path}")
    try:
        check_bytes(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(NUMPY_NUMBERS):
            warnings.simplefilter("ignore")
            dictionary = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:                               # junk makes unpickler and zipfile raise almost anything
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error):
            raise UserError(f"{path} is not a plain checkpoint: loading it would run code, so it is refused; save its "
                            "state_dict alone with torch.save") from error
        if isinstance(error, PermissionError):
            raise UserError(f"{path} cannot be read ({error.strerror})") from error
        raise UserError(f"{path} is truncated, or was not written by torch.save; {AGAIN}") from error
    if not isinstance(dictionary, dict):
        raise UserError(f"{path} holds a {type(dictionary).__name__}, not a checkpoint dictionary")
    check_sizes(path, dictionary)
    return dictionary


def check_bytes(path):
    """UserError if a file is another program's or damaged, or its archive declares more than it has. A file without our
    sum is somebody else's, or an early one of ours, and has CRC-32 sums.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(64)
        file.seek(max(size - LENGTH, 0))
        end = file.read()
        sealed = end.startswith(SEAL)
        file.seek(0)
        if sealed and digest_of(file, size - LENGTH) != end[len(SEAL):]:
            raise UserError(f"{path} is damaged: its content does not match its checksum; {AGAIN}")
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        raise UserError(f"{path} is an HTML page, not the file that the link leads to; download that")
    if text.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, the file itself is elsewhere; git lfs pull fetches it")
    if head[8:10] == b'{"':
        raise UserError(f"{path} is a safetensors file; torch.save(safetensors.torch.load_file(FILE), 'FILE.pth') "
                        "makes one that loads")
    if not head.startswith(b"PK\x03\x04"):
        return
    with zipfile.ZipFile(path) as records:
        if any(record.filename.endswith("/constants.pkl") for record in records.infolist()):
            raise UserError(f"{path} is a TorchScript archive, which is a program; save the state_dict() of "
                            "torch.jit.load(FILE) with torch.save")
        if sum(record.file_size for record in records.infolist()) > size:
            raise UserError(f"{path} declares more bytes than it has, as a zip bomb does; save it with torch.save")
        if not sealed and (end[-22:-18], end[-2:]) != (b"PK\5\6", b"\0\0"):             # not the end without comment
            raise UserError(f"{path} is damaged: its checksum cannot be read; {AGAIN}")
        if not sealed and (bad := records.testzip()):
            raise UserError(f"{path} is damaged: the CRC-32 of {bad} is not that of its content; {AGAIN}")


def check_sizes(path, value):
    """UserError if a tensor is not dense, tensors declare more bytes than the file has, or nesting is endless.

    A tensor may claim a shape that its few bytes are repeated to fill, so shapes are compared with the file's size.
    """
    most, claimed, nodes, todo = 4 * os.path.getsize(path) + 2 ** 26, 0, 0, [("", value)]
    while todo:
        name, item = todo.pop()
        nodes += 1
        if isinstance(item, torch.Tensor):
            if item.layout != torch.strided or item.device.type != "cpu" or item.is_quantized or item.is_nested:
                raise UserError(f"{path}: {name} is not a dense tensor on the CPU; save it as one")
            claimed += math.prod(item.shape) * item.element_size()
        elif isinstance(item, dict):
            todo += [(f"{key}" if isinstance(key, str) else name, inner) for key, inner in item.items()]
        elif isinstance(item, list | tuple | set):
            todo += [(name, inner) for inner in item]
        if claimed > most:
            raise UserError(f"{path}: {name} and the tensors before it declare {claimed:,} bytes, the file has "
                            f"{os.path.getsize(path):,}; {AGAIN}")
        if nodes + len(todo) > NODES:
            raise UserError(f"{path} holds more than {NODES:,} values in lists and dictionaries; it is no checkpoint")
