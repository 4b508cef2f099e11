"""All that stands behind one experiment's table: its cells, the usable records, the published numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fogzo.evidence.chosen import Choice, read_chosen, tune_command, tuning_faults
from fogzo.evidence.compare import FEWEST_PAIRS, Difference, paired_difference
from fogzo.evidence.experiment import Cell, Experiment
from fogzo.evidence.records import gaps_of, records_of
from fogzo.evidence.words import Word
from fogzo.runs.folder import RunError
from fogzo.runs.records import Run, is_finite, read_yaml
from fogzo.runs.schema import METRICS


@dataclass(frozen=True)
class Evidence:
    """One experiment and its records.

    Attributes:
        experiment: what its file says.
        runs: usable records by cell and seed; some may have diverged.
        tuned: what tuning chose, by cell.
        paper: the published table that this experiment is, or is a twin of; empty if there is none.
        problems: records that are not used, and why, a sentence each.
    """

    experiment: Experiment
    runs: Mapping[str, Mapping[int, Run]]
    tuned: Mapping[str, Choice] = field(default_factory=dict)
    paper: Mapping[str, Any] = field(default_factory=dict)
    problems: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.experiment.name

    @property
    def title(self) -> str:
        return self.experiment.title

    @property
    def cells(self) -> Mapping[str, Cell]:
        """By name, in the order of the table."""
        return self.experiment.cells

    def metric_of(self, cell: Cell) -> str:
        return cell.metric

    def metrics(self) -> list[str]:
        """Every metric that cells are compared by, in order."""
        return list(dict.fromkeys(map(self.metric_of, self.cells.values())))

    @property
    def scale(self) -> str:
        return self.experiment.scale

    def settings(self) -> dict[str, list[Cell]]:
        """The cells of every setting, in order."""
        settings: dict[str, list[Cell]] = {}
        for cell in self.cells.values():
            settings.setdefault(cell.setting.name, []).append(cell)
        return settings

    def setting_label(self, setting: str) -> str:
        return self.experiment.setting_label(setting)

    def baseline(self, cell: Cell) -> Cell | None:
        """What ``cell`` is compared with; ``None`` for the baseline itself."""
        method = self.experiment.baseline
        return None if cell.method.name == method else self.sibling(cell, method)

    def sibling(self, cell: Cell, method: str) -> Cell | None:
        """The cell of another method in the same setting."""
        return self.cells.get(f"{cell.setting.name}.{method}" if cell.setting.name else method)

    def finished(self, cell: Cell) -> list[Run]:
        return [run for _, run in sorted(self.runs[cell.name].items()) if run.summary["status"] == "finished"]

    def values(self, cell: Cell, key: str | None = None) -> dict[int, float]:
        """The metric (or another key) of every finished run that has it as a finite number, by seed."""
        key = key or self.metric_of(cell)
        runs: dict[int, Any] = {run.summary["seed"]: run.summary.get(key) for run in self.finished(cell)}
        return {seed: float(value) for seed, value in runs.items() if is_finite(value)}

    def difference(self, cell: Cell, other: Cell | None, key: str | None = None) -> Difference | None:
        """``cell`` less ``other``, paired by seed; positive is better.  ``None`` where there is nothing to compare."""
        better = METRICS[key or self.metric_of(cell)].higher_is_better
        if other is None or better is None:
            return None
        found = paired_difference(self.values(cell, key), self.values(other, key), higher_is_better=better)
        return replace(found, lost=self._lost(cell, other), spared=self._lost(other, cell)) if found else None

    def outcome(self, cell: Cell, other: Cell | None, key: str | None = None) -> Word | None:
        """What ``cell`` against ``other`` came to, in a word, also where one of them diverged on every seed."""
        found = self.difference(cell, other, key)
        if found is not None or other is None:
            return found.outcome if found else None
        lost, spared = self._lost(cell, other), self._lost(other, cell)
        if max(lost, spared) < FEWEST_PAIRS:
            return Word.TOO_FEW if lost or spared else None
        return Word.WORSE if lost else Word.BETTER

    def _lost(self, cell: Cell, other: Cell) -> int:
        """On how many seeds ``cell`` diverged and ``other`` did not."""
        return len(set(self.diverged(cell)) & {run.summary["seed"] for run in self.finished(other)})

    def missing(self, cell: Cell) -> list[int]:
        """Seeds that were not run.  A diverged run is over: to run it again would end the same."""
        return [seed for seed in self.experiment.seeds if seed not in self.runs[cell.name]]

    def diverged(self, cell: Cell) -> list[int]:
        return sorted(seed for seed, run in self.runs[cell.name].items() if run.summary["status"] == "diverged")

    def commands(self, cell: Cell) -> list[str]:
        """What fills the cell's missing seeds; tuning first if it, or the cell it borrows from, needs it."""
        seeds = self.missing(cell)
        return [command for _, command in gaps_of(self.experiment, cell, seeds)] if seeds else []

    def tuning_faults(self) -> list[str]:
        """A sentence for every cell whose tuned values are not as the experiment asks, though runs rest on them."""
        found = {}
        for cell in self.cells.values():
            for name, fault in tuning_faults(self.experiment, cell).items() if self.runs[cell.name] else ():
                command = tune_command(self.name, self.cells[name])
                found[name] = f"{self.name}, {name}: {fault}, and runs rest on that: run `{command}`"
        return list(found.values())

    def all_runs(self) -> list[Run]:
        return [run for cell in self.cells for _, run in sorted(self.runs[cell].items())]


# a row of a forest plot: its label, and whose difference it shows; a title has none
ForestRow = tuple[str, tuple[Evidence, Cell, Difference] | None]


def gather(experiment: Experiment, results: Path = Path("results")) -> Evidence:
    """Read an experiment's records, tuned values and published numbers; the working directory is the project's root.

    Records that cannot be read, that are stale, or that contradict themselves are left out and named in ``problems``.

    Raises:
        RunError: if the experiment names a published table or row that there is not.
    """
    records = records_of(experiment, results)
    problems = list(map(str, records.faults))
    evidence = Evidence(
        experiment=experiment,
        runs=records.runs,
        tuned=read_chosen(experiment),
        paper=_published(experiment, results / "paper"),
        problems=problems,
    )
    problems += _not_finite(evidence)
    return evidence


def _published(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """The published table that the experiment names, with every row that its settings name; ``table: null``: none."""
    if (table := experiment.table) is None:
        return {}
    file, where = folder / f"{table}.yaml", f"experiment {experiment.name}"
    paper = read_yaml(file)
    if paper is None:
        raise RunError(f"{where}: table {table} needs {file}, which is not there: write it, or give table: null")
    rows = paper.get("rows")
    if not isinstance(rows, dict):
        raise RunError(f"{file}: rows is {rows}, but the published rows must stand there by name: mend it")
    for setting in experiment.settings.values():
        for row in setting.paper:
            if not isinstance(rows.get(row), dict):
                known = ", ".join(map(str, rows))
                raise RunError(f"{where}, setting {setting.name}: {file} has no row {row}: choose one of {known}")
    return paper


def _not_finite(evidence: Evidence) -> list[str]:
    """A sentence for every number that a finished run should have and has not."""
    found = []
    for cell in evidence.cells.values():
        also = [key for key in evidence.experiment.also if METRICS[key].higher_is_better is not None]
        for run in evidence.finished(cell):
            for key in dict.fromkeys([evidence.metric_of(cell), *also]):
                if not is_finite(run.summary.get(key)):
                    found.append(f"{run.where}: {key} is {run.summary.get(key)}, no finite number: it is in no mean")
    return found
