"""The baseline: the straight-through gradient as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fogzo.checks import whole
from fogzo.estimators.base import Closure, Estimate, Estimator, check_weights, first_order, loss_of
from fogzo.quantize import QuantizedWeight


class StraightThrough(Estimator):
    """Back-propagate through the quantizers' surrogates: one forward and one backward pass.

    Args:
        weights: ``fogzo.quantized_weights(model)``, by which it knows the model whose ``.grad`` must be empty on entry.
            Without them nothing is checked, and it adds to ``.grad`` as ``backward()`` does.

    Raises:
        ValueError: for weights that are none; from ``estimate``, given weights, when ``.grad`` is not empty on entry.
    """

    def __init__(self, weights: Sequence[QuantizedWeight] | None = None) -> None:
        self.weights = None if weights is None else check_weights(weights)

    def estimate(self, closure: Closure, *, step: int) -> Estimate:
        """Fill ``.grad`` by back-propagation."""
        whole(step, "step", lowest=0)  # as of the others, though it has no noise
        if self.weights is not None:
            return Estimate(loss=first_order(closure, self.weights)[0])
        with torch.enable_grad():
            return Estimate(loss=loss_of(closure, backward=True))

    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        return steps, steps
