"""Figures from records, each by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.figure import Figure

from fogzo.evidence.claims import claims_of
from fogzo.evidence.figures.curves import curve_figures, curves
from fogzo.evidence.figures.family import members
from fogzo.evidence.figures.forest import differences, forest, forest_of
from fogzo.evidence.figures.rates import rate_figures, rates
from fogzo.evidence.figures.sensitivity import sensitivity, sensitivity_figures
from fogzo.evidence.frame import Evidence
from fogzo.evidence.tables.overview import member_rows


def drawings(every: Sequence[Evidence]) -> dict[str, Callable[[], Figure]]:
    """Return what draws each figure, by its name; without those of which there are no runs.

    Of several figures of one kind the second is ``NAME_2``.
    """
    draw: dict[str, Callable[[], Figure]] = {}
    for evidence in every:
        if any(map(evidence.finished, evidence.cells.values())):
            for number, panels in enumerate(curve_figures(evidence), 1):
                draw[_numbered(evidence.name, number)] = partial(curves, evidence, panels)
            if evidence.experiment.along:
                for number, panels in enumerate(curve_figures(evidence, evidence.experiment.along), 1):
                    draw[_numbered(f"{evidence.name}_along", number)] = partial(curves, evidence, panels)
            for number, cells in enumerate(rate_figures(evidence), 1):
                draw[_numbered(f"{evidence.name}_rates", number)] = partial(rates, evidence, cells)
            draw[f"{evidence.name}_differences"] = partial(differences, evidence)
            for number, axes in enumerate(sensitivity_figures(evidence), 1):
                draw[_numbered(f"{evidence.name}_sensitivity", number)] = partial(sensitivity, evidence, axes)
    if member_rows(every)[1]:
        draw["members"] = partial(members, every)
    draw |= {f"claim_{claim.name}": partial(forest, rows) for claim in claims_of(every) if (rows := forest_of(claim))}
    return draw


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}_{number}"
