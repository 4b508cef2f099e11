"""The packed records of runs, results/records/EXPERIMENT.jsonl, a line each:

    python scripts/records.py add [FOLDER ...]              pack finished run folders; by default all in results/runs
    python scripts/records.py show [KEY=VALUE ...]          list records; of a single one, print all that it says
    python scripts/records.py drop KEY=VALUE ...            take records out: the same train.py runs them again
    python scripts/records.py drop --unusable [experiment=NAME]       take out the lines that `check` names
    python scripts/records.py check                         verify every record

KEY is experiment, cell, seed or run, a name as `show` prints it; VALUE may be several, with commas.  Runs
of no experiment are in experiment=recipes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from fogzo.errors import UserError
from fogzo.runs.identity import label_of
from fogzo.runs.packed import Run
from fogzo.runs.records import add, drop, drop_unusable, read_records, record_files
from fogzo.runs.schema import COMPARED

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path("results")
KEYS: Mapping[str, Callable[[Run], str]] = {
    "experiment": lambda run: run.place.stem,
    "cell": lambda run: label_of(run.config),
    "seed": lambda run: str(run.config["seed"]),
    "run": lambda run: run.name,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["add", "show", "drop", "check"])
    parser.add_argument("words", nargs="*", metavar="FOLDER or KEY=VALUE")
    parser.add_argument("--unusable", action="store_true", help="with drop: the lines that cannot be used")
    parser.add_argument("--root", type=Path, default=ROOT, help="a project folder with results/")
    given = parser.parse_intermixed_args()
    folders = [Path(os.path.relpath(word, given.root)) for word in given.words]
    os.chdir(given.root)
    if given.action == "add":
        add_folders(folders)
    elif given.action == "check":
        check()
    elif given.unusable:
        for fault in drop_unusable(RESULTS, asked(given.words).get("experiment", [])):
            print(f"dropped: {fault.where}: {fault.reason}")
    elif given.action == "drop":
        drop_runs(given.words)
    else:
        show(asked(given.words))


def add_folders(folders: Sequence[Path]) -> None:
    """Pack the folders, or all, and say what came of it."""
    added = add(RESULTS, folders or None)
    print("".join(f"added: {name}\n" for name in added.new) + f"{len(added.new)} added")
    print("".join(f"not over: {folder}\n" for folder in added.unfinished), end="")
    if added.faults or (folders and added.unfinished):
        sys.exit("\n".join(f"error: {fault}" for fault in added.faults) or 1)


def check() -> None:
    """Verify every line, and name those that cannot be used."""
    found = {file: read_records(file) for file in record_files(RESULTS)}
    for file, read in found.items():
        print(f"{file}: {len(read.runs)} runs")
    if faults := [fault for read in found.values() for fault in read.faults]:
        sys.exit("\n".join(f"error: {fault}" for fault in faults))


def asked(words: Sequence[str]) -> dict[str, list[str]]:
    """Return the values that are asked for, by key."""
    pairs = [word.partition("=")[::2] for word in words]
    if wrong := [key for key, value in pairs if key not in KEYS or not value]:
        sys.exit(f"error: {wrong[0]} chooses no records: give {', '.join(f'{key}=VALUE' for key in KEYS)}")
    return {key: value.split(",") for key, value in pairs}


def matches(run: Run, chosen: Mapping[str, Sequence[str]]) -> bool:
    return all(KEYS[key](run) in values for key, values in chosen.items())


def drop_runs(words: Sequence[str]) -> None:
    """Take the records out, and name the folders from which they would come back."""
    chosen = asked(words)
    gone = drop(RESULTS, lambda run: matches(run, chosen)) if chosen else []
    if not gone:
        sys.exit(f"error: no record is chosen by {words}: say which, such as experiment=NAME cell=NAME seed=11")
    for run in gone:
        print(f"dropped: {run.where}: {run.name}")
        for folder in RESULTS.glob(f"runs/**/{run.name}"):
            print(f"note: {folder} still has it, from which `add` and `make tables` pack it again: rm -r {folder}")


def show(chosen: Mapping[str, Sequence[str]]) -> None:
    """Print a line for each record that is chosen; of a single one its config, its summary and its rows."""
    every = [run for file in record_files(RESULTS) for run in read_records(file).runs.values()]
    runs = [run for run in every if matches(run, chosen)]
    if len(runs) == 1:
        (run,) = runs
        print(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))
        print(json.dumps(run.summary, indent=2) + "\n")
        print("".join(json.dumps(row) + "\n" for row in run.metrics()), end="")
        return
    for run in runs:
        measured = {key: run.summary[key] for key in COMPARED if key in run.summary}
        print(f"{run.where}: {run.name} {run.summary['status']} {measured}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # whoever read this has enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
