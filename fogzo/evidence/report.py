"""All results as one HTML file that needs no network and no script; ``report.html.j2`` is its layout."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from markupsafe import Markup

from fogzo.evidence.chosen import whole_commands
from fogzo.evidence.claims import claims_of
from fogzo.evidence.experiment import Cell
from fogzo.evidence.frame import Evidence
from fogzo.evidence.pages import TABLES
from fogzo.evidence.render import SITE, prose, rendered
from fogzo.evidence.tables.overview import equal_baseline
from fogzo.evidence.verdicts import Case, run_of
from fogzo.evidence.words import Word


def report(every: Sequence[Evidence]) -> str:
    """Return the report of all experiments; the working directory is the project's root."""
    run = [evidence for evidence in every if evidence.all_runs()]
    return rendered(
        "report.html.j2",
        **TABLES,
        run=run,
        at_equal_steps=_score(run, Evidence.baseline),
        at_equal_compute=_score(run, equal_baseline),
        claims=claims_of(every),
        answers=_written("answers", Path("docs/replication.md")),
        choosing=_written("choosing", Path("docs/choosing.md")),
        unrun=list(_unrun(every)),
        figure=figure,
    )


def _written(place: str, file: Path) -> Markup:
    """Return a page that was written by hand, its numbers filled in; nothing if there is none."""
    if not file.exists():
        return Markup()
    return prose(file.read_text(encoding="utf-8"), file.parent, partial(figure, place=f"{place}-"))


def _score(run: Sequence[Evidence], against: Callable[[Evidence, Cell], Cell | None]) -> tuple[int, int, int]:
    """Return in how many settings the paper's method is better, in how many worse, and in how many it was run.

    A setting that another experiment repeats on other seeds counts once.
    """
    first = [one for one in run if one.experiment.repeats is None]
    subjects = [(one, cell) for one in first for cell in one.cells.values() if cell.method.role == "subject"]
    cases = run_of([Case(one, cell, other) for one, cell in subjects if (other := against(one, cell))])
    return sum(one.outcome is Word.BETTER for one in cases), sum(one.outcome is Word.WORSE for one in cases), len(cases)


def _unrun(every: Sequence[Evidence]) -> Iterator[tuple[str, str]]:
    """Yield what lacks runs, and the commands that make them."""
    for evidence in sorted(every, key=lambda one: bool(one.all_runs())):
        if evidence.all_runs():
            said = f"{evidence.title}: missing runs"
            commands = [command for cell in evidence.cells.values() for command in evidence.commands(cell)]
        else:
            said = f"{evidence.title} ({evidence.experiment.scale} scale)"
            commands = whole_commands(evidence.experiment) + [f"# not used: {one}" for one in evidence.problems]
        if commands:
            yield said, "\n".join(commands)


def figure(path: Path | str, description: str, place: str = "") -> Markup:
    """Return an SVG file with its caption; its ids become those of the file and the ``place`` where it stands."""
    path = SITE / "figures" / Path(path).name  # hand-written pages name the committed ones
    if not path.exists():
        return Markup()
    drawing = path.read_text(encoding="utf-8").partition("<svg")[2]
    drawing = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{place}{path.stem}-", drawing)
    drawing = drawing.replace('<style type="text/css">*{', '<style type="text/css">svg *{')  # not of the whole page
    label = html.escape(description)
    return Markup(
        f'<figure><div class="scroll" tabindex="0"><svg role="img" aria-label="{label}"{drawing}</div>'
        f"<figcaption>{label}</figcaption></figure>"
    )
