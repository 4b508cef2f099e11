"""The tables of pages that are written by hand: between ``<!-- make tables: WHAT -->`` and ``<!-- end -->``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from fogzo.evidence.claims import claims_of
from fogzo.evidence.fills import fill
from fogzo.evidence.frame import Evidence
from fogzo.evidence.pages import equal_loss_section, verdict_list
from fogzo.evidence.render import markdown
from fogzo.evidence.tables.base import Table
from fogzo.evidence.tables.comparison import comparison_table, control_table, parts_table
from fogzo.evidence.tables.overview import claims_table, members_table
from fogzo.runs.files import atomic_write
from fogzo.runs.folder import RunError

MARKED = re.compile(r"(<!-- make tables: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
FIGURE = re.compile(r"\]\([./]*results/figures/(\w+)\.svg\)")


def pages() -> list[Path]:
    """Return the pages that are written by hand."""
    return [page for page in [Path("README.md"), *sorted(Path("docs").glob("*.md"))] if page.exists()]


def linked_figures() -> set[str]:
    """Return the names of the figures that a page shows."""
    return {name for page in pages() for name in FIGURE.findall(page.read_text(encoding="utf-8"))}


def fill_pages(every: Sequence[Evidence]) -> None:
    """Write what README.md and docs/*.md ask for between their marks.

    WHAT is ``claims`` or ``members``, or ``table``, ``verdict``, ``parts``, ``controls`` or ``equal loss``
    with an experiment's name.

    Raises:
        RunError: if a page asks for something else.
    """
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = MARKED.sub(lambda mark: f"{mark[1]}{_asked(every, mark[2], page)}{mark[3]}", old)  # noqa: B023
        new = fill(new, every, str(page))
        if new != old:
            atomic_write(page, new.encode())


def _asked(every: Sequence[Evidence], what: str, page: Path) -> str:
    of_all: dict[str, Callable[[], Table]] = {
        "claims": lambda: claims_table(claims_of(every)).directed(),
        "members": lambda: members_table(every).directed(),
    }
    of_one: dict[str, Callable[[Evidence], str]] = {
        "table": lambda evidence: _without_notes(comparison_table(evidence)),
        "verdict": verdict_list,
        "parts": lambda evidence: markdown(parts_table(evidence)),
        "controls": lambda evidence: _without_notes(control_table(evidence)),
        "equal loss": lambda evidence: equal_loss_section(evidence, level=3),  # it stands inside a section of the page
    }
    if what in of_all:
        return markdown(of_all[what]())
    kind, _, name = what.rpartition(" ")
    evidence = next((evidence for evidence in every if evidence.name == name), None)
    if evidence is None or kind not in of_one:
        raise RunError(
            f"{page} asks for `{what}`: choose claims or members, or table, verdict, parts, controls or equal loss "
            "and the name of an experiment"
        )
    return of_one[kind](evidence)


def _without_notes(table: Table | None) -> str:
    """A table whose notes stand on the experiment's own page."""
    return markdown(replace(table, notes=[])) if table else "No controls.\n"
