"""What the benchmarks share: alternating times, and the most memory that tensors take in a step."""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fogzo.quantize import quantized_weights
from fogzo.trainer import Trainer


def alternate(functions: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of each function in each round, one after the other in every round; the first two rounds don't count."""
    times: list[list[float]] = [[] for _ in functions]
    for round_number in range(rounds + 2):
        for function, own in zip(functions, times, strict=True):
            begun = time.perf_counter()
            function()
            if round_number >= 2:
                own.append(time.perf_counter() - begun)
    return times


def step_times(one: Trainer, other: Trainer, rounds: int) -> tuple[float, tuple[float, float]]:
    """Median ratio other / one of their steps, and the median milliseconds of each."""
    times = alternate([partial(one.train_step, 0), partial(other.train_step, 0)], rounds)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    return ratio, (statistics.median(times[0]) * 1e3, statistics.median(times[1]) * 1e3)


def extra_memory(ste: Trainer, own: Trainer) -> str:
    """How much more tensor memory ``own``'s step takes at its peak than ``ste``'s, in weight-sized buffers."""
    peaks = []
    for one in (ste, own):
        one.train_step(0)  # the optimizer's buffers
        state = [buffer for values in one.optimizer.state.values() for buffer in values.values()]
        with PeakTensorMemory([*one.model.parameters(), *one.model.buffers(), *state]) as peak:
            one.train_step(1)
        peaks.append(peak.most)
    size = sum(weight.latent.numel() * 4 for weight in quantized_weights(own.model))
    more = peaks[1] - peaks[0]
    return f"FOGZO - STE = {more / 2**20:.2f} MiB = {more / size:.2f} weight-sized buffers   limit 1"


class PeakTensorMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within: follows the storages that operations return, and keeps the most bytes alive at one time in ``most``.

    ``existing`` counts from the start: an in-place operation returns tensors that were there before.
    """

    def __init__(self, existing: list[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive, self.most = 0, 0
        self.seen: dict[int, int] = {}
        for tensor in existing:
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.seen:
            self.seen[key] = storage.nbytes()
            self.alive += self.seen[key]
            self.most = max(self.most, self.alive)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.alive -= self.seen.pop(key, 0)
