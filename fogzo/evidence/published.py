"""The published numbers beside ours: what the paper has of a cell, and where that cell stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fogzo.evidence.compare import FEWEST_PAIRS, Difference, one_more_run
from fogzo.evidence.experiment import Cell
from fogzo.evidence.frame import Evidence
from fogzo.evidence.numbers import DASH
from fogzo.evidence.tables import Entry, verdict
from fogzo.evidence.words import Word
from fogzo.runs.schema import METRICS

TWIN = "scaled-down twin"
DIRECTIONS = {"better": 1, "worse": -1}


def paper_row(evidence: Evidence, cell: Cell) -> Mapping[str, Any]:
    """Return the published row that a cell belongs to, the first of its setting's; empty if there is none."""
    rows: Mapping[str, Any] = evidence.paper.get("rows") or {}
    if not cell.setting.name:
        return rows
    return rows[cell.setting.paper[0]] if cell.setting.paper else {}


def _metric(evidence: Evidence, cell: Cell) -> str:
    """Return by which metric the published row has its numbers."""
    return str(paper_row(evidence, cell).get("metric", cell.metric))


def is_published(evidence: Evidence, cell: Cell) -> bool:
    """Return whether the paper has this cell, whatever is known of its value."""
    return cell.method.name in paper_row(evidence, cell)


def published_text(evidence: Evidence, cell: Cell) -> str:
    """Return the published value as it is known."""
    return _text(paper_row(evidence, cell)[cell.method.name]) if is_published(evidence, cell) else DASH


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        shown = {key: part for key, part in value.items() if key != "direction"}
        return ", ".join(f"{key} {_text(part)}".replace("_", " ") for key, part in shown.items())
    return "unknown" if value is None else str(value)


def published_number(evidence: Evidence, cell: Cell) -> float | None:
    """Return the published value of the row's metric, if it is a number."""
    row = paper_row(evidence, cell)
    value = row.get(cell.method.name)
    if isinstance(value, Mapping):
        value = value.get(_metric(evidence, cell))
    return float(value) if isinstance(value, int | float) else None


def published_difference(evidence: Evidence, cell: Cell) -> float | None:
    """Return the published value less the baseline's, positive is better; ``None`` where it is not known."""
    baseline = evidence.baseline(cell)
    metric = METRICS[_metric(evidence, cell)]
    number = published_number(evidence, cell)
    of_baseline = published_number(evidence, baseline) if baseline else None
    if number is None or of_baseline is None:
        return None
    return (number - of_baseline) * (1 if metric.higher_is_better else -1)


def published_direction(evidence: Evidence, cell: Cell) -> int:
    """Return 1 for what is better than the baseline in the paper, -1 for worse, 0 where it is not known.

    Of a value that is no number the file of published numbers says it: ``direction: better``.
    """
    baseline = evidence.baseline(cell)
    if baseline is None or not is_published(evidence, cell) or not at_published_steps(evidence, cell, baseline):
        return 0
    difference = published_difference(evidence, cell)
    if difference is not None:
        return (difference > 0) - (difference < 0)
    value = paper_row(evidence, cell)[cell.method.name]
    return DIRECTIONS.get(value.get("direction", ""), 0) if isinstance(value, Mapping) else 0


def at_published_steps(evidence: Evidence, cell: Cell, baseline: Cell) -> bool:
    """Return whether two cells trained for as many steps as in the paper's comparison; also where one has no runs yet.

    That is equally many, but where the row has ``baseline_steps``: how many times the method's steps the baseline had.
    """
    steps, of_baseline = ({run.summary.get("steps") for run in evidence.finished(one)} for one in (cell, baseline))
    times = paper_row(evidence, cell).get("baseline_steps", 1)
    return not steps or not of_baseline or {round(times * count) for count in steps if count} == of_baseline


def status(evidence: Evidence, cell: Cell) -> Entry:
    """Return where a published cell stands; a dash for one that the paper does not have."""
    if not is_published(evidence, cell):
        return verdict(before=DASH)
    if not evidence.values(cell):
        return verdict(Word.DIVERGED if evidence.diverged(cell) else Word.NOT_RUN)
    baseline, number = evidence.baseline(cell), published_number(evidence, cell)
    if evidence.experiment.scale == "paper" and number is not None:
        return _reproduced(evidence, cell, number)
    word, after = _direction(evidence.difference(cell, baseline), published_direction(evidence, cell))
    if evidence.experiment.scale == "paper":
        decided = {Word.SAME_DIRECTION: Word.REPRODUCED, Word.OPPOSITE_DIRECTION: Word.DEVIATES}
        return verdict(decided.get(word, word), after=after)
    if baseline is None:
        return verdict(before=TWIN)
    if not at_published_steps(evidence, cell, baseline):
        return verdict(before=f"{TWIN}: ", after="not at the paper's steps, not judged")
    return verdict(word, before=f"{TWIN}: ", after=after)


def _reproduced(evidence: Evidence, cell: Cell, number: float) -> Entry:
    row = paper_row(evidence, cell)
    values = evidence.values(cell, _metric(evidence, cell))
    interval = one_more_run(list(values.values()))
    if interval is None or len(values) < FEWEST_PAIRS:
        return verdict(before=f"fewer than {FEWEST_PAIRS} runs: not judged")
    # an interval so wide that it holds what another method is said to reach would call anything reproduced
    cells = [one for method in row if (one := evidence.sibling(cell, method)) is not None]
    numbers = [published_number(evidence, other) for other in cells]
    held = {one for one in numbers if one is not None and interval[0] <= one <= interval[1]}
    if number not in held:
        return verdict(Word.DEVIATES)
    return verdict(Word.REPRODUCED if held == {number} else Word.UNDECIDED)


def _direction(difference: Difference | None, published: int) -> tuple[Word, str]:
    if difference is None:
        return Word.NOTHING_TO_COMPARE, ""
    if difference.outcome in (Word.UNDECIDED, Word.TOO_FEW):
        return difference.outcome, ""
    if published == 0:
        return difference.outcome, " than the baseline; the paper's direction is not known"
    return Word.SAME_DIRECTION if (difference.mean > 0) == (published > 0) else Word.OPPOSITE_DIRECTION, ""
