"""An experiment's grid as lists of command-line overrides: each job is a command that can also be typed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def expand(experiment: Mapping[str, Any], phase: str, given: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of ``experiment``; what is in ``given`` (``key=value``) wins over the experiment.

    ``phase="confirm"``: every cell with its tuned values on every seed.  ``phase="tune"``: every cell with every point
    of ``tuning.grid`` on the tuning seed, which the other seeds exclude.

    Raises:
        ValueError: for an unknown phase or cell, a tuning seed among the seeds, and cells that were not tuned yet.
    """
    keys = {override.partition("=")[0].lstrip("+~"): override.partition("=")[2] for override in given}
    cells: Mapping[str, Any] = experiment["cells"]
    chosen_cell = keys.get("cell")
    if chosen_cell is not None and chosen_cell not in cells:
        raise ValueError(
            f"cell={chosen_cell} is not in experiment {experiment['name']}: choose one of {', '.join(cells)}"
        )
    names = list(cells) if chosen_cell is None else [chosen_cell]
    tuning = experiment["tuning"]
    if tuning["seed"] in experiment["seeds"]:
        raise ValueError(f"experiment {experiment['name']} tunes on seed {tuning['seed']}, which its table reports too")
    jobs = []
    for name in names:
        if phase == "tune":
            points = [
                dict(zip(tuning["grid"], values, strict=True)) for values in itertools.product(*tuning["grid"].values())
            ]
            seeds = [tuning["seed"]]
        elif phase == "confirm":
            points, seeds = [tuned(experiment, name)], list(experiment["seeds"])
        else:
            raise ValueError(f"phase={phase} is not known: choose confirm or tune")
        for point, seed in itertools.product(points, seeds):
            own = [f"cell={name}", *cells[name]["overrides"], *(f"{key}={value}" for key, value in point.items())]
            if phase == "tune":
                own += tuning.get("overrides", [])
            jobs.append(
                [o for o in [*own, f"seed={seed}"] if o.partition("=")[0] == "cell" or o.partition("=")[0] not in keys]
            )
    return [list(job) for job in dict.fromkeys(map(tuple, jobs))]  # once each, where `given` made some alike


def tuned(experiment: Mapping[str, Any], cell: str) -> dict[str, Any]:
    """The values that tuning chose for ``cell``, from the experiment's data file."""
    path = Path(experiment["tuning"]["chosen"])
    chosen = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    if cell not in chosen:
        raise ValueError(
            f"{path} holds no tuned values for {cell}: first run "
            f"`python scripts/tune.py experiment={experiment['name']}`"
        )
    values: dict[str, Any] = chosen[cell]["values"]
    return values
