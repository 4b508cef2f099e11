"""Compute at equal training loss: what a method had spent when it was as good as another."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fogzo.evidence.experiment import Cell
from fogzo.evidence.frame import Evidence
from fogzo.evidence.numbers import short

COST = "forward_equivalents"


@dataclass(frozen=True)
class Reached:
    """Between which costs a run first was at a loss: at the last evaluation before, and at the first one there."""

    before: float  # 0: the first evaluation was there already; the whole run's where it never was
    at: float  # infinite where it never was


def reached(rows: Iterable[Mapping[str, Any]], loss: float) -> Reached:
    """Return where the training loss of a run's rows first is at most ``loss``.

    >>> reached([{COST: 5, "train_loss": 2.0}, {COST: 8}, {COST: 9, "train_loss": 0.9}], 1.0)
    Reached(before=5, at=9)
    >>> reached([{COST: 5, "train_loss": 2.0}], 1.0)
    Reached(before=5, at=inf)
    """
    before = 0.0
    for row in rows:
        if row.get("train_loss") is None:
            continue
        if row["train_loss"] <= loss:
            return Reached(before, row[COST])
        before = row[COST]
    return Reached(before, math.inf)


@dataclass(frozen=True)
class Ratio:
    """A ratio of compute over seeds.

    Attributes:
        median: over all seeds, the lower of two in the middle.  A seed at which the second method does not reach the
            loss counts as 0: there it needs more than its whole run, how much more is not known.
        low, high: between which the ratios of the seeds that reach the loss lie, given that each cost is known up to
            the distance of two evaluations only; ``high`` is of all seeds, and infinite where one is there at the
            first evaluation.
        seeds: at how many the second method reaches the loss.
        pairs: number of seeds.
    """

    median: float
    low: float
    high: float
    seeds: int
    pairs: int

    @property
    def median_text(self) -> str:
        """The median, or that most seeds have none."""
        return short(self.median) if self.median else "not reached"

    @property
    def range_text(self) -> str:
        """Between which the ratios of the seeds that reach the loss lie, and how many do not.

        >>> Ratio(5.0, 4.0, 9.0, 2, 3).range_text, Ratio(0.0, 0.0, 9.0, 0, 3).range_text
        ('4 to 9, not reached by 1 of 3', 'less than 9, not reached by 3 of 3')
        >>> Ratio(3.0, 2.0, math.inf, 3, 3).range_text
        '2 or more'
        """
        high = short(self.high) if self.high < math.inf else None
        if self.low:
            text = f"{short(self.low)} to {high}" if high else f"{short(self.low)} or more"
        else:
            text = f"less than {high}" if high else "not known"
        never = self.pairs - self.seeds
        return text + (f", not reached by {never} of {self.pairs}" if never else "")


def ratio_of(pairs: Sequence[tuple[Reached, Reached]]) -> Ratio | None:
    """Return the ratio of the first costs to the second ones; ``None`` without pairs.

    >>> ratio_of([(Reached(70, 80), Reached(5, 10)), (Reached(40, 50), Reached(20, 25))])
    Ratio(median=2.0, low=1.6, high=16.0, seeds=2, pairs=2)
    """
    if not pairs:
        return None
    return Ratio(
        median=statistics.median_low([first.at / second.at for first, second in pairs]),
        low=min((first.before / second.at for first, second in pairs if second.at < math.inf), default=0.0),
        high=max(first.at / second.before if second.before else math.inf for first, second in pairs),
        seeds=sum(second.at < math.inf for _, second in pairs),
        pairs=len(pairs),
    )


def cost_pairs(evidence: Evidence, first: Cell, second: Cell) -> list[tuple[Reached, Reached]]:
    """Return where both methods are at the loss that ``first`` ends with, for every seed that ``first`` finished.

    Both costs are read off the two runs of one seed by the same rule: the first evaluation at which the loss is down
    to it.
    """
    others = evidence.runs[second.name]  # one that diverged before the loss never reaches it
    ends = evidence.values(first, "train_loss")
    pairs = []
    for run in evidence.finished(first):
        seed = run.summary["seed"]
        if seed in others and seed in ends:
            first_at = reached(run.metrics(), ends[seed])
            if first_at.at < math.inf:
                pairs.append((first_at, reached(others[seed].metrics(), ends[seed])))
    return pairs
