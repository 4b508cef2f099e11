"""Which device a run computes on, and how: its threads and its kernels."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from fogzo.checks import whole
from fogzo.errors import UserError
from fogzo.ranks import announced

WAIT = 1.0  # seconds between looks for a free GPU
THREADS = torch.get_num_threads()  # torch's choice, before any run asked for another number
NAMES_OF_PROCESSOR = ("model name", "machdep.cpu.brand_string")  # what systems call it
MOST_THREADS = 1024  # beyond what a machine may start, OpenMP ends the process


def use_threads(count: int) -> None:
    """Compute with ``count`` CPU threads; 0: with as many as torch chose, whatever the run before it had.

    Raises:
        UserError: for more than :data:`MOST_THREADS`.
    """
    whole(count, "threads", lowest=0, highest=MOST_THREADS)
    if count or torch.get_num_threads() != THREADS:
        torch.set_num_threads(count or THREADS)


def choose_device(name: str) -> torch.device:
    """Return the device that ``name`` stands for.

    ``auto`` is torch's current CUDA GPU (the first, unless :func:`exclusive_gpu` says otherwise), else the CPU.

    Apple's GPUs (``mps``) have to be asked for: they have no fp64, and no result of theirs was ever checked.

    Raises:
        UserError: for a device that is not there, or one GPU for several processes.
    """
    if name.startswith(("cuda:", "mps")) and announced()[2] > 1:
        kind = "cuda, one GPU for each" if name.startswith("cuda") else "cpu"
        raise UserError(f"device={name} is one GPU for {announced()[2]} processes: choose device={kind}")
    if name in ("auto", "cuda") and torch.cuda.is_available() and announced()[2] > 1:
        if announced()[1] >= (count := torch.cuda.device_count()):
            raise UserError(f"there are more processes on this machine than its {count} GPUs: start fewer")
        torch.cuda.set_device(announced()[1])  # one GPU a rank
        return torch.device("cuda", announced()[1])
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device={name} cannot be used here ({str(error).splitlines()[0]}): choose auto or cpu"
        ) from error
    return device


def settle(device: torch.device, *, deterministic: bool) -> None:
    """Choose CUDA's kernels: those that give the same bits each time, or the fastest.  Others always give the same.

    torch warns of an operation that has no deterministic kernel, once, and goes on.  Call it before the first product.
    """
    if device.type != "cuda":
        return
    # what cuBLAS needs for that, more workspace (:4096:8) or less speed (:16:8); it reads this once
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time
    torch.backends.cudnn.benchmark = not deterministic  # it picks algorithms by their time, another one each time


@contextmanager
def memory_explained(keys: Mapping[str, Any], device: torch.device, planned: Callable[[], float]) -> Iterator[None]:
    """Within: a GPU that runs out of memory ends the run in one sentence; the last checkpoint stays.

    Args:
        keys: of the run, with ``batch_size``, ``micro_batches`` and ``estimator``.
        planned: returns the bytes that the plan says.

    Raises:
        UserError: naming the peak, the plan's figure and what lowers it.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        peak = (
            f"with {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB taken" if device.type == "cuda" else "here"
        )
        with suppress(UserError):
            peak += f", where the plan says {planned() / 2**30:.2f} GiB"
        probes = keys["estimator"].get("probe_batch", 0)
        raise UserError(
            f"the memory of {device} is full {peak}: raise micro_batches={keys['micro_batches']}, lower "
            f"batch_size={keys['batch_size']} or estimator.probe_batch={probes}; a checkpoint that is there stays"
        ) from error


@contextmanager
def exclusive_gpu() -> Iterator[None]:
    """Within: torch's current GPU is one that no other run within ``exclusive_gpu`` has, of this machine and user.

    Runs of a sweep that a launcher starts together thus have a GPU each; if there are more runs, they wait.  The locks
    are the operating system's, and end with the process in any case.  Without GPUs nothing happens.
    """
    names = gpus()
    if not names:
        yield
        return
    folder = Path(tempfile.gettempdir()) / f"fogzo-gpus-{getpass.getuser()}"
    folder.mkdir(exist_ok=True)
    index, lock = _free_gpu([FileLock(folder / name, blocking=False) for name in names])
    try:
        torch.cuda.set_device(index)
        yield
    finally:
        lock.release()


def _free_gpu(locks: list[FileLock]) -> tuple[int, FileLock]:
    """Wait until one of ``locks`` is free.  Returns its place and the lock, held."""
    told = False
    while True:
        for index, lock in enumerate(locks):
            with suppress(Timeout):  # somebody has it
                lock.acquire()
                return index, lock
        if not told:
            print(f"waiting for one of {len(locks)} GPUs: other runs of a sweep have them", flush=True)
            told = True
        time.sleep(WAIT)


def gpus() -> list[str]:
    """Return names of the GPUs that this process sees, the same in every process whatever CUDA_VISIBLE_DEVICES says."""
    if not torch.cuda.is_available():
        return []
    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]


def device_facts(device: torch.device) -> dict[str, Any]:
    """Return what decides a run's last bits: ``processor``, as torch uses it, and ``gpu``, with CUDA and cuDNN."""
    processor = {"processor": {"name": _processor(), "instructions": torch.backends.cpu.get_cpu_capability()}}
    if device.type == "cuda":  # on which the first weights come from the processor all the same
        libraries = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
        return processor | {"gpu": {"name": torch.cuda.get_device_name(device), **libraries}}
    return processor


@cache
def _processor() -> str:
    """Return the processor's name, or its architecture where the system tells no more."""
    for line in _facts_of_processor():  # platform knows no more than the architecture on Linux and macOS
        key, _, value = line.partition(":")
        if key.strip().lower() in NAMES_OF_PROCESSOR and value.strip() not in ("", "-"):
            return value.strip()
    return platform.processor() or platform.machine()


def _facts_of_processor() -> Iterator[str]:
    """Yield lines ``NAME: VALUE`` from where systems have them: Linux on x86, Linux elsewhere, macOS."""
    with suppress(OSError):
        yield from Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    for command in (["lscpu"], ["sysctl", "machdep.cpu.brand_string"]):
        with suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(
                command, capture_output=True, timeout=5, check=True, env={**os.environ, "LC_ALL": "C"}
            )
            yield from said.stdout.decode(errors="replace").splitlines()
