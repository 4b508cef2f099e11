"""The file of chosen values: what tuning found best for each cell, and whether the experiment still asks for that."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from fogzo.checks import check_arguments
from fogzo.errors import UserError, explained
from fogzo.evidence.experiment import Cell, Experiment, Tuning, as_overrides, key_of, last_of_each
from fogzo.runs.files import atomic_write, parse_yaml, read_bytes
from fogzo.runs.schema import METRICS

CHOSEN = "experiment.tuning.chosen"  # the key that names the file
RATE = "optimizer.lr"
UNLISTED = "tuned without a list of what was tried"  # enough for a run, as a file written by hand, but not for a table


@dataclass(frozen=True)
class Choice:
    """What tuning chose for one cell: an entry of the file of chosen values.

    Attributes:
        values: the best ones, by key.
        on_edge_of_grid: keys whose best value was the least or the greatest of the grid, or with a start of what was
            tried, unless their range ends there (``search.ENDS``).
        tried: every trial's ``values``, and its metric; ``None`` if a person wrote the entry, without that list.
        overrides: what else the trials were run with; ``None`` if that was not written down.
        borrowed: values of another cell that they were run with.
        start: values of another cell at which the search began; empty if it began at random, or tried all points.
        given: what was changed on the command line.
    """

    values: Mapping[str, Any]
    on_edge_of_grid: Sequence[str] = ()
    trials: int = 0
    tried: Sequence[Mapping[str, Any]] | None = None
    overrides: Sequence[str] | None = None
    borrowed: Mapping[str, Any] = field(default_factory=dict)
    start: Mapping[str, Any] = field(default_factory=dict)
    given: Sequence[str] = ()

    def points(self) -> list[Mapping[str, Any]]:
        """Return the values of every trial."""
        return [trial["values"] for trial in self.tried or ()]

    def by_rate(self, metric: str) -> dict[float, list[float]]:
        """Return what the trials had at each learning rate, in order; infinitely bad values where they diverged."""
        had: dict[float, list[float]] = {}
        for trial in self.tried or ():
            rate, value = trial["values"].get(RATE), trial.get(metric)
            if rate is not None and value is not None:
                had.setdefault(rate, []).append(value)
        return dict(sorted(had.items()))


def skipped(cell: Cell, choice: Choice) -> dict[str, list[Any]]:
    """Return, by key of the start, the values next to the chosen one that were not tried with its other values.

    A search along a line whose trials end before its bracket is closed leaves such values; what lies beyond all values
    that were tried is an edge, and in ``choice.on_edge_of_grid``.  Of a choice under another grid nothing is said.
    """
    left_out = {}
    for key in choice.start:
        values = list(cell.search.get(key, ()))
        if choice.values[key] not in values:
            continue
        at, line = values.index(choice.values[key]), places_tried(key, values, choice.values, choice.points())
        tried = [values.index(point[key]) for point in choice.points() if point[key] in values]
        between = [place for place in (at - 1, at + 1) if min(tried) <= place <= max(tried) and place not in line]
        if between:
            left_out[key] = [values[place] for place in between]
    return left_out


def other_starts(start: Mapping[str, Any], also: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return the points at which a search that begins at ``start`` begins too: one key's value of ``also`` in each."""
    return [{**start, key: value} for key, values in also.items() for value in values if value != start.get(key, value)]


def places_tried(
    key: str, values: Sequence[Any], best: Mapping[str, Any], tried: Sequence[Mapping[str, Any]]
) -> list[int]:
    """Return the places in ``values``, in order, of the points tried that differ from the best in ``key`` at most."""
    found = (point[key] for point in tried if {**best, key: point[key]} == point)
    return sorted(values.index(value) for value in found if value in values)


def read_chosen(experiment: Experiment) -> Mapping[str, Choice]:
    """Return what the experiment's file of chosen values holds, by cell; nothing if there is none yet.

    Raises:
        UserError: if the file cannot be read, or an entry in it is not as tuning leaves one.
    """
    path = Path(experiment.tuning.chosen)
    return _choices(path, read_bytes(path)) if path.exists() else {}


@lru_cache(maxsize=16)  # it is asked for cell by cell, and long
def _choices(path: Path, data: bytes) -> Mapping[str, Choice]:
    way_out = "remove it and tune that cell again, or put back the version that was committed"
    choices = {}
    for name, entry in (parse_yaml(path, data) or {}).items():
        try:
            choices[name] = _choice(entry)
        except UserError as error:
            raise UserError(f"{path}: the entry of {name} cannot be used ({error}): {way_out}") from None
    return choices


