"""What the benchmarks share: alternating times, and what a step's tensors take in memory, and trainers of recipes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from fogzo.quantize import quantized_weights
from fogzo.training.build import build
from fogzo.training.costs import PeakTensorMemory
from fogzo.training.trainer import Trainer


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


def of_recipe(*overrides: str) -> Trainer:
    """A trainer from the configs, as train.py makes it, without a folder."""
    configs = Path(__file__).resolve().parent.parent / "configs"
    with initialize_config_dir(str(configs), version_base="1.3"):
        return build(compose("train", list(overrides)))
