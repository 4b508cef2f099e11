"""The STE's gradient plus what probes say against it: noise in proportion to the STE's bias."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fogzo.checks import choice, choices_of, number, positive, whole
from fogzo.estimators.base import Closure, Estimate, Estimator, check_gradients_empty, check_weights, first_order
from fogzo.estimators.baseline import RunningMean
from fogzo.estimators.guide import gradient_or_zeros
from fogzo.estimators.perturb import Noise
from fogzo.estimators.probes import Probes, add_weighted, slopes_of
from fogzo.estimators.replay import RandomState
from fogzo.quantize import QuantizedWeight
from fogzo.ranks import same_mean

Trust = float | Callable[[int], float]
Sides = Literal["two", "one"]


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
        trust: Trust = 0.01,
        sides: Sides = "two",
        seed: int = 0,
        epsilon: float = 1.0,
    ) -> None:
        self.weights = check_weights(weights)
        self.samples = whole(samples, "samples")
        self.trust = trust if callable(trust) else number(trust, "trust", lowest=0, highest=1)
        self.sides = 2 if choice(sides, "sides", choices_of(Sides)) == "two" else 1
        self.seed = whole(seed, "seed", lowest=0)
        self.epsilon = positive(epsilon, "epsilon")
        self.even_part = RunningMean()

    def estimate(self, closure: Closure, *, step: int) -> Estimate:
        trust = number(self.trust(step), "trust", lowest=0, highest=1) if callable(self.trust) else self.trust
        check_gradients_empty(self.weights[0].model)
        random_state = RandomState({weight.latent.device for weight in self.weights})
        loss, weights = first_order(closure, self.weights)
        with torch.no_grad():
            units = [weight.grid_unit() * self.epsilon for weight in weights]
            grads = [gradient_or_zeros(weight) for weight in weights]  # become g in grid units, then G, in place
            torch._foreach_mul_(grads, units)
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            noise = Noise(weights, self.seed, step)
            believed: list[Tensor] = []

            def directions(samples: range) -> Iterator[Tensor]:  # z_i, noting ⟨g, z_i⟩ on the way
                total = torch.zeros((), dtype=torch.float64, device=norm.device)
                for g, z in zip(grads, noise.draw(samples), strict=True):
                    total += (g * z).sum()
                    yield z
                believed.append(total)

            probes = Probes(closure, weights, units, random_state, first_pass_done=True)
            losses = probes.one_by_one(directions, self.samples, sides=self.sides)
            measured = slopes_of(losses) if self.sides == 2 else losses[:, 0] - same_mean(loss, None)
            excess = measured - torch.stack(believed).to(measured)
            if self.sides == 1:
                excess = self.even_part.subtract_from(excess)
            for i in range(self.samples):
                add_weighted(grads, noise.draw(range(i, i + 1)), trust / self.samples * excess[i : i + 1])
            torch._foreach_div_(grads, units)
        return Estimate(loss=loss, zero_probes=(measured == 0).float().mean(), guide_norm=norm)

    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        return steps * (1 + self.sides * self.samples), steps

    def state_dict(self) -> dict[str, Any]:
        return self.even_part.state_dict() if self.sides == 1 else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.even_part.load_state_dict(state)
