"""Cosines with a gradient that is only sampled, and intervals that own up to it (docs/diagnosis.md).

The reference of one tensor is R = E[s z], the mean of pairs of probes that mirror this tensor's noise z and share that
of all others: s = (L(z) - L(-z)) / 2 in grid units.  That is n-SPSA's mean for the tensor, hence what FOGZO corrects
toward: the gradient of the loss smoothed with the noise in every other coordinate, and with K in its own (theory.md).

No sum of noisy squares stands here for a square: ‖R‖² is the mean of ⟨s_j z_j, s_k z_k⟩ over all j ≠ k, every two pairs
being independent halves.  What R has along the STE's gradient g is taken out of the slopes first, and put back exactly,
so that the noise of the rest is that of the bias alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

FEWEST = 8  # pairs that an interval is made of
WIDEST = 0.5  # of an interval that is called resolved
NORMAL = 1.96  # two-sided 95 %
DOUBT = 3.0  # deviations by which ‖R‖² has to exceed 0 before an angle is believed
DOUBLINGS = 8  # of the pairs, at which a cosine that is not resolved is looked for
Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Interval:
    """A cosine or ratio with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def resolved(self) -> bool:
        """Whether the measurement says more than that a cosine is a cosine."""
        return self.high - self.low <= WIDEST

    def __str__(self) -> str:
        return f"{self.value:.2f} {self.shown}" if self.resolved else f"not resolved {self.shown}"

    @property
    def shown(self) -> str:
        return f"[{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Moments:
    """⟨v, R⟩ and ‖R‖² as they were estimated, with their covariance (2 x 2), and ‖v‖².

    ``noise_of_noise`` is the part of the variance of ‖R‖² that falls as 1/pairs²; all else falls as 1/pairs.
    """

    dot: float
    square: float
    covariance: Array
    own_square: float
    noise_of_noise: float

    def cosine(self) -> Interval:
        """Return the cosine of v with R: over the ellipse in which ⟨v, R⟩/‖v‖ and ‖R‖² lie, as ‖R‖ ≥ |⟨v, R⟩|/‖v‖."""
        own = math.sqrt(self.own_square)
        if own == 0 or not np.isfinite(self.covariance).all():
            return Interval(0.0, -1.0, 1.0)
        scaled = np.diag([1 / own, 1.0])
        # a square below what it holds is chance, and says no more than the least that is possible
        centre = np.array([self.dot / own, max(self.square, (self.dot / own) ** 2)])
        points = centre[:, None] + _ellipse(scaled @ self.covariance @ scaled)
        along, square = np.column_stack([points, centre])
        every = along / np.sqrt(np.maximum(np.maximum(square, along**2), 1e-300))
        value, low, high = float(every[-1]), float(every.min()), float(every.max())
        if not self._has_length:  # with no gradient there is no angle
            low, high = (low if low > 0 else -1.0), (high if high < 0 else 1.0)
        return Interval(value, low, high)

    @property
    def _has_length(self) -> bool:
        return bool(self.square > DOUBT * math.sqrt(max(self.covariance[1, 1], 0.0)))

    def ratio(self) -> Interval | None:
        """Return ‖v‖/‖R‖, or ``None`` where the interval of ‖R‖² holds 0."""
        reach = NORMAL * math.sqrt(max(self.covariance[1, 1], 0.0))
        if not self.square - reach > 0:
            return None
        norms = (self.square, self.square + reach, self.square - reach)
        return Interval(*(math.sqrt(self.own_square / norm) for norm in norms))

    def factor(self) -> float | None:
        """Return how many times as many pairs would resolve a cosine that is not, if any number in reach would."""
        if self.cosine().resolved:
            return None
        least = self.dot**2 / self.own_square if self.own_square > 0 else 0.0
        square = self.square if self._has_length else least  # what g sees of a length that is not there yet
        for factor in 2.0 ** np.arange(1, DOUBLINGS + 1):
            covariance = self.covariance / factor
            covariance[1, 1] -= min(self.noise_of_noise, self.covariance[1, 1]) * (1 - 1 / factor) / factor
            if replace(self, square=square, covariance=covariance).cosine().resolved:
                return float(factor)
        return None


def _ellipse(covariance: Array) -> Array:
    values, vectors = np.linalg.eigh(covariance)
    angle = np.linspace(0, 2 * np.pi, 721)
    circle: Array = vectors @ (np.sqrt(np.maximum(values, 0))[:, None] * np.array([np.cos(angle), np.sin(angle)]))
    return NORMAL * circle


