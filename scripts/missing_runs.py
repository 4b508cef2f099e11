"""What the tables still lack, and the command that fills each gap:  python scripts/missing_runs.py [experiment=NAME]

Lists, by experiment, the cells that are untuned or tuned otherwise than the experiment asks for, and the runs
that are missing, unfinished, stale (run with what the experiment no longer says), damaged or changed by hand.  Diverged
runs are named, but they are over, and fill their cell.  Exit code 0: nothing is left to do; 1: something is.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fogzo.evidence.chosen import whole_commands
from fogzo.evidence.experiment import Cell, Experiment
from fogzo.evidence.parse import read_experiment
from fogzo.evidence.records import Records, gaps_of, records_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("results")


def main() -> None:
    os.chdir(ROOT)  # the files of tuned values are named relative to it
    files = {file.stem: file for file in sorted(Path("configs/experiment").glob("*.yaml"))}
    chosen = [word.removeprefix("experiment=") for word in sys.argv[1:]]
    if unknown := [name for name in chosen if name not in files]:
        sys.exit(f"error: experiment={unknown[0]} is not known: choose from {', '.join(files)}")
    complete = True
    for name in chosen or files:
        problems: dict[Path, str] = {}
        try:
            experiment = read_experiment(files[name])
            complete &= report(experiment, records_of(experiment, RESULTS, problems), problems)
        except ValueError as error:
            sys.exit(f"error: {error}")
    sys.exit(0 if complete else 1)


def report(experiment: Experiment, records: Records, problems: dict[Path, str]) -> bool:
    """Print what is left to do for one experiment; true if there is nothing."""
    cells = experiment.cells
    have, wanted = sum(map(len, records.runs.values())), len(cells) * len(experiment.seeds)
    print(f"{experiment.name}: {have} of {wanted} runs")
    again = {path: of for path in problems if (of := _named(path, experiment, cells)) is not None}
    lacking = [gap for cell in cells.values() for gap in gaps(experiment, cell, records, list(again.values()))]
    spoilt = [(reason, _remove(path, experiment.name, again.get(path))) for path, reason in problems.items()]
    stale = [(f"stale: {path} ({reason})", f"rm -r {_quoted(path)}") for path, reason in records.stale.items()]
    if not have and not spoilt and not stale and not any(records.unfinished.values()):
        lacking = [("nothing was run yet", " && ".join(whole_commands(experiment)))]
    for what, command in dict.fromkeys([*spoilt, *stale, *lacking]):  # once, what two cells lack
        print(f"  {what}\n      {command}")
    for cell, runs in records.runs.items():
        if diverged := [str(seed) for seed, run in sorted(runs.items()) if run.summary.get("status") == "diverged"]:
            print(f"  {cell}: seed {', '.join(diverged)} diverged, which is a result")
    return not (lacking or stale or spoilt)


def _named(path: Path, experiment: Experiment, cells: Mapping[str, Cell]) -> tuple[str, int] | None:
    """The cell and seed that a run folder is named after, if the experiment has them; its files may be damaged."""
    found = re.fullmatch(r"(.+)-seed(\d+)-[0-9a-f]{8}", path.name)
    known = found is not None and found[1] in cells and int(found[2]) in experiment.seeds
    return (found[1], int(found[2])) if found is not None and known else None


def _remove(path: Path, name: str, of: tuple[str, int] | None) -> str:
    return f"rm -r {_quoted(path)}" + (
        f" && python train.py -m experiment={name} cell={of[0]} seed={of[1]}" if of else ""
    )


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))  # people copy folders, and name the copies with spaces


def gaps(
    experiment: Experiment, cell: Cell, records: Records, again: Sequence[tuple[str, int]]
) -> list[tuple[str, str]]:
    """What one cell lacks, and the commands; without the cells and seeds that are to be run ``again`` anyhow."""
    missing = [seed for seed in experiment.seeds if seed not in records.runs[cell.name]]
    missing = [seed for seed in missing if (cell.name, seed) not in again]
    return gaps_of(experiment, cell, missing, list(records.unfinished[cell.name]))


if __name__ == "__main__":
    main()
