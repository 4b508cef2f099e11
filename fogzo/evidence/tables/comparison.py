"""The tables of one experiment: every cell beside the published number, controls, what tuning chose, and the runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fogzo.evidence.chosen import Choice, other_starts, skipped, whole_commands
from fogzo.evidence.experiment import Cell
from fogzo.evidence.frame import Evidence, machine
from fogzo.evidence.numbers import signed
from fogzo.evidence.published import published_difference, published_text, status
from fogzo.evidence.tables import (
    Column,
    Entry,
    Row,
    Table,
    commands,
    cost,
    on_page,
    quantity,
    shown,
    verdict,
    whole_effect,
)  # fmt: skip
from fogzo.evidence.verdicts import Case, verdicts
from fogzo.runs.schema import FLIPS, METRICS


def comparison_table(evidence: Evidence) -> Table:
    """Return a row a cell: paper, ours, the paired difference to the baseline, cost and status."""
    rows: list[Row] = []
    blocks = []
    for cells in evidence.settings().values():
        blocks.append(len(rows))
        rows += [_comparison_row(evidence, cell, first=cell is cells[0]) for cell in cells]
    return Table(rows, notes(evidence), blocks)


def _comparison_row(evidence: Evidence, cell: Cell, *, first: bool) -> Row:
    metrics, values, baseline = evidence.metrics(), evidence.values(cell), evidence.baseline(cell)
    metric, compared = METRICS[cell.metric], " or ".join(METRICS[key].label for key in metrics)
    sign = metric.sign if len(metrics) > 1 else ""
    reference = evidence.experiment.methods[evidence.experiment.baseline].family
    return [
        (Column(None, "experiment"), evidence.name),
        (Column(None, "scale"), evidence.experiment.scale),
        _setting(cell, first=first),
        (Column("method", "method"), shown(cell.method.name, cell.label)),
        (Column(None, "cell"), cell.name),
        (Column(None, "metric"), cell.metric),
        (Column("paper", "paper"), _published(evidence, cell)),
        (Column(f"{compared}: mean ± std (n)", ""), quantity(values.values(), metric.digits, sign, counted=True)),
        (Column(None, "seeds"), " ".join(map(str, values))),
        *(
            (Column(METRICS[key].label, f"{key}_"), quantity(evidence.values(cell, key).values(), METRICS[key].digits))
            for key in evidence.experiment.also
        ),
        (Column(f"difference to {reference} [95 %]; p", ""), whole_effect(evidence.difference(cell, baseline), metric)),
        (Column("forward equivalents", "forward_equivalents"), _cost(evidence, cell, "forward_equivalents", baseline)),
        (Column("FLOPs", "flops"), _cost(evidence, cell, "flops")),
        (Column(None, "seconds"), _cost(evidence, cell, "seconds")),
        (Column("status", "status"), status(evidence, cell)),
        (Column(None, "command"), commands(evidence.commands(cell))),
    ]


def _setting(cell: Cell, *, first: bool = True) -> tuple[Column, Entry]:
    """Return the setting, which pages do without where all cells share one, which is the title."""
    column = Column("setting" if cell.setting.name else None, "setting")
    return column, shown(cell.setting.name, cell.setting.label if first else "")


def _published(evidence: Evidence, cell: Cell) -> Entry:
    """Return the published value, and on pages how much better it is than the published baseline."""
    text, difference = published_text(evidence, cell), published_difference(evidence, cell)
    return shown(text, text if difference is None else f"{text} ({signed(difference, 2)})")


def _cost(evidence: Evidence, cell: Cell, key: str, relative_to: Cell | None = None) -> Entry:
    """Return the mean cost of a cell's runs, and how many times that of another cell it is."""
    mean = evidence.mean(cell, key)
    base = evidence.mean(relative_to, key) if relative_to else None
    return cost(mean, mean / base if mean is not None and base else None)


