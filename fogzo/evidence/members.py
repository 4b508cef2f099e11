"""Members of the family against an STE of the same compute, over all experiments: which of them wins everywhere?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fogzo.evidence.compare import Difference
from fogzo.evidence.experiment import Cell
from fogzo.evidence.frame import Evidence
from fogzo.evidence.pages import mean_cost
from fogzo.evidence.tables import DASH, Table, signed
from fogzo.evidence.verdicts import SHORT
from fogzo.runs.schema import METRICS

SAME = 0.02  # costs that differ by less than this share are the same
NOTE = (
    "Difference to the STE of the same setting whose forward equivalents are the same within 2 %: the STE itself for "
    "what costs no forward pass, else that with more steps; positive is better. Nothing is corrected for the number of "
    "comparisons. Methods and settings without such an STE are left out."
)
Key = tuple[str, int]  # a method's family and its samples: experiments call one method by several names


@dataclass(frozen=True)
class Row:
    """One setting: the differences of the members that were run in it, each with its metric."""

    experiment: str
    setting: str
    differences: dict[Key, tuple[Difference, str]]


def rows_of(found: Sequence[Evidence]) -> tuple[dict[Key, str], list[Row]]:
    """The members as a reader knows them, those run most often first, and the settings where one has such an STE."""
    labels: dict[Key, str] = {}
    rows = []
    for evidence in found:
        for setting, cells in evidence.settings().items():
            differences = {}
            for cell in cells:
                difference = evidence.difference(cell, equal_ste(evidence, cell))
                if difference is not None:
                    key = (cell.method.family, cell.method.samples)
                    labels.setdefault(key, cell.method.label)
                    differences[key] = (difference, evidence.metric_of(cell))
            if differences:
                label = evidence.setting_label(setting) if setting else ""  # all cells share the title's
                rows.append(Row(evidence.title, label, differences))
    settings = {key: sum(key in row.differences for row in rows) for key in labels}
    return {key: labels[key] for key in sorted(labels, key=lambda key: -settings[key])}, rows


def equal_ste(evidence: Evidence, cell: Cell) -> Cell | None:
    """The STE of ``cell``'s setting that cost what it cost; ``None`` if there is none, or if it is an STE itself."""
    cost = mean_cost(evidence.finished(cell), "forward_equivalents")
    stes = [other for other in evidence.settings()[cell.setting.name] if other.method.family == "ste"]
    if cell in stes or not cost:
        return None
    shares = {}
    for other in stes:
        if of_other := mean_cost(evidence.finished(other), "forward_equivalents"):
            shares[other.name] = abs(of_other / cost - 1)
    nearest = min(shares, key=lambda name: shares[name], default=None)
    return evidence.cells[nearest] if nearest is not None and shares[nearest] <= SAME else None


def members_table(found: Sequence[Evidence]) -> Table:
    """A row a setting, a column a member."""
    labels, rows = rows_of(found)
    texts, blocks, last = [], [], None
    for number, row in enumerate(rows):
        if row.experiment != last:
            blocks.append(number)
        cells = [_text(*row.differences[key]) if key in row.differences else DASH for key in labels]
        texts.append([row.experiment if row.experiment != last else "", row.setting, *cells])
        last = row.experiment
    return Table(["experiment", "setting", *labels.values()], texts, [NOTE], blocks)


def _text(difference: Difference, key: str) -> str:
    metric = METRICS[key]
    outcome = SHORT.get(difference.outcome, difference.outcome)
    return f"{signed(difference.mean, metric.digits)} {metric.unit}, {outcome}"
