"""Make an experiment of its file, once: whatever is unknown, missing or does not fit is refused here, in a sentence.

Methods that ``configs/methods.yaml`` has need no more than their name in an experiment's file.  What that gives besides
refines them: overrides and values to search are added to the standard ones, other keys take the standard ones' place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from fogzo.errors import UserError
from fogzo.evidence.experiment import Axis, Cell, CostRatio, EqualLoss, Experiment, Method, Number, Setting, Tuning
from fogzo.runs.records import is_finite, read_yaml
from fogzo.runs.schema import COMPARED, METRICS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
KINDS = {dict: "keys with values", list: "a list", int: "a whole number", str: "a word"}
Kind = TypeVar("Kind", dict[Any, Any], list[Any], int, str)


def read_experiment(path: Path) -> Experiment:
    """Return the experiment of a file, without Hydra.

    Raises:
        UserError: if the file cannot be read, or holds no experiment, or one that does not fit together.
    """
    return parse((read_yaml(path) or {}).get("experiment"), f"{path}: experiment")


def parse(given: Any, source: str = "experiment") -> Experiment:
    """Return the experiment that plain keys and values describe.

    Args:
        given: what stands below ``experiment:`` in its file, or in a config that Hydra has composed of it.
        source: what ``given`` is called where it has no name.

    Raises:
        UserError: for an unknown key, a missing or mistaken value, and for parts that do not fit together.
    """
    where = f"experiment {given['name']}" if isinstance(given, Mapping) and given.get("name") else source
    keys = _Keys(given, where, Experiment)
    name = keys.take("name", str)
    metric = keys.metric("metric", COMPARED, "train_loss")
    methods = _methods(keys.take("methods", dict), where)
    tuning = _tuning(keys.take("tuning", dict), where)
    title = keys.take("title", str, name)
    unnamed = {"": Setting("", title, tuple(methods), metric)}
    settings = {
        one: _setting(one, of_setting, methods, tuning, metric, where)
        for one, of_setting in keys.take("settings", dict, {}).items()
    }
    experiment = Experiment(
        name=name,
        title=title,
        seeds=tuple(keys.whole(seed, "seeds") for seed in keys.take("seeds", list)),
        settings=settings or unnamed,
        methods=methods,
        tuning=tuning,
        scale=keys.choice("scale", ("mini", "paper")),
        table=keys.take("table", str) if keys.has("table") else None,
        stage=keys.choice("stage", ("confirm", "explore")),
        metric=metric,
        also=tuple(keys.one_of(key, METRICS, "also") for key in keys.take("also", list, [])),
        baseline=keys.one_of(keys.take("baseline", str, "ste"), methods, "baseline"),
        overrides=keys.words("overrides"),
        axes=tuple(_axis(axis, settings, methods, where) for axis in keys.take("axes", list, [])),
        equal_loss=_equal_loss(keys.take("equal_loss", dict), where) if keys.has("equal_loss") else None,
    )
    _check(experiment, where)
    return experiment


@cache
def standard_methods() -> Mapping[str, Method]:
    """Return the methods of ``configs/methods.yaml`` by name."""
    file = CONFIGS / "methods.yaml"
    return {name: _method(name, given, None, str(file)) for name, given in (read_yaml(file) or {}).items()}


def _methods(given: Mapping[str, Any], where: str) -> dict[str, Method]:
    if not given:
        raise UserError(f"{where} has no methods: give it some")
    return {name: _method(name, own, standard_methods().get(name), where) for name, own in given.items()}


def _method(name: str, given: Any, standard: Method | None, where: str) -> Method:
    where = f"{where}, method {name}"
    keys = _Keys({} if given is None else given, where, Method)
    base = standard or Method(name, label="", family=name)
    label = keys.take("label", str, base.label)
    overrides = base.overrides + keys.words("overrides")
    for key, value in (("label", label), ("overrides", overrides)):
        if not value and key not in keys.given:
            known = ", ".join(standard_methods())
            raise UserError(f"{where} has no {key}: give it one, or take one of the standard methods {known}")
    return Method(
        name=name,
        label=label,
        detail=keys.take("detail", str, base.detail),
        role=keys.choice("role", ("method", "control"), base.role),
        family=keys.take("family", str, base.family),
        samples=keys.take("samples", int, base.samples),
        overrides=overrides,
        search={**base.search, **keys.search()},
        tuned_as=keys.given.get("tuned_as", base.tuned_as),
    )


def _setting(name: str, given: Any, methods: Mapping[str, Method], tuning: Tuning, metric: str, where: str) -> Setting:
    where = f"{where}, setting {name}"
    keys = _Keys(given, where, Setting)
    chosen = [keys.one_of(method, methods, "methods") for method in keys.take("methods", list, list(methods))]
    search = {key: values for key, values in keys.search().items() if values is not None}
    searched = set(tuning.search).union(*(methods[method].search for method in chosen))
    for key in search:
        if key not in searched:
            raise UserError(f"{where}: {key} is searched by none of its methods: add it to tuning.search or a method")
    paper = keys.given.get("paper")
    return Setting(
        name=name,
        label=keys.take("label", str, name),
        methods=tuple(chosen),
        metric=keys.metric("metric", COMPARED, metric),
        overrides=keys.words("overrides"),
        search=search,
        paper=(paper,) if isinstance(paper, str) else keys.words("paper"),
    )


def _tuning(given: Any, where: str) -> Tuning:
    keys = _Keys(given, f"{where}, tuning", Tuning)
    trials = keys.take("trials", int)
    if trials < 1:
        raise UserError(f"{keys.where}: trials={trials} is not possible: give each cell at least 1")
    return Tuning(
        seed=keys.take("seed", int),
        trials=trials,
        chosen=keys.take("chosen", str),
        metric=keys.take("metric", str, "train_loss"),
        search={key: values for key, values in keys.search().items() if values is not None},
        overrides=keys.words("overrides"),
    )


def _axis(given: Any, settings: Mapping[str, Setting], methods: Mapping[str, Method], where: str) -> Axis:
    keys = _Keys(given, f"{where}, axes", Axis)
    places = {"settings": keys.take("settings", dict, {}), "methods": keys.take("methods", dict, {})}
    fit = set(places["settings"]) <= set(settings) and set(places["methods"]) <= set(methods)
    if not keys.has("label") or not fit or bool(places["settings"]) == bool(places["methods"]):
        raise UserError(
            f"{where}: axes holds {dict(given)}: give a label, and numbers or words for some of its settings or of its "
            "methods"
        )
    metric = keys.metric("metric", METRICS) if keys.has("metric") else None
    return Axis(keys.take("label", str), places["settings"], places["methods"], metric)


def _equal_loss(given: Any, where: str) -> EqualLoss:
    keys = _Keys(given, f"{where}, equal_loss", EqualLoss)
    ratios = [_cost_ratio(ratio, f"{keys.where}.ratios") for ratio in keys.take("ratios", list)]
    return EqualLoss(keys.words("targets", needed=True), tuple(ratios))


def _cost_ratio(given: Any, where: str) -> CostRatio:
    keys = _Keys(given, where, CostRatio)
    return CostRatio(keys.take("of", str), keys.take("to", str), keys.take("paper", str) if keys.has("paper") else None)


def _check(experiment: Experiment, where: str) -> None:
    """Refuse parts that do not fit together."""
    if experiment.tuning.seed in experiment.seeds:
        raise UserError(f"{where} tunes on seed {experiment.tuning.seed}, which its table reports too: choose another")
    for cell in experiment.cells.values():
        _check_borrowed(experiment, cell, where)
    asked = experiment.equal_loss or EqualLoss((), ())
    for name in [*asked.targets, *(name for ratio in asked.ratios for name in (ratio.of, ratio.to))]:
        if name not in experiment.cells:
            raise UserError(f"{where}: equal_loss names cell {name}: choose from {', '.join(experiment.cells)}")


def _check_borrowed(experiment: Experiment, cell: Cell, where: str) -> None:
    model = cell.method.tuned_as
    if model is None:
        return
    if model not in cell.setting.methods:
        lacks = f"its setting {cell.setting.name} lacks" if cell.setting.name else "is no method"
        raise UserError(
            f"{where}: {cell.name} is tuned as {model}, which {lacks}: choose from {', '.join(cell.setting.methods)}"
        )
    if experiment.methods[model].tuned_as:  # what that one borrows would not be handed on
        raise UserError(f"{where}: {cell.name} is tuned as {model}, which is tuned as another itself: name that one")


class _Keys:
    """The keys of one part of an experiment's file, which are those of the dataclass that it becomes."""

    def __init__(self, given: Any, where: str, of: type) -> None:
        self.where = where
        if not isinstance(given, Mapping):
            raise UserError(f"{where} is {given}, but it must be {KINDS[dict]}: give it in that file")
        self.given = given
        known = [one.name for one in fields(of) if one.name != "name" or of is Experiment]
        for key in given:
            if key not in known:
                raise UserError(f"{where}: {key} is not known: choose from {', '.join(known)}")

    def has(self, key: str) -> bool:
        return self.given.get(key) is not None

    def take(self, key: str, kind: type[Kind], default: Kind | None = None) -> Kind:
        """Return the value of ``key``; null is as if it were not given."""
        value = self.given[key] if self.has(key) else default
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{self.where}: {key} is {value}, but it must be {KINDS[kind]}: give it in that file")
        return value

    def words(self, key: str, *, needed: bool = False) -> tuple[str, ...]:
        values = self.take(key, list, None if needed else [])
        for value in values:
            if not isinstance(value, str):
                raise UserError(f"{self.where}: {key} holds {value}, which is no word: mend it")
        return tuple(values)

    def whole(self, value: Any, key: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"{self.where}: {key} holds {value}, which is no whole number: mend it")
        return value

    def one_of(self, value: Any, known: Iterable[str], what: str) -> str:
        if value not in (names := list(known)):
            raise UserError(f"{self.where}: {what} names {value}, which is not known: choose from {', '.join(names)}")
        return str(value)

    def choice(self, key: str, known: Sequence[str], default: str | None = None) -> str:
        """Return one of the ``known`` words, the first if none is given."""
        return self.one_of(self.take(key, str, default or known[0]), known, key)

    def metric(self, key: str, known: Iterable[str], default: str | None = None) -> str:
        return self.one_of(self.take(key, str, default), known, key)

    def search(self) -> dict[str, tuple[Number, ...] | None]:
        """Return the values to search by key; ``None`` for a key that is not to be searched."""
        found: dict[str, tuple[Number, ...] | None] = {}
        for key, values in self.take("search", dict, {}).items():
            if values is not None and not isinstance(values, list | tuple):
                raise UserError(f"{self.where}: the search of {key} is {values}: give it a list")
            numbers = values is None or all(map(is_finite, values))
            if values is not None and (not numbers or not values or list(values) != sorted(set(values))):
                raise UserError(f"{self.where}: the search of {key} is {list(values)}: give it numbers that rise")
            found[key] = None if values is None else tuple(values)
        return found
