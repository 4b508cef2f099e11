"""What a sceptic compares FOGZO with: each control keeps one part of it and drops the rest.

Two more need no class: β = 1 (``FOGZO(..., beta=1.0)``: the STE's direction with the measured slope) and the STE for
5/3 of the steps (``steps_factor`` in the config).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from fogzo.estimators.base import Closure, Estimate, Estimator
from fogzo.estimators.fogzo import FOGZO, check_beta, check_gradients_empty, check_weights
from fogzo.estimators.perturb import Noise
from fogzo.quantize import QuantizedWeight


class NoisyStraightThrough(Estimator):
    """STE plus isotropic noise as large as FOGZO's, with no extra forward pass.

    G = g + √((1-β)/β) ‖g‖ z in grid units: what FOGZO (n = 1, global norm) returns, up to the factor β, when the loss
    has exactly the slope ‖g‖ along ĝ and none elsewhere.  If this does as well as FOGZO, noise was all that it added.

    Args:
        weights, beta, seed: as for :class:`fogzo.FOGZO`; β must be positive.
    """

    def __init__(
        self, weights: Sequence[QuantizedWeight], *, beta: float | Callable[[int], float] = 0.999, seed: int = 0
    ) -> None:
        self.weights = check_weights(weights)
        self.beta = beta if callable(beta) else check_positive_beta(beta)
        self.seed = seed

    def estimate(self, closure: Closure, *, step: int = 0) -> Estimate:
        beta = check_positive_beta(self.beta(step)) if callable(self.beta) else self.beta
        check_gradients_empty(self.weights[0].model)
        with torch.enable_grad():
            loss = closure(backward=True)
        with torch.no_grad():
            units = [weight.grid_unit() for weight in self.weights]
            guides = [weight.latent.grad for weight in self.weights]
            norms = [torch.linalg.vector_norm(g * unit) for g, unit in zip(guides, units, strict=True) if g is not None]
            g_norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
            noise = Noise(self.weights, self.seed, step).draw(range(1))
            for weight, unit, z in zip(self.weights, units, noise, strict=True):
                added = math.sqrt((1 - beta) / beta) * g_norm * z.squeeze(0) / unit
                weight.latent.grad = added if weight.latent.grad is None else weight.latent.grad.add_(added)
        return Estimate(loss=loss.detach(), beta=beta, guide_norm=g_norm)


class RescaledStraightThrough(Estimator):
    """STE's gradient at the norm of FOGZO's estimate (in grid units): FOGZO's step length without its direction.

    Costs what FOGZO costs, and one more weight-sized buffer.  ``samples``, ``beta``, ``seed``, ``spread`` and
    ``crossings_every`` as for :class:`fogzo.FOGZO`; β must be positive.
    """

    def __init__(
        self,
        weights: Sequence[QuantizedWeight],
        *,
        samples: int = 1,
        beta: float | Callable[[int], float] = 0.999,
        seed: int = 0,
        spread: bool = False,
        crossings_every: int = 0,
    ) -> None:
        beta = beta if callable(beta) else check_positive_beta(beta)
        self.inner = FOGZO(
            weights, samples=samples, beta=beta, seed=seed, spread=spread, crossings_every=crossings_every
        )

    def estimate(self, closure: Closure, *, step: int = 0) -> Estimate:
        weights = self.inner.weights
        check_positive_beta(self.inner.beta(step) if callable(self.inner.beta) else self.inner.beta)
        kept: list[torch.Tensor] = []

        def keeping(*, backward: bool) -> torch.Tensor:
            loss = closure(backward=backward)
            if backward:
                kept.extend(
                    torch.zeros_like(w.latent) if w.latent.grad is None else w.latent.grad.clone() for w in weights
                )
            return loss

        estimate = self.inner.estimate(keeping, step=step)
        with torch.no_grad():
            target, own = (self._norm(grads) for grads in ([w.latent.grad for w in weights], kept))
            factor = torch.where(own > 0, target / own, 0.0)
            for weight, grad in zip(weights, kept, strict=True):
                weight.latent.grad = grad.mul_(factor)
        return estimate

    def _norm(self, grads: Sequence[torch.Tensor | None]) -> torch.Tensor:
        parts = [
            torch.linalg.vector_norm(grad * weight.grid_unit())
            for weight, grad in zip(self.inner.weights, grads, strict=True)
            if grad is not None
        ]
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(parts))
        return norm


def check_positive_beta(beta: float) -> float:
    """As :func:`check_beta`, and β > 0."""
    if check_beta(beta) == 0:
        raise ValueError("beta=0 has no guide whose size the noise could take: give beta in (0, 1]")
    return float(beta)
