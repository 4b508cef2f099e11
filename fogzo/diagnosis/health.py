"""What codes and scales of a network are like: dead weights, codes in use, distances to boundaries, flips."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fogzo.quantize import QuantizedWeight
from fogzo.quantizers import Quantizer, Sign

DEAD = 0.01  # of the surrogate's largest derivative: tanh's is never 0


@dataclass(frozen=True)
class TensorHealth:
    """One tensor's codes.

    Attributes:
        dead: share of weights that get no gradient through the surrogate.
        codes: share of the weights at each code, lowest first.
        scale: mean α, in weight units.
        scale_in_std: that over the weights' standard deviation.
        distance: median distance to the nearest boundary between codes, in code units.
    """

    name: str
    weights: int
    dead: float
    codes: list[float]
    scale: float
    scale_in_std: float
    distance: float

    @property
    def bins(self) -> str:
        return f"{sum(share > 0 for share in self.codes)}/{len(self.codes)}"


@torch.no_grad()
def surrogate_and_distance(weight: QuantizedWeight) -> tuple[Tensor, Tensor]:
    """Return the surrogate's derivative and the distance to the nearest boundary (code units), where codes are."""
    quantizer = weight.quantizer
    x = quantizer.rotate(weight.latent.detach()) / quantizer.scale(weight.latent)
    derivative = quantizer.surrogate_derivative(x)
    if isinstance(quantizer, Sign):
        distance = x.abs()
    else:
        lowest, highest = (code.item() for code in quantizer.encode(x.new_tensor([-1e9, 1e9])))
        boundary = (x - lowest - 0.5).round_().clamp_(0, highest - lowest - 1).add_(lowest + 0.5)
        distance = boundary.sub_(x).abs_()
    return torch.ones_like(x) if derivative is None else derivative, distance


def dead_weights(quantizer: Quantizer, derivative: Tensor) -> Tensor:
    """Return of which weights the surrogate's ``derivative`` lets no gradient through."""
    peak = 2 * float(quantizer.smoothing.derivative(torch.zeros(1))) if isinstance(quantizer, Sign) else 1.0
    return derivative < DEAD * peak


@torch.no_grad()
def tensor_health(weight: QuantizedWeight) -> TensorHealth:
    """Return what the codes of ``weight`` are like now."""
    quantizer, latent = weight.quantizer, weight.latent.detach()
    count = latent.numel()
    derivative, distance = surrogate_and_distance(weight)
    dead = int(dead_weights(quantizer, derivative).sum()) / count
    del derivative  # a large tensor's parts are as large as it is
    median = float(distance.median())
    del distance
    codes = quantizer.codes(latent)
    lowest, highest = (code.item() for code in quantizer.encode(codes.new_tensor([-1e9, 1e9])))
    step = 2.0 if isinstance(quantizer, Sign) else 1.0
    used = torch.histc(codes, bins=round((highest - lowest) / step) + 1, min=lowest - step / 2, max=highest + step / 2)
    scale = float(quantizer.scale(latent).mean())
    return TensorHealth(
        name=weight.name,
        weights=count,
        dead=dead,
        codes=(used / count).tolist(),
        scale=scale,
        scale_in_std=scale / max(float(latent.std(correction=0)), 1e-30),
        distance=median,
    )


@dataclass(frozen=True)
class Point:
    """Where a network stood at one step: its share of dead weights, and each tensor's mean scale.

    ``revived`` is the share of the weights that were dead at the point before and are no longer.
    """

    step: int
    dead: float
    revived: float
    scales: list[float]


class Course:
    """The points of a training, in the order in which its weights are shown."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.dead: list[Tensor] = []

    def add(self, step: int, weights: Sequence[QuantizedWeight]) -> None:
        """Add where ``weights`` stand now."""
        now = [dead_weights(weight.quantizer, surrogate_and_distance(weight)[0]) for weight in weights]
        total = sum(dead.numel() for dead in now)
        revived = sum(int((was & ~is_now).sum()) for was, is_now in zip(self.dead, now, strict=bool(self.dead)))
        scales = [float(weight.quantizer.scale(weight.latent.detach()).mean()) for weight in weights]
        self.points.append(Point(step, sum(int(dead.sum()) for dead in now) / total, revived / total, scales))
        self.dead = now


@dataclass(frozen=True)
class Flips:
    """What a few training steps did to the codes.

    Attributes:
        shares: of the codes, those that each step changed.
        oscillating: of the weights, those whose code changed and came back within these steps.
    """

    shares: list[float]
    oscillating: float


@torch.no_grad()
def _codes(weights: Sequence[QuantizedWeight]) -> list[Tensor]:
    return [weight.quantizer.codes(weight.latent.detach()).floor_().to(torch.int8) for weight in weights]


def count_flips(weights: Sequence[QuantizedWeight], step: Callable[[int], object], steps: int) -> Flips:
    """Take ``steps`` training steps, ``step(i)`` each, and return what they did to the codes of ``weights``."""
    total = sum(weight.latent.numel() for weight in weights)
    first = _codes(weights)
    before, left = first, [torch.zeros_like(codes, dtype=torch.bool) for codes in first]
    back = copy.deepcopy(left)
    shares = []
    for i in range(steps):
        step(i)
        now = _codes(weights)
        shares.append(sum(int((a != b).sum()) for a, b in zip(before, now, strict=True)) / total)
        for codes, start, was_left, came_back in zip(now, first, left, back, strict=True):
            was_left |= codes != start
            came_back |= was_left & (codes == start)
        before = now
    return Flips(shares, sum(int(came_back.sum()) for came_back in back) / total)
