"""How methods look in every figure: the same colour, line and mark wherever they stand."""

from __future__ import annotations

import math
import zlib
from typing import Any

from fogzo.evidence.experiment import Method

# Okabe and Ito's palette, which the colour-blind can tell apart; its yellow is too pale on white
COLOURS = {
    "ste": "#000000",
    "fogzo": "#D55E00",
    "fogzo_dropin": "#CC6677",
    "nspsa": "#56B4E9",
    "slope": "#009E73",
    "noisy_ste": "#E69F00",
    "ste_longer": "#0072B2",
    "rescaled_ste": "#CC79A7",
    # beyond the eight, from Tol's muted scheme, made for the same eyes, and ColorBrewer's brown
    "noisy_ste_own": "#A65628",
    "phased": "#882255",
    "phased_slope": "#117733",
    "ste_flops": "#332288",
    "ste_steps": "#999933",
}
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


def colour(method: Method) -> str:
    """A method's colour; darker the more samples it has.

    >>> colour(Method("ste", "STE")), colour(Method("nspsa_1", "n-SPSA", family="nspsa"))
    ('#000000', '#56b4e9')
    """
    by_hash = OTHERS[zlib.crc32(method.name.encode()) % len(OTHERS)]
    base = COLOURS.get(method.name) or COLOURS.get(method.family) or by_hash
    light = 1 - 0.6 * min(1.0, math.log10(max(1, method.samples)) / 4)
    return "#" + "".join(f"{round(int(base[at : at + 2], 16) * light):02x}" for at in (1, 3, 5))


def mark(method: Method) -> str:
    """A method's mark: by its samples, in decades."""
    return MARKS[math.ceil(math.log10(max(1, method.samples))) % len(MARKS)]


def line(method: Method) -> dict[str, Any]:
    """How a curve is drawn: controls dashed, the STE thicker."""
    return {
        "color": colour(method),
        "lw": 1.8 if method.name == "ste" else 1.3,
        "ls": (0, (4, 1.6)) if method.is_control else "-",
        "marker": mark(method),
        "ms": 4,
    }
