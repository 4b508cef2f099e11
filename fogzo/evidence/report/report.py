"""All results as one HTML file that needs no network and no script."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from fogzo.evidence.chosen import whole_commands
from fogzo.evidence.claims import Claim, check_commands, claims_of
from fogzo.evidence.compare import METHOD
from fogzo.evidence.frame import Evidence
from fogzo.evidence.pages import COST_NOTE, equal_loss_section, footer, sentences
from fogzo.evidence.published import STATUS_RULE
from fogzo.evidence.render import badge, prose, to_html
from fogzo.evidence.tables.base import Table, on_page
from fogzo.evidence.tables.comparison import comparison_table, control_table, tuned_table
from fogzo.evidence.tables.overview import cases_table, claim_effect, claims_table, members_table
from fogzo.evidence.verdicts import verdicts
from fogzo.runs.schema import METRICS

SITE = Path("site")  # where the report lies, and its figures
FOREST = "Filled: told apart; open: not. Below: single seeds. Arrow: beyond the axis."
BUSY = "Seconds are of a machine that was busy with other runs: compare by FLOPs"


def report(found: Sequence[Evidence]) -> str:
    """The report of all experiments; the working directory is the project's root."""
    run, unrun = [e for e in found if e.all_runs()], [e for e in found if not e.all_runs()]
    answers, claims = Path("docs/replication.md"), claims_of(found)
    parts = [
        (Path(__file__).with_name("report_head.html")).read_text(encoding="utf-8"),
        "<nav>",
        "<a href='#claims'>Claims</a> " if claims else "",
        "<a href='#members'>Members</a> ",
        "<a href='#answers'>Answers</a> " if answers.exists() else "",
        "".join(f'<a href="#{e.name}">{html.escape(e.title)}</a> ' for e in run),
        "<a href='#unrun'>Not run</a> ",
        "<a href='#reading'>How to read this</a></nav>",
        _claims(claims),
        f"<section id='members'><h2>Members of the family at equal compute</h2>{to_html(members_table(run))}</section>",
    ]
    if answers.exists():
        text = prose(answers.read_text(encoding="utf-8"), answers.parent, SITE, _figure, raise_headings=1)
        parts.append(f"<section id='answers'>{text}</section>")
    parts += [_experiment(evidence) for evidence in run]
    parts += [
        f"<section id='unrun'><h2>What was not run</h2>{_unrun(run, unrun)}</section>",
        f"<section id='reading'><h2>How to read this</h2>{prose(METHOD)}{prose(COST_NOTE)}{prose(STATUS_RULE)}",
        "<p>Tables, figures and verdicts above are made by <code>make tables</code> from <code>results/records</code>; "
        "the sentences of the answers are written by hand. Exploratory runs are not in them."
        "</p></section></main></body></html>\n",
    ]
    return "\n".join(parts)


def _claims(claims: Sequence[Claim]) -> str:
    """Claim by claim: verdict, what it rests on, the figures, and how to check it."""
    if not claims:
        return ""
    first = f"<section id='claims'><h2>The paper's claims</h2>{to_html(claims_table(claims))}"
    return first + "".join(map(_claim, claims)) + "</section>"


def _claim(claim: Claim) -> str:
    shown, commands, effect = cases_table(claim), check_commands(claim), claim_effect(claim, "mini")
    size = ": " + "".join(html.escape(span.text) for span in effect.spans()) if effect.entries else ""
    parts = [
        f"<h3>{html.escape(claim.text)}</h3>",
        f"<p>{_badges(claim, 'mini')} at laptop scale{size}. At the paper's scale: {_badges(claim, 'paper')}. ",
        f"Trust that it is the paper's: {html.escape(claim.trust)}.</p>",
        to_html(shown),
    ]
    kind = "" if claim.ratios else "_differences"
    parts.append(_figure(SITE / "figures" / f"claim_{claim.name}.svg", f"Paired difference to the STE. {FOREST}"))
    figures = {f"{name}{kind}": title for name, title in claim.shown_in().items()}
    links = [f'<a href="#figure-{stem}">{html.escape(title)}</a>' for stem, title in figures.items() if _drawn(stem)]
    parts.append(f"<p>All methods: {', '.join(links)}.</p>" if links else "")
    if commands:
        parts.append(f"<details><summary>How to check it</summary>{_code(commands)}</details>")
    return "".join(parts)


