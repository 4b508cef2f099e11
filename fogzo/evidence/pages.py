"""The Markdown page of an experiment: verdicts, tables, and the runs behind them; ``page.md.j2`` is its layout."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from fogzo.evidence.frame import Evidence, machine
from fogzo.evidence.render import rendered
from fogzo.evidence.tables.comparison import comparison_table, control_table, runs_table, tuned_table
from fogzo.evidence.tables.compute import compute_table, equal_loss_table, ratio_table
from fogzo.evidence.tables.overview import cases_table, claims_table, members_table
from fogzo.evidence.verdicts import rerun, verdicts

PACKAGES = ("python", "torch", "torchvision", "timm", "transformers", "numpy")  # whose versions are shown
FIGURES = {  # an experiment's figures by the end of their names
    "": "against steps and cost",
    "_differences": "paired differences to the baseline",
    "_sensitivity": "sensitivity",
    "_along": "codes that flip, and agreement, along training",
    "_rates": "loss in tuning against the learning rate",
}


def page(evidence: Evidence, figures: Collection[str] = ()) -> str:
    """Return an experiment's page.

    Args:
        figures: the names of those that are drawn beside it.
    """
    drawn = [(f"{evidence.name}{end}", what) for end, what in FIGURES.items() if f"{evidence.name}{end}" in figures]
    cells = [cell for cell in evidence.cells.values() if evidence.values(cell)]
    return rendered("page.md.j2", **TABLES, e=evidence, figures=drawn, cells=cells)


def footer(evidence: Evidence) -> str:
    """Return which runs, seeds, commits and versions stand behind a table."""
    runs = evidence.all_runs()
    if not runs:
        return "No runs yet."
    commits = {str(run.summary.get("git_commit"))[:10] + ("+" if run.summary.get("git_dirty") else "") for run in runs}
    changed = " (+: with changes that were not committed)" if any(run.summary.get("git_dirty") for run in runs) else ""
    installed = [run.summary.get("versions") or {} for run in runs]
    named = [package for package in PACKAGES if any(package in versions for versions in installed)]
    versions = [
        f"{package} {_list(str(versions.get(package, 'not recorded')) for versions in installed)}" for package in named
    ]
    return (
        f"{len(runs)} runs in results/records/{evidence.name}.jsonl, scale {evidence.experiment.scale}, "
        f"data {_list(str((run.summary.get('data') or {}).get('name')) for run in runs)}, "
        f"seeds {_list(run.summary['seed'] for run in runs)}, commit {_list(commits)}{changed}, "
        f"{', '.join(versions)}, {_list(map(machine, runs))}. "
        "Spread: sample standard deviation over seeds; n: finished runs."
    )


def _list(values: Iterable[Any]) -> str:
    return ", ".join(map(str, sorted(set(values))))


def sentences(paper: Mapping[str, Any], *keys: str) -> str:
    """Return what a published table says of itself, as sentences."""
    said = [str(paper[key]).strip().rstrip(".") for key in keys if paper.get(key)]
    return " ".join(f"{text[:1].upper()}{text[1:]}." for text in said)


TABLES = {  # and sentences, that the layouts know by name
    known.__name__: known
    for known in (
        comparison_table, control_table, tuned_table, runs_table, ratio_table, equal_loss_table, compute_table,
        claims_table, cases_table, members_table, verdicts, rerun, footer, sentences,
    )
}  # fmt: skip
