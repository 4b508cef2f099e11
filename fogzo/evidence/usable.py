"""Which record fills which cell of an experiment, and which no longer does: nothing stale is used in silence.

A record is stale when the experiment's file, or the file of chosen values, has changed since; ``fogzo.runs.records``
finds those that are damaged or were changed by hand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fogzo.errors import UserError
from fogzo.evidence.chosen import read_chosen, tuned_values
from fogzo.evidence.experiment import Cell, Experiment, as_overrides, key_of
from fogzo.runs.identity import differences, identity
from fogzo.runs.packed import Run
from fogzo.runs.records import Fault, drop_command, read_records


@dataclass(frozen=True)
class Records:
    """The records of one experiment.

    Attributes:
        runs: what fills each cell, by seed; finished or diverged.
        faults: what is wrong with the records that are not to be used.
    """

    runs: Mapping[str, Mapping[int, Run]]
    faults: Sequence[Fault]


def records_of(experiment: Experiment, results: Path) -> Records:
    """Return every record of an experiment, from ``results/records``."""
    packed = read_records(results / "records" / f"{experiment.name}.jsonl")
    faults = list(packed.faults)
    tuned = {name: _values_of(experiment, cell) for name, cell in experiment.cells.items()}
    claims: dict[str, dict[int, list[Run]]] = {name: {} for name in experiment.cells}
    for run in packed.runs.values():
        cell, seed = str(run.config.get("cell")), run.config["seed"]
        if (reason := _staleness(run, experiment, tuned.get(cell))) is not None:
            faults.append(_fault(run, reason))
        else:
            claims[cell].setdefault(seed, []).append(run)
    runs = {cell: _runs_of_cell(cell, by_seed, faults) for cell, by_seed in claims.items()}
    return Records(runs, faults)


def _runs_of_cell(cell: str, by_seed: Mapping[int, Sequence[Run]], faults: list[Fault]) -> dict[int, Run]:
    """Return the one run of each seed; where there are several, or a config that the others have not: to ``faults``."""
    runs = {seed: same[0] for seed, same in by_seed.items() if len(same) == 1}
    for seed, same in by_seed.items():
        if len(same) > 1:
            reason = f"lines {', '.join(str(run.line) for run in same)} all claim cell {cell}, seed {seed}"
            faults += [_fault(run, reason) for run in same]
    for seed, reason in _odd_configs(runs).items():
        faults.append(_fault(runs.pop(seed), reason))
    return runs


def _fault(run: Run, reason: str) -> Fault:
    return Fault(run.place, run.line, reason, drop_command(run))


def _odd_configs(runs: Mapping[int, Run]) -> dict[int, str]:
    """Return by seed how a config differs from that of most runs of the cell in more than the seed."""
    configs = {seed: {key: value for key, value in run.config.items() if key != "seed"} for seed, run in runs.items()}
    names = {seed: identity(config) for seed, config in configs.items()}
    usual, _ = Counter(names.values()).most_common(1)[0] if names else ("", 0)
    pattern = next((configs[seed] for seed, name in names.items() if name == usual), {})
    return {
        seed: f"its config is not that of the cell's other seeds ({'; '.join(differences(pattern, configs[seed])[:3])})"
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


def _staleness(run: Run, experiment: Experiment, tuned: Mapping[str, Any] | None) -> str | None:
    """Return why ``run`` may not stand for the cell that it names, or ``None``; ``tuned``: that cell's values."""
    config = run.config
    name, seed = str(config.get("cell")), config.get("seed")
    if config.get("experiment") != experiment.name or config.get("phase") != "confirm":
        return f"it is of experiment {config.get('experiment')}, phase {config.get('phase')}"
    if name not in experiment.cells:
        return f"the experiment has no cell {name}"
    if seed not in experiment.seeds:
        return f"seed {seed} is not among the experiment's"
    if tuned is None:
        return "its cell has no tuned values"
    others = {key: value for key, value in tuned.items() if _value_of(config, key) != value}
    lacks = [one for one in experiment.cells[name].overrides if not _holds(config, one)] + as_overrides(others)
    return f"it was not run with {', '.join(lacks)}, as the experiment now says" if lacks else None


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
