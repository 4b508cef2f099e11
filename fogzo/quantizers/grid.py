"""The b-bit grids on which codes lie, in code units (neighbouring codes are 1 apart)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fogzo.checks import whole

MAX_BITS = 8


def check_bits(bits: int, *, lowest: int = 1, hint: str = "") -> int:
    """Return ``bits`` if it is a whole number from ``lowest`` to 8."""
    return whole(bits, "bits", lowest=lowest, highest=MAX_BITS, hint=hint)


@dataclass(frozen=True)
class Grid:
    """Codes lo, lo+1, ..., hi.

    ``symmetric``: half-integers, ±1/2, ±3/2, ..., as many codes on either side of 0 (2 bits: -1.5 -0.5 0.5 1.5).
    ``twos_complement``: integers, one more below 0 than above it (2 bits: -2 -1 0 1), as in LSQ.
    ``unsigned``: integers from 0 (2 bits: 0 1 2 3), for activations after a ReLU.

    >>> import torch
    >>> Grid.symmetric(2).round(torch.tensor([-9.0, -0.2, 0.0, 1.1]))
    tensor([-1.5000, -0.5000,  0.5000,  1.5000])
    >>> Grid.twos_complement(2).round(torch.tensor([-9.0, -0.2, 0.6, 1.7]))
    tensor([-2., -0.,  1.,  1.])
    """

    lo: float
    hi: float

    @classmethod
    def symmetric(cls, bits: int) -> Grid:
        half = (2**bits - 1) / 2
        return cls(-half, half)

    @classmethod
    def twos_complement(cls, bits: int) -> Grid:
        return cls(float(-(2 ** (bits - 1))), float(2 ** (bits - 1) - 1))

    @classmethod
    def unsigned(cls, bits: int) -> Grid:
        return cls(0.0, float(2**bits - 1))

    @property
    def offset(self) -> float:
        """Return the distance of the codes from the integers: 0 or 1/2."""
        return self.hi % 1

    def round(self, x: Tensor) -> Tensor:
        """Return the nearest code of each entry, those out of range clipped (ties: to even, or up on half-integers)."""
        x = x.clamp(self.lo, self.hi)  # a copy, so the rest can be done in place
        return x.floor_().add_(self.offset) if self.offset else x.round_()