def _experiment(evidence: Evidence) -> str:
    paper, name = evidence.paper, evidence.name
    claim = sentences(paper, "claim", "setting", "source")
    said = "".join(f"<li>{badge(v.word, v.word)} {html.escape(v.sentence())}</li>" for v in verdicts(evidence))
    note = Path("results/notes") / f"{name}.md"
    controls, tuned, extra = control_table(evidence), tuned_table(evidence), equal_loss_section(evidence)
    parts = [
        f"<section id='{name}'><h2>{html.escape(evidence.title)} <code>{name}</code></h2>",
        f"<blockquote><strong>The paper.</strong> {html.escape(claim)}</blockquote>" if claim else "",
        f"<ul class='verdicts'>{said}</ul>",
        prose(note.read_text(encoding="utf-8"), note.parent, SITE, _figure, raise_headings=2) if note.exists() else "",
        _own_figure(f"{name}_differences", f"{evidence.title}: paired difference to the baseline. {FOREST}"),
        _own_figure(name, f"{evidence.title}: against steps, FLOPs and seconds; mean and range. {BUSY}"),
        _own_figure(f"{name}_sensitivity", f"{evidence.title}: mean, and single seeds"),
        to_html(comparison_table(evidence)),
        f"<details><summary>FOGZO against the controls</summary>{to_html(controls)}</details>" if controls else "",
        prose(extra, raise_headings=1),
        f"<details><summary>What tuning chose</summary>{to_html(tuned)}</details>" if tuned else "",
        f"<details><summary>The runs behind it</summary>{to_html(runs_table(evidence))}</details>",
        f"<details><summary>How to check it</summary><pre><code>{html.escape(_check(evidence))}</code></pre></details>",
        f"<p class='foot'>{html.escape(footer(evidence))}</p></section>",
    ]
    return "\n".join(part for part in parts if part)


def runs_table(evidence: Evidence) -> Table:
    """Every run with its number and where its record stands."""
    rows = []
    for cell in evidence.cells.values():
        metric = METRICS[cell.metric]
        for seed, run in sorted(evidence.runs[cell.name].items()):
            value = evidence.values(cell).get(seed)
            text = str(run.summary["status"]) if value is None else f"{value:.{metric.digits}f}{metric.sign}"
            headers = ["cell", "seed", "result", "record"]
            rows.append(on_page(headers, [cell.name, seed, text, run.where]))
    return Table(rows)


def _check(evidence: Evidence) -> str:
    name = evidence.name
    return (
        f"# tune again: the values in {evidence.experiment.tuning.chosen}\n"
        f"python scripts/tune.py experiment={name}\n"
        f"# run again: what is done is skipped, so drop a record first (scripts/records.py)\n"
        f"python train.py -m experiment={name}\n"
        f"# tables and figures again: results/tables/{name}.md and .csv, and this report\n"
        f"make tables report"
    )


def _unrun(run: Sequence[Evidence], unrun: Sequence[Evidence]) -> str:
    parts = []
    for evidence in unrun:
        parts.append(
            f"<h3>{html.escape(evidence.title)} ({evidence.scale})</h3>{_code(whole_commands(evidence.experiment))}"
        )
        parts += [prose(f"Not used: {problem}.") for problem in evidence.problems]
    for evidence in run:
        commands = [command for cell in evidence.cells.values() for command in evidence.commands(cell)]
        if commands:
            parts.append(f"<h3>{html.escape(evidence.title)}: missing runs</h3>{_code(commands)}")
    return "".join(parts) or "<p>Nothing: every cell of every experiment has all its runs.</p>"


def _code(lines: Sequence[str]) -> str:
    return f"<pre><code>{html.escape(chr(10).join(lines))}</code></pre>"


def _badges(claim: Claim, scale: str) -> str:
    return "; ".join(badge(word, word) for word in claim.words(scale))


def _drawn(stem: str) -> bool:
    return (SITE / "figures" / f"{stem}.svg").exists()


def _own_figure(stem: str, description: str) -> str:
    """A figure of an experiment in its section, where links find it."""
    drawing = _figure(SITE / "figures" / f"{stem}.svg", description)
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
