"""What README.md and docs/*.md, which people write, have of the records: tables, and numbers inside sentences.

A table stands between ``<!-- make tables: WHAT -->`` and ``<!-- end -->``: ``claims``, ``members``, or ``table``,
``verdict``, ``parts``, ``controls`` or ``equal loss`` with an experiment's name.  A number stands in
``<!--= WHAT -->…<!--/-->``:

    value EXPERIMENT CELL [KEY]                mean over seeds, of the metric or of another column
    difference EXPERIMENT CELL [AGAINST]       paired difference to the baseline, or to another method, in words
    range EXPERIMENTS METHOD AGAINST PATTERN   smallest to greatest difference of the settings that fit (fnmatch)
    reach EXPERIMENTS METHOD AGAINST PATTERN   up to how much better the intervals reach
    count EXPERIMENTS METHOD AGAINST OUTCOME   in how many settings the outcome is better, worse or open
    settings EXPERIMENTS METHOD AGAINST        in how many settings both were run
    ratio EXPERIMENT CELL CELL                 times the second cell's compute that the first needs, at equal loss
    seeds EXPERIMENTS / runs EXPERIMENTS       numbers of seeds, or of runs

EXPERIMENTS are names with commas between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from fogzo.errors import UserError
from fogzo.evidence.claims import claims_of
from fogzo.evidence.equal_loss import cost_pairs, ratio_of
from fogzo.evidence.frame import Evidence
from fogzo.evidence.numbers import directed_range, directed_text, mean_std
from fogzo.evidence.pages import equal_loss_section, verdict_list
from fogzo.evidence.render import markdown
from fogzo.evidence.tables import Table
from fogzo.evidence.tables.comparison import comparison_table, control_table, parts_table
from fogzo.evidence.tables.overview import claims_table, members_table
from fogzo.evidence.verdicts import Case, case_of, effects_of, pairs_of, run_of
from fogzo.evidence.words import Word
from fogzo.runs.files import atomic_write
from fogzo.runs.schema import METRICS

MARKED = re.compile(r"(<!-- make tables: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
FIGURE = re.compile(r"\]\([./]*results/figures/(\w+)\.svg\)")
FILL = re.compile(r"(<!--= (.+?) -->).*?(<!--/-->)", re.DOTALL)
OUTCOMES = {"better": Word.BETTER, "worse": Word.WORSE, "open": Word.UNDECIDED}


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
        new = MARKED.sub(lambda mark: f"{mark[1]}{_table(mark[2], every, page)}{mark[3]}", old)  # noqa: B023
        new = fill(new, every, str(page))
        if new != old:
            atomic_write(page, new.encode())


def _table(what: str, every: Sequence[Evidence], page: Path) -> str:
    if what == "claims":
        return markdown(claims_table(claims_of(every)).directed())
    if what == "members":
        return markdown(members_table(every).directed())
    kind, _, name = what.rpartition(" ")
    evidence = next((evidence for evidence in every if evidence.name == name), None)
    if evidence is None or kind not in TABLES:
        raise UserError(
            f"{page} asks for `{what}`: choose claims or members, or {', '.join(TABLES)} and the name of an experiment"
        )
    return TABLES[kind](evidence)


def _without_notes(table: Table | None) -> str:
    """Return a table whose notes stand on the experiment's own page."""
    return markdown(replace(table, notes=[])) if table else "No controls.\n"


TABLES: dict[str, Callable[[Evidence], str]] = {
    "table": lambda evidence: _without_notes(comparison_table(evidence)),
    "verdict": verdict_list,
    "parts": lambda evidence: markdown(parts_table(evidence)),
    "controls": lambda evidence: _without_notes(control_table(evidence)),
    "equal loss": lambda evidence: equal_loss_section(evidence, level=3),  # it stands inside a section of the page
}


