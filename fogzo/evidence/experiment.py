"""An experiment's file and its cells.

An experiment file (``configs/experiment/NAME.yaml``) gives either ``settings`` (what is trained) and ``methods`` (what
is compared), whose products are the cells ``SETTING.METHOD``, or ``cells`` themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fogzo.runs.folder import RunError
from fogzo.runs.records import read_yaml


@dataclass(frozen=True)
class Cell:
    """One place of an experiment's table, filled by a run for each seed.

    Attributes:
        name: ``SETTING.METHOD``, or the key in ``cells``.
        setting: "" where the experiment lists its ``cells``.
        method: the key in ``methods``; the cell's name where the experiment lists its ``cells``.
        overrides: ``KEY=VALUE``, each key once; without what is tuned.
        search: the values that tuning may try, for each key.
        tuned_as: a cell from which the values of keys come that this one does not search itself (a method that gives
            a searched key the value null does not).
        metric: key of ``summary.json`` that the cell is compared by, its setting's or the experiment's.
    """

    name: str
    setting: str
    method: str
    label: str
    overrides: tuple[str, ...] = ()
    search: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    tuned_as: str | None = None
    metric: str | None = None


OF_EXPERIMENT = {
    ("name",): str, ("seeds",): list, ("tuning",): dict, ("tuning", "seed"): int, ("tuning", "trials"): int,
    ("tuning", "chosen"): str,
}  # fmt: skip


def read_experiment(path: Path) -> dict[str, Any]:
    """What an experiment's file says of it, without Hydra.

    Raises:
        RunError: if the file cannot be read, or lacks what every experiment has.
    """
    found = read_yaml(path) or {}
    for keys, kind in {(): dict, **OF_EXPERIMENT}.items():
        value: Any = found
        for key in ("experiment", *keys):
            value = value.get(key)
        if not isinstance(value, kind):
            name = ".".join(("experiment", *keys))
            raise RunError(f"{path}: {name} is {value}, but it must be {kind_word(kind)}: give it in that file")
    experiment: dict[str, Any] = found["experiment"]
    return experiment


def kind_word(kind: type) -> str:
    return {dict: "keys with values", list: "a list", int: "a whole number", str: "a word"}[kind]


def cells_of(experiment: Mapping[str, Any]) -> dict[str, Cell]:
    """The cells of an experiment by name, in the order of its table.

    Raises:
        ValueError: for a method, a searched key or a ``tuned_as`` that the experiment does not have, and for a method
            without a label, overrides or a list of what is searched.
    """
    common = [f"scale={experiment['scale']}"] if "scale" in experiment else []
    common += experiment.get("overrides") or []
    search = experiment["tuning"].get("search") or {}
    settings, methods = _settings_and_methods(experiment)
    cells = {}
    for setting, of_setting in settings.items():
        values = of_setting.get("search") or {}
        chosen = of_setting.get("methods") or list(methods)
        _check_setting(experiment, setting, methods, values, chosen)
        for method in chosen:
            of_method = methods[method]
            searched = {**search, **(of_method.get("search") or {})}
            searched = {key: default for key, default in searched.items() if default is not None}  # null: not searched
            as_method = of_method.get("tuned_as")
            cell = Cell(
                name=_name(setting, method),
                setting=setting,
                method=method,
                label=of_method["label"],
                overrides=last_of_each(common + (of_setting.get("overrides") or []) + of_method["overrides"]),
                search={key: values.get(key, default) for key, default in searched.items()},
                tuned_as=_name(setting, as_method) if as_method else None,
                metric=of_setting.get("metric", experiment.get("metric")),
            )
            for key, tried in cell.search.items():
                if isinstance(tried, str) or not isinstance(tried, Sequence):
                    raise RunError(
                        f"experiment {experiment['name']}, {cell.name}: the search of {key} is {tried}: give it a list"
                    )
            cells[cell.name] = cell
    return cells


def _settings_and_methods(experiment: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Both by name; listed ``cells`` are methods of one setting that has no name."""
    if "cells" in experiment:
        return {"": {}}, experiment["cells"]
    if "settings" not in experiment or "methods" not in experiment:
        raise ValueError(f"experiment {experiment['name']} has no cells: give it settings and methods, or cells")
    return experiment["settings"], experiment["methods"]


def _name(setting: str, method: str) -> str:
    return f"{setting}.{method}" if setting else method


def _check_setting(
    experiment: Mapping[str, Any],
    setting: str,
    methods: Mapping[str, Any],
    values: Iterable[str],
    chosen: Sequence[str],
) -> None:
    where = f"experiment {experiment['name']}" + (f", setting {setting}" if setting else "")
    for method in chosen:
        if method not in methods:
            raise ValueError(f"{where}: method {method} is not known: choose from {', '.join(methods)}")
        for key in ("label", "overrides"):
            if key not in (methods[method] or {}):
                raise ValueError(f"{where}: {method} has no {key}: give it one")
    for method in chosen:
        model = methods[method].get("tuned_as")
        if model and model not in chosen:
            lacks = (
                "the setting lacks: add it to its methods"
                if setting
                else f"is no cell: choose from {', '.join(chosen)}"
            )
            raise ValueError(f"{where}: {method} is tuned as {model}, which {lacks}")
        if model and methods[model].get("tuned_as"):  # what that one borrows would not be handed on
            raise ValueError(f"{where}: {method} is tuned as {model}, which is tuned as another itself: name that one")
    known = set(experiment["tuning"].get("search") or {}).union(*(methods[m].get("search") or {} for m in chosen))
    for key in values:
        if key not in known:
            raise ValueError(f"{where}: {key} is searched by none of its methods: add it to tuning.search or a method")


def choose_cells(
    experiment: Mapping[str, Any], cells: Mapping[str, Cell], *, cell: str | None = None, setting: str | None = None
) -> list[Cell]:
    """All cells, or the one of a name, or those of a setting.

    Raises:
        ValueError: if the experiment has no such cell or setting.
    """
    settings = list(dict.fromkeys(one.setting for one in cells.values() if one.setting))
    for what, name, known in (("cell", cell, list(cells)), ("setting", setting, settings)):
        if name is not None and name not in known:
            raise ValueError(
                f"{what}={name} is not in experiment {experiment['name']}: choose one of {', '.join(known) or 'none'}"
            )
    return [one for one in cells.values() if cell in (None, one.name) and setting in (None, one.setting)]


def check_seeds(experiment: Mapping[str, Any]) -> None:
    """Refuse an experiment whose tuning seed is among the seeds that its table reports."""
    seed = experiment["tuning"]["seed"]
    if seed in experiment["seeds"]:
        raise ValueError(f"experiment {experiment['name']} tunes on seed {seed}, which its table reports too")


def points_of(cell: Cell) -> list[dict[str, Any]]:
    """Every point of what tuning may try for ``cell``; the last key varies fastest."""
    return [dict(zip(cell.search, values, strict=True)) for values in itertools.product(*cell.search.values())]


def key_of(override: str) -> str:
    """The key of ``KEY=VALUE``, ``+KEY=VALUE`` or ``~KEY``."""
    return override.partition("=")[0].lstrip("+~")


def last_of_each(overrides: Iterable[str]) -> tuple[str, ...]:
    """One override a key, the last one given: Hydra refuses a group that is chosen twice."""
    return tuple({key_of(override): override for override in overrides}.values())
