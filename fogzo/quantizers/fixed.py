"""b-bit rounding with a fixed scale (paper.md, section 6, "Fixed α")."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fogzo.checks import choice, flag
from fogzo.quantizers.base import FittedScale
from fogzo.quantizers.grid import Grid, check_bits
from fogzo.smoothing import Uniform

GRIDS = {"symmetric": Grid.symmetric, "twos_complement": Grid.twos_complement}


class FixedScale(FittedScale):
    """w_q = α clip(round(w/α)), with the identity STE.

    Args:
        bits: 1 to 8.
        scale: α in weight units; ``None``: ``scale_in_std`` times the standard deviation of the initial weights.
        per_channel: one α for each output channel (dimension 0) instead of one for the tensor.
        scale_in_std: see ``scale``; the paper's α is unknown.  Our default, 1.0, has the least rounding error at 2 bits
            (0.996 is optimal for Gaussian weights); larger values leave latent weights more room to grow.
        grid: ``"symmetric"`` (half-integer codes) or ``"twos_complement"`` (integer codes).
        clip_surrogate: ``True`` passes gradients only where lo ≤ w/α ≤ hi, which is the exact smoothing of a clipped
            round (its surrogate is clip(x, lo, hi)); ``False`` passes them everywhere, the plain identity STE.
            Which of the two the paper used is unknown.

    Raises:
        ValueError: for bits, scale or grid outside the above, and from ``fit`` when the weights are constant.
    """

    def __init__(
        self,
        bits: int,
        scale: float | None = None,
        per_channel: bool = False,
        *,
        scale_in_std: float = 1.0,
        grid: Literal["symmetric", "twos_complement"] = "symmetric",
        clip_surrogate: bool = True,
    ) -> None:
        super().__init__(scale, per_channel, scale_in_std)
        self.bits = check_bits(bits)
        self.grid = GRIDS[choice(grid, "grid", GRIDS)](bits)
        self.clip_surrogate = flag(clip_surrogate, "clip_surrogate")
        self.smoothing = Uniform(0.5)

    @property
    def coding(self) -> str:
        return f"{super().coding}, codes {self.grid.lo:g} to {self.grid.hi:g}"

    def encode(self, x: Tensor) -> Tensor:
        return self.grid.round(x)

    def surrogate_derivative(self, x: Tensor) -> Tensor | None:
        if not self.clip_surrogate:
            return None
        return ((x >= self.grid.lo) & (x <= self.grid.hi)).to(x.dtype)

    def extra_repr(self) -> str:
        codes = f"codes={self.grid.lo:g}..{self.grid.hi:g}"
        return f"{super().extra_repr()}, {codes}, clip_surrogate={self.clip_surrogate}"
