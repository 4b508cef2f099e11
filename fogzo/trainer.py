"""The one loop that every run goes through."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fogzo import checkpoint
from fogzo.compute import ComputeLedger
from fogzo.data import DataOrder
from fogzo.estimators import Estimate, Estimator, evaluations_per_call
from fogzo.estimators.base import check_whole
from fogzo.reporters import Reporter
from fogzo.runs import RunError, RunFolder, identity
from fogzo.seeding import seed_step
from fogzo.signals import Interrupted, StopRequest
from fogzo.tasks import Classification

Batch = tuple[Tensor, Tensor]


class Diverged(RuntimeError):
    """The loss is no longer finite."""


@dataclass(frozen=True)
class Settings:
    """How long to train and how often to look.  Intervals are in steps; 0 means only at the end."""

    steps: int
    batch_size: int
    seed: int
    micro_batches: int = 1
    clip_norm: float = 0.0  # 0: no clipping
    precision: str = "fp32"
    log_every: int = 50
    evaluate_every: int = 0
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batches"):
            check_whole(getattr(self, name), name=name)
        for name in ("log_every", "evaluate_every", "checkpoint_every"):
            check_whole(getattr(self, name), name=name, lowest=0)
        number = isinstance(self.clip_norm, int | float) and not isinstance(self.clip_norm, bool)
        if not number or not 0 <= self.clip_norm < math.inf:
            raise ValueError(
                f"clip_norm={self.clip_norm!r} is not possible: give a positive number, or 0 for no clipping"
            )
        if self.batch_size % self.micro_batches:
            raise ValueError(f"micro_batches={self.micro_batches} does not divide batch_size={self.batch_size}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(
                f"precision={self.precision!r} is not known: choose fp32 or bf16 (autocast; weights stay fp32)"
            )


@dataclass
class Means:
    """Running means of what is logged; in Python floats, so that a checkpoint keeps them to the last bit."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, **values: float | Tensor | None) -> None:
        for name, value in values.items():
            if value is not None and math.isfinite(number := float(value)):
                self.sums[name] = self.sums.get(name, 0.0) + number
                self.counts[name] = self.counts.get(name, 0) + 1

    def row(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.sums.items()}


