"""What all experiments say together: a summary, every published cell; and the tables of hand-written pages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from fogzo.evidence.claims import claims_of, claims_table
from fogzo.evidence.equal_loss import section
from fogzo.evidence.experiment import Cell
from fogzo.evidence.frame import Evidence
from fogzo.evidence.members import members_table
from fogzo.evidence.pages import comparison_table, control_table, parts_table, verdict_list
from fogzo.evidence.published import DESCRIPTIVE, NOT_RUN, is_published, status, value_text
from fogzo.evidence.tables import DASH, Table
from fogzo.evidence.verdicts import Verdict, verdicts
from fogzo.runs.files import atomic_write
from fogzo.runs.folder import RunError
from fogzo.runs.records import read_yaml

RESULTS = Path("results")
SUMMARY_NOTE = (
    "Confirmed, opposite: as the paper says, or not, of what the paper compares; better, worse: of what it does not; "
    "in part, mixed: of the settings that stand after Holm's correction for all of them. In brackets the number of "
    "settings with each outcome; open: not to be told apart. Then the smallest to greatest paired difference of the "
    "settings, positive is better."
)


def summary_table(found: Sequence[Evidence], folder: str = "tables") -> Table:
    """A row a method that the paper has or claims, a column for each of what several experiments compare with.

    ``folder``: where the experiments' pages lie, for links.
    """
    judged = [(evidence, verdicts(evidence)) for evidence in found]
    uses = Counter(against for _, those in judged for against in {verdict.against for verdict in those})
    labels = {v.against: e.experiment.methods[v.against].full_label for e, those in judged for v in those}
    compared = [against for against in labels if uses[against] > 1 or len(found) == 1]
    rows: list[list[str]] = []
    blocks = []
    for evidence, those in judged:
        blocks.append(len(rows))
        first = f"[{evidence.title}]({folder}/{evidence.name}.md), {evidence.scale}"
        of_method: dict[str, dict[str, Verdict]] = {}
        for verdict in those:
            of_method.setdefault(verdict.labels[0], {})[verdict.against] = verdict
        for label, verdict_on in of_method.items():
            texts = [_summary_text(verdict_on[key]) if key in verdict_on else "–" for key in compared]
            rows.append([first, label, *texts])
            first = ""
    header = ["experiment", "method", *(f"against {labels[against]}" for against in compared)]
    return Table(header, rows, [SUMMARY_NOTE], blocks)


def _summary_text(verdict: Verdict) -> str:
    tally = f" ({verdict.tally})" if verdict.tally else ""
    return f"{verdict.word}{tally}" + (f": {verdict.effect}" if verdict.effect else "")


def published_table(found: Sequence[Evidence]) -> Table:
    """Every cell of every published table: where it stands at each scale, and what fills what is missing."""
    names = {e.experiment.table for e in found}
    rows: list[list[str]] = []
    blocks = []
    for file in sorted((RESULTS / "paper").glob("*.yaml")):
        blocks.append(len(rows))
        for key, row in ((read_yaml(file) or {}).get("rows") or {}).items():
            by_cell = (
                not any(evidence.experiment.has_settings for evidence in _of(found, file.stem)) and file.stem in names
            )
            for method, value in ({key: row} if by_cell else row).items():
                if not by_cell and method in DESCRIPTIVE:
                    continue
                where = [
                    _status_of(found, file.stem, "" if by_cell else key, method, scale) for scale in ("paper", "mini")
                ]
                what = ", ".join(str(row[k]) for k in ("model", "data", "quantizer") if k in row) if not by_cell else ""
                commands = _commands(found, file.stem, "" if by_cell else key, method)
                rows.append([file.stem, what or key, method, value_text(value), *where, commands])
    header = ["table", "row", "method", "published", "at paper scale", "scaled-down twin", "to fill it"]
    return Table(header, rows, blocks=blocks)


def _of(found: Sequence[Evidence], name: str) -> list[Evidence]:
    return [evidence for evidence in found if evidence.experiment.table == name]


def _status_of(found: Sequence[Evidence], name: str, row: str, method: str, scale: str) -> str:
    texts = [
        status(evidence, cell).removeprefix("scaled-down twin: ")
        for evidence, cell in _cells(found, name, row, method)
        if evidence.scale == scale
    ]
    return "; ".join(dict.fromkeys(texts)) or NOT_RUN


def _cells(found: Sequence[Evidence], name: str, row: str, method: str) -> Iterator[tuple[Evidence, Cell]]:
    """Our cells, at whatever scale, that are a published one or its twins."""
    for evidence in _of(found, name):
        for cell in evidence.cells.values():
            same_row = not row or row in cell.setting.paper
            if cell.method.name == method and same_row and is_published(evidence, cell):
                yield evidence, cell


def _commands(found: Sequence[Evidence], name: str, row: str, method: str) -> str:
    commands = [one for evidence, cell in _cells(found, name, row, method) for one in evidence.commands(cell)]
    return ", then ".join(f"`{command}`" for command in commands) or DASH


def fill_pages(found: Sequence[Evidence]) -> None:
    """Write what README.md and docs/*.md ask for between ``<!-- make tables: WHAT -->`` and ``<!-- end -->``.

    WHAT is ``summary``, ``claims`` or ``members``, or ``table``, ``verdict``, ``parts``, ``controls`` or ``equal loss``
    with an experiment's name.

    Raises:
        RunError: if a page asks for something else.
    """
    for page in [Path("README.md"), *sorted(Path("docs").glob("*.md"))]:
        if page.exists():
            old = page.read_text(encoding="utf-8")
            new = re.sub(
                r"(<!-- make tables: (.+?) -->\n).*?(<!-- end -->)",
                lambda mark: f"{mark[1]}{_asked(found, mark[2], page)}{mark[3]}",  # noqa: B023
                old,
                flags=re.DOTALL,
            )
            if new != old:
                atomic_write(page, new.encode())


def _asked(found: Sequence[Evidence], what: str, page: Path) -> str:
    if what == "summary":
        folder = "results/tables" if page.parent == Path() else "../results/tables"
        return summary_table([e for e in found if e.all_runs()], folder).markdown()
    if what == "claims":
        return claims_table(claims_of(found)).markdown()
    if what == "members":
        return members_table(found).markdown()
    kind, _, name = what.rpartition(" ")
    evidence = next((e for e in found if e.name == name), None)
    if evidence is None or kind not in ("table", "verdict", "parts", "controls", "equal loss"):
        raise RunError(
            f"{page} asks for `{what}`: choose summary, claims or members, or table, verdict, parts, controls or equal "
            "loss and the name of an experiment"
        )
    if kind == "verdict":
        return verdict_list(evidence)
    if kind == "equal loss":
        return section(evidence, level=3)  # it stands inside a section of the page
    shown = {"table": comparison_table, "parts": parts_table, "controls": control_table}[kind](evidence)
    notes = shown.notes if shown and kind == "parts" else []  # those of other tables stand on the experiment's page
    return Table(shown.header, shown.rows, notes).markdown() if shown else "No controls.\n"
