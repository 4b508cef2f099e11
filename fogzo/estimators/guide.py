"""The guide: the straight-through gradient over all quantized weights, in grid units, scaled to a length."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from fogzo.quantize import QuantizedWeight

GuideNorm = Literal["global", "rms", "per_tensor"]


def gradient_or_zeros(weight: QuantizedWeight, *, keep: bool = True) -> Tensor:
    """Return the latent's ``.grad``, or zeros in its place where there is none or it is not to be kept."""
    latent = weight.latent
    if latent.grad is None or not keep:
        latent.grad = torch.zeros_like(latent)
    return latent.grad


def normalise(grads: list[Tensor], units: list[Tensor], guide_norm: GuideNorm = "global") -> tuple[Tensor, Tensor]:
    """Turn ∂L/∂w into ĝ, in place.  Return ‖g‖ and ⟨g, ĝ⟩, the slope along ĝ that the STE believes, both of shape ().

    ``units``: ε·α of each weight; ``guide_norm``: as for :class:`fogzo.FOGZO`.
    """
    torch._foreach_mul_(grads, units)
    norms = torch.stack(torch._foreach_norm(grads))
    g_norm = torch.linalg.vector_norm(norms)
    denominators = norms if guide_norm == "per_tensor" else g_norm.expand_as(norms)
    length = math.sqrt(sum(g.numel() for g in grads)) if guide_norm == "rms" else 1.0
    factors = torch.where(denominators > 0, length / denominators, 0.0)  # a zero guide has no direction
    torch._foreach_mul_(grads, list(factors.unbind()))
    return g_norm, (norms.square() * factors).sum()
