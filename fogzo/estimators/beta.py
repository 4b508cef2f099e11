"""β as a function of the step alone: nothing to checkpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearBeta:
    """β from 1 at the first step down to ``beta_min`` at the last (paper.md, section 2, "β schedule").

    >>> LinearBeta(beta_min=0.999, steps=3)(1)
    0.9995
    """

    beta_min: float
    steps: int

    def __post_init__(self) -> None:
        if not isinstance(self.beta_min, int | float) or not 0 <= self.beta_min <= 1:
            raise ValueError(
                f"beta_min={self.beta_min!r} lies outside [0, 1]: 0.999 is usual for an MLP, 1-1e-9 for deep nets"
            )

    def __call__(self, step: int) -> float:
        # 1 - β is what matters, and it is computed first: 1-1e-9 keeps its digits
        return 1 - (1 - self.beta_min) * min(step / max(self.steps - 1, 1), 1.0)
