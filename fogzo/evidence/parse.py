"""Make an experiment of its file, once: whatever is unknown, missing or does not fit is refused here, in a sentence.

Methods that ``configs/methods.yaml`` has need no more than their name in an experiment's file.  What that gives besides
refines them: overrides and values to search are added to the standard ones, other keys take the standard ones' place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from fogzo.checks import check_arguments, choice, whole
from fogzo.errors import ArgumentError, UserError
from fogzo.evidence.experiment import Axis, Cell, CostRatio, EqualLoss, Experiment, Method, Setting, Tuning
from fogzo.evidence.numbers import is_finite
from fogzo.runs.files import read_yaml
from fogzo.runs.schema import COMPARED, METRICS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
OF_EXPERIMENT = ("label", "methods", "metric")  # what a setting has of its experiment, where it has none of its own


def read_experiment(path: Path) -> Experiment:
    """Return the experiment of a file, without Hydra.

    Raises:
        UserError: if the file cannot be read, or holds no experiment, or one that does not fit together.
    """
    return parse((read_yaml(path) or {}).get("experiment"), f"{path}: experiment")


def confirmed_experiments() -> list[Experiment]:
    """Return every experiment whose runs are results, in the order of their files: those of stage explore are not."""
    every = [read_experiment(file) for file in sorted(Path("configs/experiment").glob("*.yaml"))]
    return [experiment for experiment in every if experiment.stage == "confirm"]


def parse(given: Any, source: str = "experiment") -> Experiment:
    """Return the experiment that plain keys and values describe.

    Args:
        given: what stands below ``experiment:`` in its file, or in a config that Hydra has composed of it.
        source: what ``given`` is called where it has no name.

    Raises:
        UserError: for an unknown key, a missing or mistaken value, and for parts that do not fit together.
    """
    named = isinstance(given, Mapping) and "name" in given
    with _within(f"experiment {given['name']}" if named else source):
        experiment = _experiment(_checked(given, Experiment, {"title", "settings"}, {"tuning", "axes", "equal_loss"}))
        _check(experiment)
    return experiment


def _experiment(keys: Mapping[str, Any]) -> Experiment:
    title = keys.get("title", keys["name"])
    metric = choice(keys.get("metric", "train_loss"), "metric", COMPARED)
    methods = _methods(keys["methods"])
    tuning = _tuning(keys["tuning"])
    settings = {name: _setting(name, of, methods, tuning, metric) for name, of in keys.get("settings", {}).items()}
    parts = {
        "title": title,
        "methods": methods,
        "tuning": tuning,
        "settings": settings or {"": Setting("", title, tuple(methods), metric)},
        "also": tuple(choice(key, "also", METRICS) for key in keys.get("also", ())),
        "baseline": choice(keys.get("baseline", "ste"), "baseline", methods),
        "axes": tuple(_axis(axis, settings, methods) for axis in _listed(keys, "axes")),
        "equal_loss": _equal_loss(keys["equal_loss"]) if keys.get("equal_loss") else None,
    }
    return Experiment(**{**keys, **parts})


@cache
def standard_methods() -> Mapping[str, Method]:
    """Return the methods of ``configs/methods.yaml`` by name."""
    file = CONFIGS / "methods.yaml"
    with _within(str(file)):
        return {name: _method(name, given, None) for name, given in (read_yaml(file) or {}).items()}


def _methods(given: Mapping[str, Any]) -> dict[str, Method]:
    if not given:
        raise UserError("it has no methods: give it some")
    methods = {name: _method(name, own, standard_methods().get(name)) for name, own in given.items()}
    for method in methods.values():
        for control in method.controls:
            choice(control, f"controls of {method.name}", [*standard_methods(), *methods])
    return methods


def _method(name: str, given: Any, standard: Method | None) -> Method:
    with _within(f"method {name}"):
        keys = _checked({} if given is None else given, Method, optional={"label"})
        for key in ("label", "overrides"):
            if standard is None and key not in keys:
                known = f", or take one of the standard methods {', '.join(standard_methods())}" if not keys else ""
                raise UserError(f"it has no {key}: give it one{known}")
        base = standard or Method(name, label="", family=name)
        overrides = base.overrides + keys.get("overrides", ())
        search = {**base.search, **_search(keys, may_leave=True)}
        return replace(base, **{**keys, "overrides": overrides, "search": search})


def _setting(name: str, given: Any, methods: Mapping[str, Method], tuning: Tuning, metric: str) -> Setting:
    with _within(f"setting {name}"):
        if isinstance(given, Mapping) and isinstance(given.get("paper"), str):
            given = {**given, "paper": [given["paper"]]}
        keys = {
            "label": name,
            "methods": tuple(methods),
            "metric": metric,
            **_checked(given, Setting, optional=OF_EXPERIMENT),
        }
        choice(keys["metric"], "metric", COMPARED)
        for method in keys["methods"]:
            choice(method, "methods", methods)
        searched = set(tuning.search).union(*(methods[method].search for method in keys["methods"]))
        for key in _search(keys):
            if key not in searched:
                raise UserError(f"{key} is searched by none of its methods: add it to tuning.search or a method")
        return Setting(name, **{**keys, "search": _search(keys)})


def _tuning(given: Any) -> Tuning:
    with _within("tuning"):
        keys = _checked(given, Tuning)
        whole(keys["trials"], "trials", lowest=1)
        choice(keys.get("metric", "train_loss"), "metric", COMPARED)
        return Tuning(**{**keys, "search": _search(keys)})


def _search(keys: Mapping[str, Any], *, may_leave: bool = False) -> dict[str, Any]:
    """Return the values to search, by key; if it ``may_leave`` keys alone, also ``None``."""
    found = keys.get("search", {})
    for key, values in found.items():
        listed = isinstance(values, list | tuple) and all(map(is_finite, values))
        left = may_leave and values is None
        if not left and (not listed or not values or list(values) != sorted(set(values))):
            raise ArgumentError(f"search.{key}", values, "is not possible: give a list of numbers that rise")
    return {key: None if values is None else tuple(values) for key, values in found.items()}


def _axis(given: Any, settings: Mapping[str, Setting], methods: Mapping[str, Method]) -> Axis:
    with _within("axes"):
        axis = Axis(**_checked(given, Axis))
        fit = set(axis.settings) <= set(settings) and set(axis.methods) <= set(methods)
        if not fit or bool(axis.settings) == bool(axis.methods):
            raise UserError(f"{axis.label} needs numbers or words for some of the settings or of the methods")
        if axis.metric is not None:
            choice(axis.metric, "metric", METRICS)
        return axis


def _equal_loss(given: Any) -> EqualLoss:
    with _within("equal_loss"):
        keys = _checked(given, EqualLoss, parts={"ratios"})
        ratios = tuple(CostRatio(**_checked(ratio, CostRatio)) for ratio in _listed(keys, "ratios"))
        return EqualLoss(keys["targets"], ratios)


def _check(experiment: Experiment) -> None:
    """Refuse parts that do not fit together."""
    for seed in experiment.tuning.seeds:
        if seed in experiment.seeds:
            raise UserError(f"it tunes on seed {seed}, which its table reports too: choose another")
    for cell in experiment.cells.values():
        _check_borrowed(experiment, cell)
    asked = experiment.equal_loss or EqualLoss((), ())
    for name in [*asked.targets, *(name for ratio in asked.ratios for name in (ratio.of, ratio.to))]:
        choice(name, "equal_loss", experiment.cells)


def _check_borrowed(experiment: Experiment, cell: Cell) -> None:
    model = cell.method.tuned_as
    if model is None:
        return
    if model not in cell.setting.methods:
        lacks = f"its setting {cell.setting.name} lacks" if cell.setting.name else "is no method"
        raise UserError(
            f"{cell.name} is tuned as {model}, which {lacks}: choose from {', '.join(cell.setting.methods)}"
        )
    if experiment.methods[model].tuned_as:  # what that one borrows would not be handed on
        raise UserError(f"{cell.name} is tuned as {model}, which is tuned as another itself: name that one")


def _checked(given: Any, of: type, optional: Collection[str] = (), parts: Collection[str] = ()) -> dict[str, Any]:
    """Return the keys of one part of the file, which are those of the dataclass ``of``, with lists as tuples.

    Args:
        optional: keys that need not stand there though the dataclass has no default for them.
        parts: keys whose values are checked as parts of their own.
    """
    known: dict[str, Field[Any]] = {one.name: one for one in fields(of) if one.name != "name" or of is Experiment}
    if not isinstance(given, Mapping):
        raise UserError(f"it is {given}, but it must be keys with values: choose from {', '.join(known)}")
    for key in given:
        choice(key, "key", known)
    check_arguments(of, {key: value for key, value in given.items() if key not in parts})
    for name, one in known.items():
        needed = one.default is MISSING and one.default_factory is MISSING and name not in optional
        if needed and name not in given:
            raise UserError(f"it has no {name}: give it one")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}


def _listed(keys: Mapping[str, Any], key: str) -> Sequence[Any]:
    values = keys.get(key, ())
    if not isinstance(values, tuple):
        raise ArgumentError(key, values, "is not possible: give a list")
    return values


@contextmanager
def _within(part: str) -> Iterator[None]:
    """Within: what is wrong is said to be so in a part of the experiment."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{part}: {error}") from None
