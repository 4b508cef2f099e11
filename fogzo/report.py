"""All results as one HTML file that needs no network and no script; and the tables that stand in hand-written pages."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from fogzo.comparison import METHOD
from fogzo.equal_loss import section
from fogzo.evidence import METRICS, Evidence
from fogzo.files import atomic_write
from fogzo.markup import inline, table, to_html
from fogzo.pages import COST_NOTE, comparison_table, control_table, footer, tuned_table
from fogzo.results import read_yaml
from fogzo.runs import RunError
from fogzo.tables import Table
from fogzo.verdicts import DESCRIPTIVE, NOT_RUN, STATUS_RULE, Verdict, is_published, status, value_text, verdicts

RESULTS = Path("results")
FOREST = "Filled: told apart; open: not. Below: single seeds. Arrow: beyond the axis."
TONES = {
    "good": ("confirmed", "reproduced", "same direction", "better"),
    "bad": ("opposite direction", "opposite", "deviates", "worse", "diverged"),
    "open": ("not to be told apart", "mixed", "too few pairs", NOT_RUN, "run once"),
}
OUTCOME = re.compile(  # at the beginning of a cell; a colour marks it, and says nothing that the words don't
    rf"(scaled-down twin: )?({'|'.join(word for words in TONES.values() for word in words)})( in part)?(?![a-z])"
)


def report(found: Sequence[Evidence]) -> str:
    """The report of all experiments; the working directory is the project's root."""
    run, unrun = [e for e in found if e.all_runs()], [e for e in found if not e.all_runs()]
    answers = Path("docs/replication.md")
    parts = [
        (Path(__file__).with_name("report_head.html")).read_text(encoding="utf-8"),
        f"<nav><a href='#summary'>Summary</a> {'<a href=#answers>Answers</a> ' if answers.exists() else ''}",
        "".join(f'<a href="#{e.name}">{html.escape(e.title)}</a> ' for e in run),
        "<a href='#cells'>Every published cell</a> <a href='#unrun'>Not run</a> ",
        "<a href='#reading'>How to read this</a></nav>",
        f"<section id='summary'><h2>Summary</h2>{_html(summary_table(run))}</section>",
    ]
    if answers.exists():
        text = to_html(answers.read_text(encoding="utf-8"), answers.parent, RESULTS, _figure, level=1)
        parts.append(f"<section id='answers'>{text}</section>")
    parts += [_experiment(evidence) for evidence in run]
    parts += [
        f"<section id='cells'><h2>Every published cell</h2>{_prose(STATUS_RULE)}",
        f"{_html(published_table(found))}</section>",
        f"<section id='unrun'><h2>What was not run</h2>{_unrun(run, unrun)}</section>",
        f"<section id='reading'><h2>How to read this</h2>{_prose(METHOD)}{_prose(COST_NOTE)}",
        "<p>Everything above is made by <code>make tables</code> from the run folders in <code>results/runs</code>. "
        "Exploratory runs are not in it.</p></section></main></body></html>\n",
    ]
    return "\n".join(parts)


def summary_table(found: Sequence[Evidence], folder: str = "tables") -> Table:
    """A row a method that the paper has or claims, a column for each of what it is compared with.

    ``folder``: where the experiments' pages lie, for links.
    """
    compared = {v.against: v.labels[1].removeprefix("control: ") for e in found for v in verdicts(e)}
    rows: list[list[str]] = []
    blocks = []
    for evidence in found:
        blocks.append(len(rows))
        first = f"[{evidence.title}]({folder}/{evidence.name}.md), {evidence.scale}"
        of_method: dict[str, dict[str, Verdict]] = {}
        for verdict in verdicts(evidence):
            of_method.setdefault(verdict.labels[0], {})[verdict.against] = verdict
        for label, verdict_on in of_method.items():
            texts = [_summary_text(verdict_on[key]) if key in verdict_on else "–" for key in compared]
            rows.append([first, label, *texts])
            first = ""
    return Table(["experiment", "method", *(f"against {label}" for label in compared.values())], rows, blocks=blocks)


