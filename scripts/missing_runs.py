"""What the tables still lack, and the command that fills each gap:  python scripts/missing_runs.py [experiment=NAME]

Packs finished runs and names those that are not over, then lists, by experiment, the cells that are untuned or tuned
otherwise than the experiment asks for, and the runs that are missing, stale (run with what the experiment no longer
says), damaged or changed by hand.  Diverged runs are named, but they are over, and fill their cell.  Exit code 0:
nothing is left to do; 1: something is.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from fogzo.evidence.chosen import whole_commands
from fogzo.evidence.frame import Evidence, gather
from fogzo.evidence.parse import CONFIGS, read_experiment
from fogzo.runs.records import add


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", metavar="experiment=NAME", help="those to look at (default: all)")
    given = parser.parse_args().experiments
    os.chdir(CONFIGS.parent)  # the files of chosen values are named relative to it
    files = {file.stem: file for file in sorted(Path("configs/experiment").glob("*.yaml"))}
    asked = [word.removeprefix("experiment=") for word in given]
    if unknown := [name for name in asked if name not in files]:
        sys.exit(f"error: experiment={unknown[0]} is not known: choose from {', '.join(files)}")
    added = add(Path("results"))
    for folder in added.unfinished:
        print(f"not over: {folder}")
    for fault in added.faults:
        print(fault)
    try:
        complete = [report(gather(read_experiment(files[name]))) for name in asked or files]
    except ValueError as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if all(complete) and not added.faults else 1)


def report(evidence: Evidence) -> bool:
    """Print what is left to do for one experiment, and return whether there is nothing."""
    cells = evidence.cells.values()
    have, wanted = len(evidence.all_runs()), sum(len(cell.setting.seeds) for cell in cells)
    print(f"{evidence.name}: {have} of {wanted} runs")
    faults = [(f"{fault.where}: {fault.reason}", fault.command) for fault in evidence.faults]
    gaps = [gap for cell in cells for gap in evidence.gaps(cell)]
    if not have and not faults:
        gaps = [("nothing was run yet", " && ".join(whole_commands(evidence.experiment)))]
    for lack, command in dict.fromkeys([*faults, *gaps]):  # once, what two cells lack
        print(f"  {lack}\n      {command}")
    for cell in cells:
        if diverged := evidence.diverged(cell):
            print(f"  {cell.name}: seed {', '.join(map(str, diverged))} diverged, which is a result")
    return not (gaps or faults)


if __name__ == "__main__":
    main()
