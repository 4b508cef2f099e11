"""Which record fills which cell of an experiment, and which no longer does: nothing stale is used in silence.

A record is stale when the experiment's file, or the file of chosen values, has changed since; ``fogzo.runs.records``
finds those that are damaged or were changed by hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fogzo.errors import UserError
from fogzo.evidence.chosen import read_chosen, tuned_values
from fogzo.evidence.experiment import Cell, Experiment, as_overrides, key_of
from fogzo.runs.identity import differences, identity
from fogzo.runs.packed import Fault, Run
from fogzo.runs.records import drop_command, read_records

Runs = Mapping[str, Mapping[int, Run]]  # what fills each cell, by seed


def usable_runs(experiment: Experiment, results: Path) -> tuple[Runs, list[Fault]]:
    """Return the records of an experiment that fill its cells, and what is wrong with the others."""
    packed = read_records(results / "records" / f"{experiment.name}.jsonl")
    tuned = {name: _values_of(experiment, cell) for name, cell in experiment.cells.items()}
    places: dict[tuple[str, int], list[Run]] = {}
    stale: dict[str, list[Run]] = {}  # by the reason
    faults: list[Fault] = []
    for run in packed.runs.values():
        cell = str(run.config.get("cell"))
        if reason := _staleness(run, experiment, tuned.get(cell)):
            stale.setdefault(reason, []).append(run)
        else:
            places.setdefault((cell, run.config["seed"]), []).append(run)
    runs: dict[str, dict[int, Run]] = {name: {} for name in experiment.cells}
    for (cell, seed), same in places.items():
        if len(same) == 1:
            runs[cell][seed] = same[0]
        else:
            lines = ", ".join(str(run.line) for run in same)
            faults += [_fault(f"lines {lines} all claim cell {cell}, seed {seed}", run) for run in same]  # keep one
    for of_cell in runs.values():
        for seed, reason in _odd_configs(of_cell).items():
            stale.setdefault(reason, []).append(of_cell.pop(seed))
    faults = [*(_fault(reason, *of_reason) for reason, of_reason in stale.items()), *faults]
    return {cell: dict(sorted(of_cell.items())) for cell, of_cell in runs.items()}, [*packed.faults, *faults]


def _fault(reason: str, run: Run, *others: Run) -> Fault:
    lines = tuple(other.line for other in others)
    return Fault(run.place, run.line, reason, drop_command(run, *others), lines)


def _odd_configs(runs: Mapping[int, Run]) -> dict[int, str]:
    """Return by seed how a config differs from that of most runs of the cell in more than the seed."""
    configs = {seed: {key: value for key, value in run.config.items() if key != "seed"} for seed, run in runs.items()}
    names = {seed: identity(config) for seed, config in configs.items()}
    if len(set(names.values())) <= 1:
        return {}
    usual = Counter(names.values()).most_common(1)[0][0]
    pattern = next(configs[seed] for seed, name in names.items() if name == usual)
    return {
        seed: f"the config is not that of the cell's other seeds ({'; '.join(differences(pattern, configs[seed])[:3])})"
        for seed, name in names.items()
        if name != usual
    }


def _values_of(experiment: Experiment, cell: Cell) -> dict[str, Any] | None:
    """Return the tuned values of a cell; ``None`` if it was not tuned yet."""
    read_chosen(experiment)  # where that file is damaged, no cell counts as untuned
    try:
        return tuned_values(experiment, cell)
    except UserError:
        return None


def _staleness(run: Run, experiment: Experiment, tuned: Mapping[str, Any] | None) -> str:
    """Return why ``run`` may not stand for the cell that it names, or ""; ``tuned``: that cell's values."""
    config = run.config
    name, seed = str(config.get("cell")), config.get("seed")
    if config.get("experiment") != experiment.name or config.get("phase") != "confirm":
        return f"of experiment {config.get('experiment')}, phase {config.get('phase')}"
    if name not in experiment.cells:
        return f"the experiment has no cell {name}"
    if seed not in experiment.cells[name].setting.seeds:
        return f"seed {seed} is not among those of its setting"
    if tuned is None:
        return f"{name} has no tuned values"
    others = {key: value for key, value in tuned.items() if _value_of(config, key) != value}
    lacks = [one for one in experiment.cells[name].overrides if not _holds(config, one)] + as_overrides(others)
    return f"not run with {', '.join(lacks)}, as the experiment now says" if lacks else ""


def _holds(config: Mapping[str, Any], override: str) -> bool:
    value, text = _value_of(config, key_of(override)), override.partition("=")[2]
    # a group's choice is recorded as its name
    return bool(value.get("name") == text if isinstance(value, Mapping) else value == _parsed(text))


def _value_of(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


@cache
def _parsed(text: str) -> Any:
    value = yaml.safe_load(text)
    try:
        return float(value) if isinstance(value, str) else value  # 1e-3: a number to Hydra, a word to YAML 1.1
    except ValueError:
        return value
