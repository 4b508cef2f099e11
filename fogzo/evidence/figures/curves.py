"""Curves from run records: columns of their rows against compute.  The same records give the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from fogzo.evidence.experiment import Cell
from fogzo.evidence.figures.style import WIDE, Handles, figures_of, line, plain_ticks, small_multiples, title
from fogzo.evidence.frame import Evidence
from fogzo.runs.packed import Run
from fogzo.runs.schema import LOGGED

CURVES = 5  # of a panel
FEWEST_POINTS = 4
Cells = Sequence[Cell]
Panel = tuple[Cells, str]  # and the column that is drawn


def curve_figures(evidence: Evidence, along: Sequence[str] = ()) -> list[Sequence[Panel]]:
    """Return the panels of each figure, one or more for each setting: the metric, or the columns ``along``."""
    run = [
        [cell for cell in cells if evidence.finished(cell) and not cell.tuned_as]  # what borrows would look like a twin
        for cells in evidence.settings().values()
    ]
    panels = [cells for setting in run for cells in panels_of(evidence, setting, CURVES)]
    if not along:
        return figures_of([(cells, _metric(evidence, cells)) for cells in panels])
    logged = [(cells, key) for cells in panels for key in along if any(map(partial(_logs, evidence, key), cells))]
    return figures_of(logged)


def _logs(evidence: Evidence, key: str, cell: Cell) -> bool:
    """Return whether a cell's runs have the column: the STE has no agreement."""
    return any(_rows(run, key) for run in evidence.finished(cell))


def panels_of(evidence: Evidence, cells: Cells, most: int) -> list[Cells]:
    """Return the cells of one setting in panels of so many at most, the baseline in each."""
    families: dict[str, list[Cell]] = {}
    for cell in cells:
        large = sum(other.method.family == cell.method.family for other in cells) >= most
        families.setdefault(cell.method.family if large else "", []).append(cell)
    panels: list[Cells] = []
    for family in families.values():
        first = [cell for cell in family if evidence.baseline(cell) is None]
        others = [cell for cell in family if cell not in first]
        room = most - len(first)
        panels += [[*first, *others[at : at + room]] for at in range(0, max(len(others), 1), room)]
    return [panel for panel in panels if panel]


def curves(evidence: Evidence, panels: Sequence[Panel]) -> Figure:
    """Return a figure of columns against FLOPs: means over seeds, and between which values they lie."""
    return small_multiples(panels, partial(_panel, evidence), height=2.9, above=0.9)


def _panel(evidence: Evidence, axis: Any, panel: Panel, handles: Handles) -> None:
    cells, key = panel
    late, extent = [], []
    for cell in cells:
        flops, values = _aligned(evidence.finished(cell), key)
        if not len(flops):
            continue
        late.append(values[:, len(flops) // 3 :])  # the beginning would flatten the rest
        style = line(cell.method, thick=evidence.baseline(cell) is None) | {"markevery": [-1]}
        (handle,) = axis.plot(flops, values.mean(0), **style)
        if len(values) > 1:
            axis.fill_between(flops, values.min(0), values.max(0), color=style["color"], alpha=0.12, lw=0)
        extent.append(flops[-1])
        handles.setdefault(cell.label, handle)
    axis.set(xlabel="FLOPs", ylabel=LOGGED[key].label)
    title(axis, cells[0].setting)
    if not late:
        return
    bottom, top = (float(end(end(values.flat) for values in late)) for end in (min, max))
    if (key == "loss" or LOGGED[key].higher_is_better is False) and bottom > 0:
        axis.set_yscale("log")
        axis.set_ylim(bottom * (bottom / top) ** 0.06, top * (top / bottom) ** 0.06 if top > bottom else top * 1.1)
        plain_ticks(axis.yaxis)
    else:
        margin = 0.06 * (top - bottom) or 1.0
        axis.set_ylim(bottom - margin, top + margin)
    if min(extent) > 0 and max(extent) > WIDE * min(extent):
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())


def _metric(evidence: Evidence, cells: Cells) -> str:
    """Return what was logged often enough to draw: the metric, else the loss of the batches."""
    key = cells[0].metric
    counts = [len(_rows(run, key)) for cell in cells for run in evidence.finished(cell)]
    return key if min(counts) >= FEWEST_POINTS else "loss"


def _rows(run: Run, key: str) -> list[dict[str, Any]]:
    return [row for row in run.metrics() if row.get(key) is not None and "event" not in row]


def _aligned(runs: Sequence[Run], key: str) -> tuple[Any, Any]:
    """Return mean FLOPs at the steps that all runs logged, and the values there, shape (runs, steps)."""
    by_step = [{row["step"]: row for row in _rows(run, key)} for run in runs]
    steps = sorted(set.intersection(*(set(rows) for rows in by_step))) if by_step else []
    flops, values = (np.array([[rows[step][name] for step in steps] for rows in by_step]) for name in ("flops", key))
    return flops.mean(0) if steps else [], values
