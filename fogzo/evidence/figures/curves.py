"""Figures from run records, as SVG and PNG.  The same records give the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from fogzo.evidence.compare import Difference
from fogzo.evidence.experiment import Cell
from fogzo.evidence.figures.style import RC, colour, line, mark
from fogzo.evidence.frame import Evidence, ForestRow
from fogzo.evidence.numbers import interval_text, signed
from fogzo.evidence.words import Word
from fogzo.runs.files import atomic_write
from fogzo.runs.records import Run
from fogzo.runs.schema import METRICS, Metric

COSTS = {"step": "training steps", "flops": "FLOPs", "seconds": "seconds of training"}
FEWEST_POINTS = 4
WIDE = 12  # where methods differ by more than this factor in a cost, its axis is logarithmic


def curves(evidence: Evidence) -> Figure:
    """The metric against steps, FLOPs and seconds, a row of panels a setting."""
    settings = {name: cells for name, cells in evidence.settings().items() if any(map(evidence.finished, cells))}
    with plt.rc_context(RC):
        figure, grid = plt.subplots(
            len(settings),
            3,
            figsize=(10.5, 0.9 + 2.5 * len(settings)),
            layout="constrained",
            squeeze=False,
            sharey="row",
        )
        handles: dict[str, Any] = {}
        for axes, (setting, cells) in zip(grid, settings.items(), strict=True):
            key = _logged(evidence, cells)
            _panels(axes, evidence, cells, key, handles)
            axes[0].set_ylabel(METRICS[key].label if key in METRICS else "loss of the batches")
            if setting:
                axes[0].set_title(evidence.experiment.settings[setting].label, loc="left")
        for axis, cost in zip(grid[-1], COSTS.values(), strict=True):
            axis.set_xlabel(cost)
        figure.legend(handles.values(), handles, loc="outside upper left", ncols=3, frameon=False, fontsize=8.5)
        return figure


def _logged(evidence: Evidence, cells: Sequence[Cell]) -> str:
    """What was logged often enough to draw: the metric, else the loss of the batches."""
    key = cells[0].metric
    counts = [len(_rows(run, key)) for cell in cells for run in evidence.finished(cell)]
    return key if min(counts) >= FEWEST_POINTS else "loss"


def _panels(axes: Sequence[Any], evidence: Evidence, cells: Sequence[Cell], key: str, handles: dict[str, Any]) -> None:
    low, high = [], []
    extent: dict[str, list[float]] = {cost: [] for cost in COSTS}
    for cell in cells:
        runs = evidence.finished(cell)
        steps, costs, values = _aligned(runs, key)
        if not steps:
            continue
        late = values[:, len(steps) // 3 :]  # the beginning would flatten the rest
        low.append(late.min())
        high.append(late.max())
        style = line(cell.method) | {"markevery": [-1]}
        for axis, cost in zip(axes, COSTS, strict=True):
            (handle,) = axis.plot(costs[cost], values.mean(0), **style)
            if len(values) > 1:
                axis.fill_between(costs[cost], values.min(0), values.max(0), color=style["color"], alpha=0.12, lw=0)
            extent[cost].append(costs[cost][-1])
        handles.setdefault(cell.label, handle)
    if not low:
        return
    logarithmic = key != "accuracy" and min(low) > 0
    axes[0].set_yscale("log" if logarithmic else "linear")
    bottom, top = float(min(low)), float(max(high))
    if logarithmic:
        axes[0].set_ylim(bottom * (bottom / top) ** 0.06, top * (top / bottom) ** 0.06 if top > bottom else top * 1.1)
        plain_ticks(axes[0].yaxis)
    else:
        margin = 0.06 * (top - bottom) or 1.0
        axes[0].set_ylim(bottom - margin, top + margin)
    for axis, cost in zip(axes, COSTS, strict=True):
        if cost != "step" and min(extent[cost]) > 0 and max(extent[cost]) > WIDE * min(extent[cost]):
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


class PlainLog(matplotlib.ticker.LogLocator):
    """Round numbers on a logarithmic axis; where it is so short that fewer than 3 lie on it, those of a linear one."""

    def __init__(self) -> None:
        super().__init__(subs=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0), numticks=12)

    def tick_values(self, vmin: float, vmax: float) -> Any:
        ticks = super().tick_values(vmin, vmax)
        low, high = sorted((vmin, vmax))
        if sum(low <= tick <= high for tick in ticks) >= 3:
            return ticks
        return matplotlib.ticker.MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(vmin, vmax)


def plain_ticks(axis: Any) -> None:
    """Numbers such as 0.2, not 2 × 10⁻¹, at least two of them."""
    axis.set_major_locator(PlainLog())
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _rows(run: Run, key: str) -> list[dict[str, Any]]:
    return [row for row in run.metrics() if row.get(key) is not None and "event" not in row]


def _aligned(runs: Sequence[Run], key: str) -> tuple[list[int], dict[str, Any], Any]:
    """Steps that all runs logged, mean costs there, and the values, shape (runs, steps)."""
    by_step = [{row["step"]: row for row in _rows(run, key)} for run in runs]
    steps = sorted(set.intersection(*(set(rows) for rows in by_step))) if by_step else []
    costs = {
        cost: np.array([[rows[step][cost] for step in steps] for rows in by_step]).mean(0) for cost in COSTS if steps
    }
    return steps, costs, np.array([[rows[step][key] for step in steps] for rows in by_step])


def differences(evidence: Evidence) -> Figure:
    """Each method's paired difference to the baseline in each setting.

    Settings that are compared by different metrics stand in different panels.
    """
    return forest({key: _entries(evidence, key) for key in evidence.metrics()})


def forest(asked: Mapping[str, Sequence[ForestRow]]) -> Figure:
    """A forest plot: differences with their intervals and seeds, a panel a metric."""
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


def _entries(evidence: Evidence, key: str) -> list[ForestRow]:
    entries: list[ForestRow] = []
    for setting, cells in evidence.settings().items():
        found = [(cell, evidence.difference(cell, evidence.baseline(cell))) for cell in cells]
        shown = [(cell, difference) for cell, difference in found if difference and cell.metric == key]
        if shown and setting:
            entries.append((evidence.experiment.settings[setting].label, None))
        entries += [(cell.method.full_label, (evidence, cell, found)) for cell, found in shown]
    return entries


def _forest(axis: Any, metric: Metric, entries: Sequence[ForestRow]) -> None:
    limit = _limit([shown[2] for _, shown in entries if shown is not None])
    axis.axvline(0, color="#555555", lw=1)
    for row, (text, shown) in enumerate(entries):
        if shown is None:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            axis.text(0, row, text, transform=axis.get_yaxis_transform(), va="center", fontweight="bold", bbox=box)
        else:
            _forest_row(axis, row, *shown, limit)
    axis.set(xlim=(-limit * 1.06, limit * 1.06), ylim=(len(entries) - 0.4, -0.6))
    axis.set_yticks(range(len(entries)), [text if shown else "" for text, shown in entries])
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", alpha=0.25, lw=0.5)
    axis.set_xlabel(f"paired difference to the baseline, {metric.label}:  ← worse   better →")


def _limit(found: Sequence[Difference]) -> float:
    """Half the width of the axis: what is over ten times further out than the median is cut off, and said in words."""
    reach = sorted(max(map(abs, d.interval)) if d.pairs > 1 else abs(d.mean) for d in found)
    if not reach or reach[-1] == 0:
        return 1.0
    return max(value for value in reach if value <= 10 * max(reach[len(reach) // 2], reach[-1] / 1e3))


def _forest_row(axis: Any, row: int, evidence: Evidence, cell: Cell, difference: Difference, limit: float) -> None:
    metric = METRICS[cell.metric]
    digits = metric.digits
    shade, apart = colour(cell.method), difference.outcome in (Word.BETTER, Word.WORSE)
    base = evidence.baseline(cell)
    own, other = evidence.values(cell), evidence.values(base) if base else {}
    sign = 1 if metric.higher_is_better else -1
    seeds = np.array([sign * (own[seed] - other[seed]) for seed in sorted(own.keys() & other.keys())])
    inside = seeds[np.abs(seeds) <= limit]
    axis.plot(inside, [row + 0.24] * len(inside), "|", color=shade, ms=5, alpha=0.7)
    low, high = np.clip(difference.interval if difference.pairs > 1 else [difference.mean] * 2, -limit, limit)
    axis.plot([low, high], [row, row], color=shade, lw=2, solid_capstyle="butt")
    off = abs(difference.mean) > limit
    shape = ("<" if difference.mean < 0 else ">") if off else mark(cell.method)
    at = float(np.clip(difference.mean, -limit, limit))
    axis.plot(at, row, shape, color=shade, mfc=shade if apart else "white", ms=6.5, mew=1.5, clip_on=False)
    text = interval_text(difference, digits) if difference.pairs > 1 else signed(difference.mean, digits)
    axis.text(
        1.01, row, f"{text}  n = {difference.pairs}", transform=axis.get_yaxis_transform(), va="center", fontsize=8
    )


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
    """Coordinates to a hundredth of a point: a third smaller, and no eye sees it.  Text is left alone."""

    def attribute(found: re.Match[str]) -> str:
        return found[1] + re.sub(r"(\.\d\d)\d+", r"\1", found[2]) + '"'

    return re.sub(r'( (?:d|x|y|x1|x2|y1|y2|transform)=")([^"]*)"', attribute, svg)
