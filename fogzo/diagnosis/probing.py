"""Measure slopes on a network: of each tensor's own noise for the reference, and along FOGZO's directions."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fogzo.diagnosis.bias import Measured, Sampled, measured
from fogzo.diagnosis.health import surrogate_and_distance
from fogzo.estimators.base import Closure, check_weights, first_order, loss_of
from fogzo.estimators.perturb import Displacement, Noise
from fogzo.estimators.replay import RandomState, same_world
from fogzo.quantize import QuantizedWeight
from fogzo.quantizers import Sign
from fogzo.seeding import derive_seed
from fogzo.smoothing import Smoothing

VISITS = 4  # to each batch, so that a measurement cut short has seen all of them
Told = Callable[[int, int], None]
Asked = Callable[[Callable[[Closure], Any]], Any]


@dataclass
class Slopes:
    """What was measured: the STE's gradient over all batches, and slopes; directions are drawn again from seeds.

    Attributes:
        guide: g, the STE's gradient of the mean loss of the batches, in grid units, weight by weight.
        batch_squares: ‖g_b‖² of each batch.
        of_tensor: of each pair, which share their noise, the slopes that mirror one tensor's, tensor by tensor.
        of_fogzo: slopes along √β ĝ + √(1-β) z.
        interrupted: whether Ctrl-C came before all was measured.
    """

    weights: list[QuantizedWeight]
    beta: float
    seed: int
    guide: list[Tensor] = field(default_factory=list)
    batch_squares: list[float] = field(default_factory=list)
    of_tensor: list[list[float]] = field(default_factory=list)
    of_fogzo: list[float] = field(default_factory=list)
    interrupted: bool = False

    def noise(self, place: int, number: int, of: str = "reference") -> Tensor:
        """Return z of the weight at ``place`` in pair ``number``."""
        seed = derive_seed("diagnosis", self.seed, place, of)
        (z,) = Noise([self.weights[place]], seed, number).draw(range(1))
        return z.squeeze(0)

    def fogzo_direction(self, place: int, number: int) -> Tensor:
        """Return u of FOGZO's pair ``number``."""
        z = self.noise(place, number, "fogzo").mul_(math.sqrt(1 - self.beta))
        return z.add_(self.guide[place], alpha=math.sqrt(self.beta / self.guide_square))

    @functools.cached_property
    def guide_square(self) -> float:
        """‖g‖²; a guide of zeros counts as 1, so that it stays one."""
        return sum(float(torch.linalg.vector_norm(g)) ** 2 for g in self.guide) or 1.0

    def measured(self, place: int) -> Measured:
        """Return what is known of one tensor."""
        return measured(
            Sampled([pair[place] for pair in self.of_tensor], lambda k: self.noise(place, k).flatten()),
            self.guide[place].flatten(),
            lambda: matched(self.weights[place], self.guide[place]).flatten(),
            Sampled(self.of_fogzo, lambda k: self.fogzo_direction(place, k).flatten()),
        )


def measure(
    weights: Sequence[QuantizedWeight],
    closure_of: Callable[[int], Closure],
    *,
    batches: int,
    probes: int,
    beta: float,
    seed: int = 0,
    told: Told = lambda done, of: None,
) -> Slopes:
    """Return slopes of ``probes`` pairs a batch for each weight, and as many of FOGZO's; the model is left as it was.

    Ctrl-C ends the measurement, and what is known by then is returned.

    Args:
        closure_of: the loss of batch b, with torch's generators seeded for it, so that a batch's loss is a function.
        told: hears of pairs done, and of how many.
    """
    weights = check_weights(weights)
    found = Slopes(weights, beta, seed)
    units = [weight.grid_unit() for weight in weights]
    found.guide = [torch.zeros_like(weight.latent) for weight in weights]
    total = batches * probes
    try:
        told(0, total)
        for b in range(batches):
            with _batch(closure_of, b, weights) as batch:
                _add_gradient(found, units, 1 / batches, batch)
        done = 0
        for visit in range(VISITS):
            for b in range(batches):
                with torch.no_grad(), _batch(closure_of, b, weights) as batch:
                    for _ in range(visit, probes, VISITS):
                        _pair(found, units, batch)
                        told(done := done + 1, total)
    except KeyboardInterrupt:
        found.interrupted = True
    return found


