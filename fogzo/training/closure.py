"""The loss of one step's batch, as estimators ask for it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fogzo.data import Batch
from fogzo.errors import UserError
from fogzo.estimators import FOGZO, evaluations_per_call
from fogzo.estimators.perturb import copies
from fogzo.estimators.replay import tracking_norms
from fogzo.quantize import QuantizedWeight
from fogzo.quantizers import Quantizer
from fogzo.ranks import as_rank_0, largest
from fogzo.seeding import seed_step
from fogzo.training.ledger import autocast
from fogzo.training.signals import StepAbandoned

if TYPE_CHECKING:
    from fogzo.training.trainer import Trainer

MOST_TOGETHER, TIMED = 32, 3  # pairs that auto evaluates together, and how often it times them


class BatchClosure:
    """One step's loss at the current weights, whole or in slices (its micro-batches); it charges the ledger.

    With several ranks it is the loss of this rank's part: gradients are averaged here, losses by the estimator.
    """

    def __init__(self, trainer: Trainer, batch: Batch) -> None:
        self.trainer, self.batch = trainer, batch
        self.slices = trainer.settings.micro_batches
        self.stacked_losses = self._stacked if trainer.compiled is not None else None

    def __call__(self, *, backward: bool) -> Tensor:
        """Return the mean loss of the batch; with ``backward`` fill ``.grad``.

        Raises:
            StepAbandoned: where a stop was asked for, and the step takes too long to be finished first.
        """
        trainer = self.trainer
        if trainer.stop.overdue and trainer.ranks == 1:  # several would have to give up at the same pass
            raise StepAbandoned
        losses = []
        for i, part in enumerate(self._parts()):
            with self._network(backward=backward, last=i == self.slices - 1) as network:
                with autocast(trainer.settings.precision, trainer.device):
                    loss = trainer.task.loss(network, part) / self.slices
                if backward:
                    loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        if trainer.settings.parallel == "probes":  # the estimator sees what it would in one process
            as_rank_0(p.grad for p in trainer.model.parameters() if backward)
            as_rank_0(buffer for norm in tracking_norms(trainer.model) for buffer in norm.buffers())  # in probes: none
        self._charge(forwards=evaluations_per_call(), backwards=int(backward))
        return _total(losses)

    def _stacked(self, weights: Sequence[QuantizedWeight], stacks: Sequence[Tensor]) -> Tensor:
        """Return the loss at each of the stacked weights, by one compiled function: shape (K,)."""
        assert self.trainer.compiled is not None
        losses = []
        for part in self._parts():
            with autocast(self.trainer.settings.precision, self.trainer.device):
                losses.append(self.trainer.compiled.losses(weights, stacks, part) / self.slices)
        self._charge(forwards=evaluations_per_call())
        return _total(losses)

    def slice_loss(self, k: int) -> Tensor:
        """Return the mean loss of micro-batch ``k``; the last one of a round charges the ledger for a whole batch."""
        trainer = self.trainer
        with autocast(trainer.settings.precision, trainer.device):
            loss = trainer.task.loss(trainer.forward, self._parts()[k])
        if k == self.slices - 1:
            self._charge(forwards=1)
        return loss.detach()

    def _parts(self) -> list[Batch]:
        inputs, targets = self.batch
        return list(zip(inputs.chunk(self.slices), targets.chunk(self.slices), strict=True))

    def _charge(self, *, forwards: int, backwards: int = 0) -> None:
        self.trainer.ledger.charge(forwards=forwards, backwards=backwards, examples=self.trainer.settings.batch_size)

    @contextmanager
    def _network(self, *, backward: bool, last: bool) -> Iterator[Callable[..., Any]]:
        """Yield what runs the model: gradients are averaged over ranks once, with the last micro-batch."""
        reduced = self.trainer.reduced
        if reduced is None or not backward:
            yield self.trainer.forward
        else:
            with nullcontext() if last else reduced.no_sync():
                yield reduced


def _total(losses: Sequence[Tensor]) -> Tensor:
    """Return the sum over micro-batches."""
    if len(losses) == 1:
        return losses[0]
    # a probe's difference is of the last bits of fp32: they are not rounded once more (MPS has no fp64)
    exact = torch.float32 if losses[0].device.type == "mps" else torch.float64
    return torch.stack(list(losses)).sum(0, dtype=exact)


def written_buffers(model: nn.Module) -> list[Tensor]:
    """Return what a forward pass may write: quantizers' own buffers stand still."""
    writers = (module for module in model.modules() if not isinstance(module, Quantizer))
    return [buffer for module in writers for buffer in module.buffers(recurse=False)]


@contextmanager
def unless_abandoned(trainer: Trainer) -> Iterator[None]:
    """Within: a step that is given up, by :class:`StepAbandoned`, changes nothing."""
    ledger, estimator, buffers = copy.copy(trainer.ledger), trainer.estimator.state_dict(), copies(trainer.buffers)
    try:
        yield
    except StepAbandoned:
        trainer.ledger.load_state_dict(ledger.state_dict())
        trainer.estimator.load_state_dict(estimator)
        _copy(trainer.buffers, buffers)
        raise


def _copy(tensors: list[Tensor], values: list[Tensor]) -> None:
    if tensors:
        torch._foreach_copy_(tensors, values)


def choose_probes(trainer: Trainer) -> None:
    """Settle ``estimator.probe_batch=auto``: time an estimate both ways, and keep the faster in the estimator's state.

    Both see the same noise and agree to floating-point tolerance.  Nothing else is left of it; rank 0 decides.
    """
    estimator = trainer.estimator
    if not isinstance(estimator, FOGZO) or not estimator.undecided:
        return
    step, times = trainer.settings.steps - 1, {}
    ledger, buffers = trainer.ledger, copies(trainer.buffers)
    trainer.ledger = copy.copy(ledger)
    closure = BatchClosure(trainer, trainer.feed.batch(trainer.step))
    shares_norm = trainer.ranks > 1 and trainer.settings.parallel == "data" and tracking_norms(trainer.model)
    for size in (0,) if shares_norm else (0, min(estimator.samples, MOST_TOGETHER)):
        estimator.probe_batch = size
        with suppress(UserError, torch.OutOfMemoryError):  # a closure that vmap does not take; memory for all of them
            seconds = []
            for _ in range(TIMED):
                seed_step(trainer.settings.seed, step)
                trainer.optimizer.zero_grad(set_to_none=True)
                begun = time.perf_counter()
                estimator.estimate(closure, step=step).loss.item()  # waits for the device
                seconds.append(time.perf_counter() - begun)
            times[size] = min(seconds)
    fastest = min(times, key=lambda size: times[size], default=0)
    estimator.probe_batch, estimator.undecided = largest(fastest if trainer.rank == 0 else 0), False
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.ledger = ledger
    _copy(trainer.buffers, buffers)
