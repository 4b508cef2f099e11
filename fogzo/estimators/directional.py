"""Two more controls: what FOGZO would be if the STE were right, and when one pair should trust the guide at all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fogzo.checks import positive, whole
from fogzo.estimators.base import Closure, Estimate, Estimator, check_weights
from fogzo.estimators.beta import Beta, noise_share
from fogzo.estimators.guide import Guide, Guided, guide_of
from fogzo.estimators.probes import slopes_of
from fogzo.estimators.running_mean import RunningMean
from fogzo.quantize import QuantizedWeight


class ExactDirectional(Guided):
    """G = 1/n Σ ⟨g, u_i⟩ u_i in grid units: FOGZO with the slope that the STE believes, and no probe.

    A forward-mode derivative through the fake-quantized network returns just this.  Where it does as well as FOGZO, the
    measured losses added nothing but noise in the direction.

    Args:
        weights, samples, beta, seed: as for :class:`fogzo.FOGZO`; β must be positive.
    """

    def __init__(
        self, weights: Sequence[QuantizedWeight], *, samples: int = 1, beta: Beta = 0.999, seed: int = 0
    ) -> None:
        super().__init__(weights, samples=samples, beta=beta, seed=seed)

    @torch.no_grad()
    def estimate(self, closure: Closure, *, step: int) -> Estimate:
        """Fill ``.grad`` by the slopes that the STE believes, in FOGZO's directions."""
        beta, loss, guide, _ = self.first_pass(closure, step)
        guide.combine(torch.stack([self._believed(guide, i, beta) for i in range(self.samples)]), beta)
        return Estimate(loss=loss, beta=beta, noise_share=noise_share(beta, guide.weights), guide_norm=guide.norm)

    def _believed(self, guide: Guide, i: int, beta: float) -> Tensor:
        """Return ⟨g, u_i⟩ = ‖g‖ (√β + √(1-β) ⟨ĝ, z_i⟩)."""
        drawn = zip(guide.grads, guide.noise.draw(range(i, i + 1)), strict=True)
        across = torch.stack([(g.double() * z.squeeze(0)).sum() for g, z in drawn]).sum()
        return guide.norm * (math.sqrt(beta) + math.sqrt(1 - beta) * across)

    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        return steps, steps


class GuideOrNoise(Estimator):
    """One pair along the guide or one along noise, whichever explains more: P-RGF's optimal λ at one direction.

    Prior-guided random gradient-free estimation (NeurIPS 2019) mixes guide and noise by a λ that is 0 if c² ≤ 1/d and
    1 if c² ≥ 1/d when there is one direction, c the guide's cosine with the true gradient: nothing in between.  Here
    c² = slope(ĝ)²/‖∇‖², and E slope(z)² = ‖∇‖² is a running mean over the steps before, kept in the state: with this
    step's own pair in it, noise would be chosen just where it happens to be long.  The first step takes the guide.  As
    in the source both directions have length 1, the noise z/√d, so that one learning rate suits both.  Both are
    measured in every step, by two pairs: 7/3 of a STE step.  ``beta`` of its estimates says what was chosen: 1 the
    guide, 0 noise.

    Args:
        weights, seed, epsilon: as for :class:`fogzo.FOGZO`.
    """

    buffers = 1

    def __init__(self, weights: Sequence[QuantizedWeight], *, seed: int = 0, epsilon: float = 1.0) -> None:
        self.weights = check_weights(weights)
        self.seed = whole(seed, "seed", lowest=0)
        self.epsilon = positive(epsilon, "epsilon")
        self.squared_norm = RunningMean()

    @torch.no_grad()
    def estimate(self, closure: Closure, *, step: int) -> Estimate:
        """Fill ``.grad`` by the pair along the guide, or by the one along noise; both have been measured."""
        loss, guide, probes = guide_of(closure, self.weights, seed=self.seed, step=step, epsilon=self.epsilon)

        def directions(samples: range) -> Iterator[Tensor]:  # the guide, then noise
            return (g.unsqueeze(0) for g in guide.grads) if samples.start == 0 else guide.noise.draw(range(1))

        slopes = slopes_of(probes.one_by_one(directions, 2))
        along, across = slopes
        d = sum(weight.latent.numel() for weight in guide.weights)
        guided = (along.square() * d > self.squared_norm.value().to(along)).to(along)
        self.squared_norm.add(across.square())
        torch._foreach_mul_(guide.grads, (guided * along).to(guide.grads[0]))
        guide.add_noise(((1 - guided) * across / d).reshape(1))
        guide.to_weight_units()
        return Estimate(
            loss=loss,
            beta=guided,
            noise_share=1 - guided,
            agreement=guide.agreement(along, beta=1.0),
            zero_probes=(slopes == 0).float().mean(),
            guide_norm=guide.norm,
        )

    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        return 5 * steps, steps

    def state_dict(self) -> dict[str, Any]:
        return self.squared_norm.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.squared_norm.load_state_dict(state)
