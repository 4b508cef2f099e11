"""The STE's gradient plus what probes say against it: noise in proportion to the STE's bias."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from fogzo.checks import choice, choices_of, positive, share, whole
from fogzo.estimators.base import Closure, Estimate, Estimator, check_weights
from fogzo.estimators.beta import OverSteps, held, value_at
from fogzo.estimators.guide import guide_of
from fogzo.estimators.probes import slopes_of
from fogzo.estimators.running_mean import RunningMean
from fogzo.quantize import QuantizedWeight
from fogzo.ranks import same_mean

Sides = Literal["two", "one"]
check_trust = partial(share, name="trust")


class ControlVariate(Estimator):
    """G = g + λ/n Σ (slope(z_i) - ⟨g, z_i⟩) z_i in grid units: the STE's gradient as a control variate of n-SPSA.

    The mean is g + λ(∇L_s - g); the noise is about λ√(d/n)‖∇L_s - g‖, in proportion to the STE's bias, where that of
    n-SPSA and of FOGZO is in proportion to the gradient (docs/theory.md, "Control variate"; derived, not in print).

    Args:
        weights, samples, seed, epsilon: as for :class:`fogzo.FOGZO`.
        trust: λ in [0, 1], or a callable of the step.  With one pair the least error is at 1/d: averaging over steps is
            what larger values need.
        sides: ``"two"``: slope(z) = (L(w + z) - L(w - z))/2.  ``"one"``: L(w + z) - L(w), with the loss that the
            first-order pass has computed anyway: half the probes.  Its even part (curvature, and rounding, which
            nearly always costs) has the same sign in every step: its running mean, kept in the state, is subtracted.

    Raises:
        UserError: for arguments outside the above; from ``estimate`` when ``.grad`` is not empty on entry.
    """

    buffers = 1

    def __init__(
        self,
        weights: Sequence[QuantizedWeight],
        *,
        samples: int = 1,
        trust: OverSteps = 0.01,
        sides: Sides = "two",
        seed: int = 0,
        epsilon: float = 1.0,
    ) -> None:
        self.weights = check_weights(weights)
        self.samples = whole(samples, "samples")
        self.trust = held(trust, check_trust)
        self.sides = 2 if choice(sides, "sides", choices_of(Sides)) == "two" else 1
        self.seed = whole(seed, "seed", lowest=0)
        self.epsilon = positive(epsilon, "epsilon")
        self.even_part = RunningMean()

    @torch.no_grad()
    def estimate(self, closure: Closure, *, step: int) -> Estimate:
        """Fill ``.grad`` by the STE's gradient, corrected by what probes measured; its loss is the one reported."""
        trust = value_at(self.trust, step, check_trust)
        loss, guide, probes = guide_of(
            closure, self.weights, seed=self.seed, step=step, epsilon=self.epsilon, guide_norm=None
        )
        believed: list[Tensor] = []

        def directions(samples: range) -> Iterator[Tensor]:  # z_i, noting ⟨g, z_i⟩ on the way
            total = torch.zeros((), dtype=torch.float64, device=guide.norm.device)
            for g, z in zip(guide.grads, guide.noise.draw(samples), strict=True):
                total += (g * z).sum()
                yield z
            believed.append(total)

        losses = probes.one_by_one(directions, self.samples, sides=self.sides)
        measured = slopes_of(losses) if self.sides == 2 else losses[:, 0] - same_mean(loss, None)
        excess = measured - torch.stack(believed).to(measured)
        if self.sides == 1:
            excess = self.even_part.subtract_from(excess)
        guide.add_noise(trust / self.samples * excess)
        guide.to_weight_units()
        return Estimate(loss=loss, zero_probes=(measured == 0).float().mean(), guide_norm=guide.norm)

    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        return steps * (1 + self.sides * self.samples), steps

    def state_dict(self) -> dict[str, Any]:
        return self.even_part.state_dict() if self.sides == 1 else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.even_part.load_state_dict(state)