def _summary_text(verdict: Verdict) -> str:
    counts = f" ({verdict.counts})" if " of " in verdict.counts else ""
    return f"{verdict.word}{counts}" + (f": {verdict.effect}" if verdict.effect else "")


def published_table(found: Sequence[Evidence]) -> Table:
    """Every cell of every published table, and where it stands at each scale."""
    names = {str(e.experiment.get("table")) for e in found}
    rows: list[list[str]] = []
    blocks = []
    for file in sorted((RESULTS / "paper").glob("*.yaml")):
        blocks.append(len(rows))
        for key, row in ((read_yaml(file) or {}).get("rows") or {}).items():
            by_cell = all(evidence.experiment.get("cells") for evidence in _of(found, file.stem)) and file.stem in names
            for method, value in ({key: row} if by_cell else row).items():
                if not by_cell and method in DESCRIPTIVE:
                    continue
                where = [
                    _status_of(found, file.stem, "" if by_cell else key, method, scale) for scale in ("paper", "mini")
                ]
                what = ", ".join(str(row[k]) for k in ("model", "data", "quantizer") if k in row) if not by_cell else ""
                rows.append([file.stem, what or key, method, value_text(value), *where])
    return Table(["table", "row", "method", "published", "at paper scale", "scaled-down twin"], rows, blocks=blocks)


def _of(found: Sequence[Evidence], name: str) -> list[Evidence]:
    return [evidence for evidence in found if evidence.experiment.get("table") == name]


def _status_of(found: Sequence[Evidence], name: str, row: str, method: str, scale: str) -> str:
    texts = []
    for evidence in _of(found, name):
        settings = evidence.experiment.get("settings") or {}
        for cell in evidence.cells.values():
            same_row = not row or (settings.get(cell.setting) or {}).get("paper") == row
            if evidence.scale == scale and cell.method == method and same_row and is_published(evidence, cell):
                texts.append(status(evidence, cell).removeprefix("scaled-down twin: "))
    return "; ".join(dict.fromkeys(texts)) or NOT_RUN


def _experiment(evidence: Evidence) -> str:
    paper, name = evidence.paper, evidence.name
    claim = " ".join(
        f"{str(paper[key]).strip().rstrip('.')}." for key in ("claim", "setting", "source") if paper.get(key)
    )
    said = "".join(f"<li>{_badge(v.word)} {html.escape(v.sentence)}</li>" for v in verdicts(evidence))
    note = RESULTS / "notes" / f"{name}.md"
    controls, tuned, extra = control_table(evidence), tuned_table(evidence), section(evidence)
    parts = [
        f"<section id='{name}'><h2>{html.escape(evidence.title)}</h2>",
        f"<blockquote><strong>The paper.</strong> {_inline(claim)}</blockquote>" if claim else "",
        f"<ul class='verdicts'>{said}</ul>",
        to_html(note.read_text(encoding="utf-8"), note.parent, RESULTS, _figure, level=2) if note.exists() else "",
        _figure(
            RESULTS / "figures" / f"{name}_differences.svg", f"{evidence.title}: paired difference to the baseline"
        ),
        _figure(
            RESULTS / "figures" / f"{name}.svg", f"{evidence.title}: against steps, FLOPs and seconds; mean and range"
        ),
        _html(comparison_table(evidence)),
        f"<details><summary>FOGZO against the controls</summary>{_html(controls)}</details>" if controls else "",
        to_html(extra, RESULTS / "tables", RESULTS, _figure, level=1) if extra else "",
        f"<details><summary>What tuning chose</summary>{_html(tuned)}</details>" if tuned else "",
        f"<details><summary>The runs behind it</summary>{_html(runs_table(evidence))}</details>",
        f"<details><summary>How to check it</summary><pre><code>{html.escape(_check(evidence))}</code></pre></details>",
        f"<p class='foot'>{html.escape(footer(evidence))}</p></section>",
    ]
    return "\n".join(part for part in parts if part)


