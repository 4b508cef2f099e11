"""Compute at equal training loss: what a method had spent when it was as good as another."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fogzo.evidence import Evidence
from fogzo.published import published_text
from fogzo.results import spread
from fogzo.sweep import Cell
from fogzo.tables import DASH, Table, short

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
                rows[-1].append(spread([float(run.summary[COST]) for run in evidence.finished(cell)], 0))
            else:
                found = [reached(run.metrics(), loss) for run in evidence.finished(cell)]
                rows[-1].append(_costs_text([one.at if one else None for one in found]))
    return Table(header, rows)


def _costs_text(costs: Sequence[float | None]) -> str:
    reached = [cost for cost in costs if cost is not None]
    if not costs:
        return DASH
    if len(reached) < len(costs):
        return "not reached" if not reached else f"reached by {len(reached)} of {len(costs)} seeds"
    return spread(reached, 0)


@dataclass(frozen=True)
class Reached:
    """Between which costs a run first was at a loss: at the last evaluation before, and at the first one there."""

    before: float  # 0: the first evaluation was there already
    at: float


def reached(rows: Iterable[Mapping[str, Any]], loss: float) -> Reached | None:
    """Where the training loss of a run's rows first is at most ``loss``; ``None``: nowhere.

    >>> reached([{COST: 5, "train_loss": 2.0}, {COST: 8}, {COST: 9, "train_loss": 0.9}], 1.0)
    Reached(before=5, at=9)
    """
    before = 0.0
    for row in rows:
        if row.get("train_loss") is None:
            continue
        if row["train_loss"] <= loss:
            return Reached(before, row[COST])
        before = row[COST]
    return None


def ratio_table(evidence: Evidence, ratios: Sequence[Mapping[str, Any]]) -> Table:
    """How many times the compute of the second method the first one needs for the same training loss.

    For each seed the loss is what the first method's run ends with, and both costs are read off the two runs of that
    seed by the same rule: the first evaluation at which the loss is down to it.

    Args:
        ratios: mappings with the cells ``of`` and ``to``, and ``paper``: the published ratio that this is a reading of.
    """
    header = [
        "more compute of", "than of", "paper", "ratio: geometric mean over seeds", "range of all seeds",
        "seeds that reach it", "cost of the first", "cost of the second",
    ]  # fmt: skip
    rows = []
    for ratio in ratios:
        first, second = evidence.cells[ratio["of"]], evidence.cells[ratio["to"]]
        pairs = cost_pairs(evidence, first, second)
        found = ratio_of(pairs)
        rows.append(
            [
                first.label,
                second.label,
                str(ratio.get("paper") or DASH),
                *_ratio_texts(found),
                f"{found.seeds} of {len(pairs)}" if found else DASH,
                spread([own.at for own, _ in pairs], 0),
                _costs_text([other.at if other else None for _, other in pairs]),
            ]
        )
    return Table(header, rows)


@dataclass(frozen=True)
class Ratio:
    """A ratio of compute over seeds.

    Attributes:
        mean: geometric mean of the seeds at which the second method reaches the loss; ``None``: none does.
        low, high: between which the ratios of all seeds lie, given that each cost is known up to the distance of two
            evaluations only; ``high`` is infinite where a seed does not reach the loss, or does so at the first one.
        seeds: at how many the second method reaches the loss.
        pairs: number of seeds.
    """

    mean: float | None
    low: float
    high: float
    seeds: int
    pairs: int


def ratio_of(pairs: Sequence[tuple[Reached, Reached | None]]) -> Ratio | None:
    """The ratio of the first costs to the second ones; ``None`` without pairs.

    >>> ratio_of([(Reached(70, 80), Reached(5, 10)), (Reached(40, 50), Reached(20, 25))])
    Ratio(mean=4.0, low=1.6, high=16.0, seeds=2, pairs=2)
    """
    if not pairs:
        return None
    both = [(own, other) for own, other in pairs if other is not None]
    if not both:
        return Ratio(None, math.inf, math.inf, 0, len(pairs))
    return Ratio(
        mean=statistics.geometric_mean([own.at / other.at for own, other in both]),
        low=min(own.before / other.at for own, other in both),
        high=max(own.at / other.before if other and other.before else math.inf for own, other in pairs),
        seeds=len(both),
        pairs=len(pairs),
    )


def _ratio_texts(found: Ratio | None) -> list[str]:
    if found is None:
        return [DASH, DASH]
    if found.mean is None:
        return ["not reached", DASH]
    mean = short(found.mean) + ("" if found.seeds == found.pairs else " (of those that reach it)")
    if found.high == math.inf:
        return [mean, f"{short(found.low)} or more"]
    return [mean, f"{short(found.low)} to {short(found.high)}"]


def cost_pairs(evidence: Evidence, first: Cell, second: Cell) -> list[tuple[Reached, Reached | None]]:
    """Where both methods are at the loss that ``first`` ends with, for every seed that both finished."""
    others = {run.summary["seed"]: run for run in evidence.finished(second)}
    ends = evidence.values(first, "train_loss")
    pairs = []
    for run in evidence.finished(first):
        seed = run.summary["seed"]
        if seed in others and seed in ends:
            own = reached(run.metrics(), ends[seed])
            if own is not None:
                pairs.append((own, reached(others[seed].metrics(), ends[seed])))
    return pairs


def section(evidence: Evidence) -> str:
    """The part of an experiment's page about compute at equal loss; empty if its file does not ask for it."""
    asked = evidence.experiment.get("equal_loss")
    if not asked:
        return ""
    return f"""## Compute at equal training loss

How many times the forward equivalents of the second method the first one needs for the training loss that it ends with,
both read off the runs of the same seed, at the first evaluation at which the loss is down to that. Evaluations lie
apart, so that a cost is known only to lie between two of them: hence the range beside the mean, over all seeds.

{ratio_table(evidence, asked["ratios"]).markdown()}
Forward equivalents until the training loss first is at most the value that a method ended with, mean over seeds:

{equal_loss_table(evidence, asked["targets"]).markdown()}
The paper's own MLP table counts an STE step as 1x. Agreement is the measured slope along ĝ over the slope that the STE
believes, a mean over the run.

{compute_table(evidence).markdown()}
"""
