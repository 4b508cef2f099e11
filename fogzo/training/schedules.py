"""Schedules are functions of the step alone: nothing to checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass

SHAPES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class LearningRate:
    """Factor on the learning rate: linear warm-up over ``warmup`` (a share of the steps), then ``shape`` to ``final``.

    >>> schedule = LearningRate(steps=100, shape="linear", warmup=0.1)
    >>> [round(schedule(step), 2) for step in (0, 9, 10, 55, 100)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """

    steps: int
    shape: str = "cosine"
    warmup: float = 0.0
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"schedule.shape={self.shape!r} is not known: choose one of {', '.join(SHAPES)}")
        for name, value in (("warmup", self.warmup), ("final", self.final)):
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"schedule.{name}={value!r} lies outside [0, 1]: it is a share")

    def __call__(self, step: int) -> float:
        warmup_steps = round(self.warmup * self.steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if self.shape == "constant":
            return 1.0
        done = (step - warmup_steps) / max(self.steps - warmup_steps, 1)
        left = 1 - done if self.shape == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.final + (1 - self.final) * left
