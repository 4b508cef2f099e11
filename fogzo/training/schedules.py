"""What follows the step with any estimator: the learning rate, a pull to the grid, and numbers of constructors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fogzo.checks import choice, choices_of, number, positive, share, whole
from fogzo.errors import UserError, keys_of
from fogzo.estimators.beta import Ramp, Shape
from fogzo.quantize import QuantizedWeight
from fogzo.training.watch import CodeWatch

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
        choice(self.shape, "shape", SHAPES)
        share(self.warmup, "warmup")
        share(self.final, "final")

    def __call__(self, step: int) -> float:
        warmup_steps = round(self.warmup * self.steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if self.shape == "constant":
            return 1.0
        done = (step - warmup_steps) / max(self.steps - warmup_steps, 1)
        left = 1 - done if self.shape == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.final + (1 - self.final) * left


class TransitionRate(Schedule):
    """A learning-rate schedule with state: the rate is steered so that the share of codes that flip follows a curve.

    After every step U ← max(0, U + η (R_t - flips)), flips the running mean of the share of codes that a step changes;
    U multiplies the learning rate.  R_t falls as a cosine from R_0 to 0.  (Transition-rate scheduling, arXiv
    2404.19248: R_0 = λ√bits, λ about 5e-3; η is ours.)  One quantization of the weights a step, no pass over data.

    Args:
        steps: of the whole training.
        target: λ, positive, so that R_0 is at most 1.
        gain: η, positive.
        memory: of the running mean, in [0, 1).

    Raises:
        UserError: for arguments outside the above; from ``follow`` where there are no codes.
    """

    def __init__(self, *, steps: int, target: float = 5e-3, gain: float = 1.0, memory: float = 0.99) -> None:
        self.steps = whole(steps, "steps")
        self.target = positive(target, "target")
        self.gain = positive(gain, "gain")
        self.memory = number(memory, "memory", lowest=0, highest=0.9999)
        self.factor, self.smoothed, self.observed = 1.0, 0.0, 0

    def follow(self, weights: Sequence[QuantizedWeight]) -> None:
        if not weights:
            raise UserError(
                "schedule=transition_rate counts codes, and there are none: choose a quantizer, or another one"
            )
        self.start = share(self.target * math.sqrt(max(weight.quantizer.bits for weight in weights)), "schedule.target")
        self.codes = CodeWatch(weights)
        self.codes.row()  # counting begins at the initial weights

    def __call__(self, step: int) -> float:
        return self.factor

    def target_at(self, step: int) -> float:
        """Return R_t, the share of codes that is to flip in ``step``."""
        return self.start * (1 + math.cos(math.pi * min(step / max(self.steps - 1, 1), 1.0))) / 2

    def observe(self, step: int) -> None:
        flips = self.codes.row()["flip_share"]
        self.smoothed = self.memory * self.smoothed + (1 - self.memory) * flips
        self.observed += 1
        mean = self.smoothed / (1 - self.memory**self.observed)
        self.factor = max(0.0, self.factor + self.gain * (self.target_at(step) - mean))

    def state_dict(self) -> dict[str, Any]:
        numbers = {"factor": self.factor, "smoothed": self.smoothed, "observed": self.observed}
        return {**numbers, "codes": self.codes.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.factor, self.smoothed, self.observed = state["factor"], state["smoothed"], state["observed"]
        self.codes.load_state_dict(state["codes"])


class GridPull:
    """After each step w ← w - lr·λ·ramp·(w - Q(w)): late in training latent weights are drawn to their codes.

    CAGE's decoupled form (arXiv 2510.18784: λ = 10, silent for 80 % of training, then a linear ramp to the end).

    Args:
        weights: which are drawn.
        strength: λ, positive.
        start: share of training before it begins, in [0, 1].
        steps: of the whole training.
    """

    def __init__(
        self, weights: Sequence[QuantizedWeight], *, strength: float = 10.0, start: float = 0.8, steps: int
    ) -> None:
        self.weights = list(weights)
        self.strength = positive(strength, "pull.strength")
        self.start, self.steps = share(start, "pull.start"), steps

    def ramp(self, step: int) -> float:
        """Return the part of the strength that acts in ``step``: 0 until ``start``, then up to 1 at the last step."""
        first = self.start * self.steps
        return max(0.0, (step + 1 - first) / max(self.steps - first, 1.0))

    @torch.no_grad()
    def __call__(self, step: int, lr: float) -> None:
        share_of_way = min(1.0, lr * self.strength * self.ramp(step))
        if share_of_way == 0:
            return
        for weight in self.weights:
            weight.latent.lerp_(weight.quantizer(weight.latent), share_of_way)


def over_steps(values: dict[str, Any], steps: int) -> dict[str, Any]:
    """Return ``values`` with a :class:`Ramp` over ``steps`` for each number that changes with the step."""
    changed = dict(values)
    for key, (argument, other_end) in WAYS.items():
        if f"{argument}_schedule" in values:
            if key not in values:
                raise UserError(f"{key} was taken out of the config, but {argument}_schedule needs it: leave it in")
            value, shape = number(changed.pop(key), key), changed.pop(f"{argument}_schedule")
            choice(shape, f"{argument}_schedule", choices_of(Shape))
            ramp = Ramp(**{"start": value, "end": value, **other_end}, steps=steps, shape=shape)
            changed[argument] = value if shape == "constant" else ramp
    for key, value in values.items():
        if isinstance(value, dict) and value.keys() == {"start", "end", "shape"}:
            with keys_of(key):
                changed[key] = Ramp(**value, steps=steps)
    return changed
