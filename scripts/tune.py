"""Search the learning rate, and β_min where there is one, of all cells of an experiment, each with as many trials:

    python scripts/tune.py experiment=NAME [--jobs N] [--trials N] [cell=NAME | setting=NAME] [KEY=VALUE ...]

What is searched stands in the experiment's file.  Trials are runs on the tuning seed, which the table's seeds exclude;
finished ones are never run again, and after a kill the same command goes on.  When a cell is done, its best values and
all that was tried go into the experiment's data file, from which `python train.py -m experiment=NAME` reads them, or
into experiment.tuning.chosen=FILE: what changes the trials, such as steps=5, asks for a file of its own.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from fogzo.evidence import pool as workers
from fogzo.evidence.chosen import borrowed_values, read_tuned, tune_command, tuned_under
from fogzo.evidence.experiment import Cell, Experiment, key_of
from fogzo.evidence.jobs import expand
from fogzo.evidence.parse import CONFIGS, parse
from fogzo.evidence.tuning import CellSearch, open_journal
from fogzo.runs.files import atomic_write
from fogzo.runs.identity import PRESENTATION

# what is given on the command line and changes no trial's outcome
CHOSEN = "experiment.tuning.chosen"
ELSEWHERE = (CHOSEN, "experiment.tuning.trials", "results_dir", "setting", "device", *PRESENTATION)


def main() -> None:
    os.chdir(Path(__file__).resolve().parent.parent)  # as train.py: paths of the config are relative to the project
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="worker processes (default: all cores)")
    parser.add_argument("--trials", type=int, help="trials of each cell (default: the experiment's)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="experiment=NAME, and any of train.py's")
    arguments = parser.parse_intermixed_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        tune(arguments.overrides, arguments.jobs, arguments.trials)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from there")


def tune(given: Sequence[str], jobs: int, trials: int | None) -> None:
    """Run all trials that are missing, and write the chosen values of each cell."""
    experiment, results_dir = read_experiment(given)
    chosen_by = {key_of(override): override.partition("=")[2] for override in given}
    names = chosen_by["cell"].split(",") if "cell" in chosen_by else [None]
    trials = experiment.tuning.trials if trials is None else trials
    if trials < 1:
        raise ValueError(f"trials={trials} is not possible: give each cell at least 1")
    asked = [c for name in names for c in experiment.choose(cell=name, setting=chosen_by.get("setting"))]
    if not asked:
        raise ValueError(f"setting={chosen_by['setting']} has no cell={chosen_by['cell']}: give one of the two")
    chosen = [cell for cell in asked if cell.search]
    idle = [cell for cell in asked if not cell.search] if "cell" in chosen_by or not chosen else []
    if idle:  # named, or all that there is: it must not look as if they had been tuned
        raise ValueError(nothing_to_tune(experiment.name, idle[0]))
    kept = [override for override in given if key_of(override) not in ("cell", "setting")]
    if CHOSEN not in chosen_by:
        check_own_file(experiment, kept, trials)
    folder = results_dir / "runs" / f"{experiment.name}_tuning"
    with alone(folder):
        Tuning(experiment, chosen, folder, kept, trials).run(jobs)


def nothing_to_tune(experiment: str, cell: Cell) -> str:
    """That a cell searches nothing, and where its values come from."""
    if cell.tuned_as is None:
        return f"{cell.name} searches nothing, so that there is nothing to tune: train it, or give it a search"
    return (
        f"{cell.name} searches nothing, it takes the values of {cell.tuned_as}: run `{tune_command(experiment, cell)}`"
    )


def check_own_file(experiment: Experiment, given: Sequence[str], trials: int) -> None:
    """Refuse to write values that were tuned under something else over those that the experiment's tables rest on."""
    tuning = experiment.tuning
    if changed := [override for override in given if key_of(override) not in ELSEWHERE]:
        raise ValueError(
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


def read_experiment(given: Sequence[str]) -> tuple[Experiment, Path]:
    """The experiment that the command names, and where its results go."""
    if launching := [override for override in given if override.startswith(("hydra/", "hydra."))]:
        raise ValueError(f"{launching[0]} is for sweeps: tuning has worker processes of its own, give --jobs N")
    known = [override for override in given if key_of(override) not in ("cell", "setting")]
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config: Any = OmegaConf.to_container(compose("train", known))
    except HydraException as error:
        raise ValueError(" ".join(str(error).split())) from None
    if not config.get("experiment"):
        raise ValueError("say what to tune, such as `python scripts/tune.py experiment=mlp_compute`")
    return parse(config["experiment"]), Path(config["results_dir"])


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the experiment's tuning, which one process at a time may carry on."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tuning.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"another process is tuning in {folder}: wait for it, or stop it and use --jobs") from None
        yield


class Tuning:
    """The searches of many cells, with as many trials at a time as there are workers.

    A cell's trials follow one another, each proposed from those before it: what comes out does not depend on the number
    of workers.  A cell that borrows values waits for the one that it borrows from.
    """

    def __init__(
        self, experiment: Experiment, cells: Sequence[Cell], folder: Path, given: Sequence[str], trials: int
    ) -> None:
        self.experiment, self.given = experiment, list(given)
        self.changed = [override for override in given if key_of(override) not in ELSEWHERE]
        self.waiting = list(cells)
        self.storage = open_journal(folder / "journal.log")
        self.trials = trials
        self.total = sum(min(trials, len(cell.points())) for cell in cells)
        self.done, self.started = 0, time.monotonic()
        self.running: dict[Future[Any], tuple[CellSearch, int, dict[str, Any], float]] = {}
        self.open_cells: set[str] = {cell.name for cell in cells}

    def run(self, jobs: int) -> None:
        with workers.pool(jobs) as pool:
            try:
                while self.waiting or self.running:
                    self._begin_cells(pool, jobs)
                    ready, _ = wait(self.running, return_when=FIRST_COMPLETED)
                    for future in ready:
                        self._end_trial(future, pool)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _begin_cells(self, pool: ProcessPoolExecutor, jobs: int) -> None:
        for cell in list(self.waiting):
            if len(self.running) >= jobs:
                return
            if cell.tuned_as in self.open_cells:
                continue
            self.waiting.remove(cell)
            borrowed = borrowed_values(self.experiment, cell)
            search = self._search(cell, [f"{key}={value}" for key, value in borrowed.items()])
            finished = sum(trial.state.is_finished() for trial in search.study.get_trials(deepcopy=False))
            self.done += finished
            if finished:
                print(f"{cell.name}: {finished} of {search.trials} trials were done before", flush=True)
            self._next_trial(search, pool)

    def _search(self, cell: Cell, borrowed: Sequence[str]) -> CellSearch:
        depends_on = [*tuned_under(self.experiment, cell), *borrowed, *self.changed]
        metric = self.experiment.tuning.metric
        return CellSearch(cell, trials=self.trials, metric=metric, storage=self.storage, given=depends_on)

    def _next_trial(self, search: CellSearch, pool: ProcessPoolExecutor) -> None:
        trial = search.next_trial()
        if trial is None:
            self._end_cell(search)
            return
        number, point = trial
        self.running[pool.submit(workers.run, self._job(search.cell, point))] = (
            search,
            number,
            point,
            time.monotonic(),
        )

    def _job(self, cell: Cell, point: dict[str, Any]) -> list[str]:
        """As `python train.py -m phase=tune experiment=NAME cell=...` with the point's values would run it."""
        own = [*self.given, "phase=tune", f"cell={cell.name}", *(f"{key}={value}" for key, value in point.items())]
        (job,) = expand(self.experiment, "tune", own)
        return [*job, *(override for override in own if key_of(override) != "cell")]

    def _end_trial(self, future: Future[Any], pool: ProcessPoolExecutor) -> None:
        search, number, point, began = self.running.pop(future)
        value = search.tell(number, future.result())
        self.done += 1
        print(
            f"[{self.done}/{self.total}] {search.cell.name}  {_shown(point)}  {search.metric} {value:.5g}  "
            f"{time.monotonic() - began:.0f} s  (all: {(time.monotonic() - self.started) / 60:.1f} min)",
            flush=True,
        )
        self._next_trial(search, pool)

    def _end_cell(self, search: CellSearch) -> None:
        self.open_cells.discard(search.cell.name)
        entry = search.outcome()
        if entry is None:
            raise ValueError(
                f"every trial of {search.cell.name} has diverged: give tuning.search smaller values of "
                f"{', '.join(search.cell.search)}"
            )
        entry["overrides"] = tuned_under(self.experiment, search.cell)
        if borrowed := borrowed_values(self.experiment, search.cell):
            entry["borrowed"] = borrowed
        if self.changed:
            entry["given"] = self.changed
        self._write(search.cell.name, entry)
        edges = entry["on_edge_of_grid"]
        print(
            f"{search.cell.name}: {_shown(entry['values'])}"
            + (f"  (on the edge of the values: {', '.join(edges)})" if edges else ""),
            flush=True,
        )

    def _write(self, cell: str, entry: dict[str, Any]) -> None:
        tuning = self.experiment.tuning
        path = Path(tuning.chosen)
        entries = read_tuned(self.experiment) | {cell: entry}
        order = {name: place for place, name in enumerate(self.experiment.cells)}
        entries = dict(sorted(entries.items(), key=lambda item: order.get(item[0], len(order))))
        best = "highest" if tuning.metric == "accuracy" else "lowest"
        text = (
            f"# Written by `python scripts/tune.py experiment={self.experiment.name}`: the values of each cell\n"
            f"# with the {best} {tuning.metric} on seed {tuning.seed}, and all that was tried.\n"
            + yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text.encode())


def _shown(point: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in point.items())


if __name__ == "__main__":
    main()