class Trainer:
    """Trains ``model`` with ``estimator``'s gradients; its state is model, optimizer, ledger, means and one integer."""

    def __init__(
        self,
        *,
        model: nn.Module,
        task: Classification,
        estimator: Estimator,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        ledger: ComputeLedger,
        settings: Settings,
        folder: RunFolder | None = None,
        reporters: Sequence[Reporter] = (),
        compiled: Callable[..., Any] | None = None,
    ) -> None:
        self.model, self.task, self.estimator, self.optimizer = model, task, estimator, optimizer
        self.forward = compiled or model  # the same parameters, through torch.compile if asked
        self.schedule, self.ledger, self.settings, self.folder, self.reporters = (
            schedule,
            ledger,
            settings,
            folder,
            reporters,
        )
        self.device = next(model.parameters()).device
        self.order = DataOrder(len(task.data.train), settings.batch_size, settings.seed)
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.step = 0  # finished steps
        self.since_row, self.whole_run = Means(), Means()

    def fit(self) -> dict[str, float]:
        """Train from ``self.step`` to the end.  Returns the final metrics.

        Raises:
            Interrupted: after SIGTERM or Ctrl-C, with a checkpoint saved.
            Diverged: when the loss is not finite; the last checkpoint stays.
        """
        for reporter in self.reporters:
            reporter.start(self.step, self.settings.steps)
        evaluation: dict[str, float] = {}
        try:
            with StopRequest() as stop:
                while self.step < self.settings.steps:
                    begun = time.perf_counter()
                    loss = self._observe(self.train_step(self.step))
                    self.step += 1
                    self.ledger.seconds += time.perf_counter() - begun
                    for reporter in self.reporters:
                        reporter.step(self.step, loss)
                    evaluation = self.evaluate() if self._due("evaluate_every") else {}
                    if evaluation or self._due("log_every"):
                        self._log(evaluation)
                    if stop.number is not None or (self._due("checkpoint_every") and self.step < self.settings.steps):
                        self.save()
                    if stop.number is not None and self.step < self.settings.steps:
                        raise Interrupted(stop.number, self.step)
        finally:
            for reporter in self.reporters:
                reporter.close()
        return evaluation or self.evaluate()

    def evaluate(self) -> dict[str, float]:
        """The task's metrics at the current weights."""
        metrics = self.task.evaluate(self.model)
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise Diverged(f"{name} is {value} after step {self.step}")
        return metrics

    def train_step(self, step: int) -> Estimate:
        """One step: batch, learning rate, estimate, clip, update."""
        seed_step(self.settings.seed, step)
        batch = self.task.data.train.batch(self.order.batch(step))
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * self.schedule(step)
        self.optimizer.zero_grad(set_to_none=True)
        estimate = self.estimator.estimate(partial(self.closure, batch), step=step)
        if not math.isfinite(loss := float(estimate.loss)):
            raise Diverged(f"the loss is {loss} at step {step + 1}")
        if self.settings.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.ledger.examples += self.settings.batch_size
        return estimate

    def closure(self, batch: Batch, *, backward: bool) -> Tensor:
        """The loss of one batch at the current weights, in micro-batches; charges the ledger for what it does."""
        micro_batches = self.settings.micro_batches
        losses = []
        for part in zip(*(tensor.chunk(micro_batches) for tensor in batch), strict=True):
            with self.autocast():
                loss = self.task.loss(self.forward, part) / micro_batches
            if backward:
                loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        self.ledger.charge(forwards=evaluations_per_call(), backwards=int(backward), examples=self.settings.batch_size)
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 for the network's products; weights and their quantization stay in fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def state_dict(self) -> dict[str, Any]:
        return {
            "run": identity(self.folder.config) if self.folder else "",
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ledger": self.ledger.state_dict(),
            "means": [(m.sums, m.counts) for m in (self.since_row, self.whole_run)],
            "metrics_bytes": self.folder.metrics_size() if self.folder else 0,
        }

    def save(self) -> None:
        """Write a checkpoint to the run folder, if there is one; never one that could not go on.

        Raises:
            Diverged: if a weight is not finite; the checkpoint before stays.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters()):
            raise Diverged(f"weights are not finite after step {self.step}")
        if self.folder is not None:
            checkpoint.save(self.folder.checkpoint_file, self.state_dict())

    def resume(self) -> bool:
        """Go on from the run folder's checkpoint; ``False`` if there is none, and then old metrics are dropped."""
        if self.folder is None:
            return False
        path = self.folder.checkpoint_file
        if not path.exists():
            self.folder.truncate_metrics(0)
            return False
        state = checkpoint.load(path)
        if set(self.state_dict()) - set(state) or state["run"] != identity(self.folder.config):
            raise RunError(
                f"the checkpoint {path} is not this run's: move it away to start this run from the beginning"
            )
        checkpoint.restore_model(self.model, state["model"], path)
        self.optimizer.load_state_dict(state["optimizer"])
        self.ledger.load_state_dict(state["ledger"])
        self.since_row, self.whole_run = (Means(dict(sums), dict(counts)) for sums, counts in state["means"])
        self.step = state["step"]
        self.folder.truncate_metrics(state["metrics_bytes"])
        return True

    def _due(self, interval: str) -> bool:
        every = getattr(self.settings, interval)
        return self.step == self.settings.steps or (every > 0 and self.step % every == 0)

    def _observe(self, estimate: Estimate) -> float:
        seen = {"agreement": estimate.agreement, "zero_probes": estimate.zero_probes, "guide_norm": estimate.guide_norm}
        for means in (self.since_row, self.whole_run):
            means.add(loss=estimate.loss, beta=estimate.beta, **seen)
        return float(estimate.loss)

    def _log(self, evaluation: dict[str, float]) -> None:
        row = {
            "step": self.step,
            **self.since_row.row(),
            "lr": self.optimizer.param_groups[0]["lr"],
            **self.ledger.row(),
            **evaluation,
        }
        if self.folder is not None:
            self.folder.log(row)
        for reporter in self.reporters:
            reporter.row(row)
        self.since_row = Means()
