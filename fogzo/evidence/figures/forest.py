"""Forest plots: paired differences with their intervals and single seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from fogzo.evidence.claims import Claim
from fogzo.evidence.compare import Difference
from fogzo.evidence.figures.style import RC, colour, mark
from fogzo.evidence.frame import Evidence
from fogzo.evidence.numbers import Effect
from fogzo.evidence.verdicts import Case
from fogzo.evidence.words import Word
from fogzo.runs.schema import METRICS, Metric

Row = tuple[str, Case | None]  # its label, and the comparison that it shows; a title has none


def differences(evidence: Evidence) -> Figure:
    """Return the figure of each method's paired difference to the baseline in each setting.

    Settings that are compared by different metrics stand in different panels.
    """
    return forest({key: _rows(evidence, key) for key in evidence.metrics()})


def forest(asked: Mapping[str, Sequence[Row]]) -> Figure:
    """Return a forest plot: differences with their intervals and seeds, a panel a metric."""
    panels = [(METRICS[key], entries) for key, entries in asked.items() if entries]
    heights = [len(entries) + 1.5 for _, entries in panels] or [1.0]
    with plt.rc_context(RC | {"axes.grid": False, "axes.spines.left": False}):
        figure, axes = plt.subplots(
            len(heights), 1, figsize=(10.5, 0.7 + 0.3 * sum(heights)), layout="constrained", squeeze=False,
            height_ratios=heights,
        )  # fmt: skip
        for axis, (metric, entries) in zip(axes[:, 0], panels, strict=False):
            _forest(axis, metric, entries)
        return figure


def _rows(evidence: Evidence, key: str) -> list[Row]:
    rows: list[Row] = []
    for setting, cells in evidence.settings().items():
        pairs = [(cell, evidence.baseline(cell)) for cell in cells if cell.metric == key]
        cases = [case for cell, other in pairs if other and (case := Case(evidence, cell, other)).difference]
        if cases and setting:
            rows.append((evidence.experiment.settings[setting].label, None))
        rows += [(case.cell.method.full_label, case) for case in cases]
    return rows


def forest_of(claim: Claim) -> dict[str, list[Row]]:
    """Return the claim's settings by the metric they are compared by, under their experiments' titles."""
    by_metric: dict[str, list[Row]] = {}
    for case in claim.cases:
        if case.difference is not None:
            rows = by_metric.setdefault(case.metric, [])
            if (case.evidence.title, None) not in rows:
                rows.append((case.evidence.title, None))
            rows.append((case.cell.setting.label if case.cell.setting.name else case.cell.label, case))
    return by_metric


def _forest(axis: Any, metric: Metric, entries: Sequence[Row]) -> None:
    limit = _limit([case.difference for _, case in entries if case is not None and case.difference is not None])
    axis.axvline(0, color="#555555", lw=1)
    for row, (text, case) in enumerate(entries):
        if case is None:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            axis.text(0, row, text, transform=axis.get_yaxis_transform(), va="center", fontweight="bold", bbox=box)
        else:
            _forest_row(axis, row, case, limit)
    axis.set(xlim=(-limit * 1.06, limit * 1.06), ylim=(len(entries) - 0.4, -0.6))
    axis.set_yticks(range(len(entries)), [text if case else "" for text, case in entries])
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", alpha=0.25, lw=0.5)
    axis.set_xlabel(f"paired difference to the baseline, {metric.label}:  ← worse   better →")


def _limit(every: Sequence[Difference]) -> float:
    """Return half an axis's width: what is over ten times further out than the median is cut off and said in words."""
    reach = sorted(max(map(abs, d.interval)) if d.pairs > 1 else abs(d.mean) for d in every)
    if not reach or reach[-1] == 0:
        return 1.0
    return max(value for value in reach if value <= 10 * max(reach[len(reach) // 2], reach[-1] / 1e3))


def _forest_row(axis: Any, row: int, case: Case, limit: float) -> None:
    metric, difference, shade = METRICS[case.metric], case.difference, colour(case.cell.method)
    assert difference is not None
    values, others = (case.evidence.values(cell) for cell in (case.cell, case.other))
    sign = 1 if metric.higher_is_better else -1
    seeds = np.array([sign * (values[seed] - others[seed]) for seed in sorted(values.keys() & others.keys())])
    inside = seeds[np.abs(seeds) <= limit]
    axis.plot(inside, [row + 0.24] * len(inside), "|", color=shade, ms=5, alpha=0.7)
    alone = difference.pairs == 1
    low, high = np.clip([difference.mean] * 2 if alone else difference.interval, -limit, limit)
    axis.plot([low, high], [row, row], color=shade, lw=2, solid_capstyle="butt")
    off, apart = abs(difference.mean) > limit, difference.outcome in (Word.BETTER, Word.WORSE)
    shape = ("<" if difference.mean < 0 else ">") if off else mark(case.cell.method)
    at = float(np.clip(difference.mean, -limit, limit))
    axis.plot(at, row, shape, color=shade, mfc=shade if apart else "white", ms=6.5, mew=1.5, clip_on=False)
    text = Effect([difference.mean], metric, None if alone else difference.interval).signed()
    axis.text(
        1.01, row, f"{text}  n = {difference.pairs}", transform=axis.get_yaxis_transform(), va="center", fontsize=8
    )
