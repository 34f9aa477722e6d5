"""The machine a run works on: device from accelerate, bf16 where the hardware multiplies it, float32 elsewhere."""

import ctypes
import gc
import os
import platform
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from plaudit.errors import UserError

RUNS_ON = ("cpu", "cuda")
"""Devices that Plaudit runs on. Not Apple's GPUs (mps), which have no float64, in which scores and moments are added
up; on others no line of it has been tried."""


@dataclass(frozen=True)
class Machine:
    """Where tensors live and in which format the frozen base is held."""

    device: torch.device
    dtype: torch.dtype
    threads: int

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def describe(machine: Machine) -> dict[str, Any]:
    """What the bits of a result depend on beside code and versions."""
    unit = torch.backends.cpu.get_cpu_capability()
    return {
        "device": torch.cuda.get_device_name() if machine.device.type == "cuda" else machine.device.type,
        "cpu": f"{platform.machine()}, {unit}",
        "dtype": machine.dtype_name,
        "threads": torch.get_num_threads(),
    }


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products run on the device's own units (AMX or AVX512-BF16 on a CPU) rather than emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of giving it back to the kernel after every large tensor.

    Each chunk of logits is a fresh 50 MB otherwise, mapped and zeroed page by page: measured on two cores, sampling is
    about a sixth faster without that (docs/benchmarks.md). Other C libraries are left alone.
    """
    if not _is_glibc():
        return
    mallopt = ctypes.CDLL(None).mallopt
    trim_threshold, mmap_max = -1, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def release_memory() -> None:
    """Give what a stage or an update has left back to the kernel: dead objects first, then the pages they were in.

    Replies of ever new lengths leave holes of ever new sizes behind; without this a run grows update by update.
    """
    gc.collect()
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def choose_machine(dtype: str) -> Machine:
    """`dtype` is auto, bfloat16 or float32; auto takes bfloat16 exactly where `has_bf16` says yes."""
    keep_freed_memory()
    device = PartialState().device if unused_device() is None else torch.device("cpu")
    threads = use_threads()
    if dtype == "auto":
        dtype = "bfloat16" if has_bf16(device) else "float32"
    formats = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    if dtype not in formats:
        raise UserError(f"dtype: {dtype!r} is not one of auto, bfloat16, float32")
    return Machine(device, formats[dtype], threads)


def unused_device() -> str | None:
    """The type of an accelerator that is there and that runs leave alone (`RUNS_ON`)."""
    found = PartialState().device.type
    return None if found in RUNS_ON else found


def use_threads(processes: int = 1) -> int:
    """Compute with this process's part of the machine's cores, at least one; returns how many.

    A user's OMP_NUM_THREADS comes before that: with more threads than free cores they wait for each other, and a run
    takes several times as long. torchrun sets it to 1 unasked, so there it says nothing.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = "" if "LOCAL_WORLD_SIZE" in os.environ else os.environ.get("OMP_NUM_THREADS", "")
    threads = int(asked) if asked.isdecimal() and int(asked) > 0 else max(1, cores // processes)
    torch.set_num_threads(threads)
    return threads


def peaks(device: torch.device) -> dict[str, float]:
    """The most memory this process has had, in MB (10^6 bytes): peak_rss_mb, and peak_gpu_mb on a GPU, where it is what
    its tensors took since `start_peaks`."""
    gpu = {"peak_gpu_mb": torch.cuda.max_memory_allocated(device) / 1e6} if device.type == "cuda" else {}
    return {"peak_rss_mb": peak_rss_mb(), **gpu}


def start_peaks(device: torch.device) -> None:
    """Forget the GPU's peak so far; the kernel keeps the process's own."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_rss_mb() -> float:
    """The largest resident memory this process has had, in MB (10^6 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def memory_mb() -> float:
    """The memory that this process may have, in MB (10^6 bytes): the machine's, or less where its container is given
    less."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(whole, _number(_CGROUP / "memory.max", whole)) / 1e6


def free_mb() -> float:
    """How much of it nobody has taken, in MB: what the kernel gives without swapping. Where it does not say, half."""
    told = _fields(Path("/proc/meminfo"), ":")
    free = told["MemAvailable"] * 1024 if "MemAvailable" in told else memory_mb() * 1e6 / 2
    limit = _number(_CGROUP / "memory.max", 0)
    if limit:
        # Pages of files that were not used lately are given back first.
        cached = _fields(_CGROUP / "memory.stat", " ").get("inactive_file", 0)
        free = min(free, limit - _number(_CGROUP / "memory.current", 0) + cached)
    return max(0.0, free) / 1e6


_CGROUP = Path("/sys/fs/cgroup")


def _number(file: Path, otherwise: int) -> int:
    text = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    return int(text) if text.isdecimal() else otherwise


def _fields(file: Path, between: str) -> dict[str, int]:
    """Name -> number of a file of the kernel's with one on each line; empty where there is no such file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    parts = [line.partition(between) for line in lines]
    return {
        name: int(value.split()[0]) for name, _, value in parts if value.split()[:1] and value.split()[0].isdecimal()
    }
