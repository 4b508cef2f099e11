"""An experiment's cells, and its grid as lists of command-line overrides: each job is a command that can also be typed.

An experiment file (``configs/experiment/NAME.yaml``) gives either ``settings`` (what is trained) and ``methods`` (what
is compared), whose products are the cells ``SETTING.METHOD``, or ``cells`` themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from fogzo.results import parse_yaml, read_yaml
from fogzo.runs import RunError


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


# What every experiment says, and of which kind it is
OF_EXPERIMENT = {
    ("name",): str, ("seeds",): list, ("tuning",): dict, ("tuning", "seed"): int, ("tuning", "trials"): int,
    ("tuning", "chosen"): str,
}  # fmt: skip
# What an entry of the file of tuned values may hold; ``values`` it must
OF_ENTRY = {"values": dict, "tried": list, "borrowed": dict, "overrides": list, "given": list, "on_edge_of_grid": list}


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
            raise RunError(f"{path}: {name} is {value}, but it must be {_kind(kind)}: give it in that file")
    experiment: dict[str, Any] = found["experiment"]
    return experiment


def _kind(kind: type) -> str:
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
                overrides=_last_of_each(common + (of_setting.get("overrides") or []) + of_method["overrides"]),
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


def expand(experiment: Mapping[str, Any], phase: str, given: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of ``experiment``; what is in ``given`` (``key=value``) wins over the experiment.

    ``phase="confirm"``: every cell with its tuned values on every seed.  ``phase="tune"``: every cell with every point
    of its search on the tuning seed, which the other seeds exclude.  ``cell=`` or ``setting=`` in ``given`` chooses.

    Raises:
        ValueError: for an unknown phase, cell or setting, a tuning seed among the seeds, and cells that were not tuned
            yet, or not as the experiment asks.
    """
    if phase not in ("confirm", "tune"):
        raise ValueError(f"phase={phase} is not known: choose confirm or tune")
    keys = {key_of(override): override.partition("=")[2] for override in given}
    check_seeds(experiment)
    cells = cells_of(experiment)
    jobs = []
    for cell in choose_cells(experiment, cells, cell=keys.get("cell"), setting=keys.get("setting")):
        for point, seed in _runs_of(experiment, cell, phase, keys):
            own = [*cell.overrides, *(f"{key}={value}" for key, value in point.items())]
            if phase == "tune":
                own += experiment["tuning"].get("overrides") or []
            own = [override for override in [*own, f"seed={seed}"] if key_of(override) not in keys]
            jobs.append([f"cell={cell.name}", *_last_of_each(own)])
    return [list(job) for job in dict.fromkeys(map(tuple, jobs))]  # once each, where `given` made some alike


def _runs_of(
    experiment: Mapping[str, Any], cell: Cell, phase: str, given: Iterable[str]
) -> Iterable[tuple[dict[str, Any], int]]:
    """Values of the tuned keys and the seed, of every run of ``cell``."""
    tuning = experiment["tuning"]
    if phase == "tune":
        borrowed = borrowed_values(experiment, cell)
        return [(borrowed | point, tuning["seed"]) for point in points_of(cell)]
    keys = set(cell.search).union(cells_of(experiment)[cell.tuned_as].search if cell.tuned_as else ())
    if keys <= set(given):  # on the command line they take the place of tuning
        return [({}, seed) for seed in experiment["seeds"]]
    values = tuned_values(experiment, cell)
    if faults := tuning_faults(experiment, cell):
        said = "; ".join(f"{name} was {fault}" for name, fault in faults.items())
        way_out = f"first run `{tune_command(experiment['name'], cell)}`"
        spent = max(len(read_tuned(experiment)[name].get("tried", [])) for name in faults)
        if not tuning_faults({**experiment, "tuning": {**tuning, "trials": spent}}, cell):
            way_out += f", or give experiment.tuning.trials={spent} to use the values as they are"
        raise ValueError(f"{tuning['chosen']}: {said}: {way_out}")
    return [(values, seed) for seed in experiment["seeds"]]


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


