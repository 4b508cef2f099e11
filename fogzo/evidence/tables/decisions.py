"""The table of decisions: the same comparisons in several settings, each setting's corrected for their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fogzo.evidence.compare import LEVEL, holm
from fogzo.evidence.frame import Evidence
from fogzo.evidence.numbers import Effect, from_to
from fogzo.evidence.tables import Entry, Span, Table, on_page
from fogzo.evidence.verdicts import Case
from fogzo.evidence.words import Word
from fogzo.runs.schema import METRICS

NOTE = (
    "In brackets p after Holm's correction over the comparisons of a row: exact, of sign flips, with 6 pairs of seeds "
    "or more, else of the paired t-test. *Open*: not told apart by the rule of the pages, or not after the correction."
)


def decisions_table(every: Sequence[Evidence], asked: Mapping[str, tuple[str, str]]) -> Table:
    """Return a row a setting that was run, a column a comparison: the difference, its p, and whether it stands.

    Args:
        asked: the method and what it is held against, by the header of the column.
    """
    rows = []
    for evidence in every:
        for cells in evidence.settings().values():
            by_method = {cell.method.name: cell for cell in cells}
            cases = {
                header: Case(evidence, by_method[method], by_method[against])
                for header, (method, against) in asked.items()
                if {method, against} <= by_method.keys()
            }
            run = {header: case for header, case in cases.items() if case.difference}
            if run:
                seeds = from_to(case.difference.pairs for case in run.values() if case.difference)
                place = {"experiment": evidence.title, "setting": cells[0].setting.label, "seeds": seeds}
                rows.append(on_page(place | dict.fromkeys(asked) | _decided(run)))
    return Table(rows, [NOTE] if rows else [])


def _decided(cases: Mapping[str, Case]) -> dict[str, Entry]:
    """Return the entry of each comparison of a setting."""
    differences = {header: case.difference for header, case in cases.items() if case.difference is not None}
    corrected = holm([difference.p_decides for difference in differences.values()])
    entries = {}
    for (header, difference), p in zip(differences.items(), corrected, strict=True):
        stands = cases[header].outcome in (Word.BETTER, Word.WORSE) and p <= LEVEL
        effect = Effect([difference.mean], METRICS[cases[header].metric]).directed()
        text = f"{'' if stands else 'open: '}{effect} ({p:.2g})"
        entries[header] = Entry([Span(text, "word", word=cases[header].outcome if stands else Word.UNDECIDED)])
    return entries
