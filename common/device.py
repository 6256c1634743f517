"""The machine: device, half precision, what a checkpoint records of it, and random numbers."""
import copy
import os
import platform
import random
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common import UserError


def device_of(name=None):
    """The torch.device of this name, or the accelerator if there is one."""
    name = name or ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} is not available here") from error
    torch.backends.cudnn.allow_tf32 = False                  # fp32 means fp32, in convolutions too
    if device.type == "cpu":
        np.finfo(np.float32), np.finfo(np.float64)           # older numpy measures these, and warns after the next line
        torch.set_flush_denormal(True)                       # weights driven to zero pass through denormals: slow
    return device


def process(name=None):
    """(device, rank, number of processes) of this process: those of torchrun, whose group it joins, or one alone."""
    device, world = device_of(name), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:                                            # started by torchrun
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device, int(os.environ.get("RANK", 0)), world


def has_bf16(device):
    """Native bfloat16 multiplication: CUDA 8.0 and up, CPUs with AMX or AVX512-BF16 that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        return False                                         # by nature, or because ATEN_CPU_CAPABILITY says so
    tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, t)() for t in tests if hasattr(torch.cpu, t))


def in_half(model):
    """A copy of the network that computes in half precision: in bf16 where the hardware has that natively, else in fp32
    with weights and inputs of layers rounded to bf16, since emulated bf16 takes 20 times as long."""
    model = copy.deepcopy(model)
    device = next(model.parameters()).device
    if has_bf16(device):
        model.forward = torch.autocast(device.type, torch.bfloat16)(model.forward)
        return model
    print(f"half precision: {device} has no native bf16; weights and inputs of layers are rounded to bf16, and "
          "computed with in fp32")
    for m in model.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            for p in m.parameters(recurse=False):
                p.data = rounded(p.data)
            m.register_forward_pre_hook(lambda m, x: (rounded(x[0]),))
    return model


def rounded(tensor):
    return tensor.bfloat16().float()


def hardware(device):
    """Such as 'AMD EPYC, 2 threads' or 'NVIDIA H200'."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    return f"{name}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def facts(device, precision="fp32", minutes=0.0):
    """What a checkpoint records of how it was made, for results/ledger.csv."""
    return {"command": command(), "precision": precision, "hardware": hardware(device),
            "torch": str(torch.__version__), "date": time.strftime("%Y-%m-%d"), "minutes": round(minutes, 2)}


def command():
    """The command line to repeat a run: from the repository root, without the path to the data."""
    script = Path(sys.argv[0]).resolve()
    root = Path(__file__).resolve().parent.parent
    script = script.relative_to(root) if script.is_relative_to(root) else script.name
    words, rest = ["python", str(script)], iter(sys.argv[1:])
    for word in rest:
        if word == "--data-dir":
            next(rest, None)
        elif not word.startswith("--data-dir="):
            words.append(shlex.quote(word))
    return " ".join(words)


def seed_all(seed):
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state():
    state = {"torch": torch.get_rng_state(), "python": list(random.getstate()[1])}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state):
    torch.set_rng_state(state["torch"])
    random.setstate((3, tuple(state["python"]), None))
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"][:torch.cuda.device_count()])
