"""1-bit weights: the sign, with three surrogates (paper.md, section 2, table "h → surrogate")."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fogzo.checks import choice
from fogzo.quantizers.base import FittedScale
from fogzo.smoothing import Logistic, Smoothing, Triangular, Uniform

SURROGATES: dict[str, Smoothing] = {"tanh": Logistic(), "hardtanh": Uniform(1.0), "approxsign": Triangular()}


class Sign(FittedScale):
    """w_q = α sign(w/α), sign(0) = 1.

    Args:
        surrogate: ``"tanh"``, ``"hardtanh"`` or ``"approxsign"``; it decides the STE and, with it, the probes' noise.
        scale, per_channel, scale_in_std: α, as in :class:`fogzo.FixedScale`.

    Raises:
        ValueError: for an unknown surrogate or a scale that is not positive.
    """

    bits = 1

    def __init__(
        self,
        surrogate: Literal["tanh", "hardtanh", "approxsign"] = "tanh",
        scale: float | None = None,
        per_channel: bool = False,
        *,
        scale_in_std: float = 1.0,
    ) -> None:
        super().__init__(scale, per_channel, scale_in_std)
        self.surrogate = choice(surrogate, "surrogate", SURROGATES)
        self.smoothing = SURROGATES[surrogate]

    def encode(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, torch.where(x < 0, -1.0, x))  # NaN stays NaN

    def surrogate_derivative(self, x: Tensor) -> Tensor:
        return 2 * self.smoothing.derivative(x)  # sign jumps by 2

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, surrogate={self.surrogate}"
