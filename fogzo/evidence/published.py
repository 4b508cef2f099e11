"""The published numbers beside ours: what the paper has of a cell, and where that cell stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fogzo.evidence.compare import TOO_FEW, UNDECIDED, Difference, one_more_run
from fogzo.evidence.experiment import Cell
from fogzo.evidence.frame import Evidence
from fogzo.runs.schema import METRICS

NOT_RUN = "not run"
TWIN = "scaled-down twin"
DESCRIPTIVE = (
    "model",
    "data",
    "quantizer",
    "metric",
    "setting",
    "source",
    "note",
    "also",
    "baseline_steps",
)  # the other keys of a row are methods
DIRECTION = "direction"  # of a value in words: better or worse than the baseline

STATUS_RULE = (
    "A published cell is *reproduced* if runs at `scale=paper` gave values among which the published number could be "
    "one more (95 % prediction interval), else it *deviates*; a *scaled-down twin* is a smaller network on smaller "
    "data, of which only the direction of the difference to the STE can be compared."
)


def paper_row(evidence: Evidence, cell: Cell) -> Mapping[str, Any]:
    """The published row that a cell belongs to; empty if there is none."""
    rows = evidence.paper.get("rows") or {}
    if not cell.setting.name:
        return rows
    keys = cell.setting.paper  # cells show the first one's numbers
    return rows.get(keys[0]) or {} if keys else {}


def is_published(evidence: Evidence, cell: Cell) -> bool:
    """Whether the paper has this cell, whatever is known of its value."""
    return cell.method.name in paper_row(evidence, cell)


def published_text(evidence: Evidence, cell: Cell) -> str:
    """The published value as it is known."""
    if not is_published(evidence, cell):
        return "–"
    return value_text(paper_row(evidence, cell)[cell.method.name])


def value_text(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, Mapping):
        parts = {key: part for key, part in value.items() if key != DIRECTION}
        return ", ".join(f"{key} {value_text(part)}".replace("_", " ") for key, part in parts.items())
    return str(value)


def published_number(evidence: Evidence, cell: Cell) -> float | None:
    """The published value of the row's metric, if it is a number."""
    row = paper_row(evidence, cell)
    value = row.get(cell.method.name)
    if isinstance(value, Mapping):
        value = value.get(row.get("metric", evidence.metric_of(cell)))
    return float(value) if isinstance(value, int | float) else None


def published_direction(evidence: Evidence, cell: Cell) -> int:
    """+1: better than the baseline in the paper, -1: worse, 0: not known.  Without numbers, as the row says."""
    base = evidence.baseline(cell)
    if base is None or not is_published(evidence, cell) or not at_published_steps(evidence, cell, base):
        return 0
    published = published_difference(evidence, cell)
    if published is not None:
        return (published > 0) - (published < 0)
    value = paper_row(evidence, cell)[cell.method.name]
    return {"better": 1, "worse": -1}.get(str(value.get(DIRECTION)), 0) if isinstance(value, Mapping) else 0


def published_difference(evidence: Evidence, cell: Cell) -> float | None:
    """The published value less the baseline's, positive is better; ``None`` where it is not known."""
    base = evidence.baseline(cell)
    if base is None:
        return None
    own, other = published_number(evidence, cell), published_number(evidence, base)
    if own is None or other is None:
        return None
    return (own - other) * (1 if _higher_is_better(evidence, cell) else -1)


def _higher_is_better(evidence: Evidence, cell: Cell) -> bool:
    """Of the metric that the paper gives."""
    metric = METRICS.get(paper_row(evidence, cell).get("metric", evidence.metric_of(cell)))
    return metric is not None and bool(metric.higher_is_better)


def at_published_steps(evidence: Evidence, cell: Cell, base: Cell) -> bool:
    """Whether two cells trained for as many steps as in the paper's comparison; also where one has no runs yet.

    That is equally many, but where the row has ``baseline_steps``: how many times the method's steps the baseline had.
    """
    own, other = ({run.summary.get("steps") for run in evidence.finished(one)} for one in (cell, base))
    times = paper_row(evidence, cell).get("baseline_steps", 1)
    return not own or not other or {round(times * steps) for steps in own if steps} == other


def status(evidence: Evidence, cell: Cell) -> str:
    """Where a published cell stands; a dash for one that the paper does not have."""
    if not is_published(evidence, cell):
        return "–"
    if not evidence.values(cell):
        return "diverged" if evidence.diverged(cell) else NOT_RUN
    known = published_direction(evidence, cell)
    if evidence.scale == "paper":
        return _status_at_paper_scale(evidence, cell, known)
    base = evidence.baseline(cell)
    if base is None:
        return TWIN
    if not at_published_steps(evidence, cell, base):
        return f"{TWIN}: not at the paper's steps, not judged"
    return f"{TWIN}: {_direction(evidence.difference(cell, evidence.baseline(cell)), known)}"


def _status_at_paper_scale(evidence: Evidence, cell: Cell, known: int) -> str:
    number = published_number(evidence, cell)
    if number is None:
        direction = _direction(evidence.difference(cell, evidence.baseline(cell)), known)
        return {"same direction": "reproduced", "opposite direction": "deviates"}.get(direction, direction)
    key = paper_row(evidence, cell).get("metric", evidence.metric_of(cell))
    interval = one_more_run(list(evidence.values(cell, key).values()))
    if interval is None:
        return "run once: not judged"
    return "reproduced" if interval[0] <= number <= interval[1] else "deviates"


def _direction(difference: Difference | None, known: int) -> str:
    if difference is None:
        return "nothing to compare with"
    if difference.outcome in (UNDECIDED, TOO_FEW):
        return difference.outcome
    if known == 0:
        return f"{difference.outcome} than the baseline; the paper's direction is not known"
    return "same direction" if (difference.mean > 0) == (known > 0) else "opposite direction"
