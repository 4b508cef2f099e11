"""Tuning: the searches of an experiment's cells, each with as many trials, by workers that train one run after another.

A cell's trials follow one another, each proposed from those before it: what comes out does not depend on the number of
workers.  When a cell is done, its best values and all that was tried go into the experiment's file of chosen values.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from fogzo.errors import UserError
from fogzo.evidence import pool as workers
from fogzo.evidence.chosen import borrowed_values, tune_command, tuned_under, write_chosen
from fogzo.evidence.experiment import Cell, Experiment, as_overrides, key_of
from fogzo.evidence.jobs import expand
from fogzo.evidence.search import CellSearch, open_journal
from fogzo.runs.identity import PRESENTATION

# what is given on the command line and changes no trial's outcome
CHOSEN = "experiment.tuning.chosen"
ELSEWHERE = (CHOSEN, "experiment.tuning.trials", "results_dir", "setting", "device", *PRESENTATION)


def tune(experiment: Experiment, results: Path, given: Sequence[str], *, jobs: int, trials: int | None = None) -> None:
    """Run all trials that are missing, and write the chosen values of each cell.

    Args:
        results: below which the trials' runs go.
        given: ``KEY=VALUE`` of the command line; ``cell=NAME,NAME`` and ``setting=NAME`` choose cells.
        jobs: how many workers train at a time.
        trials: of each cell, instead of as many as the experiment asks for.

    Raises:
        UserError: if no cell is to be tuned, or what is given does not fit the experiment's file of chosen values.
        RuntimeError: if a trial was stopped.
    """
    trials = experiment.tuning.trials if trials is None else trials
    if trials < 1:
        raise UserError(f"trials={trials} is not possible: give each cell at least 1")
    cells = _cells_to_tune(experiment, given)
    overrides = [override for override in given if key_of(override) not in ("cell", "setting")]
    if CHOSEN not in map(key_of, given):
        check_own_file(experiment, overrides, trials)
    folder = results / "runs" / f"{experiment.name}_tuning"
    with _held(folder):
        _Searches(experiment, cells, folder, overrides, trials).run(jobs)


def _cells_to_tune(experiment: Experiment, given: Sequence[str]) -> list[Cell]:
    values = {key_of(override): override.partition("=")[2] for override in given}
    names = values["cell"].split(",") if "cell" in values else [None]
    asked = [cell for name in names for cell in experiment.choose(cell=name, setting=values.get("setting"))]
    if not asked:
        raise UserError(f"setting={values['setting']} has no cell={values['cell']}: give one of the two")
    searched = [cell for cell in asked if cell.search]
    idle = [cell for cell in asked if not cell.search]
    if idle and ("cell" in values or not searched):  # named, or all that there is: it must not look as if it were tuned
        raise UserError(_nothing_to_tune(experiment, idle[0]))
    return searched


def _nothing_to_tune(experiment: Experiment, cell: Cell) -> str:
    if cell.tuned_as is None:
        return f"{cell.name} searches nothing, so that there is nothing to tune: train it, or give it a search"
    command = tune_command(experiment.name, cell)
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


class _Trial(NamedTuple):
    """A trial that a worker is at."""

    search: CellSearch
    number: int
    point: Mapping[str, Any]
    started: float


class _Searches:
    """The searches of many cells, with as many trials at a time as there are workers.

    A cell that borrows values waits for the one that it borrows from.
    """

    def __init__(
        self, experiment: Experiment, cells: Sequence[Cell], folder: Path, given: Sequence[str], trials: int
    ) -> None:
        self.experiment, self.given, self.trials = experiment, list(given), trials
        self.changed = _changes_outcome(given)
        self.storage = open_journal(folder / "journal.log")
        self.total = sum(min(trials, len(cell.points())) for cell in cells)
        self.done, self.started = 0, time.monotonic()
        self.waiting = list(cells)
        self.unfinished = {cell.name for cell in cells}
        self.running: dict[Future[Any], _Trial] = {}

    def run(self, jobs: int) -> None:
        """Carry all searches to their ends."""
        with workers.pool(jobs) as pool:
            try:
                while self.waiting or self.running:
                    self._start_searches(pool, jobs)
                    ready, _ = wait(self.running, return_when=FIRST_COMPLETED)
                    for future in ready:
                        self._end_trial(future, pool)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _start_searches(self, pool: ProcessPoolExecutor, jobs: int) -> None:
        for cell in list(self.waiting):
            if len(self.running) >= jobs:
                return
            if cell.tuned_as in self.unfinished:
                continue
            self.waiting.remove(cell)
            search = self._search(cell)
            if finished := search.finished():
                self.done += finished
                print(f"{cell.name}: {finished} of {search.trials} trials were done before", flush=True)
            self._next_trial(search, pool)

    def _search(self, cell: Cell) -> CellSearch:
        borrowed = as_overrides(borrowed_values(self.experiment, cell))
        depends_on = [*tuned_under(self.experiment, cell), *borrowed, *self.changed]
        metric = self.experiment.tuning.metric
        return CellSearch(cell, trials=self.trials, metric=metric, storage=self.storage, depends_on=depends_on)

    def _next_trial(self, search: CellSearch, pool: ProcessPoolExecutor) -> None:
        trial = search.next_trial()
        if trial is None:
            self._end_search(search)
            return
        number, point = trial
        future = pool.submit(workers.run, self._job(search.cell, point))
        self.running[future] = _Trial(search, number, point, time.monotonic())

    def _job(self, cell: Cell, point: Mapping[str, Any]) -> list[str]:
        """Return what `python train.py -m phase=tune experiment=NAME cell=...` with the point's values would run."""
        overrides = [*self.given, "phase=tune", f"cell={cell.name}", *as_overrides(point)]
        (job,) = expand(self.experiment, "tune", overrides)
        return [*job, *(override for override in overrides if key_of(override) != "cell")]

    def _end_trial(self, future: Future[Any], pool: ProcessPoolExecutor) -> None:
        search, number, point, started = self.running.pop(future)
        value = search.tell(number, future.result())
        self.done += 1
        now = time.monotonic()
        print(
            f"[{self.done}/{self.total}] {search.cell.name}  {' '.join(as_overrides(point))}  {search.metric} "
            f"{value:.5g}  {now - started:.0f} s  (all: {(now - self.started) / 60:.1f} min)",
            flush=True,
        )
        self._next_trial(search, pool)

    def _end_search(self, search: CellSearch) -> None:
        cell = search.cell
        self.unfinished.discard(cell.name)
        choice = search.outcome()
        if choice is None:
            keys = ", ".join(cell.search)
            raise UserError(f"every trial of {cell.name} has diverged: give tuning.search smaller values of {keys}")
        borrowed, overrides = borrowed_values(self.experiment, cell), tuned_under(self.experiment, cell)
        choice = replace(choice, overrides=overrides, borrowed=borrowed, given=self.changed)
        write_chosen(self.experiment, cell, choice)
        edges = ", ".join(choice.on_edge_of_grid)
        note = f"  (on the edge of the values: {edges})" if edges else ""
        print(f"{cell.name}: {' '.join(as_overrides(choice.values))}{note}", flush=True)
