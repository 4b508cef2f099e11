"""The tables of an experiment: every cell beside the published number, and what was compared, cost and not run."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fogzo.evidence.chosen import whole_commands
from fogzo.evidence.compare import BETTER, METHOD, WORSE, holm
from fogzo.evidence.experiment import Cell
from fogzo.evidence.frame import Evidence
from fogzo.evidence.published import NOT_RUN, STATUS_RULE, published_difference, published_text, status
from fogzo.evidence.tables import DASH, Table, difference_text, short, signed
from fogzo.evidence.verdicts import SHORT, pairs_of, verdicts
from fogzo.runs.records import Run, spread
from fogzo.runs.schema import METRICS

COSTS = ("forward_equivalents", "flops", "seconds")
PACKAGES = ("python", "torch", "torchvision", "timm", "transformers", "numpy")  # whose versions are shown
COST_NOTE = (
    "Costs are means over the finished runs. Forward equivalents count a backward pass as two forward passes (in "
    'brackets: times the baseline), the convention behind "5/3 of an STE step"; FLOPs are measured by torch\'s flop '
    "counter. Seconds are training time on a machine that was busy with other runs, and no evidence: compare methods "
    "by FLOPs."
)


def comparison_table(evidence: Evidence) -> Table:
    """One row a cell: paper, ours, the paired difference to the baseline, cost and status."""
    also, metrics = evidence.experiment.also, evidence.metrics()
    compared = " or ".join(METRICS[key].label for key in metrics)
    header = [
        "setting", "method", "paper", f"{compared}: mean ± std (n)", *(METRICS[key].label for key in also),
        "difference to STE [95 %]; p", "forward equivalents", "FLOPs", "seconds", "status",
    ]  # fmt: skip
    rows: list[list[str]] = []
    blocks = []
    for setting, cells in evidence.settings().items():
        blocks.append(len(rows))
        for number, cell in enumerate(cells):
            metric, values = METRICS[evidence.metric_of(cell)], list(evidence.values(cell).values())
            sign = metric.sign if len(metrics) > 1 else ""
            rows.append(
                [
                    evidence.setting_label(setting) if number == 0 else "",
                    cell.label,
                    _published(evidence, cell),
                    spread(values, metric.digits) + (f"{sign} ({len(values)})" if values else ""),
                    *(spread(list(evidence.values(cell, key).values()), METRICS[key].digits) for key in also),
                    difference_text(evidence.difference(cell, evidence.baseline(cell)), metric.digits),
                    *costs(evidence, cell),
                    status(evidence, cell),
                ]
            )
    return _without_setting(evidence, Table(header, rows, notes(evidence), blocks))


def _published(evidence: Evidence, cell: Cell) -> str:
    """The published value, and how much better it is than the published baseline."""
    text, difference = published_text(evidence, cell), published_difference(evidence, cell)
    return text if difference is None else f"{text} ({signed(difference, 2)})"


def _without_setting(evidence: Evidence, table: Table) -> Table:
    """Without the first column, where all cells share one setting, which is the title."""
    if any(evidence.settings()):
        return table
    return Table(table.header[1:], [row[1:] for row in table.rows], table.notes, table.blocks)


def costs(evidence: Evidence, cell: Cell) -> list[str]:
    """Mean forward equivalents (and how many times the baseline's), FLOPs and seconds."""
    means = [mean_cost(evidence.finished(cell), key) for key in COSTS]
    base = evidence.baseline(cell)
    of_base = mean_cost(evidence.finished(base), COSTS[0]) if base else None
    texts = [DASH if mean is None else short(mean) for mean in means]
    if means[0] is not None and of_base:
        texts[0] += f" ({short(means[0] / of_base)}×)"
    return texts


def mean_cost(runs: Sequence[Run], key: str) -> float | None:
    """The mean over the runs that have the key; ``None`` if none has."""
    values = [run.summary[key] for run in runs if run.summary.get(key) is not None]
    return statistics.fmean(values) if values else None


def notes(evidence: Evidence) -> list[str]:
    """What is missing and how to fill it, what diverged, what was refused, what lies on the edge of its grid."""
    found = []
    if not evidence.all_runs():
        return [f"Nothing was run yet: {', then '.join(f'`{c}`' for c in all_commands(evidence))}", *refused(evidence)]
    for cell in evidence.cells.values():
        where = f"{cell.setting.label}, {cell.label}" if cell.setting.name else cell.label
        commands = evidence.commands(cell)
        if commands:
            found.append(f"Missing ({where}): " + ", then ".join(f"`{command}`" for command in commands))
        diverged = evidence.diverged(cell)
        if diverged:
            seeds = ", ".join(map(str, diverged))
            found.append(f"Diverged ({where}): seed {seeds}, not in the mean.")
        edges = (evidence.tuned.get(cell.name) or {}).get("on_edge_of_grid")
        if edges:
            found.append(f"On the edge of its grid ({where}): {', '.join(edges)}.")
    for key in evidence.experiment.also:
        if not any(evidence.values(cell, key) for cell in evidence.cells.values()):
            label = METRICS[key].label
            found.append(f"No run has the column {label}: it came after them; remove a run and run it again.")
    found += [f"Tuned otherwise: {fault}." for fault in evidence.tuning_faults()]
    return found + refused(evidence)


def all_commands(evidence: Evidence) -> list[str]:
    """What runs the whole experiment; tuning comes first if some cell still needs it."""
    return whole_commands(evidence.experiment)


def refused(evidence: Evidence) -> list[str]:
    return [f"Not used: {problem}." for problem in evidence.problems]


def control_table(evidence: Evidence) -> Table | None:
    """FOGZO against every control, setting by setting; ``None`` if the experiment has no controls."""
    rows: list[list[str]] = []
    blocks = []
    for pairs in control_pairs(evidence):
        blocks.append(len(rows))
        for cell, other in pairs:
            difference = evidence.difference(cell, other)
            outcome = evidence.outcome(cell, other) or NOT_RUN
            label, digits = cell.setting.label, METRICS[evidence.metric_of(cell)].digits
            rows.append([label, cell.label, other.label, difference_text(difference, digits), outcome])
    header = ["setting", "method", "against", "difference [95 %]; p", "outcome"]
    return _without_setting(evidence, Table(header, rows, blocks=blocks)) if rows else None


PARTS_NOTE = (
    "Difference to the baseline, and the outcome by the rule of the tables; in bold where it stands also after Holm's "
    "correction of paired t-tests for all settings of its column."
)


def parts_table(evidence: Evidence) -> Table:
    """A row a setting, a column a method: its difference to the baseline, and in a word what that is worth."""
    baseline = evidence.experiment.baseline
    labels = {cell.method.name: cell.method.full_label for cell in evidence.cells.values()}
    columns = [_part_column(evidence, method) for method in labels if method != baseline]
    settings = [s for s, cells in evidence.settings().items() if any(evidence.finished(cell) for cell in cells)]
    rows = [[evidence.setting_label(s), *(column.get(s, DASH) for column in columns)] for s in settings]
    header = ["setting", *(label for method, label in labels.items() if method != baseline)]
    return _without_setting(evidence, Table(header, rows, [PARTS_NOTE]))


def _part_column(evidence: Evidence, method: str) -> dict[str, str]:
    """By setting, the difference of one method to the baseline."""
    cells = [cell for cell in evidence.cells.values() if cell.method.name == method]
    found = [(cell, evidence.difference(cell, evidence.baseline(cell))) for cell in cells]
    judged = [(cell, difference) for cell, difference in found if difference is not None]
    texts = {cell.setting.name: "diverged" for cell in cells if evidence.diverged(cell)}
    for (cell, difference), stands in zip(judged, holm([d.p_t for _, d in judged]), strict=True):
        metric = METRICS[evidence.metric_of(cell)]
        unit = f" {metric.unit}" if len(evidence.metrics()) > 1 else ""
        text = f"{signed(difference.mean, metric.digits)}{unit}, {SHORT.get(difference.outcome, difference.outcome)}"
        bold = stands and len(judged) > 1 and difference.outcome in (BETTER, WORSE)  # of one row nothing is corrected
        texts[cell.setting.name] = f"**{text}**" if bold else text
    return texts


def control_pairs(evidence: Evidence) -> list[list[tuple[Cell, Cell]]]:
    """The cells that are compared with a control, and that control's: a list for each of the comparisons."""
    baseline = evidence.experiment.baseline
    compared = [verdict for verdict in verdicts(evidence) if verdict.against != baseline]
    return [pairs_of(evidence, verdict.method, verdict.against) for verdict in compared]


def tuned_table(evidence: Evidence) -> Table | None:
    """What tuning chose for every cell, from how many trials; ``None`` if nothing was tuned."""
    rows = []
    for cell in evidence.cells.values():
        chosen = evidence.tuned.get(cell.name)
        if chosen:
            edges = chosen.get("on_edge_of_grid") or []
            texts = [
                f"{key} = {_plain(value)}{' (edge)' if key in edges else ''}" for key, value in chosen["values"].items()
            ]
            trials = str(chosen.get("trials") or len(chosen.get("tried") or []))
            rows.append([cell.setting.label, cell.label, ", ".join(texts), trials])
    return _without_setting(evidence, Table(["setting", "method", "chosen", "trials"], rows)) if rows else None


def _plain(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def footer(evidence: Evidence) -> str:
    """Which runs, seeds, commits and versions stand behind a table."""
    runs = evidence.all_runs()
    if not runs:
        return "No runs yet."
    commits = {str(run.summary.get("git_commit"))[:10] + ("+" if run.summary.get("git_dirty") else "") for run in runs}
    installed = [run.summary.get("versions") or {} for run in runs]
    named = [package for package in PACKAGES if any(package in versions for versions in installed)]
    versions = [
        f"{package} {_list({str(versions.get(package, 'not recorded')) for versions in installed})}"
        for package in named
    ]
    data = {f"{(run.summary.get('data') or {}).get('name')}" for run in runs}
    devices = {f"{run.summary.get('device')}" for run in runs}
    seeds = {run.summary["seed"] for run in runs}
    changed = " (+: with changes that were not committed)" if any("+" in commit for commit in commits) else ""
    return (
        f"{len(runs)} runs in results/runs/{evidence.name}, scale {evidence.scale}, data {_list(data)}, "
        f"seeds {_list(seeds)}, commit {_list(commits)}{changed}, {', '.join(versions)}, {_list(devices)}. "
        "Spread: sample standard deviation over seeds; n: finished runs."
    )


def _list(values: Iterable[Any]) -> str:
    return ", ".join(map(str, sorted(values)))


def verdict_list(evidence: Evidence) -> str:
    """The verdicts as a list in Markdown."""
    return "".join(f"* **{verdict.word}**: {verdict.sentence}\n" for verdict in verdicts(evidence))


def sentences(paper: Mapping[str, Any], *keys: str) -> str:
    """What a published table says of itself, as sentences."""
    said = [str(paper[key]).strip().rstrip(".") for key in keys if paper.get(key)]
    return " ".join(f"{text[:1].upper()}{text[1:]}." for text in said)


def page(evidence: Evidence, table: Table, extra: str = "") -> str:
    """The experiment's Markdown page."""
    name, paper = evidence.name, evidence.paper
    said = f"The paper: {sentences(paper, 'setting', 'claim')}\n\n" if paper else ""
    found, heading = "", "Not run yet"
    if evidence.all_runs():
        found, heading = verdict_list(evidence) + "\n", "What came out"
    controls, tuned = control_table(evidence), tuned_table(evidence)
    parts = [
        f"# {evidence.title}\n\nMade by `make tables` from `results/runs/{name}`; not typed. "
        f"Scale: {evidence.scale}.\n\n{said}",
        f"## {heading}\n\n{found}{table.markdown()}\n{METHOD}\n\n{COST_NOTE}\n\n{STATUS_RULE}\n\n",
        f"## FOGZO against the controls\n\n{controls.markdown()}\n" if controls and evidence.all_runs() else "",
        extra,
        f"## What tuning chose\n\n{tuned.markdown()}\n" if tuned else "",
    ]
    if evidence.all_runs():
        parts.append(f"## Figures\n\n![{evidence.title}: against steps and cost](../figures/{name}.svg)\n\n")
        parts.append(f"![{evidence.title}: paired differences to the baseline](../figures/{name}_differences.svg)\n\n")
        if evidence.experiment.axes:
            parts.append(f"![{evidence.title}: sensitivity](../figures/{name}_sensitivity.svg)\n\n")
    parts.append(f"{footer(evidence)}\n")
    return "".join(parts)
