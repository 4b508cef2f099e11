"""The search of one cell's values: which point comes next, what came of each, which was best.

Every cell has the same number of trials.  Where its space has no more points than that, all of them are tried.  Else,
with a start (the STE's tuned learning rate, say), all points that agree with it come first, every value of the method's
own knob: so few trials, spread over two keys at random, can miss the point at which a method *is* the one that it
starts from.  From the best of them a line search along the rate brackets the minimum, in steps that double, and closes
the bracket (Press et al., Numerical Recipes, section 10.1); then the neighbours of the best point follow.  Where the
loss has more than one minimum along the rate, the search can begin at each of them; a bracket would span them, so that
the neighbours follow at once.  Without a start a tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011;
optuna's) chooses, after a random first half.  A proposal is a function of the trials before it, whose runs are found
finished: a search that was killed goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from fogzo.errors import UserError
from fogzo.evidence.chosen import Choice, other_starts, places_tried
from fogzo.evidence.experiment import Cell
from fogzo.runs.schema import METRICS

# where a key's range ends, and no grid goes on, so that a best value there lies on no edge: mostly the STE itself, as
# β = 1 is without noise, σ = 0 without displacement
ENDS = {
    "estimator.beta_min": (1.0,),
    "estimator.sigma": (0.0,),
    "estimator.trust": (0.0, 1.0),
    "estimator.delta": (0.0, 1.0),
}
REDRAWS = 100  # of the sampler, until it proposes a point that was not tried yet
Point = dict[str, Any]


class CellSearch:
    """The trials of one cell.

    Args:
        cell: what is searched.
        trials: how many points are tried, or all points of the space if it has fewer.
        metric: minimised, or maximised where higher is better.
        depends_on: what else the trials' outcome depends on; another search is made where it differs.
        start: values of some of the cell's keys, each one that the cell searches; ``None``: it begins at random, or
            tries all points.
        start_also: other values of those keys, at which it begins too.
    """

    def __init__(
        self,
        cell: Cell,
        *,
        trials: int,
        metric: str,
        depends_on: Sequence[str],
        start: Point | None = None,
        start_also: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        self.cell, self.metric = cell, metric
        self.start, self.others = start, other_starts(start or {}, start_also or {})
        self.points = cell.points()
        self.trials = min(trials, len(self.points))
        self.sign = -1 if METRICS[metric].higher_is_better else 1  # what is minimised is its product with the metric
        self.losses: dict[int, float] = {}  # by the point's number, in the order of the trials
        searched = {key: list(values) for key, values in cell.search.items()}
        identity = _digest([cell.overrides, searched, trials, metric, list(depends_on)])[:8]
        self.name = f"{cell.name}-{identity}"

    def next_point(self) -> Point | None:
        """Return the point to try after those that were told; ``None``: all trials are done."""
        return self.points[self._propose()] if len(self.losses) < self.trials else None

    def tell(self, point: Point, *summaries: Mapping[str, Any] | None) -> float:
        """Keep the outcome of a trial, and return its mean metric, infinitely bad where a run diverged.

        Args:
            summaries: one for each tuning seed: ``None``, or with a metric that is not finite, if the run diverged.
        """
        if any(summary is not None and self.metric not in summary for summary in summaries):
            raise UserError(f"tuning.metric={self.metric} is not in the summary of {self.cell.name}'s runs")
        values = [None if summary is None else summary[self.metric] for summary in summaries]
        known = [value for value in values if value is not None and math.isfinite(value)]
        loss = math.inf if len(known) < len(values) else self.sign * sum(known) / len(known)
        self.losses[self.points.index(point)] = loss
        return self.sign * loss

    def outcome(self) -> Choice | None:
        """Return what is chosen for the cell; ``None`` if all its runs have diverged.

        With a start, whose search sees a part of the grid, an edge is one of what was tried.  Where points are equally
        good, the first in the order of the grid counts.
        """
        tried = sorted(self.losses)
        best = self.points[self._best()]
        if min(self.losses.values()) == math.inf:
            return None
        edges = [key for key in self.cell.search if self._on_edge(key, best[key])]
        record = [{"values": self.points[one], self.metric: self.sign * self.losses[one]} for one in tried]
        return Choice(dict(best), edges, len(tried), record, start=self.start or {})

    def _on_edge(self, key: str, value: float) -> bool:
        values = list(self.cell.search[key])
        if self.start is not None:
            values = sorted({self.points[one][key] for one in self.losses})
        return len(values) > 1 and value in (values[0], values[-1]) and value not in ENDS.get(key, ())

    def _best(self) -> int:
        return min(sorted(self.losses), key=self.losses.__getitem__)

    def _propose(self) -> int:
        if self.trials == len(self.points):  # all of them, in order
            return len(self.losses)
        if self.start is not None:
            return self._next_after(self.start, *self.others)
        space: dict[str, BaseDistribution] = {
            key: IntDistribution(0, len(values) - 1) for key, values in self.cell.search.items()
        }
        indices = [{key: list(self.cell.search[key]).index(at) for key, at in point.items()} for point in self.points]
        history = optuna.create_study()
        for point, loss in self.losses.items():
            history.add_trial(create_trial(params=indices[point], distributions=space, value=loss))
        for draw in range(REDRAWS):
            seed = int(_digest([self.name, len(self.losses), draw])[:8], 16)
            history.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=(self.trials + 1) // 2)
            trial = history.ask(space)
            history.tell(trial, state=TrialState.FAIL)  # the sampler counts finished trials only
            if (proposed := indices.index(trial.params)) not in self.losses:
                return proposed
        return next(point for point in range(len(self.points)) if point not in self.losses)

    def _next_after(self, *starts: Point) -> int:
        """Return the next untried point that agrees with a start, else of one start's line search, else the nearest."""
        untried = [point for point in range(len(self.points)) if point not in self.losses]
        at_start = [point for start in starts for point in untried if start.items() <= self.points[point].items()]
        if at_start:
            return at_start[0]
        best = self.points[self._best()]
        for key in starts[0] if len(starts) == 1 else ():
            if (value := self._along(key, best)) is not None:
                return self.points.index({**best, key: value})

        def places(point: int) -> int:
            grid = self.cell.search.items()
            return sum(abs(values.index(self.points[point][key]) - values.index(best[key])) for key, values in grid)

        return min(untried, key=places)

    def _along(self, key: str, best: Point) -> float | None:
        """Return the value of ``key`` that brackets the best point from above, from below, or closes the bracket."""
        values = list(self.cell.search[key])
        line = places_tried(key, values, best, [self.points[one] for one in self.losses])
        at, last = values.index(best[key]), len(values) - 1
        here = line.index(at)
        up = line[here + 1] - at if here + 1 < len(line) else 0  # places to the next tried one; 0: there is none
        down = at - line[here - 1] if here else 0
        if not up and at < last:
            return values[min(at + max(2 * down, 1), last)]
        if not down and at > 0:
            return values[max(at - max(2 * up, 1), 0)]
        if max(up, down) <= 1:
            return None
        return values[at + up // 2 if up >= down else at - down // 2]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
