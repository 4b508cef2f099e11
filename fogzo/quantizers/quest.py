"""QuEST: Hadamard rotation, Gaussian-optimal grid, trust mask (Panferov et al., ICML 2025; paper.md, section 6)."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from fogzo.quantizers.base import Quantizer, check_scale
from fogzo.quantizers.grid import Grid, check_bits
from fogzo.smoothing import Uniform

# Largest code / RMS that minimises the mean squared error of the half-integer grid on N(0, 1).  1 to 4 and 8 bits are
# QuEST's published constants (8 bits: 1 % below the optimum, 3.9222, kept as published); 5 to 7 are the optimum itself.
# A test recomputes all eight from the integral.
GAUSSIAN_OPTIMAL = {1: 0.79788, 2: 1.49353, 3: 2.05107, 4: 2.51393, 5: 2.91615, 6: 3.27798, 7: 3.61110, 8: 3.88494}
MAX_BLOCK = 128
TIE = 1e-5  # in units of the RMS: what rounding leaves of a sum that is 0 stays below it


def hadamard_block(width: int) -> int:
    """Return the largest power of two, at most 128, that divides ``width`` (192 → 64, 784 → 16, an odd width → 1)."""
    return min(width & -width, MAX_BLOCK)


def hadamard(size: int) -> Tensor:
    """Return the orthonormal Sylvester-Hadamard matrix, symmetric and hence its own inverse; ``size`` a power of two.

    >>> hadamard(4).mul(2).int().tolist()
    [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    """
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / math.sqrt(size)


def rotated(w: Tensor, block: Tensor) -> Tensor:
    """Return ``w`` times the orthogonal ``block`` along its input dimension, in full precision; same shape."""
    # autocast would decide the codes from a bf16 product, which makes the flips of a small probe random
    with nullcontext() if w.is_meta else torch.autocast(w.device.type, enabled=False):
        return torch.matmul(w.reshape(-1, block.shape[0]), block).view(w.shape)


class _Rotation(torch.autograd.Function):
    """Multiply by a symmetric orthogonal block, in full precision both ways, whatever autocast says."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, block: Tensor) -> Tensor:
        ctx.save_for_backward(block)
        return rotated(w, block)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return rotated(grad_outputs[0], *ctx.saved_tensors), None


class QuEST(Quantizer):
    """Codes of H w, H block-diagonal Hadamard over the input dimension, scaled by the RMS of each output row.

    α = 2 c RMS(row) / (2^b - 1), c the Gaussian-optimal constant; codes are half-integers.  α follows the weights, also
    the displaced ones of a probe, and is treated as a constant by the backward pass.

    The trust mask overrides the smoothing's derivative here: gradients pass where |x_q - x| ≤ 1/2 in code units,
    which is |w_q - w| ≤ RMS c / (2^b - 1).  The probes' noise is the identity STE's, drawn in the rotated basis.
    A bias is one row.  RMS is at least 0.001 of the whole tensor's initial RMS.

    A boundary between codes lies at 0, and where one block spans all channels, its first coefficient is their sum: 0
    after a fresh LayerNorm, but for rounding.  A coefficient of the inputs that is 0 in all rows has the code +1/2.

    Raises:
        ValueError: if bits is not 1 to 8, or the weights are all zero.
    """

    block: Tensor
    floor: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = check_bits(bits)
        self.grid = Grid.symmetric(bits)
        self.smoothing = Uniform(0.5)
        self._floor: tuple[Tensor | None, int, float] = (None, 0, 0.0)  # as it was read last

    def for_inputs(self, channels: int) -> QuEST:
        inputs = copy.deepcopy(self)
        inputs.fit(torch.full((1, channels), 1e-5))  # leaves a floor of 1e-8 under the RMS of a token
        inputs.follows_inputs = True
        return inputs

    def same_for_inputs(self) -> tuple[Any, ...]:
        if self._floor[0] is not self.floor or self._floor[1] != self.floor._version:  # else no device is waited for
            self._floor = (self.floor, self.floor._version, float(self.floor))
        return type(self), self.bits, len(self.block), self._floor[2]

    def fit(self, latent: Tensor) -> None:
        width = latent.numel() if latent.dim() == 1 else latent[0].numel()
        # derived from the shape alone, so not part of the saved state
        self.register_buffer("block", hadamard(hadamard_block(width)).to(latent), persistent=False)
        rms = latent.detach().square().mean().sqrt()
        check_scale(rms, why="the initial weights are all zero; leave this tensor out (skip=, biases=False)")
        self.register_buffer("floor", 1e-3 * rms)

    def scale(self, latent: Tensor) -> Tensor:
        latent = latent.detach()
        dims = list(range(1, latent.dim())) or [0]
        rms = latent.square().mean(dim=dims, keepdim=True).sqrt()  # rotation leaves it as it is
        # a row of zeros keeps a step that gradients and probes can be divided by
        return torch.maximum(rms, self.floor).mul(self._step)

    @property
    def _step(self) -> float:  # α in units of the RMS
        return 2 * GAUSSIAN_OPTIMAL[self.bits] / (2.0**self.bits - 1)

    def rotate(self, w: Tensor) -> Tensor:
        result: Tensor = _Rotation.apply(w, self.block) if torch.is_grad_enabled() else rotated(w, self.block)
        return result

    def unrotate(self, w: Tensor) -> Tensor:
        return self.rotate(w)  # a Sylvester-Hadamard matrix is its own inverse

    def encode(self, x: Tensor) -> Tensor:
        codes = self.grid.round(x)
        if self.follows_inputs and x.shape[-1] == len(self.block) and x.shape[0]:
            is_zero = x[:, :1].abs().amax(0) * self._step < TIE  # in all rows alike, hence no chance
            codes[:, :1] = torch.where(is_zero, 0.5, codes[:, :1])
        return codes

    def surrogate_derivative(self, x: Tensor) -> Tensor:
        return ((self.grid.round(x) - x).abs() <= 0.5).to(x.dtype)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"