def fill(text: str, every: Sequence[Evidence], source: str) -> str:
    """Return ``text`` with every number filled in anew.

    Raises:
        UserError: naming ``source``, for something that is not known.
    """
    known = {evidence.name: evidence for evidence in every}
    return FILL.sub(lambda mark: f"{mark[1]}{_filled(mark[2], known, source)}{mark[3]}", text)


def _filled(what: str, known: Mapping[str, Evidence], source: str) -> str:
    kind, *words = what.split()
    try:
        make = KINDS[kind]
        return make([known[name] for name in words[0].split(",")], *words[1:])
    except (KeyError, TypeError, IndexError, ValueError) as error:
        reason = f"{error} is not known" if isinstance(error, KeyError) else error
        raise UserError(
            f"{source} asks for `{what}` ({reason}): see fogzo/evidence/fills.py for what there is"
        ) from None


def _value(of: Sequence[Evidence], cell: str, key: str = "") -> str:
    evidence, place = of[0], of[0].cells[cell]
    metric = METRICS[key or place.metric]
    mean, _ = mean_std(list(evidence.values(place, key or None).values()))
    if mean is None:
        raise UserError(f"{cell} has no values")
    return f"{mean:,.{metric.digits}f}{metric.sign}"


def _difference(of: Sequence[Evidence], cell: str, against: str = "") -> str:
    evidence, place = of[0], of[0].cells[cell]
    other = evidence.sibling(place, against or evidence.experiment.baseline)
    difference = evidence.difference(place, other)
    if difference is None:
        raise UserError(f"{cell} has nothing to compare with")
    metric = METRICS[place.metric]
    return directed_text(difference.mean, metric.digits, metric.unit)


def cases_of(of: Sequence[Evidence], method: str, against: str, pattern: str = "*") -> list[Case]:
    """Return the comparisons of two methods in every setting that was run and whose name fits ``pattern``."""
    cases = [
        case_of(evidence, cell, other)
        for evidence in of
        for cell, other in pairs_of(evidence, method, against)
        if fnmatchcase(cell.setting.name, pattern)
    ]
    if not (run := run_of(cases)):
        raise UserError(f"no setting that {pattern} fits has {method} and {against}")
    return run


def _range(of: Sequence[Evidence], method: str, against: str, pattern: str = "*") -> str:
    texts = []
    for effect in effects_of(cases_of(of, method, against, pattern)):
        texts.append(directed_range(min(effect.means), max(effect.means), effect.metric.digits, effect.metric.unit))
    return " and ".join(texts)


def _reach(of: Sequence[Evidence], method: str, against: str, pattern: str = "*") -> str:
    (effect,) = effects_of(cases_of(of, method, against, pattern), intervals=True)
    assert effect.interval is not None
    return directed_text(effect.interval[1], effect.metric.digits, effect.metric.unit)


def _count(of: Sequence[Evidence], method: str, against: str, outcome: str) -> str:
    return str(sum(case.outcome is OUTCOMES[outcome] for case in cases_of(of, method, against)))


def _settings(of: Sequence[Evidence], method: str, against: str) -> str:
    return str(len(cases_of(of, method, against)))


def _ratio(of: Sequence[Evidence], first: str, second: str) -> str:
    evidence = of[0]
    ratio = ratio_of(cost_pairs(evidence, evidence.cells[first], evidence.cells[second]))
    if ratio is None:
        raise UserError(f"{first} and {second} have no common seed")
    return ratio.median_text


def _seeds(of: Sequence[Evidence]) -> str:
    counts = sorted({len(evidence.experiment.seeds) for evidence in of})
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))


def _runs(of: Sequence[Evidence]) -> str:
    return f"{sum(len(evidence.all_runs()) for evidence in of):,}"


KINDS: dict[str, Callable[..., str]] = {
    "value": _value,
    "difference": _difference,
    "range": _range,
    "reach": _reach,
    "count": _count,
    "settings": _settings,
    "ratio": _ratio,
    "seeds": _seeds,
    "runs": _runs,
}
