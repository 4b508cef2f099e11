"""Learned step size quantization (Esser et al., ICLR 2020; paper.md, section 6)."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from fogzo.checks import flag
from fogzo.errors import UserError
from fogzo.quantizers.base import Quantizer, check_scale
from fogzo.quantizers.grid import Grid, check_bits
from fogzo.smoothing import Uniform


class _Step(torch.autograd.Function):
    """Keep the step above a floor and scale its gradient; the floor lets gradients through, so a step can recover."""

    @staticmethod
    def forward(ctx: Any, step: Tensor, floor: Tensor, gradient_scale: float) -> Tensor:
        ctx.gradient_scale = gradient_scale
        return torch.maximum(step, floor)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return grad_outputs[0] * ctx.gradient_scale, None, None


class LSQ(Quantizer):
    """w_q = s clip(round(w/s), -Qn, Qp) with Qn = 2^(b-1), Qp = 2^(b-1) - 1 and a learned step s for each tensor.

    ``per_channel=True`` learns a step for each output channel (dimension 0); a bias, which has one entry a channel,
    keeps one.

    The gradient of s is LSQ's three-branch formula (-Qn below the range, Qp above it, round(w/s) - w/s inside) times
    1/√(N Qp), N the number of weights that share s, or of features of one example; it follows from s · code(w/s) and
    the clipped identity STE, and is not written out anywhere.

    s starts at 2 mean|w| / √Qp and stays positive: the forward pass uses max(s, 0.001 s_initial).

    ``signed=False`` has Qn = 0, Qp = 2^b - 1: for activations that are never negative, such as those after a ReLU.

    Raises:
        ValueError: if bits is not 2 to 8 (one bit has Qp = 0: use :class:`fogzo.Sign`), or the weights are all zero.
    """

    step: nn.Parameter  # s, shape (), or (channels,): a vector, which weight decay leaves alone
    floor: Tensor

    def __init__(self, bits: int, per_channel: bool = False, *, signed: bool = True) -> None:
        super().__init__()
        self.bits = check_bits(bits, lowest=2, hint=" (for one bit there is fogzo.Sign)")
        self.per_channel = flag(per_channel, "per_channel")
        self.signed = flag(signed, "signed")
        self.grid = Grid.twos_complement(bits) if signed else Grid.unsigned(bits)
        self.smoothing = Uniform(0.5)
        self.of_inputs = False

    def for_inputs(self, channels: int) -> LSQ:
        if self.per_channel:
            raise UserError("per_channel=True is for weights: activations have one step for each layer")
        inputs = copy.deepcopy(self)
        inputs.of_inputs = True
        inputs.fit(torch.ones(()))
        return inputs

    def fit(self, latent: Tensor) -> None:
        by_channel = self.per_channel and latent.dim() > 1
        size = latent.detach().abs()
        step = 2 * (size.flatten(1).mean(1) if by_channel else size.mean()) / math.sqrt(self.grid.hi)
        check_scale(step, why="the initial weights are all zero; leave this tensor out (skip=, biases=False)")
        self.step = nn.Parameter(step)
        self.register_buffer("floor", 1e-3 * step)

    def scale(self, latent: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            count = latent[0].numel() if self.of_inputs or self.step.dim() else latent.numel()
            scale: Tensor = _Step.apply(self.step, self.floor, 1 / math.sqrt(count * self.grid.hi))
        else:
            scale = torch.maximum(self.step, self.floor)
        return scale.view(-1, *[1] * (latent.dim() - 1)) if self.step.dim() else scale

    @property
    def coding(self) -> str:
        return f"{super().coding}, codes {self.grid.lo:g} to {self.grid.hi:g}"

    def encode(self, x: Tensor) -> Tensor:
        return self.grid.round(x)

    def surrogate_derivative(self, x: Tensor) -> Tensor:
        return ((x >= self.grid.lo) & (x <= self.grid.hi)).to(x.dtype)

    def extra_repr(self) -> str:
        codes = f"codes={self.grid.lo:g}..{self.grid.hi:g}"
        return f"bits={self.bits}, {codes}{', per channel' if self.per_channel else ''}"
