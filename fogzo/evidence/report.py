"""All results as one HTML file that needs no network and no script; ``report.html.j2`` is its layout."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fogzo.evidence.chosen import whole_commands
from fogzo.evidence.claims import Claim, check_commands, claims_of
from fogzo.evidence.compare import METHOD
from fogzo.evidence.frame import Evidence
from fogzo.evidence.pages import COST_NOTE, equal_loss_section, footer, sentences
from fogzo.evidence.published import STATUS_RULE
from fogzo.evidence.render import badge, prose, to_html
from fogzo.evidence.tables import Table, on_page
from fogzo.evidence.tables.comparison import comparison_table, control_table, tuned_table
from fogzo.evidence.tables.overview import cases_table, claims_table, equal_baseline, members_table
from fogzo.evidence.verdicts import Case, case_of, run_of, verdicts
from fogzo.evidence.words import Word
from fogzo.runs.schema import METRICS

SITE = Path("site")  # where the report lies, and its figures
FOREST = "Filled: told apart; open: not. Below: single seeds. Arrow: beyond the axis."
RULE = (
    "Better and worse: the 95 % interval of the paired difference excludes 0, and the sign-flip p is below 0.05, or at "
    "its least where fewer than 6 seeds cannot reach that (0.062 with 5)."
)


def report(every: Sequence[Evidence]) -> str:
    """Return the report of all experiments; the working directory is the project's root."""
    run, unrun = [e for e in every if e.all_runs()], [e for e in every if not e.all_runs()]
    answers, claims = Path("docs/replication.md"), claims_of(every)
    layout = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template("report.html.j2")
    return layout.render(
        verdict=verdict(run),
        rule=RULE,
        members={
            "figure": _figure(SITE / "figures" / "members.svg", "Difference to the STE of the same compute [95 %]."),
            "table": _table(members_table(run).directed()),
        },
        claims={"table": _table(claims_table(claims).directed()), "each": list(map(_claim, claims))},
        answers=_answers(answers) if answers.exists() else "",
        experiments=list(map(_experiment, run)),
        unrun=list(_unrun(run, unrun)),
        reading=Markup(prose(METHOD) + prose(COST_NOTE) + prose(STATUS_RULE)),
    )


def verdict(run: Sequence[Evidence]) -> str:
    """Return in one sentence in how many settings the paper's method beats the baseline, and that at equal compute."""
    cells = [(evidence, cell) for evidence in run for cell in evidence.cells.values() if cell.method.role == "subject"]
    pairs = [(evidence, cell, evidence.baseline(cell)) for evidence, cell in cells]
    steps = run_of([case_of(evidence, cell, other) for evidence, cell, other in pairs if other])
    pairs = [(evidence, cell, equal_baseline(evidence, cell)) for evidence, cell in cells]
    compute = run_of([case_of(evidence, cell, other) for evidence, cell, other in pairs if other])
    if not steps:
        return "No run of the paper's method is recorded yet."
    return (
        f"{steps[0].cell.method.family} beats the straight-through estimator (STE) at equal steps in "
        f"{_count(steps, Word.BETTER)} of {len(steps)} settings and loses in {_count(steps, Word.WORSE)}; at equal "
        f"compute it wins in {_count(compute, Word.BETTER)} of {len(compute)} and loses in "
        f"{_count(compute, Word.WORSE)}."
    )


def _count(cases: Sequence[Case], word: Word) -> int:
    return sum(case.outcome is word for case in cases)


def _claim(claim: Claim) -> dict[str, Any]:
    return {
        "text": claim.said.claim,
        "cases": _table(cases_table(claim).directed()),
        "figure": _figure(SITE / "figures" / f"claim_{claim.name}.svg", f"Paired difference to the STE. {FOREST}"),
        "commands": "\n".join(check_commands(claim)),
    }


def _experiment(evidence: Evidence) -> dict[str, Any]:
    controls, tuned, equal_loss = control_table(evidence), tuned_table(evidence), equal_loss_section(evidence)
    return {
        "name": evidence.name,
        "title": evidence.title,
        "paper": sentences(evidence.paper, "claim", "setting", "source"),
        "verdicts": [
            (Markup(badge(one.word, one.word)), one.sentence(directed=True))
            for one in verdicts(evidence)
            if one.against.method.name == evidence.experiment.baseline  # those with controls unfold
        ],
        "figures": list(_figures(evidence)),
        "cells": _table(_without(comparison_table(evidence).directed(), "seconds")),
        "controls": _table(controls.directed()) if controls else "",
        "equal_loss": Markup(prose(equal_loss, raise_headings=1)),
        "tuned": _table(tuned) if tuned else "",
        "runs": _table(runs_table(evidence)),
        "chosen": evidence.experiment.tuning.chosen,
        "footer": footer(evidence),
    }


def _figures(evidence: Evidence) -> Iterator[Markup]:
    """Yield the experiment's figures: differences, curves, sensitivity."""
    captions = {
        "_differences": f"{evidence.title}: paired difference to the baseline. {FOREST}",
        "": f"{evidence.title}: against FLOPs; mean and range of the seeds.",
        "_sensitivity": f"{evidence.title}: mean, and single seeds.",
    }
    for kind, caption in captions.items():
        for number in ("", "_2", "_3", "_4"):
            if (path := SITE / "figures" / f"{evidence.name}{kind}{number}.svg").exists():
                yield _figure(path, caption)


def runs_table(evidence: Evidence) -> Table:
    """Return every run with its number and where its record stands."""
    rows = []
    for cell in evidence.cells.values():
        metric = METRICS[cell.metric]
        for seed, run in sorted(evidence.runs[cell.name].items()):
            value = evidence.values(cell).get(seed)
            text = str(run.summary["status"]) if value is None else f"{value:.{metric.digits}f}{metric.sign}"
            headers = ["cell", "seed", "result", "record"]
            rows.append(on_page(headers, [cell.name, seed, text, run.where]))
    return Table(rows)


def _unrun(run: Sequence[Evidence], unrun: Sequence[Evidence]) -> Iterator[tuple[str, str]]:
    """Yield what lacks runs, and the commands that make them."""
    for evidence in unrun:
        lines = [*whole_commands(evidence.experiment), *(f"# not used: {problem}" for problem in evidence.problems)]
        yield f"{evidence.title} ({evidence.scale} scale)", "\n".join(lines)
    for evidence in run:
        commands = [command for cell in evidence.cells.values() for command in evidence.commands(cell)]
        if commands:
            yield f"{evidence.title}: missing runs", "\n".join(commands)


def _answers(page: Path) -> Markup:
    drawn = partial(_figure, place="answers-")
    return Markup(prose(page.read_text(encoding="utf-8"), page.parent, SITE, drawn, raise_headings=1))


def _table(table: Table) -> Markup:
    return Markup(to_html(table))


def _without(table: Table, header: str) -> Table:
    return Table([[one for one in row if one[0].header != header] for row in table.rows], table.notes, table.blocks)


def _figure(path: Path, description: str, place: str = "") -> Markup:
    """Return an SVG file with its caption; its ids become those of the file and the ``place`` where it stands."""
    path = SITE / "figures" / path.name  # hand-written pages name the committed ones
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
