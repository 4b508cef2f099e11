"""Open a run folder or a checkpoint, and put together all that is known of the network in it."""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fogzo.checks import share, whole
from fogzo.diagnosis.health import Course, Flips, Point, count_flips
from fogzo.errors import UserError, explained
from fogzo.estimators.base import Closure
from fogzo.estimators.beta import beta_at
from fogzo.seeding import seed_step
from fogzo.training import checkpoint
from fogzo.training.build import build
from fogzo.training.closure import BatchClosure
from fogzo.training.reload import config_of, read_config
from fogzo.training.resume import restore_model
from fogzo.training.trainer import Trainer

WAY_OUT = "name the folder of a run with its model.pt, or a checkpoint in it"
HERE = ("device=auto", "compile=false", "parallel=data", "logger=none", "begin_from=null", "init_from=null")
ALONE = ("cell=null", "setting=null", "phase=confirm")  # an experiment's run is looked into without its experiment
STEPS = 20  # of training that are replayed to see codes flip


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        probes: pairs a batch for each tensor; ``None``: as many as a few minutes hold.
        beta: of FOGZO; ``None``: the run's own.
    """

    batches: int = 8
    probes: int | None = None
    beta: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        whole(self.batches, "batches", lowest=2, hint=": an interval needs two halves of the data")
        if self.probes is not None:
            whole(self.probes, "probes")
        whole(self.seed, "seed", lowest=0)
        if self.beta is not None:
            share(self.beta, "beta")


class Subject:
    """A run's network at one of its states, with the run's data and closure.

    Args:
        place: a run folder (its end, ``model.pt``, or its newest checkpoint), or a file of weights in one.

    Raises:
        UserError: if there are no weights, or those of another network, or none that is quantized.
    """

    def __init__(self, place: Path) -> None:
        if not place.exists():
            raise UserError(f"{place} is not there: {WAY_OUT}")
        self.place, self.folder = place, place if place.is_dir() else place.parent
        kept = checkpoint.existing(self.folder / "checkpoint.pt")
        self.kept = sorted(set(kept) - {self.folder / "checkpoint.pt"})
        files = [file for file in (place / "model.pt", *kept) if file.exists()] if place.is_dir() else [place]
        if not files:
            raise UserError(f"{place} holds no weights, and a record alone has none: {WAY_OUT}, or train it again")
        self.record = read_config(self.folder)
        config = config_of(self.record, (*HERE, *ALONE))
        if config.quantizer.name == "none":
            raise UserError(f"{self.folder} has quantizer=none: without codes there is nothing to diagnose, {WAY_OUT}")
        self.trainer: Trainer = build(config)
        self.open(files[0])

    def open(self, file: Path) -> dict[str, Any]:
        """Go to the weights in ``file`` of the same run, and return all that it holds."""
        if file.name.startswith("checkpoint"):
            state = checkpoint.load(file, WAY_OUT)
        else:
            with explained(file, WAY_OUT, also=(RuntimeError, pickle.UnpicklingError)):
                state = {"model": torch.load(file, map_location="cpu", weights_only=True)}
        if not isinstance(state["model"], dict):
            raise UserError(f"{file} holds no weights: {WAY_OUT}")
        restore_model(self.trainer.model, state["model"], file, WAY_OUT)
        self.file, self.step = file, int(state.get("step", self.trainer.settings.steps))
        return state

    def closure_of(self, b: int) -> Closure:
        """Return the loss of the ``b``-th batch that training would see from here on, with its random numbers."""
        trainer = self.trainer
        batch = trainer.feed.batch(self.step + b)
        seed_step(trainer.settings.seed, self.step + b)
        return BatchClosure(trainer, batch)

    def beta(self) -> float | None:
        """Return the β that the run ends with, or ``None`` if its estimator has none."""
        beta = getattr(self.trainer.estimator, "beta", None)
        return None if beta is None else beta_at(beta, self.trainer.settings.steps - 1)

    def check(self, options: Options) -> None:
        """Refuse more batches than the training split has."""
        size, examples = self.trainer.settings.batch_size, len(self.trainer.task.data.train)
        if options.batches * size > examples:
            raise UserError(
                f"batches={options.batches} of {size} are more than the {examples} training examples: give at most "
                f"{examples // size}"
                + (", which two halves need" if examples // size >= 2 else "; this run has too few for two halves")
            )

    def flips(self) -> Flips | None:
        """Return what the next training steps do to the codes, of a checkpoint; of final weights ``None``.

        The weights are those after these steps then.
        """
        state = self.open(self.file)
        if "optimizer" not in state:
            return None
        trainer, first = self.trainer, self.step
        trainer.load_state_dict(state)
        return count_flips(trainer.codes.weights, lambda i: trainer.train_step(first + i), STEPS)

    def path(self) -> list[Point]:
        """Return where the network stood at each kept checkpoint."""
        shown, course = self.file, Course()
        for file in self.kept:
            self.open(file)
            course.add(self.step, self.trainer.codes.weights)
        self.open(shown)
        return course.points

    def logged(self) -> list[dict[str, float]]:
        """Return the rows of ``metrics.jsonl``, as far as they count flips."""
        file = self.folder / "metrics.jsonl"
        if not file.exists():
            return []
        with explained(file, "remove that line, or the file"):
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        keys = ("step", "loss", "flip_share", "agreement")
        return [{key: row[key] for key in keys if row.get(key) is not None} for row in rows if "flip_share" in row]
