"""What a sceptic compares FOGZO with: each control keeps one part of it and drops the rest.

Two more need no class: β = 1 (``FOGZO(..., beta=1.0)``: the STE's direction with the measured slope) and the STE for
5/3 of the steps (``steps_factor`` in the config).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from fogzo.checks import options_of, whole
from fogzo.estimators.base import Closure, Estimate, Estimator, check_weights, first_order
from fogzo.estimators.beta import Beta, beta_at, check_beta, noise_share
from fogzo.estimators.fogzo import FOGZO
from fogzo.estimators.perturb import Noise
from fogzo.quantize import QuantizedWeight


class NoisyStraightThrough(Estimator):
    """STE plus isotropic noise as large as FOGZO's, with no extra forward pass.

    G = g + √((1-β)/β) ‖g‖ z in grid units: what FOGZO (n = 1, global norm) returns, up to the factor β, when the loss
    has exactly the slope ‖g‖ along ĝ and none elsewhere.  If this does as well as FOGZO, noise was all that it added.

    Args:
        weights, beta, seed: as for :class:`fogzo.FOGZO`; β must be positive.
    """

    def __init__(self, weights: Sequence[QuantizedWeight], *, beta: Beta = 0.999, seed: int = 0) -> None:
        self.weights = check_weights(weights)
        self.beta = check_beta(beta, guided=True)
        self.seed = whole(seed, "seed", lowest=0)

    def estimate(self, closure: Closure, *, step: int) -> Estimate:
        """Fill ``.grad`` by the STE's gradient plus noise."""
        beta = beta_at(self.beta, step, guided=True)
        loss, weights = first_order(closure, self.weights)
        with torch.no_grad():
            g_norm = grid_norm(weights, [weight.latent.grad for weight in weights])
            for weight, z in zip(weights, Noise(weights, self.seed, step).draw(range(1)), strict=True):
                added = math.sqrt((1 - beta) / beta) * g_norm * z.squeeze(0) / weight.grid_unit()
                weight.latent.grad = added if weight.latent.grad is None else weight.latent.grad.add_(added)
        share = noise_share(beta, weights)
        return Estimate(loss=loss, beta=beta, noise_share=share, guide_norm=g_norm)

    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        return steps, steps


class RescaledStraightThrough(Estimator):
    """STE's gradient at the norm of FOGZO's estimate (in grid units): FOGZO's step length without its direction.

    Costs what FOGZO costs, and one more weight-sized buffer.  Arguments as for :class:`fogzo.FOGZO`; β must be
    positive.
    """

    @options_of(FOGZO)
    def __init__(self, weights: Sequence[QuantizedWeight], **options: Any) -> None:
        self.inner = FOGZO(weights, **options)
        check_beta(self.inner.beta, guided=True)
        self.buffers = self.inner.buffers + 1  # the STE's gradient

    def estimate(self, closure: Closure, *, step: int) -> Estimate:
        """Fill ``.grad`` by the STE's gradient at the length of FOGZO's, which is estimated first."""
        weights = self.inner.weights
        beta_at(self.inner.beta, step, guided=True)
        of_ste: list[torch.Tensor | None] = []

        def keeping(*, backward: bool) -> torch.Tensor:
            loss = closure(backward=backward)
            if backward:
                of_ste.extend(None if w.latent.grad is None else w.latent.grad.clone() for w in weights)
            return loss

        estimate = self.inner.estimate(keeping, step=step)
        with torch.no_grad():
            target, norm = (grid_norm(weights, grads) for grads in ([w.latent.grad for w in weights], of_ste))
            factor = torch.where(norm > 0, target / norm, 0.0)
            for weight, grad in zip(weights, of_ste, strict=True):
                weight.latent.grad = None if grad is None else grad.mul_(factor)
        return estimate

    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        return self.inner.passes(steps, first=first)


def grid_norm(weights: Sequence[QuantizedWeight], grads: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Return the norm of ``grads`` in grid units, over all ``weights`` together; 0 where there is none."""
    each = zip(weights, grads, strict=True)
    parts = [torch.linalg.vector_norm(grad * weight.grid_unit()) for weight, grad in each if grad is not None]
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(parts)) if parts else torch.zeros(())
    return norm
