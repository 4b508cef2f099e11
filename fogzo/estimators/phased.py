"""One estimator first, another from a given step on ("r % STE + (100-r) % FOGZO", paper.md, section 2)."""

from __future__ import annotations

from fogzo.estimators.base import Closure, Estimate, Estimator, check_whole


class Phased(Estimator):
    """``first`` for steps 0 to ``switch_step`` - 1, ``then`` from there on."""

    def __init__(self, first: Estimator, then: Estimator, *, switch_step: int) -> None:
        self.first, self.then = first, then
        self.switch_step = check_whole(switch_step, name="switch_step", lowest=0)

    def estimate(self, closure: Closure, *, step: int = 0) -> Estimate:
        estimator = self.first if step < self.switch_step else self.then
        return estimator.estimate(closure, step=step)
