"""What a run keeps an eye on: running means for the log, losses that jump or are no numbers, and codes that flip."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fogzo.estimators import Estimate
from fogzo.quantize import QuantizedWeight
from fogzo.ranks import gather, sum_over_ranks, world
from fogzo.runs.schema import keys_of_kind
from fogzo.training.ledger import ComputeLedger

SEEN = keys_of_kind("diagnostic")  # in an estimate
MOST_UNREAD, LONGEST_UNREAD = 1000, 10.0  # steps, and seconds: where rows are farther apart


class Diverged(RuntimeError):
    """The loss is no longer finite, or has jumped where ``stop_on`` forbids it."""


def check_metrics(metrics: Mapping[str, float], step: int) -> None:
    """Refuse metrics that are not finite; raises Diverged."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise Diverged(f"{name} is {value} after step {step}")


def check_weights(model: nn.Module, step: int) -> None:
    """Refuse weights and buffers that are not finite; raises Diverged."""
    floating = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    if not all(bool(tensor.isfinite().all()) for tensor in floating):
        raise Diverged(f"weights are not finite after step {step}")


def all_finite(model: nn.Module, loss: Tensor) -> bool:
    """Return whether ``loss`` and all gradients of ``model`` are finite, on every rank."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    total = torch.stack(torch._foreach_norm(grads)).sum() + loss
    return bool(gather(total).isfinite().all())


class Unread(NamedTuple):
    """What the training step ``step`` (from 1) saw, its learning rate, and what had been spent by then."""

    step: int
    seen: dict[str, float | Tensor | None]
    rate: float
    ledger: ComputeLedger


def numbers(values: Mapping[Any, float | Tensor | None]) -> dict[Any, Any]:
    """Return ``values`` as Python floats, to the last bit; tensors come in one copy, for which the CPU waits once."""
    tensors = {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}
    copied = {}
    if tensors:
        first, *others = tensors.values()
        dtype = reduce(torch.promote_types, (other.dtype for other in others), first.dtype)
        copied = dict(
            zip(tensors, torch.stack([t.to(first.device, dtype) for t in tensors.values()]).tolist(), strict=True)
        )
    return {name: copied.get(name, value) for name, value in values.items()}


@dataclass
class Means:
    """Running means of what is logged; in Python floats, so that a checkpoint keeps them to the last bit."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, **values: float | None) -> None:
        for name, value in values.items():
            if value is not None and math.isfinite(value):
                self.sums[name] = self.sums.get(name, 0.0) + value
                self.counts[name] = self.counts.get(name, 0) + 1

    def row(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.sums.items()}


