"""Every number of an experiment's tables in full, for CSV: six digits, and empty where there is no value."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator

from fogzo.evidence.compare import Difference
from fogzo.evidence.equal_loss import COST, reached
from fogzo.evidence.experiment import Cell
from fogzo.evidence.frame import Evidence
from fogzo.evidence.pages import COSTS, control_pairs, mean_cost
from fogzo.evidence.published import published_text, status
from fogzo.evidence.tables import Table

DIFFERENCE = (
    "difference", "low", "high", "t_low", "t_high", "pairs", "p_sign_flip", "p_least", "p_t", "outcome",
)  # fmt: skip


def values_table(evidence: Evidence) -> Table:
    """The cells of the comparison: one row a cell."""
    also = evidence.experiment.also
    header = [
        "experiment", "scale", "setting", "method", "cell", "metric", "paper", "mean", "std", "n", "seeds",
        *(f"{key}_{what}" for key in also for what in ("mean", "std", "n")),
        *DIFFERENCE, *COSTS, "status", "command",
    ]  # fmt: skip
    rows = []
    for cell in evidence.cells.values():
        rows.append(
            [
                evidence.name, evidence.scale, cell.setting.name, cell.method.name, cell.name, evidence.metric_of(cell),
                published_text(evidence, cell),
                *_moments(evidence, cell, evidence.metric_of(cell)), " ".join(map(str, evidence.values(cell))),
                *(text for key in also for text in _moments(evidence, cell, key)),
                *difference_numbers(evidence.difference(cell, evidence.baseline(cell))),
                *_numbers(mean_cost(evidence.finished(cell), key) for key in COSTS),
                status(evidence, cell), " && ".join(evidence.commands(cell)),
            ]
        )  # fmt: skip
    return Table(header, rows)


def _moments(evidence: Evidence, cell: Cell, key: str) -> list[str]:
    """Mean, sample standard deviation and number of values."""
    values = list(evidence.values(cell, key).values())
    mean = statistics.fmean(values) if values else None
    std = statistics.stdev(values) if len(values) > 1 else None
    return [*_numbers([mean, std]), str(len(values))]


def difference_numbers(difference: Difference | None) -> list[str]:
    """The columns of ``DIFFERENCE``; empty texts where there is no pair."""
    if difference is None:
        return [""] * len(DIFFERENCE)
    d = difference
    ends = [d.mean, d.low, d.high, d.t_low, d.t_high]
    return [*_numbers(ends), str(d.pairs), *_numbers([d.p, d.least_p, d.p_t]), d.outcome]


def controls_values(evidence: Evidence) -> Table:
    """The comparisons with controls: one row a pair of cells."""
    header = ["experiment", "setting", "method", "against", "metric", *DIFFERENCE]
    rows = [
        [
            evidence.name, cell.setting.name, cell.method.name, other.method.name, evidence.metric_of(cell),
            *difference_numbers(evidence.difference(cell, other)),
        ]
        for pairs in control_pairs(evidence)
        for cell, other in pairs
    ]  # fmt: skip
    return Table(header, rows)


def equal_loss_values(evidence: Evidence) -> Table:
    """Compute at equal training loss, from which the page's ratios and costs follow: one row a run and a loss.

    ``loss_of_seed`` is the seed whose final loss is to be reached by the run of that seed, as ratios pair them, or
    ``mean`` for the mean of all seeds; the cost is empty where the run never logged a loss as low.
    """
    header = ["experiment", "loss_of", "loss_of_seed", "train_loss", "cell", "seed", COST]
    asked = evidence.experiment.equal_loss
    rows = []
    for target in asked.targets if asked else ():
        ends = list(evidence.values(evidence.cells[target], "train_loss").values())
        for cell in evidence.cells.values() if ends else ():
            rows += list(_reached(evidence, target, "mean", statistics.fmean(ends), cell))
    pairs = [(ratio.of, name) for ratio in (asked.ratios if asked else ()) for name in (ratio.of, ratio.to)]
    for target, name in dict.fromkeys(pairs):
        for seed, loss in evidence.values(evidence.cells[target], "train_loss").items():
            rows += list(_reached(evidence, target, str(seed), loss, evidence.cells[name]))
    return Table(header, rows)


def _reached(evidence: Evidence, target: str, loss_of: str, loss: float, cell: Cell) -> Iterator[list[str]]:
    for run in evidence.finished(cell):
        seed = str(run.summary["seed"])
        if loss_of in ("mean", seed):
            found = reached(run.metrics(), loss)
            cost = found.at if found.at < math.inf else None
            yield [evidence.name, target, loss_of, *_numbers([loss]), cell.name, seed, *_numbers([cost])]


def _numbers(values: Iterable[float | None]) -> list[str]:
    return ["" if value is None else f"{value:.6g}" for value in values]
