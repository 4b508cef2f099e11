"""The smoothing that a straight-through surrogate implies (paper.md, section 2, "Perturbation scale").

A straight-through estimator replaces a step function ``h`` (round, sign) by a smooth surrogate.  That surrogate
is an expectation over noise,

    h_smooth(x) = E_u[ h(x + ε̄ u) ],        u ~ p̄,  E[u] = 0,  Var[u] = 1,

so the surrogate decides which noise a zeroth-order estimate has to use.  One object holds both halves: its
``derivative`` is what the STE back-propagates, ``from_uniform`` samples the noise of the probes, ``std`` is ε̄.

All quantities are in *code units*: the distance between neighbouring codes of ``round`` is 1, and ``sign`` jumps
from -1 to +1 at 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fogzo.checks import positive


class Smoothing(ABC):
    """Distribution of the noise ε̄u; stateless, so one instance can be shared."""

    std: float  # ε̄, in code units: the standard deviation of the noise ε̄u
    exact = False  # whether from_uniform gives an entry the same bits whatever stands beside it

    @abstractmethod
    def from_uniform(self, c: Tensor) -> Tensor:
        """Map c ~ U(0, 1) to u by the paper's sampler u(c), with mean 0 and variance 1.  May overwrite c."""

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor:
        """Return the derivative at ``x`` (code units) of a smoothed unit step at 0: the density of ε̄u at ``x``."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(std={self.std:.6g})"


class Uniform(Smoothing):
    """u ~ U(-√3, √3).  Half-width 1/2: round → identity.  Half-width 1: sign → hardtanh.

    >>> Uniform(0.5).std == 1 / (2 * math.sqrt(3))
    True
    >>> Uniform(1.0).derivative(torch.tensor([-1.5, 0.0, 0.5]))     # half of hardtanh's: a unit step, not -1 to +1
    tensor([0.0000, 0.5000, 0.5000])
    """

    exact = True  # products and sums, which IEEE 754 rounds in one way; vectorised tanh and log differ from plain ones

    def __init__(self, half_width: float) -> None:
        self.half_width = positive(half_width, "half_width", hint=" (0.5 for round, 1.0 for sign)")
        self.std = half_width / math.sqrt(3)

    def from_uniform(self, c: Tensor) -> Tensor:
        return c.mul_(2 * math.sqrt(3)).sub_(math.sqrt(3))

    def derivative(self, x: Tensor) -> Tensor:
        return (x.abs() <= self.half_width).to(x.dtype) / (2 * self.half_width)


class Rademacher(Smoothing):
    """u is -1 or +1, as often.  At ε̄ = 1/2 n-SPSA's mean is what round → identity weights boundaries by: 1, within 1/2.

    No surrogate implies it: noise for an ablation (``noise="rademacher"``), in which ``derivative`` is that weight.
    """

    std = 0.5
    exact = True

    def from_uniform(self, c: Tensor) -> Tensor:
        return torch.where(c < 0.5, -1.0, 1.0).to(c)

    def derivative(self, x: Tensor) -> Tensor:
        return (x.abs() <= self.std).to(x.dtype)


class Logistic(Smoothing):
    """p̄(u) = ε̄ (1 - tanh²(ε̄u)) / 2 with ε̄ = π/√12: sign → tanh.

    >>> Logistic().derivative(torch.tensor([0.0, 1.0]))     # (1 - tanh²(x)) / 2
    tensor([0.5000, 0.2100])
    """

    std = math.pi / math.sqrt(12)

    def from_uniform(self, c: Tensor) -> Tensor:
        c = c.clamp_(2.0**-25, 1 - 2.0**-24)  # keep atanh's argument off ±1, where u is infinite
        return c.mul_(2).sub_(1).atanh_().div_(self.std)

    def derivative(self, x: Tensor) -> Tensor:
        return (1 - x.tanh().square()) / 2


class Triangular(Smoothing):
    """p̄(u) = tri(u/√6)/√6 with ε̄ = 1/√6: sign → ApproxSign (Bi-Real Net).

    >>> Triangular().derivative(torch.tensor([-2.0, 0.0, 0.5]))     # half of ApproxSign's 2 (1 - |x|)
    tensor([0.0000, 1.0000, 0.5000])
    """

    std = 1 / math.sqrt(6)
    exact = True

    def from_uniform(self, c: Tensor) -> Tensor:
        side = c - 0.5
        tail = torch.minimum(c, 1 - c)  # distance to the nearer end; in place from here, as memory is what takes time
        magnitude = tail.mul_(2).sqrt_().neg_().add_(1)
        return magnitude.copysign_(side).mul_(math.sqrt(6))

    def derivative(self, x: Tensor) -> Tensor:
        return (1 - x.abs()).clamp_min(0)
