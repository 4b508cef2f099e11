"""The baseline: the straight-through gradient as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fogzo.estimators.base import Closure, Estimate, Estimator, check_gradients_empty, check_weights
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
        self.model = None if weights is None else check_weights(weights)[0].model

    def estimate(self, closure: Closure, *, step: int = 0) -> Estimate:
        if self.model is not None:
            check_gradients_empty(self.model)
        with torch.enable_grad():
            loss = closure(backward=True)
        return Estimate(loss=loss.detach())

    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        return steps, steps
