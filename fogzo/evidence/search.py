"""The search of one cell's values: which point comes next, what came of each, which was best.

Every cell has the same number of trials.  Where its space has no more points than that, all of them are tried; else a
tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011; optuna's) chooses, after a random first half.  A
proposal is a function of the trials before it, so a search that was killed goes on as if it had not been.
No torch here.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState, create_trial

from fogzo.errors import UserError
from fogzo.evidence.chosen import Choice
from fogzo.evidence.experiment import Cell
from fogzo.runs.schema import METRICS

REDRAWS = 100  # of the sampler, until it proposes a point that was not tried yet


class _HeldByUs(JournalFileOpenLock):
    """No lock: one process alone writes the journal, and ``fogzo.evidence.tuning`` sees to that."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def open_journal(path: Path) -> JournalStorage:
    """Return the journal of an experiment's tuning, without a last line that a kill has cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        whole = path.read_bytes()
        os.truncate(path, whole.rfind(b"\n") + 1)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=_HeldByUs(str(path))))


class CellSearch:
    """The trials of one cell, kept in ``storage``.

    Args:
        cell: what is searched.
        trials: how many points are tried, or all points of the space if it has fewer.
        metric: minimised, or maximised where higher is better.
        depends_on: what else the trials' outcome depends on; another search starts where it differs.
    """

    def __init__(
        self, cell: Cell, *, trials: int, metric: str, storage: JournalStorage, depends_on: Sequence[str]
    ) -> None:
        self.cell, self.metric = cell, metric
        self.points = cell.points()
        self.trials = min(trials, len(self.points))
        self.sign = -1 if METRICS[metric].higher_is_better else 1  # optuna is told what it minimises
        self.space: dict[str, BaseDistribution] = {
            key: IntDistribution(0, len(values) - 1) for key, values in cell.search.items()
        }
        searched = {key: list(values) for key, values in cell.search.items()}
        identity = _digest([cell.overrides, searched, trials, metric, list(depends_on)])[:8]
        self.name = f"{cell.name}-{identity}"
        self.study = optuna.create_study(storage=storage, study_name=self.name, load_if_exists=True)

    def next_trial(self) -> tuple[int, dict[str, Any]] | None:
        """Return number and point of a trial that was begun and not ended, or of a new one; ``None``: all are done."""
        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == TrialState.RUNNING:  # whoever had it is gone
                return trial.number, self._point(trial)
        if len(trials) >= self.trials:
            return None
        indices = self._propose(trials)
        self.study.add_trial(create_trial(params=indices, distributions=self.space, state=TrialState.RUNNING))
        return len(trials), self._point(self.study.get_trials(deepcopy=False)[-1])

    def tell(self, number: int, summary: Mapping[str, Any] | None) -> float:
        """Keep the outcome of a trial, and return its metric, infinitely bad for a run that diverged.

        Args:
            summary: ``None``, or with a metric that is not finite, if the run diverged.
        """
        value = None if summary is None else summary.get(self.metric)
        if summary is not None and self.metric not in summary:
            raise UserError(f"tuning.metric={self.metric} is not in the summary of {self.cell.name}'s runs")
        loss = math.inf if value is None or not math.isfinite(value) else self.sign * value
        self.study.tell(number, loss)
        return self.sign * loss

    def outcome(self) -> Choice | None:
        """Return what is chosen for the cell; ``None`` if all its runs have diverged.

        Where points are equally good, the first in the order of the grid counts.
        """
        tried = [(trial.value, self._point(trial)) for trial in self.study.get_trials(deepcopy=False)]
        order = {json.dumps(point): place for place, point in enumerate(self.points)}
        tried.sort(key=lambda pair: order[json.dumps(pair[1])])
        loss, best = min(tried, key=lambda pair: math.inf if pair[0] is None else pair[0])
        if loss is None or loss == math.inf:
            return None
        edges = [
            key for key, values in self.cell.search.items() if len(values) > 1 and best[key] in (values[0], values[-1])
        ]
        record = [{"values": point, self.metric: self.sign * value} for value, point in tried if value is not None]
        return Choice(dict(best), edges, len(tried), record)

    def finished(self) -> int:
        """Return how many trials are over."""
        return sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))

    def _propose(self, trials: Sequence[FrozenTrial]) -> dict[str, int]:
        if self.trials == len(self.points):  # all of them, in order
            return self._indices(self.points[len(trials)])
        seen = {json.dumps(trial.params, sort_keys=True) for trial in trials}
        history = optuna.create_study()  # in memory: what is proposed again and not taken leaves no trace
        history.add_trials(trials)
        for draw in range(REDRAWS):
            seed = int(_digest([self.name, len(trials), draw])[:8], 16)
            history.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=(self.trials + 1) // 2)
            trial = history.ask(self.space)
            history.tell(trial, state=TrialState.FAIL)  # the sampler counts finished trials only
            if json.dumps(trial.params, sort_keys=True) not in seen:
                return dict(trial.params)
        return next(
            indices for indices in map(self._indices, self.points) if json.dumps(indices, sort_keys=True) not in seen
        )

    def _indices(self, point: Mapping[str, Any]) -> dict[str, int]:
        return {key: list(self.cell.search[key]).index(value) for key, value in point.items()}

    def _point(self, trial: FrozenTrial) -> dict[str, Any]:
        return {key: values[trial.params[key]] for key, values in self.cell.search.items()}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