def notes(evidence: Evidence) -> list[str]:
    """Return what is missing and how to fill it, what diverged or was refused, and where tuning left its grid open."""
    refused = [f"Not used: {problem}." for problem in evidence.problems]
    if not evidence.all_runs():
        return [f"Nothing was run yet: {_code(whole_commands(evidence.experiment))}", *refused]
    lines = []
    for cell in evidence.cells.values():
        where = f"{cell.setting.label}, {cell.label}" if cell.setting.name else cell.label
        if missing := evidence.commands(cell):
            lines.append(f"Missing ({where}): {_code(missing)}")
        if diverged := evidence.diverged(cell):
            lines.append(f"Diverged ({where}): seed {', '.join(map(str, diverged))}, not in the mean.")
        if chosen := evidence.tuned.get(cell.name):
            if edges := chosen.on_edge_of_grid:
                lines.append(f"On the edge of its grid ({where}): {', '.join(edges)}.")
            for key, values in skipped(cell, chosen).items():
                lines.append(f"Not tried, beside the best ({where}): {key} = {' and '.join(map(_plain, values))}.")
    for cells in evidence.settings().values():
        machines: dict[str, list[str]] = {}
        for cell in cells:
            for name in sorted({machine(run) for run in evidence.runs[cell.name].values()}):
                machines.setdefault(name, []).append(cell.label)
        if len(machines) > 1:
            found = "; ".join(f"{name}: {', '.join(labels)}" for name, labels in machines.items())
            lines.append(f"Of several machines ({cells[0].setting.label}), whose last bits differ: {found}.")
    for key in evidence.experiment.also:
        if not any(evidence.values(cell, key) for cell in evidence.cells.values()):
            label = METRICS[key].label
            lines.append(f"No run has the column {label}: it came after them; remove a run and run it again.")
    if FLIPS in evidence.experiment.also:
        steps = " or ".join(sorted({str(run.config.get("log_every")) for run in evidence.all_runs()}))
        lines.append(f"Codes that flipped: those that differ from the row before ({steps} steps); mean over the rows.")
    return [*lines, *(f"Tuned otherwise: {fault}." for fault in evidence.tuning_faults()), *refused]


def _code(every: Sequence[str]) -> str:
    return ", then ".join(f"`{command}`" for command in every)


def control_table(evidence: Evidence) -> Table | None:
    """Return methods against their controls, setting by setting; ``None`` if the experiment has no controls."""
    rows: list[Row] = []
    blocks = []
    for one in verdicts(evidence):
        if one.against.method.name != evidence.experiment.baseline:
            blocks.append(len(rows))
            rows += map(_control_row, one.every)
    return Table(rows, blocks=blocks) if rows else None


def _control_row(case: Case) -> Row:
    return [
        (Column(None, "experiment"), case.evidence.name),
        _setting(case.cell),
        (Column("method", "method"), shown(case.cell.method.name, case.cell.label)),
        (Column("against", "against"), shown(case.other.method.name, case.other.label)),
        (Column(None, "metric"), case.metric),
        (Column("difference [95 %]; p", ""), whole_effect(case.difference, METRICS[case.metric])),
        (Column("outcome"), verdict(case.outcome)),
    ]


def tuned_table(evidence: Evidence) -> Table | None:
    """Return what tuning chose for every cell, in how many trials, or for another one; ``None``: nothing was tuned."""
    metric = evidence.experiment.tuning.metric
    best = "highest" if METRICS[metric].higher_is_better else "lowest"
    rows: list[Row] = []
    for cell in evidence.cells.values():
        source = cell if cell.search or cell.tuned_as is None else evidence.cells[cell.tuned_as]
        if chosen := evidence.tuned.get(source.name):
            own = source is cell
            entries = {
                "method": cell.label,
                "chosen": ("" if own else f"as {source.label}: ") + _chosen_values(chosen, mark_edges=own),
                "trials": f"{chosen.trials}{_start(cell, chosen)}" if own else None,
                f"{best} {METRICS[metric].name} at each rate": _by_rate(chosen, metric) if own else None,
            }
            rows.append([_setting(cell), *on_page(entries)])
    return Table(rows) if rows else None


def _chosen_values(chosen: Choice, *, mark_edges: bool) -> str:
    edges = dict.fromkeys(chosen.on_edge_of_grid, " (edge)") if mark_edges else {}
    return ", ".join(f"{key} = {_plain(at)}{edges.get(key, '')}" for key, at in chosen.values.items())


def _start(cell: Cell, chosen: Choice) -> str:
    others = other_starts(chosen.start, cell.setting.start_also) if chosen.start else []
    tried = [other for other in others if any(other.items() <= point.items() for point in chosen.points())]
    starts = [chosen.start, *tried] if chosen.start else []
    every = (", ".join(f"{key} = {_plain(at)}" for key, at in start.items()) for start in starts)
    return f", from {' and '.join(every)}" if starts else ""


def _by_rate(chosen: Choice, metric: str) -> str | None:
    """Return the best value that trials had at each learning rate, which says how much depends on that."""
    best = max if METRICS[metric].higher_is_better else min
    return ", ".join(f"{_plain(rate)}: {best(had):.4g}" for rate, had in chosen.by_rate(metric).items()) or None


def _plain(value: Any) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def runs_table(evidence: Evidence) -> Table:
    """Return every run with its number and where its record stands."""
    rows = []
    for cell in evidence.cells.values():
        metric, values = METRICS[cell.metric], evidence.values(cell)
        for seed, run in evidence.runs[cell.name].items():
            text = f"{values[seed]:.{metric.digits}f}{metric.sign}" if seed in values else str(run.summary["status"])
            rows.append(on_page({"cell": cell.name, "seed": seed, "result": text, "record": run.where}))
    return Table(rows)