@dataclass(frozen=True)
class Sampled:
    """A mean vector E[s u]: slopes s, and the directions, drawn again from their number whenever they are asked for."""

    slopes: Sequence[float]
    direction: Callable[[int], Tensor]  # flat, shape (d,)

    def __len__(self) -> int:
        return len(self.slopes)

    def dots(self, *others: Tensor) -> list[Array]:
        """Return ⟨u_k, v⟩ for each v of ``others``, all k."""
        return list(np.array([_dots(self.direction(k), others) for k in range(len(self))]).T)

    def total(self, factors: Array) -> Tensor:
        """Return Σ factors_k u_k."""
        total = torch.zeros_like(self.direction(0))
        for k, factor in enumerate(factors):
            total.add_(self.direction(k), alpha=float(factor))
        return total

    def squares(self) -> Array:
        return np.array([_square(self.direction(k)) for k in range(len(self))])


def _dots(direction: Tensor, others: Sequence[Tensor]) -> list[float]:
    return [float(direction @ other) for other in others]


def _square(direction: Tensor) -> float:
    return float(direction @ direction)  # no name keeps a direction while the next one is drawn


@dataclass(frozen=True)
class Measured:
    """What pairs of probes say about one tensor, or about several together, whose pairs shared their noise.

    Attributes:
        dots: each pair's part in ⟨v, R⟩, for v the STE's gradient g, g with K for its derivative, FOGZO's mean: (3, n).
        reference: each pair's h_k: mean over j ≠ k of ⟨s_j z_j, s_k z_k⟩.
        noise_of_noise: its part in the variance of ‖R‖².
        squares: ‖v‖² of the first two v.
        draw: of each FOGZO draw G: ⟨G, R⟩, mean of ⟨G, other draws⟩, ‖G‖²: (3, m).
    """

    dots: Array
    reference: Array
    noise_of_noise: float
    squares: Array
    draw: Array

    def __add__(self, other: Measured) -> Measured:
        return Measured(*(getattr(self, key.name) + getattr(other, key.name) for key in fields(self)))

    def moments(self) -> tuple[Moments, Moments, Moments, Moments]:
        """Return those of the STE's gradient, of it with K for its derivative, of FOGZO's mean, of one FOGZO draw."""
        ste, matched, mean = (self._covariance(dots) for dots in self.dots)
        dot, square, size = self.draw.mean(1)
        count = self.draw.shape[1]
        if square > 2 * NORMAL * self.draw[1].std(ddof=1) / math.sqrt(count):
            # a draw changes the mean's cosine by its part across the mean
            mean[0, 0] += (self.draw[0] - dot / square * (self.draw[1] - square)).var(ddof=1) / count
        else:  # the mean drowns in its own draws
            mean = np.full((2, 2), np.nan)
        reference, own = float(self.reference.mean()), (*self.squares, max(square, 0.0), size)
        values = zip((*self.dots[:2].mean(1), dot, dot), (ste, matched, mean, mean), own, strict=True)
        first, second, third, fourth = (
            Moments(float(v), reference, covariance, float(square), self.noise_of_noise)
            for v, covariance, square in values
        )
        return first, second, third, fourth

    def _covariance(self, dots: Array) -> Array:
        """Return that of the mean of ``dots`` and ‖R‖², by each pair's influence on them."""
        count = len(dots)
        if count < FEWEST:
            return np.full((2, 2), np.nan)
        covariance: Array = np.cov(np.stack([dots, 2 * self.reference]), ddof=1) / count
        # the jackknife counts the noise of noise twice
        covariance[1, 1] = max(covariance[1, 1] - self.noise_of_noise, covariance[1, 1] / 2)
        return covariance


def measured(pairs: Sampled, guide: Tensor, matched: Callable[[], Tensor], draws: Sampled) -> Measured:
    """Return what is known of one tensor: of g, of g with K for its derivative (``matched``), of FOGZO's ``draws``.

    All vectors are flat, in grid units; at least two pairs and two draws.  Besides ``guide`` no more than three vectors
    of the tensor's size exist at a time.
    """
    n, m = len(pairs), len(draws)
    slopes, drawn = np.array(pairs.slopes), np.array(draws.slopes)
    other = matched()
    squares = np.array([_square(guide), _square(other)])
    p, q = pairs.dots(guide, other)
    del other
    share = float(slopes @ p) / n / squares[0] if squares[0] > 0 else 0.0
    rest = slopes - share * p  # of the slopes, without what g explains: R = share g + E[rest z]
    total, mean_draw = pairs.total(rest), draws.total(drawn / m)
    crossed, along = pairs.dots(total, mean_draw)
    explained = rest * p
    others = (explained.sum() - explained) / (n - 1)
    reference = (rest * crossed - rest**2 * pairs.squares()) / (n - 1)
    with_guide, with_total, with_draws = draws.dots(guide, total, mean_draw)
    sizes = drawn**2 * draws.squares()
    draw = (drawn * (share * with_guide + with_total / n), (drawn * with_draws * m - sizes) / (m - 1), sizes)
    return Measured(
        dots=np.stack([slopes * p, slopes * q, rest * along + share * float(mean_draw @ guide)]),
        reference=reference + share * (explained + others) + share**2 * squares[0],
        noise_of_noise=2 * float(rest @ rest / n) ** 2 * guide.numel() / n**2,
        squares=squares,
        draw=np.stack(draw),
    )