def tuned_values(experiment: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """The values that tuning chose for ``cell``, with those that it borrows.

    Raises:
        ValueError: if the cell, or the one that it borrows from, was not tuned yet.
    """
    return borrowed_values(experiment, cell) | _chosen(experiment, cell)


def borrowed_values(experiment: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """What ``cell`` takes over from the tuned cell ``tuned_as``: the keys that it does not search itself."""
    if cell.tuned_as is None:
        return {}
    model = cells_of(experiment)[cell.tuned_as]
    values = _chosen(experiment, model)
    return {key: value for key, value in values.items() if key not in cell.search}


def read_tuned(experiment: Mapping[str, Any]) -> dict[str, Any]:
    """All of the experiment's data file of tuned values, by cell; empty if there is none yet.  Not to be changed.

    Raises:
        RunError: if it cannot be read.
        ValueError: if an entry in it is not as tuning leaves one.
    """
    path = Path(experiment["tuning"]["chosen"])
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
            return f"has {entry[key]} as {key}, which must be {_kind(kind)}"
    if not all(isinstance(one, Mapping) and isinstance(one.get("values"), Mapping) for one in entry.get("tried", [])):
        return "has a trial without values in tried"
    if not all(isinstance(word, str) for key in ("overrides", "given") for word in entry.get(key, [])):
        return "has something else than KEY=VALUE in overrides or given"
    return None


def _chosen(experiment: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    if not cell.search:
        return {}
    chosen = read_tuned(experiment)
    file, way_out = experiment["tuning"]["chosen"], f"first run `{tune_command(experiment['name'], cell)}`"
    if cell.name not in chosen:
        raise ValueError(f"{file} holds no tuned values for {cell.name}: {way_out}")
    if changed := changed_since_tuning(experiment, cell):
        raise ValueError(f"{file} holds values of {cell.name} that were tuned with {changed}: {way_out}")
    values: dict[str, Any] = chosen[cell.name]["values"]
    return values


def tuned_under(experiment: Mapping[str, Any], cell: Cell) -> list[str]:
    """``KEY=VALUE`` of all that a trial of ``cell`` is run with, but for what is searched or borrowed."""
    tuning = experiment["tuning"]
    return list(_last_of_each([*cell.overrides, *(tuning.get("overrides") or []), f"seed={tuning['seed']}"]))


def changed_since_tuning(experiment: Mapping[str, Any], cell: Cell) -> str:
    """In what the experiment has changed since ``cell`` was tuned: "" for nothing."""
    now = tuned_under(experiment, cell)
    old = read_tuned(experiment)[cell.name].get("overrides", now)  # a file that others wrote need not have them
    gone, come = ([one for one in these if one not in those] for these, those in ((old, now), (now, old)))
    if not gone and not come:
        return ""
    return f"{', '.join(gone) or 'less'}, where the experiment now has {', '.join(come) or 'nothing'}"


def tuning_fault(experiment: Mapping[str, Any], cell: Cell) -> str | None:
    """Why the tuned values of ``cell`` itself are not those that the experiment's file asks for; ``None``: they are."""
    if not cell.search:
        return None
    entry = read_tuned(experiment).get(cell.name)
    if entry is None:
        return "untuned"
    if "tried" not in entry:
        return "tuned without a list of what was tried"
    tried, trials = [one["values"] for one in entry["tried"]], min(experiment["tuning"]["trials"], len(points_of(cell)))
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


def tuning_faults(experiment: Mapping[str, Any], cell: Cell) -> dict[str, str]:
    """The faults (``tuning_fault``) of all tuned values of ``cell``, by the cell that they were tuned for.

    Those are its own, and those that it borrows.
    """
    asked = [cells_of(experiment)[cell.tuned_as], cell] if cell.tuned_as else [cell]
    found = {one.name: tuning_fault(experiment, one) for one in asked}
    return {name: fault for name, fault in found.items() if fault is not None}


def whole_commands(experiment: Mapping[str, Any]) -> list[str]:
    """What runs the whole experiment: tuning first, of the cells that still need it."""
    searched = [cell for cell in cells_of(experiment).values() if cell.search]
    faulty = [cell.name for cell in searched if tuning_faults(experiment, cell)]
    part = f" cell={','.join(faulty)}" if len(faulty) < len(searched) else ""
    tune = [f"python scripts/tune.py experiment={experiment['name']}{part}"] if faulty else []
    return [*tune, f"python train.py -m experiment={experiment['name']}"]


def tune_command(experiment: str, cell: Cell) -> str:
    """What tunes a cell, if it searches anything, and the one that it borrows from, skipped if it is done."""
    cells = [name for name in (cell.tuned_as, cell.name if cell.search else None) if name]
    return f"python scripts/tune.py experiment={experiment} cell={','.join(cells)}"


def key_of(override: str) -> str:
    """The key of ``KEY=VALUE``, ``+KEY=VALUE`` or ``~KEY``."""
    return override.partition("=")[0].lstrip("+~")


def _last_of_each(overrides: Iterable[str]) -> tuple[str, ...]:
    """One override a key, the last one given: Hydra refuses a group that is chosen twice."""
    return tuple({key_of(override): override for override in overrides}.values())