@contextmanager
def _batch(closure_of: Callable[[int], Closure], b: int, weights: Sequence[QuantizedWeight]) -> Iterator[Asked]:
    """Within: what is asked of batch b's loss, each time in the same world."""
    closure = closure_of(b)
    devices = {weight.latent.device for weight in weights}
    with same_world(weights[0].model, RandomState(devices), first_pass_done=True) as world:

        def asked(question: Callable[[Closure], Any]) -> Any:
            world.restore()
            return question(closure)

        yield asked


def _loss(closure: Closure) -> float:
    return float(loss_of(closure, backward=False))


def _add_gradient(found: Slopes, units: Sequence[Tensor], share: float, batch: Asked) -> None:
    """Add one batch's gradient, of which the guide is the mean."""
    square = 0.0
    try:
        batch(lambda closure: first_order(closure, found.weights))
        for weight, unit, mean in zip(found.weights, units, found.guide, strict=True):
            if weight.latent.grad is not None:
                mean.add_(own := weight.latent.grad.mul_(unit), alpha=share)
                square += float(torch.linalg.vector_norm(own)) ** 2
        found.batch_squares.append(square)
    finally:
        found.weights[0].model.zero_grad(set_to_none=True)


def _pair(found: Slopes, units: Sequence[Tensor], batch: Asked) -> None:
    """Measure one more slope of each weight's noise, and one along FOGZO's direction."""
    places, number = range(len(found.weights)), len(found.of_fogzo)
    latents = [weight.latent.detach() for weight in found.weights]
    with Displacement(latents) as displacement:
        displacement.move((found.noise(i, number) for i in places), units)
        above, slopes = batch(_loss), []
        for i in places:
            latents[i].neg_().add_(displacement.kept[i], alpha=2)  # as Displacement.reflect, this one alone
            slopes.append((above - batch(_loss)) / 2)
            torch.addcmul(displacement.kept[i], found.noise(i, number), units[i], out=latents[i])
        displacement.move((found.fogzo_direction(i, number) for i in places), units)
        above = batch(_loss)
        displacement.reflect()
        found.of_tensor.append(slopes)
        found.of_fogzo.append((above - batch(_loss)) / 2)


@functools.cache
def _kernel_table(smoothing: Smoothing, reach: float = 20.0, cells: int = 2**17) -> tuple[Tensor, float]:
    """Return K(y) = ε⁻² ∫_y^∞ t p(t) dt for y from 0 to ``reach`` (theory.md), and the step between the entries."""
    step = reach / cells
    t = (torch.arange(cells, dtype=torch.float64) + 0.5) * step
    pieces = t * smoothing.derivative(t) * step
    tail = torch.cat([pieces.flip(0).cumsum(0).flip(0), torch.zeros(2, dtype=torch.float64)])
    return tail / smoothing.std**2, step


def kernel(smoothing: Smoothing, y: Tensor) -> Tensor:
    """Return K at distance ``y`` (code units) of a unit step."""
    table, step = _kernel_table(smoothing)
    found = torch.empty_like(y)
    for part, into in zip(torch.split(y.flatten(), 2**16), torch.split(found.view(-1), 2**16), strict=True):
        at = (part.abs().double().cpu() / step).clamp_(max=len(table) - 2)
        low = at.long()
        into.copy_(torch.lerp(table[low], table[low + 1], at - low))
    return found


@torch.no_grad()
def matched(weight: QuantizedWeight, guide: Tensor) -> Tensor:
    """Return the STE's gradient as it were with K for the surrogate's derivative; in the latent's basis.

    What then still differs from the reference is no matter of which smoothing is meant: it is the STE's bias.
    """
    quantizer = weight.quantizer
    surrogate, distance = surrogate_and_distance(weight)
    factor = kernel(quantizer.smoothing, distance).mul_(2.0 if isinstance(quantizer, Sign) else 1.0)
    del distance
    factor = factor.div_(surrogate).masked_fill_(surrogate <= 0, 0.0)
    del surrogate
    return quantizer.unrotate(factor.mul_(quantizer.rotate(guide)))
