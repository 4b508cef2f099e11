"""Element-wise gradient scaling: each entry of the straight-through gradient by its way to a boundary."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from fogzo.checks import share
from fogzo.estimators.base import Closure, Estimate, Estimator, check_weights, first_order
from fogzo.estimators.beta import OverSteps, held, value_at
from fogzo.quantize import QuantizedWeight

check_delta = partial(share, name="delta")


class EWGS(Estimator):
    """G = g·(1 + δ·sign(g)·(x - r)) in code units: x the latent weight, clipped to the grid, and r its code.

    Where the boundary that -g leads to is more than half a code away the step is lengthened, where it is nearer
    shortened (EWGS, CVPR 2021, arXiv 2104.00903).  In a rotated basis (QuEST) g, x and r are the rotated ones.  One
    forward and one backward pass.  Learned scales keep their own gradient.

    Args:
        weights: as for :class:`fogzo.FOGZO`.
        delta: δ in [0, 1], or a callable of the step; 0 is the STE, bit for bit.  |x - r| is at most 1/2 on a grid, so
            that no entry changes by more than δ/2, and at most 1 for :class:`fogzo.Sign`.  The paper takes δ from the
            Hessian's trace, layer by layer; a constant is our choice.

    Raises:
        UserError: for arguments outside the above; from ``estimate`` when ``.grad`` is not empty on entry.
    """

    def __init__(self, weights: Sequence[QuantizedWeight], *, delta: OverSteps = 0.2) -> None:
        self.weights = check_weights(weights)
        self.delta = held(delta, check_delta)

    @torch.no_grad()
    def estimate(self, closure: Closure, *, step: int) -> Estimate:
        """Fill ``.grad`` by the STE's gradient, entry by entry scaled."""
        delta = value_at(self.delta, step, check_delta)
        loss, weights = first_order(closure, self.weights)
        for weight in weights:
            quantizer, grad = weight.quantizer, weight.latent.grad
            assert grad is not None
            x = quantizer.rotate(weight.latent) / quantizer.scale(weight.latent)
            lowest, highest = (quantizer.encode(x.new_full((1, 1), end)).squeeze() for end in (-1e6, 1e6))
            error = quantizer.encode(x).neg_().add_(x.clamp_(lowest, highest))
            # |g| = sign(g)·g; the rotation is linear, so that g itself stays where it is
            grad.add_(quantizer.unrotate(error.mul_(quantizer.rotate(grad).abs())), alpha=delta)
        return Estimate(loss=loss)

    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        return steps, steps
