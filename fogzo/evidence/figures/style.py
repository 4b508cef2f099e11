"""How figures look: a method has the same colour, line and mark wherever it stands; panels are small multiples."""

from __future__ import annotations

import io
import math
import re
import textwrap
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from fogzo.evidence.experiment import Method, Setting
from fogzo.runs.files import atomic_write

Panel = TypeVar("Panel")
OTHERS = ("#7F7F7F", "#8C564B", "#4B5D16", "#5B3A8C", "#A0522D", "#2F6F6F")
MARKS = ("o", "s", "^", "D", "v", "P")
RC: dict[Any, Any] = {  # matplotlib's settings
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
LIMIT = 6  # panels of a figure, which a reader takes in at once
WIDE = 12  # where numbers differ by more than this factor, their axis is logarithmic
Handles = dict[str, Any]  # what is drawn, by its label in the legend


def figures_of(panels: Sequence[Panel]) -> list[Sequence[Panel]]:
    """Return the panels of each figure."""
    return [panels[at : at + LIMIT] for at in range(0, len(panels), LIMIT)]


@matplotlib.rc_context(RC)
def small_multiples(
    panels: Sequence[Panel], draw: Callable[[Any, Panel, Handles], None], height: float, above: float
) -> Figure:
    """Return a figure of panels, at most 3 side by side, under one legend; heights in inches, of a row and above."""
    across = min(3, len(panels)) if len(panels) != 4 else 2
    down = math.ceil(len(panels) / across)
    figure, handles = Figure(figsize=(10.5, above + height * down)), Handles()
    axes = figure.subplots(down, across, squeeze=False).flat
    for axis, panel in zip(axes, panels, strict=False):
        draw(axis, panel, handles)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.legend(handles.values(), handles, loc="outside upper left", ncols=3, frameon=False, fontsize=8.5)
    return figure


def title(axis: Any, setting: Setting) -> None:
    """Write above a panel which setting it shows."""
    axis.set_title(textwrap.fill(setting.label, 44) if setting.name else "", loc="left", fontsize=8.5)


def colour(method: Method) -> str:
    """Return a method's colour; darker the more samples it has.

    >>> colour(Method("one", "One", colour="#000000")), colour(Method("other", "Other"))
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


DIGITS = ((1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))  # the first ones of ticks


class PlainLog(matplotlib.ticker.LogLocator):
    """Round numbers on a logarithmic axis, ``most`` of them; where fewer than 3 lie on a short one, a linear one's."""

    def __init__(self, most: int) -> None:
        super().__init__(numticks=most + 2)
        self.most = most

    def tick_values(self, vmin: float, vmax: float) -> Any:
        low, high = sorted((vmin, vmax))
        for digits in DIGITS:
            self.set_params(subs=digits)
            ticks = super().tick_values(vmin, vmax)
            if 3 <= sum(low <= tick <= high for tick in ticks) <= self.most:
                return ticks
        return matplotlib.ticker.MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(vmin, vmax)


def plain_ticks(axis: Any, most: int = 14) -> None:
    """Put numbers such as 0.2 at an axis, not 2 × 10⁻¹, at least two of them, and so many at most."""
    axis.set_major_locator(PlainLog(most))
    axis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())


@matplotlib.rc_context(RC)
def save(figure: Figure, *files: Path) -> None:
    """Lay a figure out, and write it to each of the files, in the format of its name."""
    ConstrainedLayoutEngine().execute(figure)  # as the figure's own engine it would draw all a second time
    for file in files:
        if file.suffix == ".svg":
            drawing = io.StringIO()
            figure.savefig(drawing, format="svg", metadata={"Date": None})
            atomic_write(file, _plain(drawing.getvalue()).encode())
        else:
            pixels = io.BytesIO()
            figure.savefig(pixels, format="png", dpi=110, metadata={"Software": None})
            atomic_write(file, pixels.getvalue())


def _plain(drawing: str) -> str:
    """Return an SVG with coordinates cut to a hundredth of a point, and ids that say in which order they come.

    It is a third smaller, and no eye sees it.  Matplotlib hashes whole coordinates into the ids of markers, clips and
    hatches, so that another processor's last bit would give another file.

    >>> _plain('<clipPath id="p0123456789"/><path d="M 1.23456 2" clip-path="url(#p0123456789)"/>')
    '<clipPath id="p1"/><path d="M 1.23 2" clip-path="url(#p1)"/>'
    """
    ids = dict.fromkeys(re.findall(r'id="([hmp][0-9a-f]{10})"', drawing))
    names = {hashed: f"{hashed[0]}{number}" for number, hashed in enumerate(ids, 1)}
    named = re.sub(r"\b[hmp][0-9a-f]{10}\b", lambda found: names.get(found[0], found[0]), drawing)
    return re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), named)
