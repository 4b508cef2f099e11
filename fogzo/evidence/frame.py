"""All that stands behind one experiment's table: cells, the usable records, what tuning chose, published numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fogzo.checks import choice
from fogzo.errors import UserError
from fogzo.evidence.chosen import Choice, read_chosen, tune_command, tuning_faults
from fogzo.evidence.compare import FEWEST_PAIRS, Difference, paired_difference
from fogzo.evidence.experiment import Cell, Experiment, cell_name
from fogzo.evidence.numbers import is_finite
from fogzo.evidence.usable import Runs, usable_runs
from fogzo.evidence.words import Word
from fogzo.runs.files import read_yaml
from fogzo.runs.packed import Fault, Run
from fogzo.runs.schema import COMPARED, FLIPS, METRICS


def machine(run: Run) -> str:
    """Return what a run was computed on, ``cpu (AMD EPYC, AVX512)``: it decides the last bits, and so the run's end."""
    said = run.summary.get("gpu") or run.summary.get("processor") or {}
    name = ", ".join(str(said[key]) for key in ("name", "instructions") if key in said)
    return f"{run.summary.get('device')} ({name or 'of a kind that the record does not say'})"


@dataclass(frozen=True)
class Evidence:
    """One experiment and its records.

    Attributes:
        experiment: what its file says.
        runs: the usable records by cell and seed, in order; some may have diverged.
        faults: what is wrong with the other records.
        tuned: what tuning chose, by cell.
        paper: the published table that this experiment is, or is a twin of; empty if there is none.
    """

    experiment: Experiment
    runs: Runs
    faults: Sequence[Fault] = ()
    tuned: Mapping[str, Choice] = field(default_factory=dict)
    paper: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.experiment.name

    @property
    def title(self) -> str:
        return self.experiment.title

    @property
    def cells(self) -> Mapping[str, Cell]:
        """The cells by name, in the order of the table."""
        return self.experiment.cells

    def metrics(self) -> list[str]:
        """Return every metric that cells are compared by, in order."""
        return list(dict.fromkeys(cell.metric for cell in self.cells.values()))

    def settings(self) -> dict[str, list[Cell]]:
        """Return the cells of every setting, in order."""
        cells = self.cells.values()
        return {name: [cell for cell in cells if cell.setting.name == name] for name in self.experiment.settings}

    def sibling(self, cell: Cell, method: str) -> Cell | None:
        """Return the cell of another method in the same setting."""
        return self.cells.get(cell_name(cell.setting, method))

    def baseline(self, cell: Cell) -> Cell | None:
        """Return what ``cell`` is compared with; ``None`` for the baseline itself."""
        method = self.experiment.baseline
        return None if cell.method.name == method else self.sibling(cell, method)

    def all_runs(self) -> list[Run]:
        """Return the usable records in the order of the table."""
        return [run for runs in self.runs.values() for run in runs.values()]

    def finished(self, cell: Cell) -> list[Run]:
        """Return the runs of ``cell`` that did not diverge, by seed."""
        return [run for run in self.runs[cell.name].values() if run.summary["status"] == "finished"]

    def diverged(self, cell: Cell) -> list[int]:
        """Return the seeds on which ``cell`` diverged."""
        return [seed for seed, run in self.runs[cell.name].items() if run.summary["status"] == "diverged"]

    def values(self, cell: Cell, key: str | None = None) -> Mapping[int, float]:
        """Return the metric (or another number) of every finished run that has it, by seed."""
        of_runs = ((run.summary["seed"], _number(run, key or cell.metric)) for run in self.finished(cell))
        return {seed: float(value) for seed, value in of_runs if is_finite(value)}

    def mean(self, cell: Cell, key: str) -> float | None:
        """Return the mean of a number over the finished runs that have it; ``None`` if none has."""
        values = self.values(cell, key).values()
        return statistics.fmean(values) if values else None

    def difference(self, cell: Cell, other: Cell | None, key: str | None = None) -> Difference | None:
        """Return ``cell`` less ``other``, paired by seed; positive is better; ``None``: there is nothing to compare."""
        better = METRICS[key or cell.metric].higher_is_better
        if other is None or better is None:
            return None
        pairs = paired_difference(self.values(cell, key), self.values(other, key), higher_is_better=better)
        return replace(pairs, lost=self._lost(cell, other), spared=self._lost(other, cell)) if pairs else None

    def outcome(self, cell: Cell, other: Cell, key: str | None = None) -> Word:
        """Return what ``cell`` against ``other`` came to, also where no seed was finished by both."""
        difference = self.difference(cell, other, key)
        if difference is not None:
            return difference.outcome
        lost, spared = self._lost(cell, other), self._lost(other, cell)
        if max(lost, spared) < FEWEST_PAIRS:
            return Word.TOO_FEW if lost or spared else Word.NOT_RUN
        if lost and spared:
            return Word.UNDECIDED
        return Word.WORSE if lost else Word.BETTER

    def _lost(self, cell: Cell, other: Cell) -> int:
        """Return on how many seeds ``cell`` diverged and ``other`` did not."""
        return len(set(self.diverged(cell)) & {run.summary["seed"] for run in self.finished(other)})

    def gaps(self, cell: Cell) -> list[tuple[str, str]]:
        """Return what a cell lacks, each with the command for it: tuning first, without which its runs are refused.

        A diverged run is over: to run it again would end the same.
        """
        gaps = []
        if faults := tuning_faults(self.experiment, cell):
            said = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
            gaps.append((said, tune_command(self.experiment, cell)))
        if missing := [str(seed) for seed in cell.setting.seeds if seed not in self.runs[cell.name]]:
            command = f"python train.py -m experiment={self.name} cell={cell.name} seed={','.join(missing)}"
            gaps.append((f"{cell.name}: seed {','.join(missing)} missing", command))
        return gaps

    def commands(self, cell: Cell) -> list[str]:
        """Return what fills the cell's missing seeds; tuning first if it, or a cell it rests on, needs it."""
        complete = self.runs[cell.name].keys() >= set(cell.setting.seeds)
        return [] if complete else [command for _, command in self.gaps(cell)]

    def tuning_faults(self) -> list[str]:
        """Return a sentence for every cell whose values are not as the experiment asks, though runs rest on them."""
        sentences = {}
        for cell in self.cells.values():
            for name, fault in tuning_faults(self.experiment, cell).items() if self.runs[cell.name] else ():
                command = tune_command(self.experiment, self.cells[name])
                sentences[name] = f"{self.name}, {name}: {fault}, and runs rest on that: run `{command}`"
        return list(sentences.values())

    @cached_property
    def problems(self) -> Sequence[str]:
        """A sentence for every record that is not used, and for every number that a finished run should have."""
        also = [key for key in self.experiment.also if METRICS[key].higher_is_better is not None]
        lacking = [
            f"{run.where}: {key} is {run.summary.get(key)}, no finite number: it is in no mean"
            for cell in self.cells.values()
            for run in self.finished(cell)
            for key in dict.fromkeys([cell.metric, *also])
            if not is_finite(run.summary.get(key))
        ]
        return [*map(str, self.faults), *lacking]


