"""The one loop that every run goes through."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fogzo.data import DataOrder, Feed
from fogzo.estimators import Estimate, Estimator
from fogzo.estimators.perturb import copies
from fogzo.quantize import QuantizedWeight
from fogzo.quantizers import Quantizer
from fogzo.ranks import barrier, checks_deferred, gather, largest, settle_checks, share, sum_over_ranks, world
from fogzo.runs.folder import RunFolder
from fogzo.runs.identity import identity
from fogzo.runs.schema import keys_of_kind
from fogzo.seeding import seed_step
from fogzo.training import checkpoint
from fogzo.training.closure import BatchClosure
from fogzo.training.compilation import Compiled
from fogzo.training.config import Settings
from fogzo.training.ledger import PEAK, ComputeLedger, autocast
from fogzo.training.reporters import Reporter
from fogzo.training.schedules import Schedule
from fogzo.training.signals import Interrupted, StepAbandoned, StopRequest
from fogzo.training.steering import GridPull
from fogzo.training.tasks import Task
from fogzo.training.watch import CodeWatch, Diverged, LossWatch, Means, Unread, numbers

SEEN = keys_of_kind("diagnostic")  # in an estimate
MOST_UNREAD, LONGEST_UNREAD = 1000, 10.0  # steps, and seconds: where rows are farther apart


class Trainer:
    """Trains ``model`` with ``estimator``'s gradients; its state is model, optimizer, ledger, means and one integer.

    Args:
        weights: the model's quantized weights, whose codes are watched.
        pull: draws latent weights toward their codes after each step, if asked for.
        compiled: the same model through ``torch.compile``, if asked for.
        reduced: the same model through ``DistributedDataParallel``, where several ranks share the batch: it averages
            the gradients of backward passes.
        repeats: see :class:`fogzo.data.DataOrder`.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        task: Task,
        estimator: Estimator,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        ledger: ComputeLedger,
        settings: Settings,
        weights: Sequence[QuantizedWeight] = (),
        pull: GridPull | None = None,
        folder: RunFolder | None = None,
        reporters: Sequence[Reporter] = (),
        compiled: Compiled | None = None,
        reduced: nn.parallel.DistributedDataParallel | None = None,
        repeats: int = 1,
    ) -> None:
        self.model, self.task, self.estimator, self.optimizer = model, task, estimator, optimizer
        self.compiled, self.reduced = compiled, reduced
        self.forward: Callable[..., Any] = model if compiled is None else compiled
        self.schedule, self.ledger, self.settings = schedule, ledger, settings
        self.folder, self.reporters = folder, reporters
        self.device = next(model.parameters()).device
        # what a forward pass may write: quantizers' own stand still
        writers = (module for module in model.modules() if not isinstance(module, Quantizer))
        self.buffers = [buffer for module in writers for buffer in module.buffers(recurse=False)]
        self.rank, self.ranks = world()
        part = share(settings.batch_size, self.rank, self.ranks) if settings.parallel == "data" else None
        self.order = DataOrder(len(task.data.train), settings.batch_size, settings.seed, repeats)
        self.feed = Feed(task.data.train, self.order, settings.seed, part or range(settings.batch_size))
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.step = 0  # finished steps
        self.since_row, self.whole_run = Means(), Means()
        self.unread: list[Unread] = []  # what steps saw, still on the device: to read it there would be to wait for it
        self.last_read, self.last_loss = -math.inf, math.nan
        self.watch = LossWatch(settings.spike_factor, settings.stop_on)
        self.codes, self.pull = CodeWatch(weights), pull
        self.schedule.follow(weights)
        self.best: float | None = None  # of the task's metric
        self.begun_from: dict[str, Any] | None = None  # another run's checkpoint, see fogzo.training.resume
        self.stop = StopRequest()
        self.notes: list[str] = []  # what a run has to say of its start

    def fit(self) -> dict[str, float]:
        """Train from ``self.step`` to the end, and return the final metrics.

        Raises:
            Interrupted: after a stop signal, with a checkpoint saved.
            Diverged: when the loss is not finite, no later than at the next row; the last checkpoint stays.
        """
        for reporter in self.reporters:
            reporter.start(self.step, self.settings.steps)
        PEAK.forget(self.device)  # what building took is not training's
        if self.step == 0:
            self.codes.row()
        evaluation: dict[str, float] = {}
        try:
            with StopRequest() as self.stop, checks_deferred():
                while self.step < self.settings.steps:
                    if self._finish_step():
                        evaluation = self.evaluate() if self._due("evaluate_every") else {}
                        if evaluation or self._due("log_every"):
                            self._log(evaluation)
                    self._save_or_leave()
        finally:
            self.feed.close()
            for reporter in self.reporters:
                reporter.close()
        return evaluation or self.evaluate()

    def _finish_step(self) -> bool:
        """Take the next step and note what it saw; ``False`` if it was given up, and nothing has changed."""
        begun, begun_cpu = time.perf_counter(), time.process_time()
        ledger, estimator = copy.copy(self.ledger), self.estimator.state_dict()
        buffers = copies(self.buffers)
        try:
            estimate = self.train_step(self.step)
        except StepAbandoned:
            self.ledger.load_state_dict(ledger.state_dict())
            self.estimator.load_state_dict(estimator)
            if buffers:
                torch._foreach_copy_(self.buffers, buffers)
            return False
        self.step += 1
        seen = {name: getattr(estimate, name) for name in SEEN}
        self.unread.append(Unread(self.step, seen, self._rate(), copy.copy(self.ledger)))
        late = time.monotonic() - self.last_read > LONGEST_UNREAD
        first = self.last_read == -math.inf
        due = any(map(self._due, ("log_every", "evaluate_every"))) or len(self.unread) >= MOST_UNREAD
        if due or first or (late and self.ranks == 1):  # clocks of several differ
            self._read()
        self.ledger.seconds += time.perf_counter() - begun
        self.ledger.cpu_seconds += time.process_time() - begun_cpu
        for reporter in self.reporters:
            reporter.step(self.step, self.last_loss)
        return True

    def _save_or_leave(self) -> None:
        """Save where a checkpoint is due or a stop was asked for; after that, leave.

        Raises:
            Interrupted: if a stop was asked for.
        """
        asked = largest(self.stop.number or 0)
        if asked or (self._due("checkpoint_every") and self.step < self.settings.steps):
            self.save()
        if asked and self.step < self.settings.steps and not self.stop.pass_on(asked):
            raise Interrupted(asked, self.step)

    def evaluate(self) -> dict[str, float]:
        """Return the task's metrics at the current weights; the best weights so far are kept if the settings say so."""
        self.ledger.note_memory(self.device)
        with autocast(self.settings.precision, self.device):
            metrics = self.task.evaluate(self.model, self._evaluating)
        PEAK.forget(self.device)  # the ledger's is of training
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise Diverged(f"{name} is {value} after step {self.step}")
        value = metrics[self.task.metric]
        if self.best is None or (value > self.best if self.task.higher_is_better else value < self.best):
            self.best = value
            if self.settings.keep_best and self.folder is not None:
                self.folder.keep("best.pt", checkpoint.weights(self.model))
        return metrics

    def _evaluating(self, done: int, batches: int) -> None:
        for reporter in self.reporters:
            reporter.evaluating(done, batches)

    def train_step(self, step: int) -> Estimate:
        """Take one step: batch, learning rate, estimate, clip, update."""
        seed_step(self.settings.seed, step, self.rank if self.settings.parallel == "data" else 0)
        begun = time.perf_counter()
        batch = self.feed.batch(step)
        self.ledger.data_seconds += time.perf_counter() - begun
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * self.schedule(step)
        self.optimizer.zero_grad(set_to_none=True)
        if self.compiled is not None:
            self.compiled.begin_step()
        measured = self.estimator.state_dict()
        estimate = self.estimator.estimate(BatchClosure(self, batch), step=step)
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        # with stop_on=never a step without finite loss and gradients changes nothing, on any rank
        if self.settings.stop_on != "never" or self._finite(estimate):
            self.optimizer.step()
            if self.pull is not None:
                self.pull(step, self.optimizer.param_groups[0]["lr"])
        else:
            self.estimator.load_state_dict(measured)
        self.schedule.observe(step)
        self.ledger.examples += self.settings.batch_size
        return estimate

    def _finite(self, estimate: Estimate) -> bool:
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        total = torch.stack(torch._foreach_norm(grads)).sum() + estimate.loss
        return bool(gather(total).isfinite().all())

    def state_dict(self) -> dict[str, Any]:
        """Return all that a checkpoint keeps.  Seeds are functions of the step, so there are no generators in it."""
        return {
            "run": identity(self.folder.config) if self.folder else "",
            "ranks": self.ranks,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "data": checkpoint.identifying(self.task.data.describe()),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ledger": self.ledger.state_dict(),
            "means": [(m.sums, m.counts) for m in (self.since_row, self.whole_run)],
            "watch": self.watch.state_dict(),
            "codes": self.codes.state_dict(),
            "estimator": self.estimator.state_dict(),
            "schedule": self.schedule.state_dict(),
            "best": self.best,
            "begun_from": self.begun_from,
            "metrics_bytes": self.folder.metrics_size() if self.folder else 0,
        }

    def save(self) -> None:
        """Write a checkpoint to the run folder, if there is one (rank 0's alone); never one that could not go on.

        Raises:
            Diverged: if a loss or a weight is not finite; the checkpoint before stays.
        """
        self._read()
        floating = [tensor for tensor in self.model.state_dict().values() if tensor.is_floating_point()]
        if not all(bool(tensor.isfinite().all()) for tensor in floating):
            raise Diverged(f"weights are not finite after step {self.step}")
        self.ledger.note_memory(self.device)
        if self.folder is not None:
            checkpoint.save(self.folder.checkpoint_file, self.state_dict())
            checkpoint.keep_last(self.folder.checkpoint_file, self.step, self.settings.keep_checkpoints)
        barrier()  # a rank that left now would have torchrun end the one that writes

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned; of the model's, see :mod:`fogzo.training.resume`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.ledger.load_state_dict(state["ledger"])
        self.watch.load_state_dict(state["watch"])
        self.codes.load_state_dict(state.get("codes"))  # the first checkpoints had none
        for name, part in (("estimator", self.estimator), ("schedule", self.schedule)):
            if (before := state.get(name, {})).keys() == part.state_dict().keys():  # another run may have had another
                part.load_state_dict(before)
        self.since_row, self.whole_run = (Means(dict(sums), dict(counts)) for sums, counts in state["means"])
        self.step, self.best = state["step"], state["best"]

    def _due(self, interval: str) -> bool:
        every = getattr(self.settings, interval)
        return self.step == self.settings.steps or (every > 0 and self.step % every == 0)

    def _read(self) -> None:
        """Note what the steps since the last look saw, in one copy from the device, as if each had been looked at.

        Raises:
            Diverged: where the loss ends the run; what the record keeps of its cost is what that step had come to.
        """
        unread, self.unread, self.last_read = self.unread, [], time.monotonic()
        settle_checks()
        seen = numbers({(i, name): value for i, one in enumerate(unread) for name, value in one.seen.items()})
        losses = sum_over_ranks([seen[i, "loss"] / self.ranks for i in range(len(unread))], self.device)
        for i, (one, loss) in enumerate(zip(unread, losses, strict=True)):
            event, stop = self.watch.event(loss, one.step)
            if event is not None:
                row = {"step": one.step, "event": event, "loss": loss if math.isfinite(loss) else None}
                self._write(row, one.rate, one.ledger)
            if stop is not None:
                self.step, self.ledger = one.step, one.ledger
                raise stop
            for means in (self.since_row, self.whole_run):
                means.add(**{name: seen[i, name] for name in SEEN} | {"loss": loss})
            self.last_loss = loss

    def _log(self, evaluation: dict[str, float]) -> None:
        row = {"step": self.step, **self.since_row.row(), **self.codes.row(), **evaluation}
        self._write(row, self._rate(), self.ledger)
        self.since_row = Means()

    def _rate(self) -> float:
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def _write(self, row: dict[str, Any], rate: float, ledger: ComputeLedger) -> None:
        ledger.note_memory(self.device)
        row = {"loss": None, **row, "lr": rate, **ledger.row(), **self.watch.row()}
        if self.folder is not None:
            self.folder.log(row)
        for reporter in self.reporters:
            reporter.row(row)
