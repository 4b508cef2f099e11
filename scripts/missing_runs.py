"""What the tables still lack, and the command that fills each gap:  python scripts/missing_runs.py [experiment=NAME]

Lists, by experiment, the cells that are untuned or tuned otherwise than the experiment asks for, and the runs
that are missing, unfinished, stale (run with what the experiment no longer says), damaged or changed by hand.  Diverged
runs are named, but they are over, and fill their cell.  Exit code 0: nothing is left to do; 1: something is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from fogzo.evidence.chosen import whole_commands
from fogzo.evidence.experiment import Cell, Experiment
from fogzo.evidence.parse import read_experiment
from fogzo.evidence.records import Records, gaps_of, records_of
from fogzo.runs.records import add

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("results")


def main() -> None:
    os.chdir(ROOT)  # the files of tuned values are named relative to it
    files = {file.stem: file for file in sorted(Path("configs/experiment").glob("*.yaml"))}
    chosen = [word.removeprefix("experiment=") for word in sys.argv[1:]]
    if unknown := [name for name in chosen if name not in files]:
        sys.exit(f"error: experiment={unknown[0]} is not known: choose from {', '.join(files)}")
    faults = add(RESULTS).faults
    complete = not faults
    for fault in faults:
        print(fault)
    for name in chosen or files:
        try:
            experiment = read_experiment(files[name])
            complete &= report(experiment, records_of(experiment, RESULTS))
        except ValueError as error:
            sys.exit(f"error: {error}")
    sys.exit(0 if complete else 1)


def report(experiment: Experiment, records: Records) -> bool:
    """Print what is left to do for one experiment; true if there is nothing."""
    cells = experiment.cells
    have, wanted = sum(map(len, records.runs.values())), len(cells) * len(experiment.seeds)
    print(f"{experiment.name}: {have} of {wanted} runs")
    spoilt = [(f"{fault.where}: {fault.reason}", fault.command) for fault in records.faults]
    lacking = [gap for cell in cells.values() for gap in gaps(experiment, cell, records)]
    if not have and not spoilt and not any(records.unfinished.values()):
        lacking = [("nothing was run yet", " && ".join(whole_commands(experiment)))]
    for what, command in dict.fromkeys([*spoilt, *lacking]):  # once, what two cells lack
        print(f"  {what}\n      {command}")
    for cell, runs in records.runs.items():
        if diverged := [str(seed) for seed, run in sorted(runs.items()) if run.summary.get("status") == "diverged"]:
            print(f"  {cell}: seed {', '.join(diverged)} diverged, which is a result")
    return not (lacking or spoilt)


def gaps(experiment: Experiment, cell: Cell, records: Records) -> list[tuple[str, str]]:
    """What one cell lacks, and the commands."""
    missing = [seed for seed in experiment.seeds if seed not in records.runs[cell.name]]
    return gaps_of(experiment, cell, missing, list(records.unfinished[cell.name]))


if __name__ == "__main__":
    main()