def gather(experiment: Experiment, results: Path = Path("results")) -> Evidence:
    """Return an experiment with its records, chosen values and published numbers.

    The working directory is the project's root.  Records that cannot be read, that are stale, or that contradict
    themselves are left out and named in ``problems``.

    Raises:
        UserError: if the experiment names a published table or row that there is not, or a file cannot be read.
    """
    runs, faults = usable_runs(experiment, results)
    searched = {name for name, cell in experiment.cells.items() if cell.search}  # the file may hold what was tuned once
    tuned = {name: choice for name, choice in read_chosen(experiment).items() if name in searched}
    return Evidence(experiment, runs, faults, tuned, _published(experiment, results / "paper/numbers.yaml"))


def _number(run: Run, key: str) -> Any:
    """Return a number of a run's summary; of the codes that flip, which its rows alone count, their mean."""
    if key != FLIPS:
        return run.summary.get(key)
    shares = run.columns["columns"].get(key)
    return statistics.fmean(shares) if shares else None


def _published(experiment: Experiment, file: Path) -> dict[str, Any]:
    """Return the published table that the experiment names, which must have every row that its settings name."""
    if experiment.table is None:
        return {}
    where = f"experiment {experiment.name}"
    paper = (read_yaml(file) or {}).get(experiment.table)
    if paper is None:
        raise UserError(f"{where}: table {experiment.table} is not in {file}: write it there, or give table: null")
    rows = paper.get("rows") if isinstance(paper, dict) else None
    if not isinstance(paper, dict) or not isinstance(rows, dict):
        raise UserError(
            f"{file}: rows of {experiment.table} is {rows}, but the published rows must stand there by name: mend it"
        )
    for name, row in rows.items():
        if isinstance(row, dict) and "metric" in row:
            choice(row["metric"], f"{file}: metric of {name}", COMPARED)
    for setting in experiment.settings.values():
        for row in setting.paper:
            if not isinstance(rows.get(row), dict):
                known = ", ".join(map(str, rows))
                raise UserError(
                    f"{where}, setting {setting.name}: {file}, {experiment.table}, has no row {row}: "
                    f"choose one of {known}"
                )
    return paper
