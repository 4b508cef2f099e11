"""β: a number in [0, 1], or a function of the step alone, so that there is nothing to checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fogzo.checks import share, whole
from fogzo.errors import ArgumentError
from fogzo.quantize import QuantizedWeight

Beta = float | Callable[[int], float]
PLAIN = "; 0.999 is usual for an MLP, 0.999999999 for deep networks"


@dataclass(frozen=True)
class LinearBeta:
    """β from 1 at the first step down to ``beta_min`` at the last (paper.md, section 2, "β schedule").

    >>> LinearBeta(beta_min=0.999, steps=3)(1)
    0.9995
    """

    beta_min: float
    steps: int

    def __post_init__(self) -> None:
        share(self.beta_min, "beta_min", hint=PLAIN)
        whole(self.steps, "steps", lowest=0)

    def __call__(self, step: int) -> float:
        # 1 - β is what matters, and it is computed first: 1-1e-9 keeps its digits
        return 1 - (1 - self.beta_min) * min(step / max(self.steps - 1, 1), 1.0)


def check_beta(beta: Beta, *, guided: bool = False) -> Beta:
    """Return β as a float if it lies in [0, 1], above 0 for estimators that are ``guided``; a function as it is.

    Raises:
        ArgumentError: for any other value; of a function's values, :func:`beta_at` raises it.
    """
    if callable(beta):
        return beta
    share(beta, "beta", hint="; 0 is n-SPSA, 1 the STE's direction alone, an MLP takes 0.999")
    if guided and beta == 0:
        raise ArgumentError("beta", beta, "has no guide whose size the noise could take: give a number in (0, 1]")
    return float(beta)


def beta_at(beta: Beta, step: int, *, guided: bool = False) -> float:
    """Return β of ``step``, checked."""
    value = check_beta(beta(step) if callable(beta) else beta, guided=guided)
    assert isinstance(value, float)
    return value


def noise_share(beta: float, weights: Sequence[QuantizedWeight]) -> float:
    """Return d(1-β)/(β + d(1-β)), the part of a probe's squared length that is noise (docs/theory.md, "Prior art")."""
    noise = sum(weight.latent.numel() for weight in weights) * (1 - beta)
    return noise / (beta + noise)
