"""FOGZO with one probe instead of a pair: the loss at the undisplaced weights is known anyway."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from fogzo.checks import options_of
from fogzo.estimators.base import Closure, Estimate
from fogzo.estimators.guide import Guided
from fogzo.estimators.running_mean import RunningMean
from fogzo.quantize import QuantizedWeight
from fogzo.ranks import same_mean
from fogzo.seeding import derive_seed


class OneSidedFOGZO(Guided):
    """slope_i = L(w + ε·α·u_i) - L(w) with u_i = s_i·√β·ĝ + √(1-β)·z_i: 2 forward passes and a backward pass at n = 1.

    That is 4/3 of a STE step where FOGZO costs 5/3 (idea: FZOO, arXiv 2506.09034).  Two things that a pair cancels
    need care.  The random sign s_i keeps curvature from biasing the step along ĝ (docs/theory.md, "One-sided probes").
    And the even part of the loss, mostly rounding, which costs in nearly every step, would be multiplied by u_i as
    noise: the running mean of the measured differences, kept in the state, is subtracted.

    Args:
        weights, samples, beta, seed, epsilon: as for :class:`fogzo.FOGZO`; β must be positive.

    Raises:
        UserError: for arguments outside the above; from ``estimate`` when ``.grad`` is not empty on entry.
    """

    buffers = 1

    @options_of(Guided)
    def __init__(self, weights: Sequence[QuantizedWeight], **options: Any) -> None:
        super().__init__(weights, **options)
        self.even_part = RunningMean()

    @torch.no_grad()
    def estimate(self, closure: Closure, *, step: int) -> Estimate:
        """Fill ``.grad`` by one probe a sample beside the loss at the weights themselves, which is the one reported."""
        beta, loss, guide, probes = self.first_pass(closure, step)
        signs = [1 - 2 * (derive_seed("sign", self.seed, step, i) & 1) for i in range(self.samples)]
        losses = probes.one_by_one(partial(guide.directions, beta=beta, signs=signs), self.samples, sides=1)
        measured = losses[:, 0] - same_mean(loss, None)
        slopes = self.even_part.subtract_from(measured)
        along = torch.stack(
            [s * slope for s, slope in zip(signs, slopes, strict=True)]
        ).mean()  # of the measured slope along ĝ, times √β
        guide.combine(slopes, beta, along=along)
        return guide.seen(loss, beta, along=along, measured=measured)

    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        return steps * (1 + self.samples), steps

    def state_dict(self) -> dict[str, Any]:
        return self.even_part.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.even_part.load_state_dict(state)
