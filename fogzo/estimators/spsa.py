"""n-SPSA: FOGZO without a guide."""

from __future__ import annotations

from collections.abc import Sequence

from fogzo.estimators.fogzo import FOGZO
from fogzo.quantize import QuantizedWeight


class NSPSA(FOGZO):
    """The β = 0 member of the family: 2n forward passes a step, u_i = z_i.

    A backward pass runs only if the model has trainable parameters that are not quantized (norms, float biases, learned
    step sizes), which keep their first-order gradient.  Arguments as for :class:`fogzo.FOGZO`.
    """

    def __init__(
        self,
        weights: Sequence[QuantizedWeight],
        *,
        samples: int = 1,
        seed: int = 0,
        epsilon: float = 1.0,
        probe_batch: int = 0,
        spread: bool = False,
        crossings_every: int = 0,
    ) -> None:
        options = {"epsilon": epsilon, "probe_batch": probe_batch, "spread": spread}
        options["crossings_every"] = crossings_every
        super().__init__(weights, samples=samples, beta=0.0, seed=seed, **options)  # type: ignore[arg-type]
