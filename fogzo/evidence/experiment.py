"""What an experiment is: its settings, methods, cells, tuning and table.  ``parse.py`` makes one of a file.

An experiment file (``configs/experiment/NAME.yaml``) gives ``settings`` (what is trained) and ``methods`` (what is
compared); their products are the cells ``SETTING.METHOD`` of its table.  Without ``settings`` the methods themselves
are the cells, of one setting that has no name.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as part

from fogzo.checks import choice
from fogzo.errors import ArgumentError
from fogzo.runs.schema import COMPARED, LOGGED, METRICS

CHECKED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # of what people's files hold
Number = int | float


def _rising(values: tuple[Number, ...]) -> tuple[Number, ...]:
    if not values or list(values) != sorted(set(values)):
        raise ArgumentError("search", list(values), "is not possible: give numbers that rise")
    return values


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if not seeds or len(set(seeds)) < len(seeds):
        raise ArgumentError("seeds", list(seeds), "is not possible: give one or more, each once")
    return seeds


Seeds = Annotated[tuple[int, ...], AfterValidator(_distinct)]
Values = Annotated[tuple[Number, ...], AfterValidator(_rising)]  # that tuning may try
Compared = Annotated[str, AfterValidator(lambda key: choice(key, "metric", COMPARED))]
Shown = Annotated[str, AfterValidator(lambda key: choice(key, "metric", METRICS))]
Logged = Annotated[str, AfterValidator(lambda key: choice(key, "column", LOGGED))]


@part(frozen=True, config=CHECKED)
class Method:
    """A column of what is compared.

    Attributes:
        label: what a reader knows it by; ``detail`` is added where there is room.
        colour: in every figure, as in ``#D55E00``.
        role: the subject is what the paper proposes; a control only serves to explain another one's result.
        controls: those that have something in common with this one, and that it is held against where they are there.
        family: its name; methods of one family differ in their samples, or in their steps, alone.
        overrides: ``KEY=VALUE``, or ``~KEY`` for one of the recipe's that is left out.
        search: the values that tuning may try, by key, besides those of ``Tuning.search``; ``None``: the key is not
            searched.
        tuned_as: the method from which the values of keys come that this one does not search itself (but not of those
            that its search gives as ``None``).
    """

    name: str
    label: str
    detail: str = ""
    colour: str = ""
    role: Literal["method", "subject", "control"] = "method"
    controls: tuple[str, ...] = ()
    family: str = ""
    samples: int = 1
    overrides: tuple[str, ...] = ()
    search: Mapping[str, Values | None] = field(default_factory=dict)
    tuned_as: str | None = None

    @property
    def is_control(self) -> bool:
        return self.role == "control"

    @property
    def full_label(self) -> str:
        return f"{self.label}: {self.detail}" if self.detail else self.label


@part(frozen=True, config=CHECKED)
class Setting:
    """A row of what is trained.

    Attributes:
        name: "" if the experiment has no settings but its methods.
        methods: the names of those that are compared in it.
        search: other values for keys that some of its methods search, in the place of the methods' own too.
        metric: the key of ``summary.json`` that its cells are compared by.
        seeds: of its runs; the experiment's, if the file gives the setting none.
        start_from: the method at whose tuned values the searches of those begin that search more keys than it does
            (``search.py``), over all of its values at least; ``None``: they begin at random.
        start_also: values of that method's keys at which those searches begin too, such as a second minimum of it.
        paper: the published rows that it is, or is a twin of.
    """

    name: str
    label: str
    methods: tuple[str, ...]
    metric: Compared
    seeds: Seeds
    overrides: tuple[str, ...] = ()
    search: Mapping[str, Values] = field(default_factory=dict)
    start_from: str | None = None
    start_also: Mapping[str, Values] = field(default_factory=dict)
    paper: tuple[str, ...] = ()

    @property
    def model(self) -> str | None:
        """The model that its overrides choose."""
        return next((one.partition("=")[2] for one in self.overrides if key_of(one) == "model"), None)


@dataclass(frozen=True)
class Cell:
    """One place of an experiment's table, filled by a run for each seed.

    Attributes:
        name: ``SETTING.METHOD``, or the method's name alone where the setting has none.
        overrides: ``KEY=VALUE``, each key once; without what is tuned.
        search: the values that tuning may try, for each key.
        tuned_as: the cell from which the values of keys come that this one does not search itself.
        start_from: the cell at whose tuned values its search begins, unless it tries all of its points.
    """

    name: str
    setting: Setting
    method: Method
    overrides: tuple[str, ...] = ()
    search: Mapping[str, Sequence[Number]] = field(default_factory=dict)
    tuned_as: str | None = None
    start_from: str | None = None

    @property
    def label(self) -> str:
        """The method's label, with its detail, and that it is a control."""
        return f"control: {self.method.full_label}" if self.method.is_control else self.method.full_label

    @property
    def metric(self) -> str:
        return self.setting.metric

    @property
    def rests_on(self) -> tuple[str, ...]:
        """The cells that are tuned before this one."""
        return tuple(dict.fromkeys(name for name in (self.tuned_as, self.start_from) if name))

    def points(self) -> list[dict[str, Number]]:
        """Return every point of what tuning may try; the last key varies fastest."""
        return [dict(zip(self.search, values, strict=True)) for values in itertools.product(*self.search.values())]


