"""All results as one HTML file that needs no network and no script."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from fogzo.evidence.claims import Claim, cases_table, check_commands, claims_of, claims_table
from fogzo.evidence.compare import METHOD
from fogzo.evidence.equal_loss import section
from fogzo.evidence.frame import Evidence
from fogzo.evidence.markup import inline, table, to_html
from fogzo.evidence.pages import (
    COST_NOTE,
    all_commands,
    comparison_table,
    control_table,
    footer,
    refused,
    sentences,
    tuned_table,
)
from fogzo.evidence.published import NOT_RUN, STATUS_RULE
from fogzo.evidence.summary import published_table, summary_table
from fogzo.evidence.tables import Table
from fogzo.evidence.verdicts import verdicts
from fogzo.runs.schema import METRICS

RESULTS = Path("results")
FOREST = "Filled: told apart; open: not. Below: single seeds. Arrow: beyond the axis."
BUSY = "Seconds are of a machine that was busy with other runs: compare by FLOPs"
TONES = {
    "good": ("confirmed", "reproduced", "same direction", "better"),
    "bad": ("opposite direction", "opposite", "deviates", "worse", "diverged"),
    "open": (
        "not to be told apart",
        "mixed",
        "too few pairs",
        "not reached here",
        "larger here",
        "smaller here",
        NOT_RUN,
        "run once",
    ),
}
OUTCOME = re.compile(  # at the beginning of a cell; a colour marks it, and says nothing that the words don't
    rf"(scaled-down twin: )?({'|'.join(word for words in TONES.values() for word in words)})( in part)?(?![a-z])"
)


def report(found: Sequence[Evidence]) -> str:
    """The report of all experiments; the working directory is the project's root."""
    run, unrun = [e for e in found if e.all_runs()], [e for e in found if not e.all_runs()]
    answers, claims = Path("docs/replication.md"), claims_of(found)
    parts = [
        (Path(__file__).with_name("report_head.html")).read_text(encoding="utf-8"),
        "<nav>",
        "<a href='#claims'>Claims</a> " if claims else "",
        "<a href='#summary'>Summary</a> ",
        "<a href='#answers'>Answers</a> " if answers.exists() else "",
        "".join(f'<a href="#{e.name}">{html.escape(e.title)}</a> ' for e in run),
        "<a href='#cells'>Every published cell</a> <a href='#unrun'>Not run</a> ",
        "<a href='#reading'>How to read this</a></nav>",
        _claims(claims),
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
        "<p>Tables, figures and verdicts above are made by <code>make tables</code> from the run folders in "
        "<code>results/runs</code>; the sentences of the answers are written by hand. Exploratory runs are not in them."
        "</p></section></main></body></html>\n",
    ]
    text = "\n".join(parts)
    for evidence in run:  # its page is in this file too
        text = text.replace(f'href="tables/{evidence.name}.md"', f'href="#{evidence.name}"')
    return text


def _claims(claims: Sequence[Claim]) -> str:
    """Claim by claim: verdict, what it rests on, the figures, and how to check it."""
    if not claims:
        return ""
    first = f"<section id='claims'><h2>The paper's claims</h2>{_html(claims_table(claims))}"
    return first + "".join(map(_claim, claims)) + "</section>"


def _claim(claim: Claim) -> str:
    shown, commands, effect = cases_table(claim), check_commands(claim), claim.effect("mini")
    size = f": {html.escape(effect)}" if effect else ""
    parts = [
        f"<h3>{html.escape(claim.text)}</h3>",
        f"<p>{_badge(claim.word('mini'))} at laptop scale{size}. At the paper's scale: {_badge(claim.word('paper'))}. ",
        f"Trust that it is the paper's: {html.escape(claim.trust)}.</p>",
        _html(shown) if shown.rows else "".join(map(_prose, shown.notes)),
    ]
    kind = "" if claim.ratios else "_differences"
    parts.append(_figure(RESULTS / "figures" / f"claim_{claim.name}.svg", f"Paired difference to the STE. {FOREST}"))
    figures = {f"{name}{kind}": title for name, title in claim.shown_in().items()}
    links = [f'<a href="#figure-{stem}">{html.escape(title)}</a>' for stem, title in figures.items() if _drawn(stem)]
    parts.append(f"<p>All methods: {', '.join(links)}.</p>" if links else "")
    if commands:
        parts.append(f"<details><summary>How to check it</summary>{_code(commands)}</details>")
    return "".join(parts)


def _experiment(evidence: Evidence) -> str:
    paper, name = evidence.paper, evidence.name
    claim = sentences(paper, "claim", "setting", "source")
    said = "".join(f"<li>{_badge(v.word)} {html.escape(v.sentence)}</li>" for v in verdicts(evidence))
    note = RESULTS / "notes" / f"{name}.md"
    controls, tuned, extra = control_table(evidence), tuned_table(evidence), section(evidence)
    parts = [
        f"<section id='{name}'><h2>{html.escape(evidence.title)} <code>{name}</code></h2>",
        f"<blockquote><strong>The paper.</strong> {_inline(claim)}</blockquote>" if claim else "",
        f"<ul class='verdicts'>{said}</ul>",
        to_html(note.read_text(encoding="utf-8"), note.parent, RESULTS, _figure, level=2) if note.exists() else "",
        _own_figure(f"{name}_differences", f"{evidence.title}: paired difference to the baseline. {FOREST}"),
        _own_figure(name, f"{evidence.title}: against steps, FLOPs and seconds; mean and range. {BUSY}"),
        _own_figure(f"{name}_sensitivity", f"{evidence.title}: mean, and single seeds"),
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
        f"# tune again: the values in {evidence.experiment.tuning.chosen}\n"
        f"python scripts/tune.py experiment={name}\n"
        f"# run again: what is done is skipped, so remove a run folder first\n"
        f"python train.py -m experiment={name}\n"
        f"# tables and figures again: results/tables/{name}.md, .tex and .csv, and this report\n"
        f"make tables"
    )


def _unrun(run: Sequence[Evidence], unrun: Sequence[Evidence]) -> str:
    parts = []
    for evidence in unrun:
        parts.append(f"<h3>{html.escape(evidence.title)} ({evidence.scale})</h3>{_code(all_commands(evidence))}")
        parts += map(_prose, refused(evidence))
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
    return f"{_badge(outcome[0])} {_inline(text[outcome.end() :].lstrip(': '))}" if outcome else _inline(text)


def _badge(text: str) -> str:
    outcome = OUTCOME.match(text)
    tone = next((tone for tone, words in TONES.items() if outcome and outcome[2] in words), "open")
    return f'<span class="badge {tone}{" part" if text.endswith(" in part") else ""}">{html.escape(text)}</span>'


def _inline(text: str) -> str:
    return inline(text, RESULTS, RESULTS)


def _prose(text: str) -> str:
    return f"<p>{_inline(text)}</p>"


def _drawn(stem: str) -> bool:
    return (RESULTS / "figures" / f"{stem}.svg").exists()


def _own_figure(stem: str, description: str) -> str:
    """A figure of an experiment in its section, where links find it."""
    drawing = _figure(RESULTS / "figures" / f"{stem}.svg", description)
    return drawing.replace("<figure>", f'<figure id="figure-{stem}">', 1)


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
