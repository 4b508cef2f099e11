"""What came out, as text for a terminal and as one self-contained page; runs stand side by side."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import fogzo.evidence.figures.style as look
from fogzo.diagnosis.bias import Interval
from fogzo.diagnosis.health import CELLS
from fogzo.diagnosis.summary import Diagnosis

KINDS = {"ste": "STE", "matched": "STE, K for its derivative", "fogzo": "FOGZO's mean", "draw": "one FOGZO pair"}
COLOURS = {"ste": "#000000", "matched": "#0072B2", "fogzo": "#D55E00", "draw": "#56B4E9"}
HEADS = ("tensor", "weights", "dead", "codes used", "α / std", "to boundary", *KINDS.values(), "norm, STE / smoothed")


def table(found: Diagnosis) -> list[tuple[str, ...]]:
    """Return heads and a line for each tensor and the network, as text."""
    lines: list[tuple[str, ...]] = [HEADS]
    for row in found.rows:
        h = row.health
        codes = (h.bins, f"{h.scale_in_std:.2f}", f"{h.distance:.2f}") if h else ("", "", "")
        ratio = f"{row.ratio.value:.2f} {row.ratio.shown}" if row.ratio else "not resolved"
        cosines = (str(getattr(row, kind)) for kind in KINDS)
        lines.append((row.name, f"{row.weights:,}", f"{row.dead:.0%}", *codes, *cosines, ratio))
    return lines


def facts(found: Diagnosis) -> str:
    """Return what was measured, and what the codes do in training."""
    said = [f"{found.pairs:,} pairs of probes", f"FOGZO at β = 1 - {1 - found.beta:.1e}"]
    if found.flips:
        mean, steps = sum(found.flips.shares) / len(found.flips.shares), len(found.flips.shares)
        said.append(f"{mean:.3%} of the codes flip a step, {found.flips.oscillating:.2%} came back in {steps} steps")
    elif found.logged:
        said.append(f"flips as the run logged them: {found.logged[-1]['flip_share']:.3%} in its last row")
    return "; ".join([*said, *["cut short: what was known by then"] * found.interrupted])


def text(found: Diagnosis) -> str:
    """Return the diagnosis for a terminal."""
    lines = table(found)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([f"{found.run}: {found.label}", facts(found), *rows, found.verdict])


def page(every: Sequence[Diagnosis]) -> str:
    """Return the page: a column for each run, with its own figures."""
    folders = [Path(__file__).parent, Path(look.__file__).parents[1]]
    layout = Environment(
        loader=FileSystemLoader(folders), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template("page.html.j2")
    runs = [
        {
            "run": found.run,
            "label": found.label,
            "facts": facts(found),
            "verdict": found.verdict,
            "table": table(found),
            "figures": [
                (caption, _inline(draw, found, f"run{number}{draw.__name__.replace('_', '-')}", caption))
                for draw, caption in FIGURES.items()
                if draw is not _training or found.path or found.logged
            ],
        }
        for number, found in enumerate(every, 1)
    ]
    return layout.render(title=" and ".join(found.label for found in every), runs=runs)


def _cosines(found: Diagnosis) -> Any:
    figure, axis = plt.subplots(figsize=(6.4, 0.9 + 0.5 * len(found.rows)), layout="constrained")
    for place, (kind, label) in enumerate(KINDS.items()):
        for line, row in enumerate(found.rows):
            one: Interval = getattr(row, kind)
            y, seen = line + 0.17 * (place - 1.5), 1.0 if one.resolved else 0.3
            axis.plot([one.low, one.high], [y, y], color=COLOURS[kind], lw=1.4, alpha=seen)
            name = label if line == 0 else None
            axis.plot(
                one.value if one.resolved else [], y if one.resolved else [], "o", color=COLOURS[kind], ms=4, label=name
            )
    axis.set(xlim=(-1.03, 1.03), ylim=(len(found.rows) - 0.5, -0.5), xlabel="cosine with the smoothed gradient")
    axis.set_yticks(range(len(found.rows)), [row.name for row in found.rows], fontsize=8)
    axis.axvline(0, color="#7F7F7F", lw=0.8)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8)
    return figure


def _codes(found: Diagnosis) -> Any:
    healths = [row.health for row in found.rows if row.health]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(6.4, 0.9 + 0.32 * len(healths)), layout="constrained", sharey=True
    )
    for line, health in enumerate(healths):
        left.barh(line, health.dead, color=COLOURS["fogzo"], height=0.6)
        start = 0.0
        for place, share in enumerate(health.codes):
            grey = 0.25 + 0.6 * place / max(len(health.codes) - 1, 1)
            right.barh(line, share, left=start, color=str(grey), height=0.6)
            start += share
    left.set(xlim=(0, 1), ylim=(len(healths) - 0.5, -0.5), xlabel="dead weights, share")
    left.set_yticks(range(len(healths)), [health.name for health in healths], fontsize=8)
    right.set(xlim=(0, 1), xlabel="codes, lowest (dark) to highest, share")
    return figure


def _distances(found: Diagnosis) -> Any:
    healths = [row.health for row in found.rows if row.health]
    total = sum(health.weights for health in healths)
    shares = [sum(h.distances[cell] * h.weights for h in healths) / total for cell in range(CELLS)]
    figure, axis = plt.subplots(figsize=(6.4, 2.0), layout="constrained")
    axis.bar([(cell + 0.5) / CELLS for cell in range(CELLS)], shares, width=0.9 / CELLS, color=COLOURS["matched"])
    axis.set(xlabel="distance to the nearest boundary, code units (last: and beyond)", ylabel="share of weights")
    return figure


def _training(found: Diagnosis) -> Any:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(6.4, 2.2), layout="constrained")
    steps = [row["step"] for row in found.logged]
    left.plot(steps, [row["flip_share"] for row in found.logged], color=COLOURS["matched"], lw=1.3)
    left.set(xlabel="step", title="codes flipped since the last row", ylim=(0, None))
    kept = [point["step"] for point in found.path]
    middle.plot(kept, [point["dead"] for point in found.path], "o-", ms=3, color=COLOURS["fogzo"], lw=1.3)
    middle.set(xlabel="step", title="dead weights", ylim=(0, 1))
    names = [key for key in found.path[0] if key.startswith("scale of ")] if found.path else []
    for name in names:
        right.plot(kept, [point[name] / found.path[0][name] for point in found.path], lw=1.0)
    right.set(xlabel="step", title="scales, first = 1")
    for axis in (left, middle, right):
        axis.title.set_fontsize(8)
        axis.tick_params(labelsize=7)
    return figure


FIGURES = {
    _cosines: "Cosines with the smoothed gradient, tensor by tensor.",
    _codes: "Weights without a gradient through the surrogate, and codes in use.",
    _distances: "Distance of the latent weights to the nearest boundary between codes.",
    _training: "Along training: flips from the run's log; dead weights and scales at kept checkpoints.",
}


def _inline(draw: Callable[[Diagnosis], Any], found: Diagnosis, name: str, caption: str) -> Markup:
    """Return a figure as SVG whose ids are its own, with a description."""
    drawing = io.StringIO()
    with plt.rc_context(look.RC):
        figure = draw(found)
        figure.savefig(drawing, format="svg", metadata={"Date": None})
    plt.close(figure)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", drawing.getvalue().partition("<svg")[2])
    svg = svg.replace('<style type="text/css">*{', '<style type="text/css">svg *{')  # not of the whole page
    return Markup(f'<svg role="img" aria-label="{html.escape(caption)}"{svg}')
