"""An experiment's grid as lists of command-line overrides: each job is a command that can also be typed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from fogzo.evidence.chosen import UNLISTED, borrowed_values, read_tuned, tune_command, tuned_values, tuning_faults
from fogzo.evidence.experiment import Cell, Experiment, key_of, last_of_each


def expand(experiment: Experiment, phase: str, given: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of ``experiment``; what is in ``given`` (``key=value``) wins over the experiment.

    ``phase="confirm"``: every cell with its tuned values on every seed.  ``phase="tune"``: every cell with every point
    of its search on the tuning seed, which the other seeds exclude.  ``cell=`` or ``setting=`` in ``given`` chooses.

    Raises:
        ValueError: for an unknown phase, cell or setting, and cells that were not tuned yet, or not as the experiment
            asks.
    """
    if phase not in ("confirm", "tune"):
        raise ValueError(f"phase={phase} is not known: choose confirm or tune")
    keys = {key_of(override): override.partition("=")[2] for override in given}
    jobs = []
    for cell in experiment.choose(cell=keys.get("cell"), setting=keys.get("setting")):
        for point, seed in _runs_of(experiment, cell, phase, keys):
            own = [*cell.overrides, *(f"{key}={value}" for key, value in point.items())]
            if phase == "tune":
                own += experiment.tuning.overrides
            own = [override for override in [*own, f"seed={seed}"] if key_of(override) not in keys]
            jobs.append([f"cell={cell.name}", *last_of_each(own)])
    return [list(job) for job in dict.fromkeys(map(tuple, jobs))]  # once each, where `given` made some alike


def _runs_of(
    experiment: Experiment, cell: Cell, phase: str, given: Iterable[str]
) -> Iterable[tuple[dict[str, Any], int]]:
    """Values of the tuned keys and the seed, of every run of ``cell``."""
    tuning = experiment.tuning
    if phase == "tune":
        borrowed = borrowed_values(experiment, cell)
        return [(borrowed | point, tuning.seed) for point in cell.points()]
    keys = set(cell.search).union(experiment.cells[cell.tuned_as].search if cell.tuned_as else ())
    if keys <= set(given):  # on the command line they take the place of tuning
        return [({}, seed) for seed in experiment.seeds]
    values = tuned_values(experiment, cell)
    faults = {name: fault for name, fault in tuning_faults(experiment, cell).items() if fault != UNLISTED}
    if faults:
        said = "; ".join(f"{name} was {fault}" for name, fault in faults.items())
        way_out = f"first run `{tune_command(experiment.name, cell)}`"
        spent = max(len(read_tuned(experiment)[name].get("tried", [])) for name in faults)
        if not tuning_faults(replace(experiment, tuning=replace(tuning, trials=spent)), cell):
            way_out += f", or give experiment.tuning.trials={spent} to use the values as they are"
        raise ValueError(f"{tuning.chosen}: {said}: {way_out}")
    return [(values, seed) for seed in experiment.seeds]
