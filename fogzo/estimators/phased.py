"""One estimator first, another from a given step on ("r % STE + (100-r) % FOGZO", paper.md, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from fogzo.checks import options_of, share, whole
from fogzo.estimators.base import Closure, Estimate, Estimator
from fogzo.estimators.fogzo import FOGZO
from fogzo.estimators.straight_through import StraightThrough
from fogzo.quantize import QuantizedWeight


class Phased(Estimator):
    """``first`` for steps 0 to ``switch_step`` - 1, ``then`` from there on."""

    def __init__(self, first: Estimator, then: Estimator, *, switch_step: int) -> None:
        self.first, self.then = first, then
        self.switch_step = whole(switch_step, "switch_step", lowest=0)
        self.buffers = max(first.buffers, then.buffers)
        self.together = max(first.together, then.together)

    @classmethod
    @options_of(FOGZO)
    def from_ste(
        cls, weights: Sequence[QuantizedWeight], *, steps: int, ste_share: float = 0.7, **options: Any
    ) -> Self:
        """Return the STE for the first ``ste_share`` of ``steps``, and then FOGZO with ``options``."""
        share(ste_share, "ste_share", hint=": 0.7 is 70 % STE, then FOGZO")
        switch_step = round(ste_share * steps)
        return cls(StraightThrough(weights), FOGZO(weights, **options), switch_step=switch_step)

    def estimate(self, closure: Closure, *, step: int) -> Estimate:
        """Fill ``.grad`` as the estimator whose turn ``step`` is."""
        estimator = self.first if whole(step, "step", lowest=0) < self.switch_step else self.then
        return estimator.estimate(closure, step=step)

    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        before = min(max(self.switch_step - first, 0), steps)
        parts = self.first.passes(before, first=first), self.then.passes(steps - before, first=first + before)
        return parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]

    def state_dict(self) -> dict[str, Any]:
        states = {"first": self.first.state_dict(), "then": self.then.state_dict()}
        return {part: state for part, state in states.items() if state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first.load_state_dict(state.get("first", {}))
        self.then.load_state_dict(state.get("then", {}))
