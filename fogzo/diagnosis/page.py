"""What came out, as text for a terminal and as one self-contained page; runs stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fogzo.diagnosis.summary import Diagnosis, resolution

KINDS = {"ste": "STE", "matched": "STE, K for its derivative", "fogzo": "FOGZO's mean", "draw": "one FOGZO pair"}
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
    """Return what was measured, how far that goes, and what the codes do in training."""
    said = [f"{found.pairs:,} pairs of probes", resolution(found.rows, found.probes)]
    said.append(f"FOGZO at β = 1 - {1 - found.beta:.1e}")
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
    here = Path(__file__).parent
    loader = FileSystemLoader([here, here.parent / "evidence" / "templates"])  # whose style the page has
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    runs = [
        {
            "found": found,
            "facts": facts(found),
            "table": table(found),
            "scales": list(zip(*(point.scales for point in found.path), strict=True)),
        }
        for found in every
    ]
    # curves of all runs have the same axes, so that they can be compared
    points, rows = ([one for found in every for one in getattr(found, name)] for name in ("path", "logged"))
    most = {
        "flip_share": max((row["flip_share"] for row in rows), default=0),
        "dead": max((point.dead for point in points), default=0),
        "revived": max((point.revived for point in points), default=0),
        "scale": max((scale for point in points for scale in point.scales), default=0),
    }
    last = max([row["step"] for row in rows] + [point.step for point in points], default=0)
    return environment.get_template("page.html.j2").render(runs=runs, kinds=KINDS, most=most, last_step=last)
