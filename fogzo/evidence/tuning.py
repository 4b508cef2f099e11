"""Tuning: the searches of an experiment's cells, each with as many trials, by workers that train one run after another.

A cell's trials follow one another, each proposed from those before it: what comes out does not depend on the number of
workers.  When a cell is done, its best values and all that was tried go into the experiment's file of chosen values.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

from filelock import FileLock, Timeout

from fogzo.errors import UserError
from fogzo.evidence import pool as workers
from fogzo.evidence.chosen import (
    CHOSEN,
    borrowed_values,
    skipped,
    start_values,
    tune_command,
    tuned_under,
    write_chosen,
)
from fogzo.evidence.experiment import Cell, Experiment, as_overrides, key_of
from fogzo.evidence.jobs import expand, plans
from fogzo.evidence.search import CellSearch
from fogzo.runs.identity import PRESENTATION

# what is given on the command line and changes no trial's outcome
ELSEWHERE = (CHOSEN, "experiment.tuning.trials", "results_dir", "setting", "device", *PRESENTATION)


def tune(experiment: Experiment, results: Path, given: Sequence[str], *, jobs: int, trials: int | None = None) -> None:
    """Run all trials that are missing, and write the chosen values of each cell.

    Args:
        results: below which the trials' runs go.
        given: ``KEY=VALUE`` of the command line; ``cell=NAME,NAME`` and ``setting=NAME`` choose cells.
        jobs: how many workers train at a time.
        trials: of each cell, instead of as many as the experiment asks for.

    Raises:
        UserError: if no cell is to be tuned, if a plan is asked for, or if what is given does not fit the experiment's
            file of chosen values.
        RuntimeError: if a trial was stopped.
    """
    trials = experiment.tuning.trials if trials is None else trials
    if trials < 1:
        raise UserError(f"trials={trials} is not possible: give each cell at least 1")
    cells = _cells_to_tune(experiment, given)
    overrides = [override for override in given if key_of(override) not in ("cell", "setting")]
    if plans(given):
        others = [override for override in given if key_of(override) not in ("experiment", "phase")]
        command = shlex.join(["python", "train.py", "-m", f"experiment={experiment.name}", "phase=tune", *others])
        raise UserError(f"plan=true plans no search, but `{command}` plans its trials")
    if CHOSEN not in map(key_of, given):
        check_own_file(experiment, overrides, trials)
    folder = results / "runs" / f"{experiment.name}_tuning"
    with _held(folder):
        _Searches(experiment, cells, overrides, trials).run(jobs)


def _cells_to_tune(experiment: Experiment, given: Sequence[str]) -> list[Cell]:
    values = {key_of(override): override.partition("=")[2] for override in given}
    names = values["cell"].split(",") if "cell" in values else [None]
    asked = [cell for name in names for cell in experiment.choose(cell=name, setting=values.get("setting"))]
    if not asked:
        raise UserError(f"setting={values['setting']} has no cell={values['cell']}: give one of the two")
    searched = [cell for cell in asked if cell.search]
    idle = [cell for cell in asked if not cell.search]
    if idle and ("cell" in values or not searched):  # named, or all that there is: it must not look as if it were tuned
        raise UserError(_nothing_to_tune(experiment, idle[0], given))
    return searched


def _nothing_to_tune(experiment: Experiment, cell: Cell, given: Sequence[str]) -> str:
    if cell.tuned_as is None:
        return f"{cell.name} searches nothing, so that there is nothing to tune: train it, or give it a search"
    command = tune_command(experiment, cell, given)
    return f"{cell.name} searches nothing, it takes the values of {cell.tuned_as}: run `{command}`"


def check_own_file(experiment: Experiment, given: Sequence[str], trials: int) -> None:
    """Refuse to write values that were tuned under something else over those that the experiment's tables rest on."""
    tuning = experiment.tuning
    if changed := _changes_outcome(given):
        raise UserError(
            f"{', '.join(changed)} would leave values in {tuning.chosen} that are not as experiment "
            f"{experiment.name} asks: say where they go with {CHOSEN}=FILE"
        )
    if trials != tuning.trials:
        print(
            f"note: {tuning.chosen} will hold values of {trials} trials, where the experiment asks for "
            f"{tuning.trials}: `python train.py -m` uses them with experiment.tuning.trials={trials} only "
            f"({CHOSEN}=FILE leaves that file as it is)",
            file=sys.stderr,
        )


