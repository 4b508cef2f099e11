"""Compute at equal training loss: what a method had spent when it was as good as another."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fogzo.evidence.experiment import Cell, CostRatio
from fogzo.evidence.frame import Evidence
from fogzo.evidence.published import published_text
from fogzo.evidence.tables import DASH, Table, short
from fogzo.runs.records import spread

COST = "forward_equivalents"


def compute_table(evidence: Evidence) -> Table:
    """One row a cell of what else was seen: steps, learning rate, agreement, zero-difference probes."""
    header = [
        "method",
        "steps",
        "learning rate",
        "agreement",
        "zero-difference probes",
        "paper (compute, training loss)",
    ]
    rows = []
    for name, cell in evidence.cells.items():
        finished = [run.summary for run in evidence.finished(cell)]
        rate = ((evidence.tuned.get(name) or {}).get("values") or {}).get("optimizer.lr")
        steps = sorted({summary["steps"] for summary in finished})
        zeros = [100 * s["mean_zero_probes"] for s in finished if s.get("mean_zero_probes") is not None]
        agreement = [s["mean_agreement"] for s in finished if s.get("mean_agreement") is not None]
        rows.append(
            [
                cell.label,
                ", ".join(f"{value:,}" for value in steps) or DASH,
                DASH if rate is None else f"{rate:g}",
                spread(agreement, 2),
                spread(zeros, 2) + (" %" if zeros else ""),
                published_text(evidence, cell),
            ]
        )
    return Table(header, rows)


def equal_loss_table(evidence: Evidence, targets: Sequence[str]) -> Table:
    """Forward equivalents until the training loss is down to what each cell of ``targets`` ends with on average."""
    cells = evidence.cells
    header = ["training loss of", "value", *(cell.label for cell in cells.values())]
    rows = []
    for target in targets:
        ends = list(evidence.values(cells[target], "train_loss").values())
        if not ends:
            continue
        loss = statistics.fmean(ends)
        rows.append([cells[target].label, f"{loss:.4f}"])
        for cell in cells.values():
            if cell.name == target:
                whole = [float(run.summary[COST]) for run in evidence.finished(cell)]
                rows[-1].append(f"{spread(whole, 0)} (the whole run)")
            else:
                found = [reached(run.metrics(), loss) for run in evidence.finished(cell)]
                rows[-1].append(_costs_text(found))
    return Table(header, rows)


def _costs_text(found: Sequence[Reached]) -> str:
    costs = [one.at for one in found if one.at < math.inf]
    if not found:
        return DASH
    if len(costs) < len(found):
        return "not reached" if not costs else f"reached by {len(costs)} of {len(found)} seeds"
    return spread(costs, 0)


@dataclass(frozen=True)
class Reached:
    """Between which costs a run first was at a loss: at the last evaluation before, and at the first one there."""

    before: float  # 0: the first evaluation was there already; the whole run's where it never was
    at: float  # infinite where it never was


def reached(rows: Iterable[Mapping[str, Any]], loss: float) -> Reached:
    """Where the training loss of a run's rows first is at most ``loss``.

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


def ratio_table(evidence: Evidence, ratios: Sequence[CostRatio]) -> Table:
    """How many times the compute of the second method the first one needs for the same training loss.

    For each seed the loss is what the first method's run ends with, and both costs are read off the two runs of that
    seed by the same rule: the first evaluation at which the loss is down to it.

    Args:
        ratios: of which cells; ``paper`` is the published ratio that one is a reading of.
    """
    header = [
        "more compute of", "than of", "paper", "ratio: median over seeds", "range of all seeds",
        "seeds that reach it", "cost of the first", "cost of the second",
    ]  # fmt: skip
    rows = []
    for ratio in ratios:
        first, second = evidence.cells[ratio.of], evidence.cells[ratio.to]
        pairs = cost_pairs(evidence, first, second)
        found = ratio_of(pairs)
        rows.append(
            [
                first.label,
                second.label,
                ratio.paper or DASH,
                *_ratio_texts(found),
                f"{found.seeds} of {len(pairs)}" if found else DASH,
                spread([own.at for own, _ in pairs], 0),
                _costs_text([other for _, other in pairs]),
            ]
        )
    return Table(header, rows)


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


