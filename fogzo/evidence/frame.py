"""All that stands behind one experiment's table: its cells, the usable records, the published numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fogzo.evidence.chosen import read_tuned, tune_command, tuning_faults
from fogzo.evidence.compare import BETTER, FEWEST_PAIRS, TOO_FEW, WORSE, Difference, paired_difference
from fogzo.evidence.experiment import Cell, cells_of
from fogzo.evidence.records import gaps_of, records_of
from fogzo.runs.folder import RunError
from fogzo.runs.records import Run, is_finite, read_yaml


@dataclass(frozen=True)
class Metric:
    """A number of ``summary.json``: how it is called, how many digits are shown, and which way is better."""

    label: str
    unit: str  # of a difference
    sign: str  # of a value, where metrics stand side by side
    digits: int
    higher_is_better: bool | None = None  # None: neither, it cannot be compared by


METRICS = {
    "accuracy": Metric("test accuracy, %", "points", " %", 2, True),
    "perplexity": Metric("test perplexity", "ppl", " ppl", 2, False),
    "train_loss": Metric("training loss", "nats", " nats", 4, False),
    "test_loss": Metric("test loss", "nats", " nats", 4, False),
    "mean_agreement": Metric("agreement", "", "", 2),
    "mean_zero_probes": Metric("zero-difference probes, share", "", "", 4),
    "mean_crossings": Metric("codes that a pair of probes changes", "", "", 0),
    "mean_guide_norm": Metric("norm of the STE gradient", "", "", 4),
}


@dataclass(frozen=True)
class Evidence:
    """One experiment and its records.

    Attributes:
        experiment: what its file says.
        cells: by name, in the order of the table.
        runs: usable records by cell and seed; some may have diverged.
        tuned: what tuning chose, by cell.
        paper: the published table that this experiment is, or is a twin of; empty if there is none.
        problems: records that are not used, and why, a sentence each.
    """

    experiment: Mapping[str, Any]
    cells: Mapping[str, Cell]
    runs: Mapping[str, Mapping[int, Run]]
    tuned: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, Any] = field(default_factory=dict)
    problems: Sequence[str] = ()

    @property
    def name(self) -> str:
        return str(self.experiment["name"])

    @property
    def title(self) -> str:
        return str(self.experiment.get("title", self.name))

    def metric_of(self, cell: Cell) -> str:
        """The key of ``summary.json`` that a cell is compared by: its setting's, or the experiment's."""
        return cell.metric or "train_loss"

    def metrics(self) -> list[str]:
        """Every metric that cells are compared by, in order."""
        return list(dict.fromkeys(map(self.metric_of, self.cells.values())))

    @property
    def scale(self) -> str:
        return str(self.experiment.get("scale", "mini"))

    def settings(self) -> dict[str, list[Cell]]:
        """The cells of every setting, in order."""
        settings: dict[str, list[Cell]] = {}
        for cell in self.cells.values():
            settings.setdefault(cell.setting, []).append(cell)
        return settings

    def setting_label(self, setting: str) -> str:
        known = self.experiment.get("settings") or {}
        return str(known[setting].get("label", setting)) if setting in known else self.title

    def baseline(self, cell: Cell) -> Cell | None:
        """What ``cell`` is compared with; ``None`` for the baseline itself."""
        method = self.experiment.get("baseline", "ste")
        return None if cell.method == method else self.sibling(cell, method)

    def sibling(self, cell: Cell, method: str) -> Cell | None:
        """The cell of another method in the same setting."""
        return self.cells.get(f"{cell.setting}.{method}" if cell.setting else method)

    def controls(self, cell: Cell) -> list[Cell]:
        """The setting's columns that the paper has not: their labels begin with "control"."""
        return [other for other in self.settings()[cell.setting] if other.label.startswith("control")]

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

    def outcome(self, cell: Cell, other: Cell | None, key: str | None = None) -> str | None:
        """What ``cell`` against ``other`` came to, in a word, also where one of them diverged on every seed."""
        found = self.difference(cell, other, key)
        if found is not None or other is None:
            return found.outcome if found else None
        lost, spared = self._lost(cell, other), self._lost(other, cell)
        if max(lost, spared) < FEWEST_PAIRS:
            return TOO_FEW if lost or spared else None
        return WORSE if lost else BETTER

    def _lost(self, cell: Cell, other: Cell) -> int:
        """On how many seeds ``cell`` diverged and ``other`` did not."""
        return len(set(self.diverged(cell)) & {run.summary["seed"] for run in self.finished(other)})

    def missing(self, cell: Cell) -> list[int]:
        """Seeds that were not run.  A diverged run is over: to run it again would end the same."""
        return [seed for seed in self.experiment["seeds"] if seed not in self.runs[cell.name]]

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