def _choice(entry: Any) -> Choice:
    if not isinstance(entry, Mapping) or "values" not in entry:
        raise UserError("it has no values")
    check_arguments(Choice, entry)
    choice = Choice(**{"trials": len(entry.get("tried") or ()), **entry})
    if not all(isinstance(trial.get("values"), Mapping) for trial in choice.tried or ()):
        raise UserError("it has a trial without values in tried")
    return choice


def write_chosen(experiment: Experiment, cell: Cell, choice: Choice) -> None:
    """Put what tuning chose for a cell into the file of chosen values, in the order of the experiment's table."""
    tuning, path = experiment.tuning, Path(experiment.tuning.chosen)
    choices = {**read_chosen(experiment), cell.name: choice}
    order = {name: place for place, name in enumerate(experiment.cells)}
    entries = {name: _entry(choices[name]) for name in sorted(choices, key=lambda name: order.get(name, len(order)))}
    best = "highest" if METRICS[tuning.metric].higher_is_better else "lowest"
    text = (
        f"# Written by `python scripts/tune.py experiment={experiment.name}`: the values of each cell\n"
        f"# with the {best} {tuning.metric} on seed {_seeds(tuning, ' and ')}, and all that was tried.\n"
        + yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
    )
    with explained(path, "make room, and tune again: what was trained is kept", problem="cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text.encode())


def _entry(choice: Choice) -> dict[str, Any]:
    empty = [key for key in ("tried", "overrides", "borrowed", "start", "given") if not getattr(choice, key)]
    return {key: value for key, value in vars(choice).items() if key not in empty}


def tuned_values(experiment: Experiment, cell: Cell, given: Sequence[str] = ()) -> dict[str, Any]:
    """Return the values that tuning chose for ``cell``, with those that it borrows.

    Args:
        given: ``KEY=VALUE`` that the command which a refusal names is to repeat.

    Raises:
        UserError: if the cell, or the one that it borrows from, was not tuned yet, or under other overrides.
    """
    return borrowed_values(experiment, cell, given) | _best_values(experiment, cell, given)


def borrowed_values(experiment: Experiment, cell: Cell, given: Sequence[str] = ()) -> dict[str, Any]:
    """Return what ``cell`` takes over from the cell ``tuned_as``: the values of keys that it does not search itself."""
    if cell.tuned_as is None:
        return {}
    values = _best_values(experiment, experiment.cells[cell.tuned_as], given)
    return {key: value for key, value in values.items() if key not in cell.search}


def start_values(
    experiment: Experiment, cell: Cell, given: Sequence[str] = (), *, trials: int | None = None
) -> dict[str, Any]:
    """Return the tuned values of the cell at which the search of ``cell`` begins; nothing if there is no start.

    Args:
        given: ``KEY=VALUE`` that the command which a refusal names is to repeat.
        trials: of the search, the experiment's if not given; where they are enough for all points there is no start.

    Raises:
        UserError: if that cell was not tuned yet, or under other overrides, or to what ``cell`` does not search.
    """
    trials = experiment.tuning.trials if trials is None else trials
    if cell.start_from is None or trials >= len(cell.points()):
        return {}
    start = experiment.cells[cell.start_from]
    values = _best_values(experiment, start, given)
    for key, value in values.items():
        if value not in cell.search[key]:
            raise UserError(
                f"{cell.name} starts from {start.name}, whose {key}={value} is not among the values that are searched: "
                f"first run `{tune_command(experiment, start, given)}`"
            )
    return values


def _best_values(experiment: Experiment, cell: Cell, given: Sequence[str]) -> dict[str, Any]:
    if not cell.search:
        return {}
    file, way_out = experiment.tuning.chosen, f"first run `{tune_command(experiment, cell, given)}`"
    choice = read_chosen(experiment).get(cell.name)
    if choice is None:
        raise UserError(f"{file} holds no tuned values for {cell.name}: {way_out}")
    if (change := _change_since(choice, experiment, cell)) is not None:
        raise UserError(f"{file} holds values of {cell.name} that were tuned with {change}: {way_out}")
    return dict(choice.values)


def tuned_under(experiment: Experiment, cell: Cell) -> list[str]:
    """Return ``KEY=VALUE`` of all that a trial of ``cell`` is run with, but for what is searched or borrowed."""
    return list(last_of_each([*cell.overrides, *experiment.tuning.overrides, f"seed={_seeds(experiment.tuning, ',')}"]))


def _seeds(tuning: Tuning, between: str) -> str:
    return between.join(map(str, tuning.seeds))


def _change_since(choice: Choice, experiment: Experiment, cell: Cell) -> str | None:
    """Return the overrides that the experiment has changed since ``cell`` was tuned, or ``None``."""
    now = tuned_under(experiment, cell)
    then = now if choice.overrides is None else choice.overrides
    gone, new = [one for one in then if one not in now], [one for one in now if one not in then]
    if not gone and not new:
        return None
    return f"{', '.join(gone) or 'less'}, where the experiment now has {', '.join(new) or 'nothing'}"


def tuning_fault(experiment: Experiment, cell: Cell) -> str | None:
    """Return why the values of ``cell`` itself are not what the experiment's file asks for, or ``None``."""
    if not cell.search:
        return None
    choice = read_chosen(experiment).get(cell.name)
    if choice is None:
        return "untuned"
    if choice.tried is None:
        return UNLISTED
    points, trials = choice.points(), min(experiment.tuning.trials, len(cell.points()))
    if len(points) != trials:
        return f"tuned with {len(points)} trials instead of {trials}"
    if choice.given:
        return f"tuned with {', '.join(choice.given)}"
    if (change := _change_since(choice, experiment, cell)) is not None:
        return f"tuned with {change}"
    for key, values in cell.search.items():
        if any(point.get(key) not in values for point in points):
            return f"tuned with other values of {key} than the experiment now searches"
    if choice.values not in points:
        return f"tuned to {_words(choice.values)}, which is none of what was tried"
    with suppress(UserError):  # what it borrows from is not tuned, which is that one's fault
        now = borrowed_values(experiment, cell)
        if choice.borrowed != now:
            then = _words(choice.borrowed)
            return f"tuned with {then} from another cell, where the experiment now has {_words(now)}"
    with suppress(UserError):
        start = start_values(experiment, cell)
        if choice.start != start:
            return f"tuned from {_words(choice.start)} on, where the experiment now starts from {_words(start)}"
        others = other_starts(start, cell.setting.start_also)
        there = sum(start.items() <= point.items() for point in cell.points())  # as many points of every start
        for number, other in enumerate(others, start=1):
            if trials > number * there and not any(other.items() <= point.items() for point in points):
                return f"tuned without a start at {_words(other)}, where the experiment now has one"
    return None


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(as_overrides(values)) or "nothing"


def tuning_faults(experiment: Experiment, cell: Cell) -> dict[str, str]:
    """Return the faults (``tuning_fault``) of the values of ``cell`` and of the cells that it rests on, by cell."""
    asked = [*(experiment.cells[name] for name in cell.rests_on), cell]
    faults = {one.name: tuning_fault(experiment, one) for one in asked}
    return {name: fault for name, fault in faults.items() if fault is not None}


def tune_command(experiment: Experiment, cell: Cell, given: Sequence[str] = ()) -> str:
    """Return what tunes a cell, if it searches anything, and before it those that it rests on, if they need it.

    Args:
        given: ``KEY=VALUE`` of the command line, which the command repeats but for what it says itself.
    """
    faulty = [name for name in cell.rests_on if tuning_fault(experiment, experiment.cells[name])]
    cells = [*faulty, *([cell.name] if cell.search else [])] or cell.rests_on
    others = [override for override in given if key_of(override) not in ("experiment", "phase", "cell", "setting")]
    command = ["python", "scripts/tune.py", f"experiment={experiment.name}", f"cell={','.join(cells)}", *others]
    return shlex.join(command)


def whole_commands(experiment: Experiment) -> list[str]:
    """Return what runs the whole experiment: tuning first, of the cells that still need it."""
    searched = [cell for cell in experiment.cells.values() if cell.search]
    faulty = [cell.name for cell in searched if tuning_faults(experiment, cell)]
    part = f" cell={','.join(faulty)}" if len(faulty) < len(searched) else ""
    tune = [f"python scripts/tune.py experiment={experiment.name}{part}"] if faulty else []
    return [*tune, f"python train.py -m experiment={experiment.name}"]
