"""β, and other numbers that may be functions of the step alone, so that there is nothing to checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from fogzo.checks import choice, choices_of, number, share, whole
from fogzo.errors import ArgumentError
from fogzo.quantize import QuantizedWeight

OverSteps = float | Callable[[int], float]
Beta = OverSteps
Shape = Literal["constant", "linear", "cosine"]
HINT = "; 0 is n-SPSA, 1 the STE's direction alone; 0.999 is usual for an MLP, 0.999999999 for deep networks"


@dataclass(frozen=True)
class Ramp:
    """A number on its way from ``start`` at the first of ``steps`` to ``end`` at the last; constant: ``start``.

    The paper's β falls on a line from 1 (paper.md, section 2, "β schedule").

    >>> Ramp(1.0, 0.999, steps=3)(1)
    0.9995
    """

    start: float
    end: float
    steps: int
    shape: Shape = "linear"

    def __post_init__(self) -> None:
        number(self.start, "start")
        number(self.end, "end")
        whole(self.steps, "steps", lowest=0)
        choice(self.shape, "shape", choices_of(Shape))

    def __call__(self, step: int) -> float:
        done = min(step / max(self.steps - 1, 1), 1.0) if self.shape != "constant" else 0.0
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        # of β, 1 - β is what matters, and this keeps the digits of 1-1e-9
        return self.start + (self.end - self.start) * done


def held(value: OverSteps, check: Callable[[float], float]) -> OverSteps:
    """Return ``value`` if ``check`` takes the number, or both ends of the :class:`Ramp`; another function as it is."""
    if isinstance(value, Ramp):
        check(value.start)
        check(value.end)
    return value if callable(value) else check(value)


def value_at(value: OverSteps, step: int, check: Callable[[float], float]) -> float:
    """Return ``value``, or what the function is at ``step``, held by ``check``.

    Raises:
        ArgumentError: for a step that is no whole number from 0.
    """
    whole(step, "step", lowest=0)
    return check(value(step) if callable(value) else value)


def check_beta(beta: Beta, *, guided: bool = False) -> Beta:
    """Return β, whose numbers must lie in [0, 1], above 0 for estimators that are ``guided``.

    Raises:
        ArgumentError: for any other value; of a function's values, :func:`beta_at` raises it.
    """
    return held(beta, partial(_in_range, guided=guided))


def beta_at(beta: Beta, step: int, *, guided: bool = False) -> float:
    """Return β of ``step``, checked."""
    return value_at(beta, step, partial(_in_range, guided=guided))


def _in_range(beta: float, *, guided: bool) -> float:
    share(beta, "beta", hint=HINT)
    if guided and beta == 0:
        raise ArgumentError("beta", beta, "has no guide whose size the noise could take: give a number in (0, 1]")
    return float(beta)


def noise_share(beta: float, weights: Sequence[QuantizedWeight], guide_norm: str = "global") -> float:
    """Return d(1-β)/(‖ĝ‖²β + d(1-β)), the part of a probe's squared length that is noise.

    ``guide_norm``: of :class:`fogzo.FOGZO`; with the paper's ‖ĝ‖ is 1 (docs/theory.md, "Prior art").
    """
    sizes = [weight.latent.numel() for weight in weights]
    noise = sum(sizes) * (1 - beta)
    return noise / (squared_norm(sizes, guide_norm) * beta + noise)


def squared_norm(sizes: Sequence[int], guide_norm: str) -> int:
    """Return ‖ĝ‖², ``sizes`` the coordinates of each tensor: 1 as in the paper; else see :class:`fogzo.FOGZO`."""
    return {"global": 1, "rms": sum(sizes), "per_tensor": len(sizes)}[guide_norm]