def gather(experiment: Mapping[str, Any], results: Path = Path("results")) -> Evidence:
    """Read an experiment's records, tuned values and published numbers; the working directory is the project's root.

    Records that cannot be read, that are stale, or that contradict themselves are left out and named in ``problems``.

    Raises:
        RunError: if two runs claim one cell, or the experiment names a baseline, a cell, a column or a published table
            or row that there is not.
        ValueError: if the experiment's cells do not fit together.
    """
    unusable: dict[Path, str] = {}
    records = records_of(experiment, results, unusable)
    problems = [*unusable.values(), *(f"{path}: {reason}: it is not used" for path, reason in records.stale.items())]
    evidence = Evidence(
        experiment=experiment,
        cells=cells_of(experiment),
        runs=records.runs,
        tuned=read_tuned(experiment),
        paper=_published(experiment, results / "paper"),
        problems=problems,
    )
    _check_columns(evidence)
    _check_axes(evidence)
    _check_compared(evidence)
    problems += _not_finite(evidence)
    return evidence


def _published(experiment: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The published table that the experiment names, with every row that its settings name; ``table: null``: none."""
    if (table := experiment.get("table")) is None:
        return {}
    file, where = folder / f"{table}.yaml", f"experiment {experiment['name']}"
    paper = read_yaml(file)
    if paper is None:
        raise RunError(f"{where}: table {table} needs {file}, which is not there: write it, or give table: null")
    rows = paper.get("rows")
    if not isinstance(rows, dict):
        raise RunError(f"{file}: rows is {rows}, but the published rows must stand there by name: mend it")
    for setting, given in (experiment.get("settings") or {}).items():
        named = given.get("paper") or []
        for row in [named] if isinstance(named, str) else named:
            if not isinstance(rows.get(row), dict):
                raise RunError(
                    f"{where}, setting {setting}: {file} has no row {row}: choose one of {', '.join(map(str, rows))}"
                )
    return paper


def _check_columns(evidence: Evidence) -> None:
    compared = [name for name, metric in METRICS.items() if metric.higher_is_better is not None]
    for key in evidence.metrics():
        if key not in compared:
            raise RunError(f"experiment {evidence.name} compares by {key}: choose one of {', '.join(compared)}")
    for key in evidence.experiment.get("also") or []:
        if key not in METRICS:
            raise RunError(f"experiment {evidence.name} also shows {key}: choose from {', '.join(METRICS)}")


def _check_axes(evidence: Evidence) -> None:
    known = {"settings": set(evidence.settings()), "methods": set(evidence.experiment.get("methods") or {})}
    for asked in evidence.experiment.get("axes") or []:
        kind = next((kind for kind in known if kind in asked), None)
        keys = set(asked) - {"metric"}
        if kind is None or keys != {"label", kind} or not asked[kind] or not set(asked[kind]) <= known[kind]:
            raise RunError(
                f"experiment {evidence.name}: axes holds {dict(asked)}: give a label, and numbers or words for some of "
                "its settings or of its methods"
            )
        if (key := asked.get("metric")) is not None and key not in METRICS:
            raise RunError(f"experiment {evidence.name}: axes asks for metric {key}: choose from {', '.join(METRICS)}")


def _check_compared(evidence: Evidence) -> None:
    where, methods = f"experiment {evidence.name}", list(dict.fromkeys(cell.method for cell in evidence.cells.values()))
    if (baseline := evidence.experiment.get("baseline", "ste")) not in methods:
        raise RunError(f"{where}: baseline {baseline} is not known: choose one of {', '.join(methods)}")
    asked = evidence.experiment.get("equal_loss")
    if not asked:
        return
    targets, ratios = (asked.get(key) if isinstance(asked, dict) else None for key in ("targets", "ratios"))
    if not isinstance(targets, list) or not isinstance(ratios, list) or not all(isinstance(r, dict) for r in ratios):
        raise RunError(
            f"{where}: equal_loss holds {asked}: give it targets, a list of cells, and ratios, each of: and to:"
        )
    for cell in [*targets, *(ratio.get(key) for ratio in ratios for key in ("of", "to"))]:
        if cell not in evidence.cells:
            raise RunError(f"{where}: equal_loss names cell {cell}: choose from {', '.join(evidence.cells)}")


def _not_finite(evidence: Evidence) -> list[str]:
    """A sentence for every number that a finished run should have and has not."""
    found = []
    for cell in evidence.cells.values():
        also = [key for key in evidence.experiment.get("also") or [] if METRICS[key].higher_is_better is not None]
        for run in evidence.finished(cell):
            for key in dict.fromkeys([evidence.metric_of(cell), *also]):
                if not is_finite(run.summary.get(key)):
                    found.append(f"{run.path}: {key} is {run.summary.get(key)}, no finite number: it is in no mean")
    return found
