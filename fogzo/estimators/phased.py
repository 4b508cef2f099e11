"""One estimator first, another from a given step on ("r % STE + (100-r) % FOGZO", paper.md, section 2)."""

from __future__ import annotations

from fogzo.checks import whole
from fogzo.estimators.base import Closure, Estimate, Estimator


class Phased(Estimator):
    """``first`` for steps 0 to ``switch_step`` - 1, ``then`` from there on."""

    def __init__(self, first: Estimator, then: Estimator, *, switch_step: int) -> None:
        self.first, self.then = first, then
        self.switch_step = whole(switch_step, "switch_step", lowest=0)
        self.buffers = max(first.buffers, then.buffers)
        self.together = max(first.together, then.together)

    def estimate(self, closure: Closure, *, step: int) -> Estimate:
        estimator = self.first if whole(step, "step", lowest=0) < self.switch_step else self.then
        return estimator.estimate(closure, step=step)

    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        before = min(max(self.switch_step - first, 0), steps)
        parts = self.first.passes(before, first=first), self.then.passes(steps - before, first=first + before)
        return parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]
