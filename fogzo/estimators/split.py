"""FOGZO with a direction of its own for each slice of the batch: many directions for the price of one pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fogzo.errors import UserError
from fogzo.estimators.base import Closure, Estimate
from fogzo.estimators.beta import Beta
from fogzo.estimators.guide import Guide, Guided
from fogzo.estimators.perturb import Displacement
from fogzo.estimators.probes import Probes, slopes_of
from fogzo.quantize import QuantizedWeight
from fogzo.ranks import check_same, gather, world


@runtime_checkable
class SlicedClosure(Closure, Protocol):
    """A closure that can also evaluate its batch in equal slices (its micro-batches).

    Attributes:
        slices: how many there are, the same in every step and on every rank.
    """

    slices: int

    def slice_loss(self, k: int) -> Tensor:
        """Return the mean loss of slice ``k`` at the current parameters, a scalar; called under ``no_grad``."""


class Slices:
    """A :class:`SlicedClosure` from the losses of equal micro-batches, for a loop of your own.

    >>> w = torch.nn.Parameter(torch.tensor(3.0))
    >>> closure = Slices([lambda: w * 1.0, lambda: w * 3.0])
    >>> float(closure(backward=True)), float(w.grad)
    (6.0, 2.0)
    """

    def __init__(self, losses: Sequence[Callable[[], Tensor]]) -> None:
        self.losses, self.slices = losses, len(losses)

    def __call__(self, *, backward: bool) -> Tensor:
        losses = []
        for one in self.losses:
            loss = one() / self.slices
            if backward:
                loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def slice_loss(self, k: int) -> Tensor:
        return self.losses[k]().detach()


class SplitFOGZO(Guided):
    """G = 1/K Σ_k slope_k·u_k with slope_k measured on slice k alone: K directions, two forward passes in all.

    The mean of G is FOGZO's.  Where the slices' gradients agree, the directions' noise is down K-fold; where they
    mostly differ (few examples a slice), each slope is that much noisier, and nothing is gained (idea: GRZO, arXiv
    2606.02857).  Slices are the closure's (:class:`SlicedClosure`), on every rank: N ranks with one slice are one
    process with N slices.

    Args:
        weights, beta, seed, epsilon: as for :class:`fogzo.FOGZO`; β must be positive.

    Raises:
        UserError: for arguments outside the above; from ``estimate``, for a closure without slices, for batch norm in
            training mode (a slice has other statistics than the batch), and when ``.grad`` is not empty on entry.
        RanksDiffer: from ``estimate``, if ranks have other weights or guides.
    """

    buffers = 1

    def __init__(
        self, weights: Sequence[QuantizedWeight], *, beta: Beta = 0.999, seed: int = 0, epsilon: float = 1.0
    ) -> None:
        super().__init__(weights, beta=beta, seed=seed, epsilon=epsilon)

    @torch.no_grad()
    def estimate(self, closure: Closure, *, step: int) -> Estimate:
        """Fill ``.grad`` by a pair for each slice of the batch; the loss reported is that of the whole batch."""
        sliced = check_slices(closure, self.weights[0].model)
        beta, loss, guide, probes = self.first_pass(closure, step)
        slopes = self._slopes(sliced, guide, probes, beta)
        guide.combine(slopes, beta)
        return guide.seen(loss, beta, along=slopes.mean(), measured=slopes)

    def _slopes(self, closure: SlicedClosure, guide: Guide, probes: Probes, beta: float) -> Tensor:
        """Return slope_k of the slices of all ranks, in their order: shape (ranks · slices,)."""
        rank, _ = world()
        losses: list[Tensor] = []
        latents = [weight.latent.detach() for weight in guide.weights]
        checksum = torch.stack(torch._foreach_norm([*latents, *guide.grads])).double().sum()
        check_same(gather(checksum), "the weights or the guides of the probes")
        with probes.undisturbed() as shared, Displacement(latents) as displacement:
            for k in range(closure.slices):
                i = rank * closure.slices + k
                displacement.move((u.squeeze(0) for u in guide.directions(range(i, i + 1), beta)), guide.units)
                for side in range(2):
                    if side:
                        displacement.reflect()
                    shared.restore()
                    losses.append(closure.slice_loss(k).detach())
        return gather(slopes_of(torch.stack(losses).view(-1, 2))).flatten()

    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        return 3 * steps, steps


def check_slices(closure: Closure, model: nn.Module) -> SlicedClosure:
    """Return ``closure`` if it has slices and the model takes a slice as it takes the batch.

    Raises:
        UserError: if not, with the way out.
    """
    if not isinstance(closure, SlicedClosure):
        raise UserError(
            f"the closure is a {type(closure).__name__} without slices, but each slice of the batch gets a direction "
            "of its own: pass fogzo.estimators.Slices, or use fogzo.FOGZO"
        )
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in model.modules()):
        raise UserError(
            "the model has batch norm in training mode, whose statistics differ from slice to slice: use fogzo.FOGZO, "
            "or another normalisation"
        )
    return closure
