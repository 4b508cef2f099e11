"""What README.md and docs/*.md, which people write, have of the records: tables, and numbers inside sentences.

Each stands in ``<!--= WHAT -->…<!--/-->``, where WHAT is an expression of Jinja2's.  It knows the experiments by name,
and the functions of ``KINDS``, such as ``difference(lsq_mini, "llama.fogzo")``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import TemplateError

from fogzo.checks import choice
from fogzo.errors import UserError
from fogzo.evidence.claims import claims_of
from fogzo.evidence.equal_loss import cost_pairs, ratio_of
from fogzo.evidence.frame import Evidence
from fogzo.evidence.numbers import Effect, from_to
from fogzo.evidence.render import LAYOUTS, markdown
from fogzo.evidence.tables.overview import claims_table, decisions_table
from fogzo.evidence.verdicts import Case, effects_of, pairs_of, run_of
from fogzo.evidence.words import OUTCOMES
from fogzo.runs.files import atomic_write
from fogzo.runs.schema import COMPARED, METRICS

FIGURE = re.compile(r"\]\([./]*results/figures/(\w+)\.svg\)")
FILL = re.compile(r"(<!--= (.+?) -->).*?(<!--/-->)", re.DOTALL)


def pages() -> list[Path]:
    """Return the pages that are written by hand."""
    return [page for page in [Path("README.md"), *sorted(Path("docs").glob("*.md"))] if page.exists()]


def linked_figures() -> set[str]:
    """Return the names of the figures that a page shows."""
    return {name for page in pages() for name in FIGURE.findall(page.read_text(encoding="utf-8"))}


def fill_pages(every: Sequence[Evidence]) -> None:
    """Write what the pages ask for.

    Raises:
        UserError: if a page asks for something that is not known.
    """
    for page in pages():
        old = page.read_text(encoding="utf-8")
        if (new := fill(old, every, str(page))) != old:
            atomic_write(page, new.encode())


def fill(text: str, every: Sequence[Evidence], source: str) -> str:
    """Return ``text`` with all that it asks for filled in anew.

    Raises:
        UserError: naming ``source``, for something that is not known.
    """
    known = {evidence.name: evidence for evidence in every} | KINDS | {"all": every}

    def filled(mark: re.Match[str]) -> str:
        try:
            return f"{mark[1]}{LAYOUTS.compile_expression(mark[2], undefined_to_none=False)(known)}{mark[3]}"
        except (TemplateError, LookupError, TypeError, ValueError) as error:
            reason = f"{error} is not known" if isinstance(error, KeyError) else error
            raise UserError(
                f"{source} asks for `{mark[2]}` ({reason}): see fogzo/evidence/fills.py for what there is"
            ) from None

    return FILL.sub(filled, text)


def claims(every: Sequence[Evidence]) -> str:
    """Return the table of claims, and its rule."""
    return f"\n{markdown(claims_table(claims_of(every)))}"


def value(evidence: Evidence, cell: str, key: str = "") -> str:
    """Return the mean over seeds, of the metric or of another column."""
    place = evidence.cells[cell]
    metric, mean = METRICS[key or place.metric], evidence.mean(place, key or place.metric)
    if mean is None:
        raise UserError(f"{cell} has no values")
    return f"{mean:,.{metric.digits}f}{metric.sign}"


def difference(evidence: Evidence, cell: str, against: str = "", by: str = "") -> str:
    """Return the paired difference to the baseline, or to another method, in words; by any metric."""
    place = evidence.cells[cell]
    key = choice(by or place.metric, "metric", COMPARED)
    found = evidence.difference(place, evidence.sibling(place, against or evidence.experiment.baseline), key)
    if found is None:
        raise UserError(f"{cell} has nothing to compare with")
    return Effect([found.mean], METRICS[key]).directed()


def cases(of: Sequence[Evidence], method: str, against: str, model: str = "", by: str = "") -> list[Case]:
    """Return the comparisons of two methods in every setting that was run, or in those of a model; by any metric."""
    models = [model] if model else []
    run = run_of([Case(one, *pair, by=by) for one in of for pair in pairs_of(one, method, against, models)])
    if not run:
        raise UserError(f"no setting {f'with model={model} ' if model else ''}has {method} and {against}")
    return run


def reach(of: Sequence[Evidence], method: str, against: str, model: str = "") -> str:
    """Return up to how much better the intervals reach."""
    (effect,) = effects_of(cases(of, method, against, model), intervals=True)
    assert effect.interval is not None
    return Effect([effect.interval[1]], effect.metric).directed()


def count(of: Sequence[Evidence], method: str, against: str, outcome: str, by: str = "") -> int:
    """Return in how many settings the outcome is better, worse or open; by any metric."""
    word = {one.short: one for one in OUTCOMES}[choice(outcome, "outcome", [one.short for one in OUTCOMES])]
    return sum(case.outcome is word for case in cases(of, method, against, by=by))


def ratio(evidence: Evidence, first: str, second: str) -> str:
    """Return how many times the second cell's compute the first needs, at equal loss."""
    found = ratio_of(cost_pairs(evidence, evidence.cells[first], evidence.cells[second]))
    if found is None:
        raise UserError(f"{first} and {second} have no common seed")
    return found.median_text


KINDS = {
    "claims": claims,
    "decisions": lambda *asked, **by: f"\n\n{markdown(decisions_table(*asked, **by))}\n",
    "value": value,
    "difference": difference,
    # the smallest to the greatest difference of the settings
    "range": lambda *asked, **only: " and ".join(effect.directed() for effect in effects_of(cases(*asked, **only))),
    "reach": reach,
    "count": count,
    "settings": lambda *asked: len(cases(*asked)),
    "ratio": ratio,
    "seeds": lambda of: from_to(len(cell.setting.seeds) for evidence in of for cell in evidence.cells.values()),
    "runs": lambda of: f"{sum(len(evidence.all_runs()) for evidence in of):,}",
}
