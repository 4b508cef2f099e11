"""The packed records, ``results/records/EXPERIMENT.jsonl``: read, find, add and drop runs, one line each.

The lines (``fogzo.runs.packed``) are sorted by cell and seed.  After a merge they may not be, which does no harm;
``add`` sorts them again.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from fogzo.errors import explained, one_line
from fogzo.runs.files import atomic_write, read_bytes
from fogzo.runs.folder import RunError
from fogzo.runs.identity import label_of, run_name
from fogzo.runs.packed import Fault, Run, name_of, pack_folder, unpack

RECIPES = "recipes"  # the file of runs that belong to no experiment
COMMAND = "python scripts/records.py"


Line = TypeVar("Line", Run, Fault)


@dataclass(frozen=True)
class Read:
    """What stands in a file of records.

    Attributes:
        runs: those that can be used, by name, in the file's order.
        faults: what is wrong with the other lines.
        faulty: the faults of runs of which there is no usable line, by name, as far as that can be read.
    """

    runs: Mapping[str, Run] = field(default_factory=dict)
    faults: Sequence[Fault] = ()
    faulty: Mapping[str, Fault] = field(default_factory=dict)


@dataclass
class Added:
    """What came of adding folders: the names of new records, folders whose runs go on, and those not taken."""

    new: list[str] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def file_of(config: Mapping[str, Any], records: Path) -> Path:
    """Return the file that a run's record belongs to."""
    return records / f"{config.get('experiment') or RECIPES}.jsonl"


def drop_command(run: Run, *others: Run) -> str:
    """Return the command that takes runs of one file out of the records; of one that is not over, its folder away."""
    if not run.line:
        return _remove(run.place)
    names = ",".join(one.name for one in (run, *others))  # a cell and a seed may have a fresh run beside a stale one
    words = {"experiment": run.place.stem, "run": names}
    return f"{COMMAND} drop {' '.join(shlex.quote(f'{key}={value}') for key, value in words.items())}"


def _remove(folder: Path) -> str:
    return f"rm -r {shlex.quote(str(folder))}"  # people copy folders, and name the copies with spaces


def read_records(file: Path) -> Read:
    """Return what stands in a file, each line checked; nothing if there is no such file.

    Not used is a line that is damaged or was changed, one that repeats another, and two that give one run two results.
    """
    if not file.exists():
        return Read()
    stat = file.stat()
    return _read(file, stat.st_ino, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=16)
def _read(file: Path, *state: int) -> Read:
    """As ``read_records``, once for each state of the file: a sweep asks for each of its runs."""
    command = f"{COMMAND} drop --unusable {shlex.quote(f'experiment={file.stem}')}"
    lines_of: dict[str, list[tuple[str, Run]]] = {}
    faults: list[Fault] = []
    faulty: dict[str, Fault] = {}
    for number, text in enumerate(_lines(file), 1):
        try:
            run = unpack(text, file, number)
            if file_of(run.config, file.parent) != file:
                raise RunError(f"it is a run of experiment {run.config.get('experiment')}")
            lines_of.setdefault(run.name, []).append((text, run))
        except RunError as error:
            faults.append(Fault(file, number, one_line(error), command))
            faulty[_name(text)] = faults[-1]
    runs = {}
    for name, same in lines_of.items():
        if len({text for text, _ in same}) == 1:
            runs[name] = same[0][1]
            faults += [Fault(file, run.line, f"it repeats line {runs[name].line}", command) for _, run in same[1:]]
        else:
            reason = f"lines {', '.join(str(run.line) for _, run in same)} give one run different results"
            faults += [Fault(file, run.line, reason, command) for _, run in same]
            faulty[name] = faults[-1]
    return Read(runs, faults, {name: fault for name, fault in faulty.items() if name not in runs})


def _name(text: str) -> str:
    """Return the name that a line which cannot be used gives its run; "" if that cannot be read."""
    try:
        return name_of(json.loads(text))
    except (ValueError, KeyError, TypeError):
        return ""


def find(config: Mapping[str, Any], records: Path) -> Run | None:
    """Return the packed run that ``config`` asks for, or ``None``.

    Raises:
        RunError: if there is one that cannot be used.
    """
    read, name = read_records(file_of(config, records)), run_name(config)
    if name in read.faulty:
        raise RunError(str(read.faulty[name]))
    return read.runs.get(name)


