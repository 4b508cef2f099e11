"""Figures of what tuning tried: the loss at each learning rate, so that a method's best one does not stand alone.

Most methods have a knob of their own, which is searched together with the rate.  A line takes the knob's best value at
each rate that was tried; open marks show what its other values made of that rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fogzo.evidence.experiment import Cell
from fogzo.evidence.figures.curves import panels_of
from fogzo.evidence.figures.style import Handles, figures_of, line, plain_ticks, small_multiples, title
from fogzo.evidence.frame import Evidence
from fogzo.runs.schema import METRICS

LINES = 8  # of a panel, more than of curves: they have few points
OTHERS = {"o": "open: other values of its own knob", "^": "beyond the axis, or diverged"}
OPEN: dict[str, Any] = {"mfc": "none", "ms": 4.5, "mew": 0.8, "ls": ""}
Cells = Sequence[Cell]


def rate_figures(evidence: Evidence) -> list[Sequence[Cells]]:
    """Return the panels of each figure, one or more for each setting: the cells whose trials are listed."""
    panels: list[Cells] = []
    for of_setting in evidence.settings().values():
        cells = [cell for cell in of_setting if _tried(evidence, cell)]
        others = max(1, len(cells) - 1)
        panels += panels_of(evidence, cells, 1 + math.ceil(others / math.ceil(others / (LINES - 1))))
    return figures_of(panels)


def rates(evidence: Evidence, panels: Sequence[Cells]) -> Figure:
    """Return a figure of the loss in tuning, the mean of its seeds, against the learning rate."""
    return small_multiples(panels, partial(_panel, evidence), height=3.3, above=0.9)


def _tried(evidence: Evidence, cell: Cell) -> dict[float, list[float]]:
    chosen = evidence.tuned.get(cell.name)
    return chosen.by_rate(evidence.experiment.tuning.metric) if chosen else {}


def _panel(evidence: Evidence, axis: Any, cells: Cells, handles: Handles) -> None:
    metric = METRICS[evidence.experiment.tuning.metric]
    best = max if metric.higher_is_better else min
    ends: list[float] = []
    others: list[tuple[float, float, str]] = []
    for cell in cells:
        tried, style = _tried(evidence, cell), line(cell.method, thick=evidence.baseline(cell) is None)
        points = {rate: best(had) for rate, had in tried.items()}
        (handle,) = axis.plot(list(points), list(points.values()), **style)
        handles.setdefault(cell.label, handle)
        ends += filter(math.isfinite, points.values())
        rest = [(rate, value) for rate, had in tried.items() for value in had]
        others += [(*one, style["color"]) for one in rest if one not in points.items() or not math.isfinite(one[1])]
    low, high = min(ends, default=1.0), max(ends, default=1.0)
    logarithmic = metric.higher_is_better is False and low > 0
    reach = high * high / low if logarithmic else math.inf  # a knob's worst values would flatten the lines
    shapes = set()
    for rate, value, shade in others:
        beyond = not math.isfinite(value) or value > reach
        if beyond:
            axis.plot(rate, 1, "^", mec=shade, transform=axis.get_xaxis_transform(), clip_on=False, **OPEN)
        else:
            axis.plot(rate, value, "o", mec=shade, **OPEN)
            high = max(high, value)
        shapes.add("^" if beyond else "o")
    for shape in filter(shapes.__contains__, OTHERS):
        handles.pop(OTHERS[shape], None)  # last in the legend, whatever panels are to come
        handles[OTHERS[shape]] = Line2D([], [], marker=shape, mec="#555555", **OPEN)
    if logarithmic:
        axis.set_yscale("log")
        margin = (high / low) ** 0.06 if high > low else 1.1
        axis.set_ylim(low / margin, high * margin)
        plain_ticks(axis.yaxis)
    axis.set_xscale("log")
    plain_ticks(axis.xaxis, most=6)
    axis.set_xticks(sorted({rate for cell in cells for rate in _tried(evidence, cell)}), minor=True)
    axis.set(xlabel="learning rate", ylabel=f"{metric.name} in tuning, {metric.scale or metric.unit}")
    title(axis, cells[0].setting)
