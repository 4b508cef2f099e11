"""Forest plots: paired differences with their intervals and single seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fogzo.evidence.claims import Claim
from fogzo.evidence.compare import Difference
from fogzo.evidence.figures.style import RC, colour, mark
from fogzo.evidence.frame import Evidence
from fogzo.evidence.numbers import Effect
from fogzo.evidence.verdicts import Case
from fogzo.evidence.words import Word
from fogzo.runs.schema import METRICS

Row = str | tuple[str, Case, Difference]  # a title; or a label, and the comparison that stands beside it


def differences(evidence: Evidence) -> Figure:
    """Return the figure of each method's paired difference to the baseline in each setting.

    Settings that are compared by different metrics stand in different panels.
    """
    by_metric: dict[str, list[Row]] = {key: [] for key in evidence.metrics()}
    for cells in evidence.settings().values():
        setting = cells[0].setting
        pairs = [(cell, evidence.baseline(cell)) for cell in cells]
        cases = [Case(evidence, cell, other) for cell, other in pairs if other]
        rows = _rows([(case.cell.method.full_label, case) for case in cases])
        by_metric[setting.metric] += [setting.label, *rows] if rows and setting.name else rows
    return forest(by_metric)


def forest_of(claim: Claim) -> dict[str, list[Row]]:
    """Return the claim's settings by the metric they are compared by, under their experiments' titles."""
    by_metric: dict[str, list[Row]] = {}
    for case in claim.cases:
        label = case.cell.setting.label if case.cell.setting.name else case.cell.label
        for row in _rows([(label, case)]):
            rows = by_metric.setdefault(case.metric, [])
            rows += [row] if case.evidence.title in rows else [case.evidence.title, row]
    return by_metric


def _rows(labelled: Sequence[tuple[str, Case]]) -> list[Row]:
    return [(label, case, case.difference) for label, case in labelled if case.difference is not None]


@matplotlib.rc_context(RC)
def forest(asked: Mapping[str, Sequence[Row]]) -> Figure:
    """Return a forest plot: differences with their intervals and seeds, a panel a metric."""
    panels = {key: rows for key, rows in asked.items() if rows}
    heights = [len(rows) + 1.5 for rows in panels.values()] or [1.0]
    figure = Figure(figsize=(10.5, 0.7 + 0.3 * sum(heights)))
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)
    for axis, (key, rows) in zip(axes[:, 0], panels.items(), strict=False):
        _panel(axis, key, rows)
    return figure


def _panel(axis: Any, key: str, rows: Sequence[Row]) -> None:
    limit = _limit([row[2] for row in rows if not isinstance(row, str)])
    axis.axvline(0, color="#555555", lw=1)
    for at, row in enumerate(rows):
        if isinstance(row, str):
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            axis.text(0, at, row, transform=axis.get_yaxis_transform(), va="center", fontweight="bold", bbox=box)
        else:
            _row(axis, at, *row[1:], limit)
    axis.set(xlim=(-limit * 1.06, limit * 1.06), ylim=(len(rows) - 0.4, -0.6))
    axis.set_yticks(range(len(rows)), ["" if isinstance(row, str) else row[0] for row in rows])
    axis.tick_params(axis="y", length=0)
    axis.grid(False, axis="y")
    axis.spines["left"].set_visible(False)
    axis.set_xlabel(f"paired difference to the baseline, {METRICS[key].label}:  ← worse   better →")


def _limit(every: Sequence[Difference]) -> float:
    """Return half an axis's width: what is over ten times further out than the median is cut off and said in words."""
    reach = sorted(max(map(abs, d.interval)) if d.pairs > 1 else abs(d.mean) for d in every)
    if not reach or reach[-1] == 0:
        return 1.0
    return max(value for value in reach if value <= 10 * max(reach[len(reach) // 2], reach[-1] / 1e3)) or reach[-1]


def _row(axis: Any, at: int, case: Case, difference: Difference, limit: float) -> None:
    metric, shade = METRICS[case.metric], colour(case.cell.method)
    values, others = (case.evidence.values(cell) for cell in (case.cell, case.other))
    sign = 1 if metric.higher_is_better else -1
    seeds = np.array([sign * (values[seed] - others[seed]) for seed in sorted(values.keys() & others.keys())])
    inside = seeds[np.abs(seeds) <= limit]
    axis.plot(inside, [at + 0.24] * len(inside), "|", color=shade, ms=5, alpha=0.7)
    interval = difference.interval if difference.pairs > 1 else None
    ends = np.clip(interval or [difference.mean] * 2, -limit, limit)
    axis.plot(ends, [at, at], color=shade, lw=2, solid_capstyle="butt")
    off, apart = abs(difference.mean) > limit, difference.outcome in (Word.BETTER, Word.WORSE)
    shape = ("<" if difference.mean < 0 else ">") if off else mark(case.cell.method)
    place = float(np.clip(difference.mean, -limit, limit))
    axis.plot(place, at, shape, color=shade, mfc=shade if apart else "white", ms=6.5, mew=1.5, clip_on=False)
    text = f"{Effect([difference.mean], metric, interval).signed()}  n = {difference.pairs}"
    axis.text(1.01, at, text, transform=axis.get_yaxis_transform(), va="center", fontsize=8)
