"""FOGZO with one probe instead of a pair: the loss at the undisplaced weights is known anyway."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fogzo.checks import positive, whole
from fogzo.estimators.base import Closure, Estimate, Estimator, check_gradients_empty, check_weights, first_order
from fogzo.estimators.baseline import RunningMean
from fogzo.estimators.beta import Beta, beta_at, check_beta, noise_share
from fogzo.estimators.guide import gradient_or_zeros, normalise
from fogzo.estimators.perturb import Noise
from fogzo.estimators.probes import Probes, add_weighted
from fogzo.estimators.replay import RandomState
from fogzo.quantize import QuantizedWeight
from fogzo.ranks import same_mean
from fogzo.seeding import derive_seed


class OneSidedFOGZO(Estimator):
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

    def __init__(
        self,
        weights: Sequence[QuantizedWeight],
        *,
        samples: int = 1,
        beta: Beta = 0.999,
        seed: int = 0,
        epsilon: float = 1.0,
    ) -> None:
        self.weights = check_weights(weights)
        self.samples = whole(samples, "samples")
        self.beta = check_beta(beta, guided=True)
        self.seed = whole(seed, "seed", lowest=0)
        self.epsilon = positive(epsilon, "epsilon")
        self.even_part = RunningMean()

    def estimate(self, closure: Closure, *, step: int) -> Estimate:
        beta = beta_at(self.beta, step, guided=True)
        check_gradients_empty(self.weights[0].model)
        random_state = RandomState({weight.latent.device for weight in self.weights})
        loss, weights = first_order(closure, self.weights)
        signs = [1 - 2 * (derive_seed("sign", self.seed, step, i) & 1) for i in range(self.samples)]
        with torch.no_grad():
            units = [weight.grid_unit() * self.epsilon for weight in weights]
            grads = [gradient_or_zeros(weight) for weight in weights]  # become ĝ, then G, in place
            g_norm, believed_slope = normalise(grads, units)
            noise = Noise(weights, self.seed, step)

            def directions(samples: range) -> Iterator[Tensor]:  # u_i
                (i,) = samples
                for g, z in zip(grads, noise.draw(samples), strict=True):
                    yield z.mul_(math.sqrt(1 - beta)).add_(g, alpha=signs[i] * math.sqrt(beta))

            probes = Probes(closure, weights, units, random_state, first_pass_done=True)
            measured = probes.one_by_one(directions, self.samples, sides=1)[:, 0] - same_mean(loss, None)
            slopes = self.even_part.subtract_from(measured)
            along = (slopes * slopes.new_tensor(signs)).mean()  # of the measured slope along ĝ, times √β
            torch._foreach_mul_(grads, math.sqrt(beta) * along.to(grads[0]))
            for i in range(self.samples):
                add_weighted(grads, noise.draw(range(i, i + 1)), math.sqrt(1 - beta) / self.samples * slopes[i : i + 1])
            torch._foreach_div_(grads, units)
        agreement = torch.where(g_norm > 0, along / (math.sqrt(beta) * believed_slope), torch.nan)
        zero_probes = (measured == 0).float().mean()
        return Estimate(
            loss=loss,
            beta=beta,
            noise_share=noise_share(beta, weights),
            agreement=agreement,
            zero_probes=zero_probes,
            guide_norm=g_norm,
        )

    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        return steps * (1 + self.samples), steps

    def state_dict(self) -> dict[str, Any]:
        return self.even_part.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.even_part.load_state_dict(state)