@part(frozen=True, config=CHECKED)
class Tuning:
    """How values are chosen: by the mean ``metric`` on ``seeds``, from as many ``trials`` for every cell.

    Attributes:
        seed, other_seeds: that each trial is run on; the table reports none of them.
        search: the values that every method may try, by key.
        overrides: of the trials, besides their cell's.
        chosen: the file of chosen values.
    """

    seed: int
    trials: Annotated[int, Field(ge=1)]
    chosen: str
    metric: Compared = "train_loss"
    search: Mapping[str, Values] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    other_seeds: tuple[int, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        return (self.seed, *self.other_seeds)


@part(frozen=True, config=CHECKED)
class Axis:
    """A panel of the sensitivity figure.

    Attributes:
        settings, methods: where each of them stands, a number or a word; one of the two is empty.
        metric: what is drawn; ``None``: whatever the cells are compared by.
    """

    label: str
    settings: Mapping[str, Number | str] = field(default_factory=dict)
    methods: Mapping[str, Number | str] = field(default_factory=dict)
    metric: Shown | None = None


@part(frozen=True, config=CHECKED)
class CostRatio:
    """How many times the compute of ``to`` the cell ``of`` needs for the same loss; ``paper``: as published."""

    of: str
    to: str
    paper: str | None = None


@part(frozen=True, config=CHECKED)
class EqualLoss:
    """Compute at equal training loss: until the losses that the ``targets`` end with, and as ratios of two cells."""

    targets: tuple[str, ...]
    ratios: tuple[CostRatio, ...]

    def __bool__(self) -> bool:
        return bool(self.targets or self.ratios)


@part(frozen=True, config=CHECKED)
class Experiment:
    """One table or figure.

    Attributes:
        table: the published table that it is, or is a twin of; ``None`` if there is none.
        seeds: of the settings that have none of their own.
        exploratory: its runs are no results: no table, figure or claim reads them.
        repeats: the experiment whose tuned values its methods have, and some of whose settings it runs on other seeds:
            where settings are counted, they count once.
        also: columns that are shown besides what cells are compared by.
        along: columns of rows that are drawn along training.
        baseline: the method that all are compared with; the first, if the file names none.
        overrides: ``KEY=VALUE`` of every cell.
    """

    name: str
    title: str
    seeds: Seeds
    settings: Mapping[str, Setting]
    methods: Mapping[str, Method]
    tuning: Tuning
    scale: Literal["mini", "paper"] = "mini"
    table: str | None = None
    exploratory: bool = False
    repeats: str | None = None
    metric: Compared = "train_loss"
    also: tuple[Shown, ...] = ()
    along: tuple[Logged, ...] = ()
    baseline: str = ""
    overrides: tuple[str, ...] = ()
    axes: tuple[Axis, ...] = ()
    equal_loss: EqualLoss = EqualLoss((), ())

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """The cells by name, in the order of the table."""
        pairs = [(setting, self.methods[name]) for setting in self.settings.values() for name in setting.methods]
        return {cell.name: cell for cell in (self._cell(setting, method) for setting, method in pairs)}

    def _cell(self, setting: Setting, method: Method) -> Cell:
        searched = self._searched(method)
        start = setting.start_from
        if start is not None and not set(self._searched(self.methods[start])) < set(searched):
            start = None
        return Cell(
            name=cell_name(setting, method.name),
            setting=setting,
            method=method,
            overrides=last_of_each([f"scale={self.scale}", *self.overrides, *setting.overrides, *method.overrides]),
            search={key: setting.search.get(key, values) for key, values in searched.items()},
            tuned_as=cell_name(setting, method.tuned_as) if method.tuned_as else None,
            start_from=cell_name(setting, start) if start else None,
        )

    def _searched(self, method: Method) -> dict[str, Sequence[Number]]:
        given = {**self.tuning.search, **method.search}
        return {key: values for key, values in given.items() if values is not None}

    def choose(self, *, cell: str | None = None, setting: str | None = None) -> list[Cell]:
        """Return all cells, or the one of a name, or those of a setting.

        Raises:
            UserError: if the experiment has no such cell or setting.
        """
        for what, name, known in (("cell", cell, self.cells), ("setting", setting, self.settings)):
            if name is not None:
                choice(name, f"{what} of experiment {self.name}", known)
        return [one for one in self.cells.values() if cell in (None, one.name) and setting in (None, one.setting.name)]


def cell_name(setting: Setting, method: str) -> str:
    """Return the name of a method's cell in a setting."""
    return f"{setting.name}.{method}" if setting.name else method


def key_of(override: str) -> str:
    """Return the key of ``KEY=VALUE``, ``+KEY=VALUE`` or ``~KEY``."""
    return override.partition("=")[0].lstrip("+~")


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """Return ``KEY=VALUE`` for each of the ``values``."""
    return [f"{key}={value}" for key, value in values.items()]


def last_of_each(overrides: Iterable[str]) -> tuple[str, ...]:
    """Return one override a key, the last one given: Hydra refuses a group that is chosen twice."""
    return tuple({key_of(override): override for override in overrides}.values())