@dataclass
class LossWatch:
    """Name steps whose loss is not finite, or jumps: above ``factor`` times its running mean (0: no such watch).

    Losses are cross-entropies in nats, so a jump by ``factor`` nats counts too: a language model's loss of 3.5 cannot
    triple, as chance is at 10.8.  What is within 6 running deviations of the mean, or half a nat, is noise of small
    batches or of a loss near 0, and no jump.
    """

    factor: float
    stop_on: str
    smoothed: float = 0.0
    squared: float = 0.0  # running mean of squared deviations from the running mean
    seen: int = 0
    spikes: int = 0
    nonfinite: int = 0

    warm_up, memory, deviations, least = 20, 0.98, 6.0, 0.5

    def event(self, loss: float, step: int) -> tuple[str | None, Diverged | None]:
        """Return ``"spike"``, ``"nonfinite"`` or ``None`` for the loss of ``step`` (from 1), and what ends the run.

        The error is handed back instead of raised, so that the step is logged first.
        """
        if not math.isfinite(loss):
            self.nonfinite += 1
            stop = Diverged(f"the loss is {loss} at step {step}") if self.stop_on != "never" else None
            return "nonfinite", stop
        weight = 1 - self.memory**self.seen  # of what was seen so far
        mean, deviation = (self.smoothed / weight, math.sqrt(self.squared / weight)) if self.seen else (loss, 0.0)
        jump = loss > min(self.factor * mean, mean + self.factor)
        noise = loss <= mean + max(self.deviations * deviation, self.least)
        spiked = self.factor > 0 and self.seen >= self.warm_up and jump and not noise
        self.squared = self.memory * self.squared + (1 - self.memory) * (loss - mean) ** 2
        self.smoothed = self.memory * self.smoothed + (1 - self.memory) * loss
        self.seen += 1
        if not spiked:
            return None, None
        self.spikes += 1
        stop = None
        if self.stop_on == "spike":
            stop = Diverged(
                f"the loss jumped to {loss:.4g} at step {step}, from a mean of {mean:.4g} (spike_factor={self.factor})"
            )
        return "spike", stop

    def row(self) -> dict[str, float]:
        """Return counts for a logged row, where there is anything to count."""
        return {name: count for name, count in (("spikes", self.spikes), ("nonfinite", self.nonfinite)) if count}

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class Diary:
    """What the steps of a run saw: watched, and averaged for the log.

    It stays on the device until it is read, in one copy: to read it step by step would be to wait for the device.
    """

    def __init__(self, watch: LossWatch, device: torch.device) -> None:
        self.watch, self.device = watch, device
        self.since_row, self.whole_run = Means(), Means()
        self.unread: list[Unread] = []
        self.last_read, self.last_loss = -math.inf, math.nan

    def note(self, step: int, estimate: Estimate, rate: float, ledger: ComputeLedger) -> None:
        """Keep what ``step`` saw until :meth:`read`."""
        seen = {name: getattr(estimate, name) for name in SEEN}
        self.unread.append(Unread(step, seen, rate, copy.copy(ledger)))

    @property
    def overdue(self) -> bool:
        """Return whether to read, though no row is due: at first, after many steps, or after seconds of one process."""
        late = time.monotonic() - self.last_read > LONGEST_UNREAD and world()[1] == 1  # clocks of several differ
        return late or self.last_read == -math.inf or len(self.unread) >= MOST_UNREAD

    def read(self) -> Iterator[tuple[Unread, dict[str, Any] | None, Diverged | None]]:
        """Yield each step that was noted, the row of an event in it, and what ends the run there."""
        unread, self.unread, self.last_read = self.unread, [], time.monotonic()
        ranks = world()[1]
        seen = numbers({(i, name): value for i, one in enumerate(unread) for name, value in one.seen.items()})
        losses = sum_over_ranks([seen[i, "loss"] / ranks for i in range(len(unread))], self.device)
        for i, (one, loss) in enumerate(zip(unread, losses, strict=True)):
            event, stop = self.watch.event(loss, one.step)
            finite = loss if math.isfinite(loss) else None
            yield one, {"step": one.step, "event": event, "loss": finite} if event else None, stop
            for means in (self.since_row, self.whole_run):
                means.add(**{name: seen[i, name] for name in SEEN} | {"loss": loss})
            self.last_loss = loss

    def next_row(self) -> dict[str, float]:
        """Return the means since the last row, and begin those of the next."""
        row, self.since_row = self.since_row.row(), Means()
        return row

    def state_dict(self) -> dict[str, Any]:
        means = [(m.sums, m.counts) for m in (self.since_row, self.whole_run)]
        return {"means": means, "watch": self.watch.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.watch.load_state_dict(state["watch"])
        self.since_row, self.whole_run = (Means(dict(sums), dict(counts)) for sums, counts in state["means"])


class CodeWatch:
    """Count the codes that change from one logged row to the next: the steps that the quantized network takes.

    It costs one quantization of ``weights`` a row, no pass over data, and a byte a weight.
    """

    def __init__(self, weights: Sequence[QuantizedWeight]) -> None:
        self.weights = weights
        self.codes: list[Tensor] | None = None  # at the last row, int8; None: not known

    @torch.no_grad()
    def row(self) -> dict[str, float]:
        """Return ``flips``, the codes that changed since the last call, and ``flip_share``, theirs of all codes.

        It is empty at the first call, with which counting begins, and where no weight has codes.
        """
        before, self.codes = self.codes, []
        changed = []
        for place, weight in enumerate(self.weights):
            # codes of 8 bits are -128..127, or half-integers that floor to these
            self.codes.append(weight.quantizer.codes(weight.latent.detach()).floor_().to(torch.int8))
            if before:
                changed.append((self.codes[-1] != before[place]).sum())
        if not changed:
            return {}
        flips = int(torch.stack(changed).sum())
        return {"flips": flips, "flip_share": flips / sum(codes.numel() for codes in self.codes)}

    def state_dict(self) -> list[Tensor] | None:
        return self.codes

    def load_state_dict(self, state: Sequence[Tensor] | None) -> None:
        """Take over ``state``; ``None``, of a checkpoint that has none: the next row counts nothing."""
        self.codes = (
            None if state is None else [c.to(w.latent.device) for c, w in zip(state, self.weights, strict=True)]
        )