def runs_table(evidence: Evidence) -> Table:
    """Every run with its number and its folder."""
    rows = []
    for cell in evidence.cells.values():
        metric = METRICS[evidence.metric_of(cell)]
        for seed, run in sorted(evidence.runs[cell.name].items()):
            value = evidence.values(cell).get(seed)
            text = str(run.summary["status"]) if value is None else f"{value:.{metric.digits}f}{metric.sign}"
            rows.append([cell.name, str(seed), text, f"`{run.path.as_posix()}`"])
    return Table(["cell", "seed", "result", "run folder"], rows)


def _check(evidence: Evidence) -> str:
    name = evidence.name
    return (
        f"python scripts/tune.py experiment={name}   # the values in {evidence.experiment['tuning']['chosen']}\n"
        f"python train.py -m experiment={name}       # what is done is skipped: remove a run folder to run it again\n"
        f"make tables                                # results/tables/{name}.md, .tex, .csv and this report"
    )


def _unrun(run: Sequence[Evidence], unrun: Sequence[Evidence]) -> str:
    parts = []
    for evidence in unrun:
        tune = [] if evidence.tuned else [f"python scripts/tune.py experiment={evidence.name}"]
        commands = [*tune, f"python train.py -m experiment={evidence.name}"]
        parts.append(f"<h3>{html.escape(evidence.title)} ({evidence.scale})</h3>{_code(commands)}")
        parts += [_prose(f"Not used: {problem}.") for problem in evidence.problems]
    for evidence in run:
        commands = [command for cell in evidence.cells.values() for command in evidence.commands(cell)]
        if commands:
            parts.append(f"<h3>{html.escape(evidence.title)}: missing runs</h3>{_code(commands)}")
    return "".join(parts) or "<p>Nothing: every cell of every experiment has all its runs.</p>"


def _code(lines: Sequence[str]) -> str:
    return f"<pre><code>{html.escape(chr(10).join(lines))}</code></pre>"


def _html(shown: Table) -> str:
    rows = [[_cell(text) for text in row] for row in shown.rows]
    return table([_inline(text) for text in shown.header], rows, shown.blocks) + "".join(map(_prose, shown.notes))


def _cell(text: str) -> str:
    outcome = OUTCOME.match(text)
    return _badge(outcome[0]) + _inline(text[outcome.end() :]) if outcome else _inline(text)


def _badge(text: str) -> str:
    outcome = OUTCOME.match(text)
    tone = next((tone for tone, words in TONES.items() if outcome and outcome[2] in words), "open")
    return f'<span class="badge {tone}{" part" if text.endswith(" in part") else ""}">{html.escape(text)}</span>'


def _inline(text: str) -> str:
    return inline(text, RESULTS, RESULTS)


def _prose(text: str) -> str:
    return f"<p>{_inline(text)}</p>"


def _figure(path: Path, description: str) -> str:
    if not path.exists():
        return ""
    drawing = path.read_text(encoding="utf-8").partition("<svg")[2]
    drawing = drawing.replace('<style type="text/css">*{', '<style type="text/css">svg *{')  # not of the whole page
    label = html.escape(description)
    return (
        f'<figure><div class="scroll" tabindex="0"><svg role="img" aria-label="{label}"{drawing}</div>'
        f"<figcaption>{label}</figcaption></figure>"
    )


def fill_pages(found: Sequence[Evidence]) -> None:
    """Write what README.md and docs/*.md ask for between ``<!-- make tables: WHAT -->`` and ``<!-- end -->``.

    WHAT is ``summary``, or ``table``, ``verdict``, ``controls`` or ``equal loss`` and an experiment's name.

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
    kind, _, name = what.rpartition(" ")
    evidence = next((e for e in found if e.name == name), None)
    if evidence is None or kind not in ("table", "verdict", "controls", "equal loss"):
        raise RunError(
            f"{page} asks for `{what}`: choose summary, or table, verdict, controls or equal loss and an experiment"
        )
    if kind == "verdict":
        return "".join(f"* **{v.word}**: {v.sentence}\n" for v in verdicts(evidence))
    if kind == "equal loss":
        return section(evidence)
    shown = comparison_table(evidence) if kind == "table" else control_table(evidence)
    return Table(shown.header, shown.rows).markdown() if shown else "No controls.\n"
