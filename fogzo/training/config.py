"""The numbers of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fogzo.estimators.base import check_whole
from fogzo.training.watch import STOP_ON

PARALLEL = ("data", "probes")


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
    keep_checkpoints: int = 1
    keep_best: bool = False
    parallel: str = "data"
    spike_factor: float = 3.0
    stop_on: str = "nonfinite"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batches", "keep_checkpoints"):
            check_whole(getattr(self, name), name=name)
        for name in ("log_every", "evaluate_every", "checkpoint_every"):
            check_whole(getattr(self, name), name=name, lowest=0)
        for name, off in (("clip_norm", "no clipping"), ("spike_factor", "no watch")):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 <= value < math.inf:
                raise ValueError(f"{name}={value!r} is not possible: give a positive number, or 0 for {off}")
        if self.batch_size % self.micro_batches:
            raise ValueError(f"micro_batches={self.micro_batches} does not divide batch_size={self.batch_size}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(
                f"precision={self.precision!r} is not known: choose fp32 or bf16 (autocast; weights stay fp32)"
            )
        for name, choices in (("parallel", PARALLEL), ("stop_on", STOP_ON)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} is not known: choose one of {', '.join(choices)}")

    def check_ranks(self, ranks: int) -> None:
        """Refuse a number of ranks that cannot share the batch evenly."""
        if self.parallel == "data" and self.batch_size % (ranks * self.micro_batches):
            raise ValueError(
                f"batch_size={self.batch_size} cannot be shared by {ranks} ranks, micro_batches={self.micro_batches}: "
                f"make it a multiple of {ranks * self.micro_batches}, or start fewer processes"
            )
