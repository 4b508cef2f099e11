"""The one loop that every run goes through."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fogzo.data import DataOrder, Feed
from fogzo.estimators import Estimate, Estimator
from fogzo.quantize import QuantizedWeight
from fogzo.ranks import barrier, checks_deferred, largest, settle_checks, share, world
from fogzo.runs.folder import RunFolder
from fogzo.seeding import seed_step
from fogzo.training import checkpoint
from fogzo.training.closure import BatchClosure, unless_abandoned, written_buffers
from fogzo.training.compilation import Compiled
from fogzo.training.config import Settings
from fogzo.training.console import Reporter
from fogzo.training.ledger import PEAK, ComputeLedger, autocast
from fogzo.training.resume import surroundings
from fogzo.training.schedules import GridPull, Schedule
from fogzo.training.signals import Interrupted, StepAbandoned, StopRequest
from fogzo.training.tasks import Task
from fogzo.training.watch import CodeWatch, Diary, LossWatch, all_finite, check_metrics, check_weights


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
        self.buffers = written_buffers(model)
        self.rank, self.ranks = world()
        part = share(settings.batch_size, self.rank, self.ranks) if settings.parallel == "data" else None
        self.order = DataOrder(len(task.data.train), settings.batch_size, settings.seed, repeats)
        self.feed = Feed(task.data.train, self.order, settings.seed, part or range(settings.batch_size))
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.step = 0  # finished steps
        self.diary = Diary(LossWatch(settings.spike_factor, settings.stop_on), self.device)
        self.codes, self.pull = CodeWatch(weights), pull
        self.schedule.follow(weights)
        self.best: float | None = None  # of the task's metric
        self.begun_from: dict[str, Any] | None = None  # another run's checkpoint
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
                            row = {"step": self.step, **self.diary.next_row(), **self.codes.row(), **evaluation}
                            self._write(row, self._rate(), self.ledger)
                    self._save_or_leave()
        finally:
            self.feed.close()
            for reporter in self.reporters:
                reporter.close()
        return evaluation or self.evaluate()

    def _finish_step(self) -> bool:
        """Take the next step and note what it saw; ``False`` if it was given up, and nothing has changed."""
        begun, begun_cpu = time.perf_counter(), time.process_time()
        try:
            with unless_abandoned(self):
                estimate = self.train_step(self.step)
        except StepAbandoned:
            return False
        self.step += 1
        self.diary.note(self.step, estimate, self._rate(), self.ledger)
        if any(map(self._due, ("log_every", "evaluate_every"))) or self.diary.overdue:
            self._read()
        self.ledger.seconds += time.perf_counter() - begun
        self.ledger.cpu_seconds += time.process_time() - begun_cpu
        for reporter in self.reporters:
            reporter.step(self.step, self.diary.last_loss)
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
            metrics = self.task.evaluate(self.model, [reporter.evaluating for reporter in self.reporters])
        PEAK.forget(self.device)  # the ledger's is of training
        check_metrics(metrics, self.step)
        value = metrics[self.task.metric]
        if self.best is None or (value > self.best if self.task.higher_is_better else value < self.best):
            self.best = value
            if self.settings.keep_best and self.folder is not None:
                self.folder.keep("best.pt", checkpoint.saved(self.model.state_dict()))
        return metrics

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
        if self.settings.stop_on != "never" or all_finite(self.model, estimate.loss):
            self.optimizer.step()
            if self.pull is not None:
                self.pull(step, self.optimizer.param_groups[0]["lr"])
        else:
            self.estimator.load_state_dict(measured)
        self.schedule.observe(step)
        self.ledger.examples += self.settings.batch_size
        return estimate

    def state_dict(self) -> dict[str, Any]:
        """Return all that a checkpoint keeps.  Seeds are functions of the step, so there are no generators in it."""
        return {
            **surroundings(self),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ledger": self.ledger.state_dict(),
            **self.diary.state_dict(),
            "codes": self.codes.state_dict(),
            "estimator": self.estimator.state_dict(),
            "schedule": self.schedule.state_dict(),
            "best": self.best,
            "begun_from": self.begun_from,
        }

    def save(self) -> None:
        """Write a checkpoint to the run folder, if there is one (rank 0's alone); never one that could not go on.

        Raises:
            Diverged: if a loss or a weight is not finite; the checkpoint before stays.
        """
        self._read()
        check_weights(self.model, self.step)
        self.ledger.note_memory(self.device)
        if self.folder is not None:
            checkpoint.save(self.folder.checkpoint_file, self.state_dict())
            checkpoint.keep_last(self.folder.checkpoint_file, self.step, self.settings.keep_checkpoints)
        barrier()  # a rank that left now would have torchrun end the one that writes

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned; of the model's, see :mod:`fogzo.training.resume`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.ledger.load_state_dict(state["ledger"])
        self.diary.load_state_dict(state)
        self.codes.load_state_dict(state.get("codes"))  # the first checkpoints had none
        for name, part in (("estimator", self.estimator), ("schedule", self.schedule)):
            if (before := state.get(name, {})).keys() == part.state_dict().keys():  # another run may have had another
                part.load_state_dict(before)
        self.step, self.best = state["step"], state["best"]

    def _due(self, interval: str) -> bool:
        every = getattr(self.settings, interval)
        return self.step == self.settings.steps or (every > 0 and self.step % every == 0)

    def _read(self) -> None:
        """Look at what the steps since the last look saw, as if each had been looked at.

        Raises:
            Diverged: where the loss ends the run; what the record keeps of its cost is what that step had come to.
        """
        settle_checks()
        for one, event, stop in self.diary.read():
            if event is not None:
                self._write(event, one.rate, one.ledger)
            if stop is not None:
                self.step, self.ledger = one.step, one.ledger
                raise stop

    def _rate(self) -> float:
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def _write(self, row: dict[str, Any], rate: float, ledger: ComputeLedger) -> None:
        ledger.note_memory(self.device)
        row = {"loss": None, **row, "lr": rate, **ledger.row(), **self.diary.watch.row()}
        if self.folder is not None:
            self.folder.log(row)
        for reporter in self.reporters:
            reporter.row(row)
