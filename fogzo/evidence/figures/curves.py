"""Curves from run records: a metric against compute.  The same records give the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from fogzo.evidence.experiment import Cell
from fogzo.evidence.figures.style import RC, grid_of, legend, line
from fogzo.evidence.frame import Evidence
from fogzo.runs.files import atomic_write
from fogzo.runs.packed import Run
from fogzo.runs.schema import METRICS

LIMIT = 6  # panels of a figure, which a reader takes in at once
CURVES = 5  # of a panel
FEWEST_POINTS = 4
WIDE = 12  # where methods differ by more than this factor in compute, its axis is logarithmic
Panel = Sequence[Cell]


def curve_figures(evidence: Evidence) -> list[Sequence[Panel]]:
    """Return the panels of each figure: the metric against compute, a panel or more for each setting."""
    panels = [panel for cells in evidence.settings().values() for panel in _panels_of(evidence, cells)]
    return [panels[at : at + LIMIT] for at in range(0, len(panels), LIMIT)]


def _panels_of(evidence: Evidence, cells: Panel) -> list[Panel]:
    """Return the cells of one setting that were run, few enough for a panel, without those that borrow tuned values."""
    cells = [cell for cell in cells if evidence.finished(cell) and not cell.tuned_as]
    families: dict[str, list[Cell]] = {}
    for cell in cells:
        large = sum(other.method.family == cell.method.family for other in cells) >= CURVES
        families.setdefault(cell.method.family if large else "", []).append(cell)
    panels: list[Panel] = []
    for family in families.values():
        first = [cell for cell in family if evidence.baseline(cell) is None]
        others = [cell for cell in family if cell not in first]
        room = CURVES - len(first)
        panels += [[*first, *others[at : at + room]] for at in range(0, max(len(others), 1), room)]
    return [panel for panel in panels if panel]


def curves(evidence: Evidence, panels: Sequence[Panel]) -> Figure:
    """Return a figure of the metric against FLOPs: means over seeds, and between which values they lie."""
    with plt.rc_context(RC):
        figure, axes = grid_of(len(panels), height=2.9, above=0.9)
        handles: dict[str, Any] = {}
        for axis, cells in zip(axes, panels, strict=True):
            _panel(axis, evidence, cells, handles)
        legend(figure, handles)
        return figure


def _logged(evidence: Evidence, cells: Panel) -> str:
    """Return what was logged often enough to draw: the metric, else the loss of the batches."""
    key = cells[0].metric
    counts = [len(_rows(run, key)) for cell in cells for run in evidence.finished(cell)]
    return key if min(counts) >= FEWEST_POINTS else "loss"


def _panel(axis: Any, evidence: Evidence, cells: Panel, handles: dict[str, Any]) -> None:
    key = _logged(evidence, cells)
    low, high, extent = [], [], []
    for cell in cells:
        flops, values = _aligned(evidence.finished(cell), key)
        if not len(flops):
            continue
        late = values[:, len(flops) // 3 :]  # the beginning would flatten the rest
        low.append(float(late.min()))
        high.append(float(late.max()))
        style = line(cell.method, thick=evidence.baseline(cell) is None) | {"markevery": [-1]}
        (handle,) = axis.plot(flops, values.mean(0), **style)
        if len(values) > 1:
            axis.fill_between(flops, values.min(0), values.max(0), color=style["color"], alpha=0.12, lw=0)
        extent.append(flops[-1])
        handles.setdefault(cell.label, handle)
    axis.set(xlabel="FLOPs", ylabel=METRICS[key].label if key in METRICS else "loss of the batches")
    axis.set_title(cells[0].setting.label if cells[0].setting.name else "", loc="left", fontsize=8.5)
    if not low:
        return
    logarithmic = key != "accuracy" and min(low) > 0
    axis.set_yscale("log" if logarithmic else "linear")
    bottom, top = min(low), max(high)
    if logarithmic:
        axis.set_ylim(bottom * (bottom / top) ** 0.06, top * (top / bottom) ** 0.06 if top > bottom else top * 1.1)
        plain_ticks(axis.yaxis)
    else:
        margin = 0.06 * (top - bottom) or 1.0
        axis.set_ylim(bottom - margin, top + margin)
    if min(extent) > 0 and max(extent) > WIDE * min(extent):
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


class PlainLog(matplotlib.ticker.LogLocator):
    """Round numbers on a logarithmic axis; where it is so short that fewer than 3 lie on it, those of a linear one."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        ticks = super().tick_values(vmin, vmax)
        low, high = sorted((vmin, vmax))
        if sum(low <= tick <= high for tick in ticks) >= 3:
            return ticks
        return matplotlib.ticker.MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(vmin, vmax)


def plain_ticks(axis: Any) -> None:
    """Put numbers such as 0.2 at an axis, not 2 × 10⁻¹, at least two of them."""
    axis.set_major_locator(PlainLog(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0), numticks=12))
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _rows(run: Run, key: str) -> list[dict[str, Any]]:
    return [row for row in run.metrics() if row.get(key) is not None and "event" not in row]


def _aligned(runs: Sequence[Run], key: str) -> tuple[Any, Any]:
    """Return mean FLOPs at the steps that all runs logged, and the values there, shape (runs, steps)."""
    by_step = [{row["step"]: row for row in _rows(run, key)} for run in runs]
    steps = sorted(set.intersection(*(set(rows) for rows in by_step))) if by_step else []
    flops, values = (np.array([[rows[step][name] for step in steps] for rows in by_step]) for name in ("flops", key))
    return flops.mean(0) if steps else [], values


def save(figure: Figure, *files: Path) -> None:
    """Write a figure to each of the files, in the format of its name, and close it."""
    with plt.rc_context(RC):
        if len(files) > 1:
            figure.draw_without_rendering()
            figure.set_layout_engine(None)  # what it has laid out stays: once is enough for several files
        for file in files:
            if file.suffix == ".svg":
                drawing = io.StringIO()
                figure.savefig(drawing, format="svg", metadata={"Date": None})
                atomic_write(file, _rounded(drawing.getvalue()).encode())
            else:
                figure.savefig(file, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _rounded(svg: str) -> str:
    """Return coordinates to a hundredth of a point: a third smaller, and no eye sees it.  Text is left alone."""

    def attribute(match: re.Match[str]) -> str:
        return match[1] + re.sub(r"(\.\d\d)\d+", r"\1", match[2]) + '"'

    return re.sub(r'( (?:d|x|y|x1|x2|y1|y2|transform)=")([^"]*)"', attribute, svg)
