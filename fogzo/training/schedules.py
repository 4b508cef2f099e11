"""The factor on the learning rate, and what else follows the step.  Most are its functions: nothing to checkpoint."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fogzo.checks import choice, choices_of, number
from fogzo.errors import keys_of
from fogzo.estimators.beta import Ramp, Shape
from fogzo.quantize import QuantizedWeight

SHAPES = choices_of(Shape)
# Keys of recorded configs for numbers that change with the step: the argument that each is for, with the other end of
# its way over the training; KEY_schedule beside it is the shape.  New ones: {start: 0.0, end: 0.2, shape: linear}
WAYS: dict[str, tuple[str, dict[str, float]]] = {
    "beta_min": ("beta", {"start": 1.0}),
    "sigma": ("sigma", {"end": 0.0}),
    "trust": ("trust", {"start": 0.0}),
}


class Schedule(ABC):
    """The factor on the learning rate, step by step."""

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Return the factor of ``step`` (from 0)."""

    def follow(self, weights: Sequence[QuantizedWeight]) -> None:  # noqa: B027 -- most need none
        """Take the quantized weights of the run, once, before its first step; nothing by default."""

    def observe(self, step: int) -> None:  # noqa: B027
        """Look at the weights after ``step``; nothing by default."""

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`observe` has changed; nothing by default."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        assert not state


@dataclass(frozen=True)
class LearningRate(Schedule):
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


def over_steps(values: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return ``values`` with a :class:`Ramp` over ``steps`` for each number that changes with the step."""
    changed = dict(values)
    for key, (argument, other_end) in WAYS.items():
        if f"{argument}_schedule" in values:
            value, shape = number(changed.pop(key), key), changed.pop(f"{argument}_schedule")
            choice(shape, f"{argument}_schedule", choices_of(Shape))
            ramp = Ramp(**{"start": value, "end": value, **other_end}, steps=steps, shape=shape)
            changed[argument] = value if shape == "constant" else ramp
    for key, value in values.items():
        if isinstance(value, dict) and value.keys() == {"start", "end", "shape"}:
            with keys_of(key):
                changed[key] = Ramp(**value, steps=steps)
    return changed
