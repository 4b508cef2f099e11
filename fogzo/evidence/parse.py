"""Make an experiment of its file, once: whatever is unknown, missing or does not fit is refused here, in a sentence.

Methods that ``configs/methods.yaml`` has need no more than their name in an experiment's file.  What that gives besides
refines them: overrides and values to search are added to the standard ones, other keys take the standard ones' place.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fogzo.checks import choice
from fogzo.errors import UserError
from fogzo.evidence.experiment import Axis, Cell, CostRatio, EqualLoss, Experiment, Method, Setting, Tuning, cell_name
from fogzo.runs.files import read_yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PARTS: Mapping[str, Any] = {  # whose keys stand below a key of the file
    "": Experiment, "methods": Method, "settings": Setting, "tuning": Tuning, "axes": Axis, "equal_loss": EqualLoss,
    "ratios": CostRatio,
}  # fmt: skip


def read_experiment(path: Path) -> Experiment:
    """Return the experiment of a file, without Hydra.

    Raises:
        UserError: if the file cannot be read, or holds no experiment, or one that does not fit together.
    """
    return parse((read_yaml(path) or {}).get("experiment"), f"{path}: experiment")


def confirmed_experiments() -> list[Experiment]:
    """Return every experiment whose runs are results, in the order of their files: exploratory ones' are not."""
    every = [read_experiment(file) for file in sorted(Path("configs/experiment").glob("*.yaml"))]
    return [experiment for experiment in every if not experiment.exploratory]


def parse(given: Any, source: str = "experiment") -> Experiment:
    """Return the experiment that plain keys and values describe.

    Args:
        given: what stands below ``experiment:`` in its file, or in a config that Hydra has composed of it.
        source: what ``given`` is called where it has no name.

    Raises:
        UserError: for an unknown key, a missing or mistaken value, and for parts that do not fit together.
    """
    where = f"experiment {given['name']}" if isinstance(given, Mapping) and "name" in given else source
    try:
        experiment: Experiment = checked(Experiment, _whole(given), PARTS)
        _check(experiment)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return experiment


def _whole(given: Any) -> dict[str, Any]:
    """Return an experiment's keys and values with those that it has of the standard methods, and by default."""
    given_methods = _keys(_keys(given, "it").get("methods", {}), "methods")
    whole = {"title": given.get("name"), "baseline": next(iter(given_methods), ""), **given}
    whole["methods"] = {name: _method(name, keys) for name, keys in given_methods.items()}
    defaults = {
        "methods": list(given_methods),
        "metric": whole.get("metric", "train_loss"),
        "seeds": whole.get("seeds", ()),
    }
    settings = _keys(whole.get("settings", {}), "settings") or {"": {"label": whole["title"]}}
    whole["settings"] = {
        name: {"label": name, **defaults, **_keys(keys, f"setting {name}"), "name": name}
        for name, keys in settings.items()
    }
    for setting in whole["settings"].values():
        if isinstance(setting.get("paper"), str):
            setting["paper"] = [setting["paper"]]
    return whole


@cache
def standard_methods() -> Mapping[str, Mapping[str, Any]]:
    """Return the methods of ``configs/methods.yaml`` by name, as keys and values."""
    return read_yaml(CONFIGS / "methods.yaml") or {}


def _method(name: str, given: Any) -> dict[str, Any]:
    refined, standard = _keys({} if given is None else given, f"method {name}"), standard_methods().get(name)
    if standard is None:
        if missing := [key for key in ("label", "overrides") if key not in refined]:
            known = ", ".join(standard_methods())
            raise UserError(f"method {name} has no {missing[0]}: give it one, or take a standard method ({known})")
        return {"family": name, **refined, "name": name}
    overrides = refined.get("overrides", [])
    if not isinstance(overrides, list | tuple):
        raise UserError(f"overrides of method {name} is {overrides}, but it must be a list")
    search = _keys(refined.get("search", {}), f"search of method {name}")
    added = {
        "overrides": [*standard["overrides"], *overrides],
        "search": {**standard.get("search", {}), **search},
    }
    return {"family": name, **standard, **refined, **added, "name": name}