def add(results: Path, folders: Iterable[Path] | None = None) -> Added:
    """Pack run folders into ``results/records``, and leave them; what is packed already is left as it is.

    Args:
        folders: by default all below ``results/runs``, but for the trials of tuning.
    """
    added, records = Added(), results / "records"
    new: dict[Path, dict[str, str]] = {}
    with _alone(records):
        for folder in _folders(results / "runs") if folders is None else folders:
            try:
                if (folder / "config.yaml").exists() and not (folder / "summary.json").exists():
                    added.unfinished.append(folder)
                elif not _known(folder, records):
                    _take(folder, records, new)
            except RunError as error:
                added.faults.append(Fault(folder, 0, one_line(error), _remove(folder)))
        for file in sorted({*new, *record_files(results)}):
            lines = new.get(file, {})
            added.new += lines
            if lines or not _sorted(read_records(file)):
                _write(file, sorted(dict.fromkeys([*_lines(file), *lines.values()]), key=_order))
    return added


def _folders(runs: Path) -> list[Path]:
    """Return every run folder; a run that is killed before it wrote its config leaves none."""
    configs = [*runs.glob("*/config.yaml"), *runs.glob("*/*/config.yaml")]
    return sorted(file.parent for file in configs if not file.parent.parent.name.endswith("_tuning"))


def _known(folder: Path, records: Path) -> bool:
    """Return whether the folder's run is packed, as far as its name and its digest tell: fast, for many folders."""
    run = read_records(records / f"{folder.parent.name}.jsonl").runs.get(folder.name)
    try:
        return run is not None and json.loads((folder / "summary.json").read_text())["digest"] == run.summary["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _take(folder: Path, records: Path, new: dict[Path, dict[str, str]]) -> None:
    """Put a folder's line, by file and name, into ``new``, unless its run is packed; RunError if it cannot be."""
    line = pack_folder(folder)
    run = unpack(line, folder, 0)
    if run.config.get("phase") == "tune":
        raise RunError("it is a trial of tuning, of which results/tuned keeps what came out")
    file, name = file_of(run.config, records), run.name
    packed = read_records(file).runs.get(name)
    if packed is not None and packed.summary["digest"] != run.summary["digest"]:
        raise RunError(f"{packed.where} has another result of this run")
    if new.setdefault(file, {}).setdefault(name, line) != line:
        raise RunError(f"another folder has another result of {name}")
    if packed is not None:
        del new[file][name]


def drop(results: Path, choose: Callable[[Run], bool]) -> list[Run]:
    """Take the usable records that are chosen out of their files, and return them."""
    return _take_out(results, lambda _, read: [run for run in read.runs.values() if choose(run)])


def drop_unusable(results: Path, names: Sequence[str] = ()) -> list[Fault]:
    """Take every line that cannot be used out of the files of these names, or of all; return what was wrong with it."""
    return _take_out(results, lambda file, read: read.faults if not names or file.stem in names else [])


def _take_out(results: Path, chosen_of: Callable[[Path, Read], Sequence[Line]]) -> list[Line]:
    """Take lines out of all files of records, and return what was chosen."""
    gone: list[Line] = []
    with _alone(results / "records"):
        for file in record_files(results):
            chosen = chosen_of(file, read_records(file))
            numbers = {one.line for one in chosen}
            _write(file, [line for number, line in enumerate(_lines(file), 1) if number not in numbers])
            gone += chosen
    return gone


def record_files(results: Path) -> list[Path]:
    """Return every file of records."""
    return sorted((results / "records").glob("*.jsonl"))


def _alone(records: Path) -> FileLock:
    """Return what holds other processes off the records while they are changed."""
    records.mkdir(parents=True, exist_ok=True)
    return FileLock(records / ".lock")


def _write(file: Path, lines: list[str]) -> None:
    """Write a file of records, if it is to change, whole or not at all; without lines it goes."""
    if lines == _lines(file):
        return
    with explained(file, "make room, and pack again: no line is lost", problem="cannot be written", kind=RunError):
        if lines:
            atomic_write(file, "".join(f"{line}\n" for line in lines).encode())
        else:
            file.unlink()


def _lines(file: Path) -> list[str]:
    """Return the lines of a file, without their ends; none if there is no file."""
    if not file.exists():
        return []
    text = read_bytes(file).decode(errors="replace")
    return text.removesuffix("\n").split("\n") if text else []


def _sorted(read: Read) -> bool:
    """Return whether the runs stand in their order."""
    order = [(label_of(run.config), run.config["seed"], name) for name, run in read.runs.items()]
    return order == sorted(order)


def _order(line: str) -> tuple[str, int, str]:
    """Return what lines are sorted by; those that cannot be read come last."""
    if not (name := _name(line)):
        return "~", 0, line
    said = json.loads(line)
    return str(said["cell"]), int(said["seed"]), name
