"""What tuning chose for an experiment's cells, and whether that is still what the experiment asks for."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from fogzo.evidence.experiment import Cell, Experiment, last_of_each
from fogzo.evidence.parse import KINDS
from fogzo.runs.records import parse_yaml

OF_ENTRY = {"values": dict, "tried": list, "borrowed": dict, "overrides": list, "given": list, "on_edge_of_grid": list}
UNLISTED = "tuned without a list of what was tried"  # enough for a run, as a file written by hand, but not for a table


def tuned_values(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """The values that tuning chose for ``cell``, with those that it borrows.

    Raises:
        ValueError: if the cell, or the one that it borrows from, was not tuned yet.
    """
    return borrowed_values(experiment, cell) | _chosen(experiment, cell)


def borrowed_values(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """What ``cell`` takes over from the tuned cell ``tuned_as``: the keys that it does not search itself."""
    if cell.tuned_as is None:
        return {}
    model = experiment.cells[cell.tuned_as]
    values = _chosen(experiment, model)
    return {key: value for key, value in values.items() if key not in cell.search}


def read_tuned(experiment: Experiment) -> dict[str, Any]:
    """All of the experiment's data file of tuned values, by cell; empty if there is none yet.  Not to be changed.

    Raises:
        RunError: if it cannot be read.
        ValueError: if an entry in it is not as tuning leaves one.
    """
    path = Path(experiment.tuning.chosen)
    return _entries(path, path.read_bytes()) if path.exists() else {}


@lru_cache(maxsize=16)  # it is asked for cell by cell, and long
def _entries(path: Path, data: bytes) -> dict[str, Any]:
    entries = parse_yaml(path, data) or {}
    for name, entry in entries.items():
        if (damage := _damage(entry)) is not None:
            raise ValueError(
                f"{path}: the entry of {name} {damage}: remove it and tune that cell again, or put back the version "
                "that was committed"
            )
    return entries


def _damage(entry: Any) -> str | None:
    """In what an entry of tuned values is not as tuning leaves one."""
    if not isinstance(entry, Mapping) or "values" not in entry:
        return "has no values"
    for key, kind in OF_ENTRY.items():
        if not isinstance(entry.get(key, kind()), kind):
            return f"has {entry[key]} as {key}, which must be {KINDS[kind]}"
    if not all(isinstance(one, Mapping) and isinstance(one.get("values"), Mapping) for one in entry.get("tried", [])):
        return "has a trial without values in tried"
    if not all(isinstance(word, str) for key in ("overrides", "given") for word in entry.get(key, [])):
        return "has something else than KEY=VALUE in overrides or given"
    return None


def _chosen(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    if not cell.search:
        return {}
    chosen = read_tuned(experiment)
    file, way_out = experiment.tuning.chosen, f"first run `{tune_command(experiment.name, cell)}`"
    if cell.name not in chosen:
        raise ValueError(f"{file} holds no tuned values for {cell.name}: {way_out}")
    if changed := changed_since_tuning(experiment, cell):
        raise ValueError(f"{file} holds values of {cell.name} that were tuned with {changed}: {way_out}")
    values: dict[str, Any] = chosen[cell.name]["values"]
    return values


def tuned_under(experiment: Experiment, cell: Cell) -> list[str]:
    """``KEY=VALUE`` of all that a trial of ``cell`` is run with, but for what is searched or borrowed."""
    return list(last_of_each([*cell.overrides, *experiment.tuning.overrides, f"seed={experiment.tuning.seed}"]))


def changed_since_tuning(experiment: Experiment, cell: Cell) -> str:
    """In what the experiment has changed since ``cell`` was tuned: "" for nothing."""
    now = tuned_under(experiment, cell)
    old = read_tuned(experiment)[cell.name].get("overrides", now)  # a file that others wrote need not have them
    gone, come = ([one for one in these if one not in those] for these, those in ((old, now), (now, old)))
    if not gone and not come:
        return ""
    return f"{', '.join(gone) or 'less'}, where the experiment now has {', '.join(come) or 'nothing'}"


def tuning_fault(experiment: Experiment, cell: Cell) -> str | None:
    """Why the tuned values of ``cell`` itself are not those that the experiment's file asks for; ``None``: they are."""
    if not cell.search:
        return None
    entry = read_tuned(experiment).get(cell.name)
    if entry is None:
        return "untuned"
    if "tried" not in entry:
        return UNLISTED
    tried, trials = [one["values"] for one in entry["tried"]], min(experiment.tuning.trials, len(cell.points()))
    if len(tried) != trials:
        return f"tuned with {len(tried)} trials instead of {trials}"
    if entry.get("given"):
        return f"tuned with {', '.join(entry['given'])}"
    if changed := changed_since_tuning(experiment, cell):
        return f"tuned with {changed}"
    for key, values in cell.search.items():
        if any(point.get(key) not in values for point in tried):
            return f"tuned with other values of {key} than the experiment now searches"
    if entry["values"] not in tried:
        return f"tuned to {_words(entry['values'])}, which is none of what was tried"
    with suppress(ValueError):  # what it borrows from is not tuned, which is that one's fault
        then, now = entry.get("borrowed", {}), borrowed_values(experiment, cell)
        if then != now:
            return f"tuned with {_words(then)} from another cell, where the experiment now has {_words(now)}"
    return None


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items()) or "nothing"


def tuning_faults(experiment: Experiment, cell: Cell) -> dict[str, str]:
    """The faults (``tuning_fault``) of all tuned values of ``cell``, by the cell that they were tuned for.

    Those are its own, and those that it borrows.
    """
    asked = [experiment.cells[cell.tuned_as], cell] if cell.tuned_as else [cell]
    found = {one.name: tuning_fault(experiment, one) for one in asked}
    return {name: fault for name, fault in found.items() if fault is not None}


def whole_commands(experiment: Experiment) -> list[str]:
    """What runs the whole experiment: tuning first, of the cells that still need it."""
    searched = [cell for cell in experiment.cells.values() if cell.search]
    faulty = [cell.name for cell in searched if tuning_faults(experiment, cell)]
    part = f" cell={','.join(faulty)}" if len(faulty) < len(searched) else ""
    tune = [f"python scripts/tune.py experiment={experiment.name}{part}"] if faulty else []
    return [*tune, f"python train.py -m experiment={experiment.name}"]


def tune_command(experiment: str, cell: Cell) -> str:
    """What tunes a cell, if it searches anything, and the one that it borrows from, skipped if it is done."""
    cells = [name for name in (cell.tuned_as, cell.name if cell.search else None) if name]
    return f"python scripts/tune.py experiment={experiment} cell={','.join(cells)}"
