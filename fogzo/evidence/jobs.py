"""An experiment's cells as lists of command-line overrides: each job is a command that can also be typed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from fogzo.errors import UserError
from fogzo.evidence.chosen import (
    UNLISTED,
    borrowed_values,
    read_chosen,
    tune_command,
    tuned_values,
    tuning_faults,
)
from fogzo.evidence.experiment import Cell, Experiment, as_overrides, key_of, last_of_each


def expand(experiment: Experiment, phase: str, given: Sequence[str]) -> list[list[str]]:
    """Return the overrides of every job of ``experiment``; what is in ``given`` (``key=value``) wins over them.

    ``phase="confirm"``: every cell with its tuned values on every seed.  ``phase="tune"``: every cell with every point
    of its search on every tuning seed.  ``cell=`` or ``setting=`` in ``given`` chooses.  With ``plan=true`` it is known
    before tuning too: as many points as tuning tries, and any values where none are chosen yet, which cost the same.

    Raises:
        UserError: for an unknown phase, cell or setting, and cells that were not tuned yet, or not as the experiment
            asks.
    """
    if phase not in ("confirm", "tune"):
        raise UserError(f"phase={phase} is not known: choose confirm or tune")
    values_given = {key_of(override): override.partition("=")[2] for override in given}
    jobs = []
    for cell in experiment.choose(cell=values_given.get("cell"), setting=values_given.get("setting")):
        for values, seed in _runs_of(experiment, cell, phase, given):
            overrides = [*cell.overrides, *as_overrides(values)]
            overrides += [*(experiment.tuning.overrides if phase == "tune" else ()), f"seed={seed}"]
            left = [override for override in last_of_each(overrides) if key_of(override) not in values_given]
            jobs.append((f"cell={cell.name}", *left))
    return [list(job) for job in dict.fromkeys(jobs)]  # once each, where `given` made some alike


def _runs_of(
    experiment: Experiment, cell: Cell, phase: str, given: Sequence[str]
) -> Iterable[tuple[dict[str, Any], int]]:
    """Return the values of the tuned keys, and the seed, of every run of ``cell``."""
    planning = plans(given)
    if phase == "tune":
        borrowed = {} if planning else borrowed_values(experiment, cell, given)
        points = cell.points()[: experiment.tuning.trials if planning else None]
        return [(borrowed | point, seed) for point in points for seed in experiment.tuning.seeds]
    tuned_keys = set(cell.search).union(experiment.cells[cell.tuned_as].search if cell.tuned_as else ())
    if planning and tuning_faults(experiment, cell):
        return [(cell.points()[0], seed) for seed in cell.setting.seeds]
    # on the command line they take the place of tuning
    where = [override for override in given if key_of(override).startswith("experiment.")]
    values = {} if tuned_keys <= set(map(key_of, given)) else _values_for_runs(experiment, cell, where)
    return [(values, seed) for seed in cell.setting.seeds]


def _values_for_runs(experiment: Experiment, cell: Cell, where: Sequence[str]) -> dict[str, Any]:
    """Return the tuned values of ``cell``, if they are what it asks for; ``where``: what of it was given."""
    values = tuned_values(experiment, cell, where)
    faults = {name: fault for name, fault in tuning_faults(experiment, cell).items() if fault != UNLISTED}
    if not faults:
        return values
    way_out = f"first run `{tune_command(experiment, cell, where)}`"
    choices = read_chosen(experiment)
    spent = max(len(choices[name].points()) if name in choices else 0 for name in faults)
    if spent and not tuning_faults(replace(experiment, tuning=replace(experiment.tuning, trials=spent)), cell):
        way_out += f", or give experiment.tuning.trials={spent} to use the values as they are"
    said = "; ".join(f"{name} was {fault}" for name, fault in faults.items())
    raise UserError(f"{experiment.tuning.chosen}: {said}: {way_out}")


def plans(given: Sequence[str]) -> bool:
    """Return whether the command line ``given`` asks for a plan alone."""
    return "plan=true" in map(str.lower, given)
