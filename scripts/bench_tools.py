"""What the benchmarks share: times, waits for data, what a step's tensors take in memory, networks and trainers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import fogzo
from fogzo.data import ImageData
from fogzo.estimators import Estimator
from fogzo.models import mlp
from fogzo.training.build import build, measure_ledger
from fogzo.training.config import Settings
from fogzo.training.costs import PeakTensorMemory
from fogzo.training.schedules import LearningRate
from fogzo.training.tasks import Classification
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
    size = sum(weight.latent.numel() * 4 for weight in fogzo.quantized_weights(own.model))
    more = peaks[1] - peaks[0]
    return f"FOGZO - STE = {more / 2**20:.2f} MiB = {more / size:.2f} weight-sized buffers   limit 1"


def of_recipe(*overrides: str) -> Trainer:
    """A trainer from the configs, as train.py makes it, without a folder."""
    configs = Path(__file__).resolve().parent.parent / "configs"
    with initialize_config_dir(str(configs), version_base="1.3"):
        return build(compose("train", list(overrides)))


def waiting(one: Trainer, steps: int, first: int = 2) -> tuple[list[float], list[float]]:
    """Seconds that each step waits for its batch, and takes in all; the ``first``, which start workers, don't count."""
    waits: list[float] = []
    wholes: list[float] = []
    fetch = one.feed.batch

    def timed(step: int) -> tuple[object, ...]:
        begun = time.perf_counter()
        batch = fetch(step)
        waits.append(time.perf_counter() - begun)
        return batch

    one.feed.batch = timed  # type: ignore[method-assign, assignment]
    try:
        for step in range(steps + first):
            begun = time.perf_counter()
            one.train_step(step)
            wholes.append(time.perf_counter() - begun)
    finally:
        one.feed.batch = fetch  # type: ignore[method-assign]
    return waits[first:], wholes[first:]


def trainer(
    model: nn.Module, estimator: Callable[[Any], Estimator], data: ImageData, batch: int, steps: int = 1000
) -> Trainer:
    """A trainer without a folder."""
    task = Classification(data)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    return Trainer(
        model=model,
        task=task,
        estimator=estimator(fogzo.quantized_weights(model)),
        optimizer=optimizer,
        schedule=LearningRate(steps=1, shape="constant"),
        ledger=measure_ledger(model, task, batch),
        settings=Settings(steps=steps, batch_size=batch, seed=0),
    )


def quantized_mlp() -> nn.Module:
    torch.manual_seed(0)
    return fogzo.quantize_model(mlp(), fogzo.FixedScale(2, scale_in_std=2.0), biases=True)


def vit() -> nn.Module:
    """6 blocks of width 192 on 28-pixel digits with patches of 4; the blocks' linear layers are quantized."""
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=28, patch_size=4, in_chans=1, num_classes=10, embed_dim=192, depth=6, num_heads=3
    )
    return fogzo.quantize_model(model, fogzo.FixedScale(2), skip=["patch_embed", "head"])
