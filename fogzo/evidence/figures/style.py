"""How methods look in every figure: the same colour, line and mark wherever they stand."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from fogzo.evidence.experiment import Method

OTHERS = ("#7F7F7F", "#8C564B", "#4B5D16", "#5B3A8C", "#A0522D", "#2F6F6F")
MARKS = ("o", "s", "^", "D", "v", "P")
RC: dict[Any, Any] = {
    "svg.hashsalt": "fogzo",
    "svg.fonttype": "none",  # text stays text: smaller, to be searched and read aloud
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "figure.facecolor": "white",
}


def grid_of(panels: int, height: float, above: float) -> tuple[Figure, list[Any]]:
    """Return a figure and the axes of as many panels, at most 3 side by side; heights in inches, of a row and above."""
    across = min(3, panels) if panels != 4 else 2
    down = math.ceil(panels / across)
    size = (10.5, above + height * down)
    figure, grid = plt.subplots(down, across, figsize=size, layout="constrained", squeeze=False)
    for axis in grid.flat[panels:]:
        axis.set_visible(False)
    return figure, list(grid.flat[:panels])


def legend(figure: Figure, handles: Mapping[str, Any]) -> None:
    """Put the labels of what is drawn above a figure's panels."""
    figure.legend(handles.values(), handles, loc="outside upper left", ncols=3, frameon=False, fontsize=8.5)


def colour(method: Method) -> str:
    """Return a method's colour; darker the more samples it has.

    >>> colour(Method("ste", "STE", colour="#000000")), colour(Method("other", "Other"))
    ('#000000', '#7f7f7f')
    """
    base = method.colour or OTHERS[zlib.crc32(method.name.encode()) % len(OTHERS)]
    light = 1 - 0.6 * min(1.0, math.log10(max(1, method.samples)) / 4)
    return "#" + "".join(f"{round(int(base[at : at + 2], 16) * light):02x}" for at in (1, 3, 5))


def mark(method: Method) -> str:
    """Return a method's mark: by its samples, in decades."""
    return MARKS[math.ceil(math.log10(max(1, method.samples))) % len(MARKS)]


def line(method: Method, *, thick: bool = False) -> dict[str, Any]:
    """Return how a curve is drawn: controls dashed, the baseline ``thick``."""
    return {
        "color": colour(method),
        "lw": 1.8 if thick else 1.3,
        "ls": (0, (4, 1.6)) if method.is_control else "-",
        "marker": mark(method),
        "ms": 4,
    }
