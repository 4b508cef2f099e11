"""How many codes a pair of probes sees change: the cause of a slope that is zero or chance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fogzo.quantize import QuantizedWeight


@torch.no_grad()
def codes_crossed(weights: Sequence[QuantizedWeight], units: Iterable[Tensor], directions: Iterable[Tensor]) -> Tensor:
    """In how many entries the codes at w + ε·α·u and at w - ε·α·u differ, over all weights; a scalar.

    ``units`` holds ε·α and ``directions`` u, weight by weight, of any shape that broadcasts to the weight's.  Two
    quantizations of the weights and no forward pass; nothing larger than a few copies of one weight.
    """
    crossed = []
    for weight, unit, u in zip(weights, units, directions, strict=True):
        latent = weight.latent.detach()
        above = torch.addcmul(latent, u, unit)
        below = 2 * latent - above  # rounded as in Displacement
        crossed.append((weight.quantizer.codes(above) != weight.quantizer.codes(below)).sum())
    return torch.stack(crossed).sum()
