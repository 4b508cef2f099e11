"""Compute at equal training loss: what a method had spent when it was as good as another."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fogzo.evidence import Evidence
from fogzo.results import cost_to_reach, spread
from fogzo.sweep import Cell
from fogzo.tables import DASH, Table, short
from fogzo.verdicts import published_text

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
                rows[-1].append(
                    _costs_text([cost_to_reach(run.metrics(), loss, COST) for run in evidence.finished(cell)])
                )
    return Table(header, rows)


def _costs_text(costs: Sequence[float | None]) -> str:
    reached = [cost for cost in costs if cost is not None]
    if not costs:
        return DASH
    if len(reached) < len(costs):
        return "not reached" if not reached else f"reached by {len(reached)} of {len(costs)} seeds"
    return spread(reached, 0)


def ratio_table(evidence: Evidence, ratios: Sequence[Mapping[str, Any]]) -> Table:
    """How many times the compute of the second method the first one needs for the same training loss.

    For each seed the loss is what the first method's run ends with, and both costs are read off the two runs of that
    seed by the same rule: the first evaluation at which the loss is down to it.

    Args:
        ratios: mappings with the cells ``of`` and ``to``, and ``paper``: the published ratio that this is a reading of.
    """
    header = [
        "more compute of", "than of", "paper", "ratio: mean over seeds", "least to greatest", "seeds that reach it",
        "cost of the first", "cost of the second",
    ]  # fmt: skip
    rows = []
    for ratio in ratios:
        first, second = evidence.cells[ratio["of"]], evidence.cells[ratio["to"]]
        pairs = cost_pairs(evidence, first, second)
        reached = [(own, other) for own, other in pairs if other is not None]
        quotients = [own / other for own, other in reached]
        rows.append(
            [
                first.label,
                second.label,
                str(ratio.get("paper") or DASH),
                *_ratio_texts(quotients, len(pairs)),
                f"{len(reached)} of {len(pairs)}" if pairs else DASH,
                spread([own for own, _ in pairs], 0),
                _costs_text([other for _, other in pairs]),
            ]
        )
    return Table(header, rows)


def _ratio_texts(quotients: Sequence[float], pairs: int) -> list[str]:
    if not pairs:
        return [DASH, DASH]
    if not quotients:
        return ["not reached", DASH]
    greatest = short(max(quotients)) if len(quotients) == pairs else "not reached"
    mean = short(statistics.fmean(quotients))
    return [
        mean if len(quotients) == pairs else f"{mean} (of those that reach it)",
        f"{short(min(quotients))} to {greatest}",
    ]


def cost_pairs(evidence: Evidence, first: Cell, second: Cell) -> list[tuple[float, float | None]]:
    """Forward equivalents of both methods at the loss that ``first`` ends with, for every seed that both finished."""
    others = {run.summary["seed"]: run for run in evidence.finished(second)}
    ends = evidence.values(first, "train_loss")
    pairs = []
    for run in evidence.finished(first):
        seed = run.summary["seed"]
        if seed in others and seed in ends:
            own = cost_to_reach(run.metrics(), ends[seed], COST)
            if own is not None:
                pairs.append((own, cost_to_reach(others[seed].metrics(), ends[seed], COST)))
    return pairs


def section(evidence: Evidence) -> str:
    """The part of an experiment's page about compute at equal loss; empty if its file does not ask for it."""
    asked = evidence.experiment.get("equal_loss")
    if not asked:
        return ""
    return f"""## Compute at equal training loss

How many times the forward equivalents of the second method the first one needs for the training loss that it ends with,
both read off the runs of the same seed, at the first evaluation at which the loss is down to that. The evaluations lie
apart, so that the costs of fast methods are upper bounds, and the ratios lower bounds.

{ratio_table(evidence, asked["ratios"]).markdown()}
Forward equivalents until the training loss first is at most the value that a method ended with, mean over seeds:

{equal_loss_table(evidence, asked["targets"]).markdown()}
The paper's own MLP table counts an STE step as 1x. Agreement is the measured slope along ĝ over the slope that the STE
believes, a mean over the run.

{compute_table(evidence).markdown()}
"""
