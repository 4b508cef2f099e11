"""Every figure by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.figure import Figure

from fogzo.evidence.claims import claims_of, forest_of
from fogzo.evidence.figures.curves import curves, differences, forest
from fogzo.evidence.figures.family import members
from fogzo.evidence.figures.sensitivity import sensitivity
from fogzo.evidence.frame import Evidence
from fogzo.evidence.tables.overview import member_rows


def drawings(every: Sequence[Evidence]) -> dict[str, Callable[[], Figure]]:
    """Return what draws each figure, by its name; without those of which there are no runs."""
    draw: dict[str, Callable[[], Figure]] = {}
    for evidence in every:
        if any(map(evidence.finished, evidence.cells.values())):
            draw[evidence.name] = partial(curves, evidence)
            draw[f"{evidence.name}_differences"] = partial(differences, evidence)
            if evidence.experiment.axes:
                draw[f"{evidence.name}_sensitivity"] = partial(sensitivity, evidence)
    if member_rows(every)[1]:
        draw["members"] = partial(members, every)
    for claim in claims_of(every):
        if panels := forest_of(claim):
            draw[f"claim_{claim.name}"] = partial(forest, panels)
    return draw