def _changes_outcome(given: Sequence[str]) -> list[str]:
    return [override for override in given if key_of(override) not in ELSEWHERE]


def _held(folder: Path) -> AbstractContextManager[Any]:
    """Return the lock of the experiment's tuning, held: one process at a time may carry that on."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(folder / "tuning.lock").acquire(blocking=False)
    except Timeout:
        raise UserError(f"another process is tuning in {folder}: wait for it, or stop it and use --jobs") from None


class _Searches:
    """The searches of many cells, with as many trials at a time as there are workers."""

    def __init__(self, experiment: Experiment, cells: Sequence[Cell], given: Sequence[str], trials: int) -> None:
        self.experiment, self.given, self.trials = experiment, list(given), trials
        self.changed = _changes_outcome(given)
        self.total = sum(min(trials, len(cell.points())) for cell in cells)
        self.done, self.started, self.alone = 0, time.monotonic(), Lock()
        self.cells = sorted(cells, key=self._depth)  # each waits for those that it rests on
        self.ended: dict[str, Future[None]] = {}

    def run(self, jobs: int) -> None:
        """Carry all searches to their ends, each in a thread that hands its trials to a worker."""
        with workers.pool(jobs) as pool, ThreadPoolExecutor(jobs) as threads:
            try:
                for cell in self.cells:  # a thread looks only for those before it, which stand here by then
                    self.ended[cell.name] = threads.submit(self._search, cell, pool)
                for search in as_completed(self.ended.values()):
                    search.result()
            except BaseException:
                for executor in (threads, pool):
                    executor.shutdown(wait=False, cancel_futures=True)
                raise

    def _depth(self, cell: Cell) -> int:
        """Return how long the chain of cells is that rest on one another up to this one."""
        return max((1 + self._depth(self.experiment.cells[name]) for name in cell.rests_on), default=0)

    def _search(self, cell: Cell, pool: ProcessPoolExecutor) -> None:
        for other in cell.rests_on:
            if other in self.ended:
                self.ended[other].result()
        borrowed = borrowed_values(self.experiment, cell, self.given)
        overrides = tuned_under(self.experiment, cell)
        start = start_values(self.experiment, cell, self.given, trials=self.trials)
        depends_on = [*overrides, *as_overrides(borrowed), *self.changed]
        metric = self.experiment.tuning.metric
        search = CellSearch(
            cell,
            trials=self.trials,
            metric=metric,
            depends_on=depends_on,
            start=start or None,
            start_also=cell.setting.start_also,
        )
        while (point := search.next_point()) is not None:
            started = time.monotonic()
            value = search.tell(point, *pool.map(workers.run, self._jobs(cell, point)))
            with self.alone:
                self._say(cell, point, value, time.monotonic() - started)
        choice = search.outcome()
        if choice is None:
            keys = ", ".join(cell.search)
            raise UserError(f"every trial of {cell.name} has diverged: give tuning.search smaller values of {keys}")
        choice = replace(choice, overrides=overrides, borrowed=borrowed, given=self.changed)
        notes = [f"on the edge of the values: {key}" for key in choice.on_edge_of_grid]
        notes += [
            f"not tried, beside it: {key}={value}" for key, values in skipped(cell, choice).items() for value in values
        ]
        note = f"  ({'; '.join(notes)})" if notes else ""
        with self.alone:
            write_chosen(self.experiment, cell, choice)
            print(f"{cell.name}: {' '.join(as_overrides(choice.values))}{note}", flush=True)

    def _jobs(self, cell: Cell, point: Mapping[str, Any]) -> list[list[str]]:
        """Return what `python train.py -m phase=tune experiment=NAME cell=...` with the point's values would run."""
        overrides = [*self.given, "phase=tune", f"cell={cell.name}", *as_overrides(point)]
        given = [override for override in overrides if key_of(override) != "cell"]
        return [[*job, *given] for job in expand(self.experiment, "tune", overrides)]

    def _say(self, cell: Cell, point: Mapping[str, Any], value: float, seconds: float) -> None:
        self.done += 1
        print(
            f"[{self.done}/{self.total}] {cell.name}  {' '.join(as_overrides(point))}  "
            f"{self.experiment.tuning.metric} {value:.5g}  {seconds:.0f} s  "
            f"(all: {(time.monotonic() - self.started) / 60:.1f} min)",
            flush=True,
        )
