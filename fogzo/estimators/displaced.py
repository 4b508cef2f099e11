"""The straight-through gradient where noise has moved the weights, at no extra pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from fogzo.checks import number, whole
from fogzo.estimators.base import Closure, Estimate, Estimator, check_gradients_empty, check_weights, first_order
from fogzo.estimators.beta import OverSteps, held, value_at
from fogzo.estimators.perturb import Displacement, Noise, interrupts_deferred
from fogzo.quantize import QuantizedWeight

check_sigma = partial(number, name="sigma", lowest=0)


class DisplacedStraightThrough(Estimator):
    """STE at displaced weights: G = ∂L/∂w at w + σ·ε̄·α·z, applied to w; one forward and one backward pass.

    With σ = 1 the noise is the one that the surrogate stands for.  For a loss that is quadratic in the codes, the mean
    of G is then the gradient of the smooth network's loss wherever the surrogate's derivative is constant over the
    reach of the noise (an identity that does not clip); the plain STE's is biased there.  Elsewhere the mean is another
    one: the derivative is taken at the moved weight, so that a weight outside a clip gets a gradient as often as noise
    carries it back inside (docs/theory.md, "Displaced STE").  σ = 0 is the plain STE, bit for bit.  Proposed for
    language models as part of WinQ (arXiv 2605.17471).

    Args:
        weights, seed: as for :class:`fogzo.FOGZO`.
        sigma: σ, at least 0, in units of the smoothing's own width; or a callable of the step.

    The loss that it reports is that at the displaced weights.  Batch-norm statistics are those of that pass.

    Raises:
        UserError: for arguments outside the above; from ``estimate`` when ``.grad`` is not empty on entry.
    """

    buffers = 1

    def __init__(self, weights: Sequence[QuantizedWeight], *, sigma: OverSteps = 1.0, seed: int = 0) -> None:
        self.weights = check_weights(weights)
        self.sigma = held(sigma, check_sigma)
        self.seed = whole(seed, "seed", lowest=0)

    def estimate(self, closure: Closure, *, step: int) -> Estimate:
        """Fill ``.grad`` at weights that noise has moved, and put them back; the loss reported is the one there."""
        sigma = value_at(self.sigma, step, check_sigma)
        check_gradients_empty(self.weights[0].model)
        if sigma == 0:
            return Estimate(loss=first_order(closure, self.weights)[0])
        units = [weight.grid_unit() * sigma for weight in self.weights]
        noise = (z.squeeze(0) for z in Noise(self.weights, self.seed, step).draw(range(1)))
        with interrupts_deferred(), Displacement([weight.latent for weight in self.weights]) as displacement:
            with torch.no_grad():
                displacement.move(noise, units)
            return Estimate(loss=first_order(closure, self.weights)[0])

    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        return steps, steps