def ratio_of(pairs: Sequence[tuple[Reached, Reached]]) -> Ratio | None:
    """The ratio of the first costs to the second ones; ``None`` without pairs.

    >>> ratio_of([(Reached(70, 80), Reached(5, 10)), (Reached(40, 50), Reached(20, 25))])
    Ratio(median=2.0, low=1.6, high=16.0, seeds=2, pairs=2)
    """
    if not pairs:
        return None
    return Ratio(
        median=statistics.median_low([own.at / other.at for own, other in pairs]),
        low=min((own.before / other.at for own, other in pairs if other.at < math.inf), default=0.0),
        high=max(own.at / other.before if other.before else math.inf for own, other in pairs),
        seeds=sum(other.at < math.inf for _, other in pairs),
        pairs=len(pairs),
    )


def _ratio_texts(found: Ratio | None) -> list[str]:
    if found is None:
        return [DASH, DASH]
    return [median_text(found), range_text(found)]


def median_text(found: Ratio) -> str:
    """The median, or that most seeds have none."""
    return short(found.median) if found.median else "not reached"


def range_text(found: Ratio) -> str:
    """Between which the ratios of the seeds that reach the loss lie, and how many do not.

    >>> range_text(Ratio(5.0, 4.0, 9.0, 2, 3)), range_text(Ratio(0.0, 0.0, 9.0, 0, 3))
    ('4 to 9, not reached by 1 of 3', 'less than 9, not reached by 3 of 3')
    >>> range_text(Ratio(3.0, 2.0, math.inf, 3, 3))
    '2 or more'
    """
    if found.low:
        text = f"{short(found.low)} to {short(found.high)}" if found.high < math.inf else f"{short(found.low)} or more"
    else:
        text = f"less than {short(found.high)}" if found.high < math.inf else "not known"
    never = found.pairs - found.seeds
    return text + (f", not reached by {never} of {found.pairs}" if never else "")


def cost_pairs(evidence: Evidence, first: Cell, second: Cell) -> list[tuple[Reached, Reached]]:
    """Where both methods are at the loss that ``first`` ends with, for every seed that ``first`` finished."""
    others = evidence.runs[second.name]  # one that diverged before the loss never reaches it
    ends = evidence.values(first, "train_loss")
    pairs = []
    for run in evidence.finished(first):
        seed = run.summary["seed"]
        if seed in others and seed in ends:
            own = reached(run.metrics(), ends[seed])
            if own.at < math.inf:
                pairs.append((own, reached(others[seed].metrics(), ends[seed])))
    return pairs


def section(evidence: Evidence, *, level: int = 2) -> str:
    """The part of a page about compute at equal loss, with a heading of a level; empty if none is asked for."""
    asked = evidence.experiment.equal_loss
    if not asked:
        return ""
    return f"""{"#" * level} Compute at equal training loss

How many times the forward equivalents of the second method the first one needs for the training loss that it ends with,
both read off the runs of the same seed, at the first evaluation at which the loss is down to that. Evaluations lie
apart, so that a cost is known only to lie between two of them: hence the range beside the median, over all seeds. A
seed at which the second method does not get to that loss has a ratio below what its whole run allows; it counts too.

{ratio_table(evidence, asked.ratios).markdown()}
Forward equivalents until the training loss first is at most the value that a method ended with, mean over seeds:

{equal_loss_table(evidence, asked.targets).markdown()}
The paper's own MLP table counts an STE step as 1x. Agreement is the measured slope along ĝ over the slope that the STE
believes, a mean over the run.

{compute_table(evidence).markdown()}
"""