def _keys(given: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise UserError(f"{what} is {given}, but it must be keys with values")
    return given


def _check(experiment: Experiment) -> None:
    """Refuse parts that do not fit together."""
    methods, tuning, asked = experiment.methods, experiment.tuning, experiment.equal_loss
    if not methods:
        raise UserError("it has no methods: give it some")
    choice(experiment.baseline, "baseline", methods)
    reported = {seed for setting in experiment.settings.values() for seed in setting.seeds}
    if tuned_on := sorted(set(tuning.seeds) & reported):
        raise UserError(f"it tunes on seed {tuned_on[0]}, which its table reports too: choose another")
    for method in methods.values():
        _check_all(method.controls, f"controls of {method.name}", [*standard_methods(), *methods])
    for setting in experiment.settings.values():
        _check_all(setting.methods, f"methods of setting {setting.name}", methods)
        if (baseline := experiment.baseline) not in setting.methods:
            has = ", ".join(setting.methods) or "none"
            raise UserError(
                f"methods of setting {setting.name} lack the baseline {baseline}, they are {has}: name it too"
            )
        if setting.start_from is not None:
            choice(setting.start_from, f"start_from of setting {setting.name}", setting.methods)
    for setting in experiment.settings.values():  # their cells can be made now
        searched = {key for cell in experiment.choose(setting=setting.name) for key in cell.search}
        _check_all(setting.search, f"what setting {setting.name} searches", searched)
        _check_start(experiment, setting)
    for cell in experiment.cells.values():
        _check_borrowed(experiment, cell)
    for axis in experiment.axes:
        if bool(axis.settings) == bool(axis.methods):
            raise UserError(f"axes: {axis.label} needs numbers or words for settings or for methods")
        _check_all([*axis.settings, *axis.methods], f"axes: {axis.label}", [*experiment.settings, *methods])
    places = [*asked.targets, *(cell for one in asked.ratios for cell in (one.of, one.to))]
    _check_all(places, "equal_loss", experiment.cells)


def _check_all(names: Collection[str], what: str, known: Collection[str]) -> None:
    for name in names:
        choice(name, what, known)


def _check_borrowed(experiment: Experiment, cell: Cell) -> None:
    model = cell.method.tuned_as
    if model is None:
        return
    choice(model, f"{cell.name} is tuned as", cell.setting.methods)
    if experiment.methods[model].tuned_as:  # what that one borrows would not be handed on
        raise UserError(f"{cell.name} is tuned as {model}, which is tuned as another itself: name that one")


def _check_start(experiment: Experiment, setting: Setting) -> None:
    if setting.start_from is None:
        if setting.start_also:
            raise UserError(
                f"start_also of setting {setting.name} needs start_from: name the method there, or leave it out"
            )
        return
    where = f"start_from of setting {setting.name}"
    start = experiment.cells[cell_name(setting, setting.start_from)]
    starting = [cell for cell in experiment.cells.values() if cell.start_from == start.name]
    if start.tuned_as or not start.search or not starting:
        raise UserError(
            f"{where}={setting.start_from} is not possible: name a method that searches something, takes no values "
            "from another, and has fewer keys to search than some other one, or leave start_from out"
        )
    for cell in starting:
        for key, values in start.search.items():
            if left_out := [value for value in values if value not in cell.search[key]]:
                raise UserError(
                    f"{cell.name} starts from {start.name}, which may choose {key}={left_out[0]}, but does not search "
                    "that itself: add it"
                )
    _check_all(setting.start_also, f"start_also of setting {setting.name}", start.search)
    for key, values in setting.start_also.items():
        for value in values:
            choice(value, f"start_also of setting {setting.name}: {key}", start.search[key])


def checked(kind: Any, content: Any, parts: Mapping[str, Any]) -> Any:
    """Return plain keys and values as a ``kind``.

    Args:
        kind: a dataclass, or a mapping of some.
        parts: the dataclass whose keys stand below a key of ``content``; below "" where no other does.

    Raises:
        UserError: for the first of what is wrong: which key, what is given, and what it must be.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    place, wrong = first["loc"], first.get("ctx", {}).get("error")
    if isinstance(wrong, UserError):
        raise UserError(": ".join(filter(None, [".".join(map(str, place[:-1])), str(wrong)])))
    key = ".".join(map(str, place))
    if first["type"] == "missing":
        raise UserError(f"{key} is missing: give it")
    if first["type"] == "unexpected_keyword_argument":
        part = next((parts[str(one)] for one in reversed(place[:-1]) if one in parts), parts[""])
        raise UserError(f"{key} is not known: choose one of {', '.join(one.name for one in fields(part))}")
    raise UserError(f"{key}={first['input']!r} is not possible: {first['msg']}")
