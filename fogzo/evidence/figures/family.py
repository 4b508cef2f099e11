"""The figure of members against an STE of the same compute: a row a setting, a column a member."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fogzo.evidence.figures.style import RC
from fogzo.evidence.frame import Evidence
from fogzo.evidence.numbers import signed
from fogzo.evidence.tables.overview import MemberRow, member_rows
from fogzo.evidence.words import Word
from fogzo.runs.schema import METRICS

TINTS = {Word.BETTER: "#9ecae8", Word.WORSE: "#f5b895"}  # blue and orange, which the colour-blind can tell apart
OPEN = "#eeeeee"


@matplotlib.rc_context(RC)
def members(every: Sequence[Evidence]) -> Figure:
    """Return the figure of their differences with 95 % intervals, tinted where told apart."""
    labels, rows = member_rows(every)
    lines: list[MemberRow | str] = []  # settings under the title of their experiment
    for number, row in enumerate(rows):
        if number == 0 or rows[number - 1].experiment != row.experiment:
            lines.append(row.experiment)
        lines.append(row)
    figure = Figure(figsize=(3.2 + 1.05 * len(labels), 1.2 + 0.34 * len(lines)))
    axis = figure.subplots()
    within: dict[str, Any] = {"ha": "center", "va": "center", "in_layout": False}  # a box has room for its text
    for y, line in enumerate(lines):
        if isinstance(line, str):
            axis.text(-0.48, y, line, va="center", fontweight="bold", in_layout=False)
            continue
        for x, key in enumerate(labels):
            case = line.cases.get(key)
            if case is not None and case.difference is not None:
                difference, metric = case.difference, METRICS[case.metric]
                tint = TINTS.get(difference.outcome, OPEN)
                axis.add_patch(Rectangle((x - 0.48, y - 0.44), 0.96, 0.88, color=tint, lw=0))
                text = f"{signed(difference.mean, metric.digits)} {metric.unit}"
                ends = ", ".join(signed(end, metric.digits) for end in difference.interval)
                axis.text(x, y - 0.2, text, **within, fontsize=8)
                size = 6.5 if len(ends) < 18 else 5.6
                axis.text(x, y + 0.22, f"[{ends}]", **within, fontsize=size, color="#444444")
    axis.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(lines) - 0.5, -0.5))
    axis.set_xticks(range(len(labels)), [textwrap.fill(label, 12) for label in labels.values()], fontsize=8)
    axis.set_yticks(range(len(lines)), ["" if isinstance(line, str) else line.setting for line in lines])
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    handles = [Rectangle((0, 0), 1, 1, color=tint) for tint in (*TINTS.values(), OPEN)]
    words = ["better than the STE of the same compute", "worse", "not to be told apart"]
    figure.legend(handles, words, loc="outside lower left", ncols=3, frameon=False, fontsize=8.5)
    return figure
