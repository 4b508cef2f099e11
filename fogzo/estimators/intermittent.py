"""FOGZO now and then: probe every k-th step, and believe the last measured agreement in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch

from fogzo.checks import options_of, whole
from fogzo.estimators.base import Closure, Estimate, Estimator, first_order
from fogzo.estimators.beta import beta_at, noise_share
from fogzo.estimators.fogzo import FOGZO
from fogzo.quantize import QuantizedWeight


class IntermittentFOGZO(Estimator):
    """FOGZO in steps 0, k, 2k, ...; in between G = β·agreement·g, with the agreement that was measured last.

    Costs (1 + 2n/(3k)) STE steps.  It can only help where agreement changes slowly: see its autocorrelation in
    docs/log.md (idea: stale finite differences of CoCD, arXiv 2605.14373).

    Args:
        inner: the estimator of the probed steps; ``guide_norm="global"``.
        every: k.

    Its state is one number, the last agreement; until one was measured, it is 1, which is the STE's belief.
    """

    def __init__(self, inner: FOGZO, *, every: int = 10) -> None:
        self.inner, self.every = inner, whole(every, "every")
        self.agreement = torch.ones(())
        self.weights, self.buffers, self.together = inner.weights, inner.buffers, inner.together

    @classmethod
    @options_of(FOGZO)
    def with_fogzo(cls, weights: Sequence[QuantizedWeight], *, every: int = 10, **options: Any) -> Self:
        """Return it around FOGZO with ``options``."""
        return cls(FOGZO(weights, **options), every=every)

    def estimate(self, closure: Closure, *, step: int) -> Estimate:
        """Fill ``.grad`` as FOGZO in every k-th step, else by the STE's gradient times what FOGZO measured last."""
        if whole(step, "step", lowest=0) % self.every == 0:
            estimate = self.inner.estimate(closure, step=step)
            if estimate.agreement is not None:  # nan: a zero guide, along which nothing was measured
                before = self.agreement.to(estimate.agreement)
                self.agreement = torch.where(estimate.agreement.isnan(), before, estimate.agreement)
            return estimate
        beta = beta_at(self.inner.beta, step, guided=True)
        loss, weights = first_order(closure, self.weights)
        with torch.no_grad():
            grads = [weight.latent.grad for weight in weights if weight.latent.grad is not None]
            torch._foreach_mul_(grads, beta * self.agreement.to(grads[0]))
        return Estimate(loss=loss, beta=beta, noise_share=noise_share(beta, weights))

    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        probed = sum(step % self.every == 0 for step in range(first, first + steps))
        forwards, backwards = 0, 0
        for step in range(first, first + steps):
            if step % self.every == 0:
                more = self.inner.passes(1, first=step)
                forwards, backwards = forwards + more[0], backwards + more[1]
        return forwards + steps - probed, backwards + steps - probed

    def state_dict(self) -> dict[str, Any]:
        return {"agreement": self.agreement}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.agreement = state["agreement"]
