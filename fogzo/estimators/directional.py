"""Two more controls: what FOGZO would be if the STE were right, and when one pair should trust the guide at all."""

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
from fogzo.estimators.probes import Probes, add_weighted, slopes_of
from fogzo.estimators.replay import RandomState
from fogzo.quantize import QuantizedWeight


class ExactDirectional(Estimator):
    """G = 1/n Σ ⟨g, u_i⟩ u_i in grid units: FOGZO with the slope that the STE believes, and no probe.

    A forward-mode derivative through the fake-quantized network returns just this.  Where it does as well as FOGZO, the
    measured losses added nothing but noise in the direction.

    Args:
        weights, samples, beta, seed: as for :class:`fogzo.FOGZO`; β must be positive.
    """

    def __init__(
        self, weights: Sequence[QuantizedWeight], *, samples: int = 1, beta: Beta = 0.999, seed: int = 0
    ) -> None:
        self.weights = check_weights(weights)
        self.samples = whole(samples, "samples")
        self.beta = check_beta(beta, guided=True)
        self.seed = whole(seed, "seed", lowest=0)

    def estimate(self, closure: Closure, *, step: int) -> Estimate:
        beta = beta_at(self.beta, step, guided=True)
        check_gradients_empty(self.weights[0].model)
        loss, weights = first_order(closure, self.weights)
        with torch.no_grad():
            units = [weight.grid_unit() for weight in weights]
            grads = [gradient_or_zeros(weight) for weight in weights]  # become ĝ, then G, in place
            g_norm, _ = normalise(grads, units)
            noise = Noise(weights, self.seed, step)
            slopes = torch.stack([self._believed(grads, g_norm, noise, i, beta) for i in range(self.samples)])
            torch._foreach_mul_(grads, math.sqrt(beta) * slopes.mean().to(grads[0]))
            for i in range(self.samples):
                add_weighted(grads, noise.draw(range(i, i + 1)), math.sqrt(1 - beta) / self.samples * slopes[i : i + 1])
            torch._foreach_div_(grads, units)
        return Estimate(loss=loss, beta=beta, noise_share=noise_share(beta, weights), guide_norm=g_norm)

    def _believed(self, guides: Sequence[Tensor], g_norm: Tensor, noise: Noise, i: int, beta: float) -> Tensor:
        """Return ⟨g, u_i⟩ = ‖g‖ (√β + √(1-β) ⟨ĝ, z_i⟩)."""
        drawn = zip(guides, noise.draw(range(i, i + 1)), strict=True)
        across = torch.stack([(g.double() * z.squeeze(0)).sum() for g, z in drawn]).sum()
        return g_norm * (math.sqrt(beta) + math.sqrt(1 - beta) * across)

    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        return steps, steps


class GuideOrNoise(Estimator):
    """One pair along the guide or one along noise, whichever explains more: P-RGF's optimal λ at one direction.

    Prior-guided random gradient-free estimation (NeurIPS 2019) mixes guide and noise by a λ that is 0 if c² ≤ 1/d and
    1 if c² ≥ 1/d when there is one direction, c the guide's cosine with the true gradient: nothing in between.  Here
    c² = slope(ĝ)²/‖∇‖², and E slope(z)² = ‖∇‖² is a running mean, kept in the state.  Both are measured in every step,
    by two pairs: 7/3 of a STE step.  ``beta`` of its estimates says what was chosen: 1 the guide, 0 noise.

    Args:
        weights, seed, epsilon: as for :class:`fogzo.FOGZO`.
    """

    buffers = 1

    def __init__(self, weights: Sequence[QuantizedWeight], *, seed: int = 0, epsilon: float = 1.0) -> None:
        self.weights = check_weights(weights)
        self.seed = whole(seed, "seed", lowest=0)
        self.epsilon = positive(epsilon, "epsilon")
        self.squared_norm = RunningMean()

    def estimate(self, closure: Closure, *, step: int) -> Estimate:
        check_gradients_empty(self.weights[0].model)
        random_state = RandomState({weight.latent.device for weight in self.weights})
        loss, weights = first_order(closure, self.weights)
        with torch.no_grad():
            units = [weight.grid_unit() * self.epsilon for weight in weights]
            grads = [gradient_or_zeros(weight) for weight in weights]  # become ĝ, then G, in place
            g_norm, believed_slope = normalise(grads, units)
            noise = Noise(weights, self.seed, step)

            def directions(samples: range) -> Iterator[Tensor]:  # the guide, then noise
                return (g.unsqueeze(0) for g in grads) if samples.start == 0 else noise.draw(range(1))

            probes = Probes(closure, weights, units, random_state, first_pass_done=True)
            losses = probes.one_by_one(directions, 2)
            along, across = slopes_of(losses)
            self.squared_norm.subtract_from(across.square())
            d = sum(weight.latent.numel() for weight in weights)
            guided = (along.square() * d > self.squared_norm.value().to(along)).to(along)
            torch._foreach_mul_(grads, (guided * along).to(grads[0]))
            add_weighted(grads, noise.draw(range(1)), ((1 - guided) * across).reshape(1))
            torch._foreach_div_(grads, units)
        agreement = torch.where(g_norm > 0, along / believed_slope, torch.nan)
        zero_probes = (slopes_of(losses) == 0).float().mean()
        return Estimate(loss=loss, beta=guided, agreement=agreement, zero_probes=zero_probes, guide_norm=g_norm)

    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        return 5 * steps, steps

    def state_dict(self) -> dict[str, Any]:
        return self.squared_norm.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.squared_norm.load_state_dict(state)
