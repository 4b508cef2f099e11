"""Figures of a metric against a number that the settings, or the methods, of an experiment vary.

An experiment's file places them, an axis a panel:

    axes:
      - {label: batch size, settings: {batch16: 16, base: 64}}       # a line for each method
      - {label: n, methods: {fogzo: 1, fogzo_4: 4}}                  # a line for each setting, beside its baseline
      - {label: batch size, settings: {batch16: 16, base: 64}, metric: mean_agreement}      # of what else is recorded
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fogzo.evidence.experiment import Axis, Cell, Method
from fogzo.evidence.figures.style import WIDE, Handles, colour, figures_of, line, plain_ticks, small_multiples
from fogzo.evidence.frame import Evidence
from fogzo.runs.schema import METRICS

Points = list[tuple[float, Cell]]
Panel = tuple[Axis, str]  # an axis of the experiment, and the metric that is drawn against it
FLAT = 4  # losses that differ by more than this factor are drawn on a logarithmic axis


def sensitivity_figures(evidence: Evidence) -> list[Sequence[Panel]]:
    """Return the panels of each figure."""
    panels = [
        (asked, key)
        for asked in evidence.experiment.axes
        for key in ([asked.metric] if asked.metric else evidence.metrics())
        if list(_lines(evidence, asked, _places(asked)[0], key))  # a metric may have come after the runs
    ]
    return figures_of(panels)


def sensitivity(evidence: Evidence, panels: Sequence[Panel]) -> Figure:
    """Return a figure of means and single seeds against each axis."""
    return small_multiples(panels, partial(_panel, evidence), height=3.3, above=0.6)


def _places(asked: Axis) -> tuple[dict[str, float], list[str]]:
    """Return where each setting or method stands on an axis, and the words that stand there instead of numbers."""
    given = asked.settings or asked.methods
    words = list(dict.fromkeys(value for value in given.values() if isinstance(value, str)))
    return {name: float(words.index(at) if at in words else at) for name, at in given.items()}, words


def _panel(evidence: Evidence, axis: Any, panel: Panel, handles: Handles) -> None:
    asked, key = panel
    places, words = _places(asked)
    reach: list[float] = []
    for label, method, points in _lines(evidence, asked, places, key):
        values = [list(evidence.values(cell, key).values()) for _, cell in points]
        style = line(method, thick=method.name == evidence.experiment.baseline) | {"marker": "o"}
        if words:  # they have no order that a line could follow
            style["ls"] = ""
        (handle,) = axis.plot([at for at, _ in points], [np.mean(seeds) for seeds in values], **style)
        reach += [seed for seeds in values for seed in seeds]
        for (at, _), seeds in zip(points, values, strict=True):
            axis.plot([at] * len(seeds), seeds, "_", color=style["color"], ms=7, alpha=0.5)
        handles.setdefault(label, handle)
        if asked.methods:
            _level_of_baseline(axis, evidence, key, points[0][1], handles)
    if reach and METRICS[key].higher_is_better is False and 0 < FLAT * min(reach) < max(reach):
        axis.set_yscale("log")
        plain_ticks(axis.yaxis)
    where = sorted(set(places.values()))
    if where[0] > 0 and where[-1] >= WIDE * where[0]:
        axis.set_xscale("log")
    axis.set_xticks(where, words or [f"{value:g}" for value in where])
    axis.minorticks_off()
    axis.set(xlabel=asked.label, ylabel=METRICS[key].label)


def _lines(
    evidence: Evidence, asked: Axis, places: Mapping[str, float], key: str
) -> Iterator[tuple[str, Method, Points]]:
    """Yield what is drawn as one line: its label, the method that lends its colour, and its points in order."""
    by_settings = bool(asked.settings)
    lines: dict[str, Points] = {}
    for cell in evidence.cells.values():
        names = (cell.setting.name, cell.method.name)
        place, line_of = names if by_settings else names[::-1]
        shown = key in (cell.metric, asked.metric)
        if shown and place in places and evidence.values(cell, key):
            lines.setdefault(line_of, []).append((places[place], cell))
    # a setting with one of the methods alone shows nothing of what they vary
    lines = {line_of: points for line_of, points in lines.items() if len(points) > 1}
    for line_of, points in lines.items():
        points.sort(key=lambda point: point[0])
        if by_settings:
            yield points[0][1].label, points[0][1].method, points
        else:
            methods = [evidence.experiment.methods[name] for name in asked.methods]
            method = next((one for one in methods if one.colour), methods[0])  # the standard one, which others vary
            where = f", {evidence.experiment.settings[line_of].label}" if len(lines) > 1 else ""
            yield method.family + where, method, points


def _level_of_baseline(axis: Any, evidence: Evidence, key: str, cell: Cell, handles: Handles) -> None:
    """Draw the baseline of a cell's setting as a level with the range of its seeds."""
    baseline = evidence.sibling(cell, evidence.experiment.baseline)
    if baseline is None or baseline.metric != key or not evidence.values(baseline):
        return
    seeds = list(evidence.values(baseline).values())
    handle = axis.axhline(float(np.mean(seeds)), color=colour(baseline.method), lw=1.5)
    axis.axhspan(min(seeds), max(seeds), color=colour(baseline.method), alpha=0.1, lw=0)
    handles.setdefault(baseline.label, handle)
