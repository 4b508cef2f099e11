"""Evaluate the losses of probes: one at a time in place, or many together with stacked weights.

Both see the same world: the same batch, random numbers and batch-norm statistics (``replay.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fogzo.errors import UserError
from fogzo.estimators.base import Closure, loss_of
from fogzo.estimators.perturb import Displacement, interrupts_deferred, some_at_a_time
from fogzo.estimators.replay import RandomState, World, same_world
from fogzo.estimators.vmap import losses_at, pairs
from fogzo.quantize import QuantizedWeight
from fogzo.ranks import check_same, gather, same_mean, share, world

# u_i of the samples in a range, weight by weight: shape (len(range), *weight.shape)
Directions = Callable[[range], Iterator[Tensor]]

_evaluations_per_call: ContextVar[int] = ContextVar("evaluations_per_call", default=1)


def evaluations_per_call() -> int:
    """Return how many losses the running call of the closure evaluates: more than 1 inside batched probes.

    A closure that counts its forward passes asks this.
    """
    return _evaluations_per_call.get()


@contextmanager
def _evaluations(count: int) -> Iterator[None]:
    token = _evaluations_per_call.set(count)
    try:
        yield
    finally:
        _evaluations_per_call.reset(token)


def chunks(start: int, stop: int, size: int) -> Iterator[range]:
    """Yield ``start`` to ``stop`` - 1 in ranges of at most ``size``."""
    for first in range(start, stop, size):
        yield range(first, min(first + size, stop))


def slopes_of(losses: Tensor) -> Tensor:
    """Return slope_i = (L(w + ε·α·u_i) - L(w - ε·α·u_i)) / 2 in grid units, from losses of shape (n, 2)."""
    return (losses[:, 0] - losses[:, 1]) / 2


def add_weighted(sums: Iterable[Tensor], stacks: Iterable[Tensor], factors: Tensor) -> None:
    """Add Σ_k factors[k]·stack[k] to ``sums``, weight by weight; stacks have shape (K, *weight.shape)."""
    for totals, parts in some_at_a_time(sums, stacks):
        if len(factors) == 1:
            factor = [factors[0].to(total) for total in totals]
            torch._foreach_addcmul_(totals, [part[0] for part in parts], factor)
            continue
        for total, part in zip(totals, parts, strict=True):
            with torch.autocast(total.device.type, enabled=False):  # around a whole step, it would round to bf16
                total.add_(torch.mv(part.flatten(1).mT, factors.to(part)).view_as(total))


@dataclass(frozen=True)
class Probes:
    """Evaluates L(w + ε·α·u_i) and L(w - ε·α·u_i), shape (n, 2), in the world of ``random_state``.

    ``units`` holds ε·α of each weight; ``first_pass_done``: this step's batch has had a forward pass already.

    With several ranks, either each sees a part of the batch, and losses are averaged; or, with ``spread``, all see the
    whole batch, each evaluates some of the pairs, and two scalars a pair are exchanged.
    """

    closure: Closure
    weights: Sequence[QuantizedWeight]
    units: Sequence[Tensor]
    random_state: RandomState
    first_pass_done: bool
    spread: bool = False

    def one_by_one(self, directions: Directions, n: int, *, sides: int = 2) -> Tensor:
        """Evaluate one loss at a time; the weights are moved in place, and put back.

        ``sides=1`` evaluates L(w + ε·α·u_i) alone: shape (n, 1).
        """
        own = self._own(n)
        losses: list[Tensor] = []
        checksum = None
        latents = [weight.latent for weight in self.weights]
        with self.undisturbed() as shared, Displacement(latents) as displacement:
            for i in own:
                displacement.move((u.squeeze(0) for u in directions(range(i, i + 1))), self.units)
                if checksum is None:
                    checksum = self._checksum([weight.latent.detach() for weight in self.weights])
                losses.append(self._loss(shared, len(losses), n, len(own)))
                if sides == 2:
                    displacement.reflect()
                    losses.append(self._loss(shared, len(losses), n, len(own)))
        return self._over_ranks(torch.stack(losses).view(-1, sides), n, checksum)

    def together(self, directions: Directions, n: int, chunk: int, sums: Sequence[Tensor] | None = None) -> Tensor:
        """Return the same losses, ``chunk`` pairs at a time: the closure runs under ``vmap`` over stacked weights.

        Adds Σ_i slope_i·u_i of each weight to ``sums``, while the directions are at hand.
        """
        own = self._own(n)
        losses = []
        checksum = None
        at_hand = world()[1] == 1  # with more ranks, slopes are known only after the exchange
        latents = [weight.latent.detach() for weight in self.weights]
        with self.undisturbed() as shared:
            for part in chunks(own.start, own.stop, chunk):
                us = list(directions(part))
                displaced = [pairs(*each) for each in zip(latents, us, self.units, strict=True)]
                checksum = self._checksum(displaced) if checksum is None else checksum
                done = 2 * (part.start - own.start)
                evaluations = (done + 2 * len(part)) * n // len(own) - done * n // len(own)
                with _evaluations(evaluations):
                    both = self._stacked(shared, displaced).view(-1, 2)
                losses.append(both)
                if at_hand and sums is not None:
                    add_weighted(sums, us, slopes_of(both))
        together = self._over_ranks(torch.cat(losses), n, checksum)
        if not at_hand and sums is not None:
            for part in chunks(0, n, chunk):
                add_weighted(sums, directions(part), slopes_of(together[part.start : part.stop]))
        return together

    def _stacked(self, shared: World, stacks: Sequence[Tensor]) -> Tensor:
        """Return the loss at each of the stacked weights: by the closure's own way, or under ``vmap``."""
        own_way = getattr(self.closure, "stacked_losses", None)
        if own_way is None:
            return losses_at(partial(self._loss, shared), self.weights, stacks)
        shared.restore()
        losses: Tensor = own_way(self.weights, stacks).detach()
        return losses

    def _own(self, n: int) -> range:
        """Return the samples that this rank evaluates: all of them, or its share."""
        rank, ranks = world()
        # at β = 1 there is one pair, which every rank may as well evaluate
        return share(n, rank, ranks) if self.spread and n >= ranks else range(n)

    def _over_ranks(self, losses: Tensor, n: int, checksum: Tensor | None) -> Tensor:
        """Return all losses, shape (n, 2): averaged where ranks share the batch, collected where they share probes."""
        ranks = world()[1]
        if ranks == 1:
            return losses
        if not self.spread:
            return same_mean(losses, checksum)
        total = torch.stack(torch._foreach_norm([weight.latent.detach() for weight in self.weights])).double().sum()
        check_same(gather(total), "the weights that it trains")
        if n < ranks:
            return losses
        padded = losses.new_zeros(-(-n // ranks), 2)
        padded[: len(losses)] = losses
        rows = gather(padded)
        return torch.cat([rows[rank, : len(share(n, rank, ranks))] for rank in range(ranks)])

    def _checksum(self, tensors: Sequence[Tensor]) -> Tensor | None:
        """Return one number that ranks compare: if it is the same, so are (all but surely) weights, guide and noise."""
        if world()[1] == 1 or self.spread:
            return None
        return torch.stack(torch._foreach_norm(list(tensors))).double().sum()

    @contextmanager
    def undisturbed(self) -> Iterator[World]:
        """Yield the world that probes share; within, gradients, statistics, buffers and Ctrl-C leave them alone."""
        model = self.weights[0].model
        if parametrize._cache_enabled:
            raise UserError(
                "parametrize.cached() around an estimate shows all probes the same weights: use it inside the closure, "
                "or not at all"
            )
        with interrupts_deferred():
            with (
                _same_gradients(model),
                same_world(model, self.random_state, first_pass_done=self.first_pass_done) as w,
            ):
                yield w
            if w.buffers.written and not self.first_pass_done:  # the probes left them alone, so somebody has to write
                self.random_state.restore()
                loss_of(self.closure, backward=False)

    def _loss(self, shared: World, done: int = 0, n: int = 1, own: int = 1) -> Tensor:
        """Return the loss here and now; a rank that evaluates some probes charges for its share of all of them."""
        shared.restore()
        with nullcontext() if n == own else _evaluations((done + 1) * n // own - done * n // own):
            return loss_of(self.closure, backward=False)


@contextmanager
def _same_gradients(model: nn.Module) -> Iterator[None]:
    """Within, nobody may write ``.grad``, which holds the guide and the float parameters' gradients."""
    before = [(p, p.grad, -1 if p.grad is None else p.grad._version) for p in model.parameters()]
    yield
    for p, grad, version in before:
        if p.grad is not grad or (grad is not None and grad._version != version):
            raise UserError(
                "the closure changed .grad while losses were measured: call optimizer.zero_grad() before "
                "estimate(...), not inside the closure, and backward() only if it is asked for"
            )


@torch.no_grad()
def codes_crossed(weights: Sequence[QuantizedWeight], units: Iterable[Tensor], directions: Iterable[Tensor]) -> Tensor:
    """Return in how many entries the codes at w + ε·α·u and at w - ε·α·u differ, over all weights; a scalar.

    It tells why a slope is zero or chance.  ``units`` holds ε·α and ``directions`` u, weight by weight, of any shape
    that broadcasts to the weight's.  Two quantizations of the weights and no forward pass; nothing larger than a few
    copies of one weight.
    """
    crossed = []
    for weight, unit, u in zip(weights, units, directions, strict=True):
        latent = weight.latent.detach()
        above = torch.addcmul(latent, u, unit)
        below = 2 * latent - above  # rounded as in Displacement
        crossed.append((weight.quantizer.codes(above) != weight.quantizer.codes(below)).sum())
    return torch.stack(crossed).sum()
