"""A finished run as one line of JSON and back: lossless, and checked by its identity and its digest.

    {"cell": "deit.fogzo", "seed": 11, "status": "finished", "metric": {"accuracy": 73.96}, "identity": "e3ec4c6f",
     "config": {...}, "summary": {...}, "metrics": {"keys": [[...], ...], "rows": [0, 0, 1], "columns": {...}},
     "digest": "b51b..."}

The first five are for people, and repeat what config and summary say.  ``metrics`` holds the rows of ``metrics.jsonl``
by column: ``keys`` are the lists of keys, in order, that rows have, ``rows`` says which of them each row has, and
``columns`` the values of each key, of the rows that have it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fogzo.errors import one_line
from fogzo.runs.folder import RunError, parse_config
from fogzo.runs.identity import digest_of, identity, label_of
from fogzo.runs.schema import keys_of_kind

OF_BOTH = ("seed", "cell", "experiment")  # in config and summary; identity and digest alone would not tell them apart
HEAD = ("cell", "seed", "status", "metric", "identity")
PARTS = (*HEAD, "config", "summary", "metrics", "digest")


@dataclass(frozen=True)
class Run:
    """The record of a run: what it was asked for, and what came out.

    Attributes:
        place: its file of records, or its folder while it is not over.
        line: its line in that file, from 1; 0 for a folder.
        config: what ``config.yaml`` holds.
        summary: what ``summary.json`` holds; empty while the run is not over.
        columns: the rows of ``metrics.jsonl`` by column.
        name: which no other run of the experiment has.
    """

    place: Path
    line: int
    config: Mapping[str, Any]
    summary: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def where(self) -> str:
        """The place as a sentence names it."""
        return place_name(self.place, self.line)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the logged rows, in order; none if the run diverged before the first."""
        columns = {key: iter(values) for key, values in self.columns["columns"].items()}
        kinds = self.columns["keys"]
        return [{key: next(columns[key]) for key in kinds[kind]} for kind in self.columns["rows"]]


def place_name(file: Path, *lines: int) -> str:
    """Return a place as a sentence names it.

    >>> place_name(Path("results/records/twin.jsonl"), 3)
    'results/records/twin.jsonl, line 3'
    >>> place_name(Path("results/records/twin.jsonl"), 3, 4, 5, 9)
    'results/records/twin.jsonl, lines 3 to 5, 9'
    """
    stretches: list[list[int]] = []  # first and last line of each
    for line in sorted(lines):
        if stretches and line == stretches[-1][1] + 1:
            stretches[-1][1] = line
        else:
            stretches.append([line, line])
    said = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in stretches)
    return file.as_posix() + (f", line{'s' * (len(lines) > 1)} {said}" if any(lines) else "")


@dataclass(frozen=True)
class Fault:
    """Why a record, or some that have the same fault, are not used.

    Attributes:
        place, line: a file of records and the line in it, or a folder and 0.
        command: what takes them away.
        others: further lines of that file.
    """

    place: Path
    line: int
    reason: str
    command: str
    others: tuple[int, ...] = ()

    @property
    def where(self) -> str:
        """The place as a sentence names it."""
        return place_name(self.place, self.line, *self.others)

    def __str__(self) -> str:
        it_is, it = ("they are", "them") if self.others else ("it is", "it")
        return f"{self.where}: {self.reason}: {it_is} not used; `{self.command}` takes {it} away"


def pack(config: Mapping[str, Any], summary: Mapping[str, Any], metrics: bytes) -> str:
    """Return the line, without its end, of a run that is over.

    Args:
        metrics: the bytes of ``metrics.jsonl``; empty if the run logged none.

    Raises:
        RunError: if the record is not as its run left it; the message is a reason without a place.
    """
    try:
        columns = _by_column([json.loads(row) for row in metrics.decode().splitlines()])
    except (ValueError, AttributeError) as error:
        raise RunError(f"its metrics are damaged ({one_line(error)})") from error
    if _text(columns) != metrics:
        raise RunError("its metrics are not written as a run writes them, so they would not come back to the byte")
    digest = summary.get("digest")
    if digest is None:
        raise RunError("it has no digest, so nothing shows that it is as the run left it")
    rest = {key: value for key, value in summary.items() if key != "digest"}
    parts = {"config": config, "summary": rest, "metrics": columns, "digest": digest}
    try:
        beginning = head(config, summary)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"its config.yaml or summary.json is not whole ({type(error).__name__}: {error})") from error
    line = json.dumps({**beginning, **parts}, ensure_ascii=False, allow_nan=False)
    unpack(line, Path(), 0)
    return line


def pack_folder(folder: Path) -> str:
    """Return the line of a run folder.

    Raises:
        RunError: if the run is not over, or its record is damaged or was changed; a reason without the place.
    """
    config = _read(folder / "config.yaml", parse_config)
    summary = _read(folder / "summary.json", json.loads)
    metrics = folder / "metrics.jsonl"
    try:
        return pack(config, summary, metrics.read_bytes() if metrics.exists() else b"")
    except OSError as error:
        raise RunError(f"its metrics.jsonl cannot be read ({error.strerror or error})") from error


def _read(file: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    try:
        content = parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(f"its {file.name} cannot be read ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise RunError(f"its {file.name} holds no keys with values")
    return content


def unpack(line: str, file: Path, number: int) -> Run:
    """Return the run that stands in a line, which is that of this number in this file.

    Raises:
        RunError: if the line is damaged or was changed; the message is a reason without the place.
    """
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or tuple(record) != PARTS:
            raise ValueError(f"it must hold {', '.join(PARTS)}")
        config, columns = record["config"], record["metrics"]
        said, summary = {key: record[key] for key in HEAD}, {**record["summary"], "digest": record["digest"]}
        metrics, meant = _text(columns), head(config, summary)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise RunError(f"it is damaged ({type(error).__name__}: {one_line(error)[:80]})") from error
    if digest_of(summary, metrics) != record["digest"]:
        raise RunError("it was changed: its summary or its metrics are not those that its digest was made of")
    for key in OF_BOTH:
        if summary.get(key) != config.get(key):
            raise RunError(f"it was changed: its summary says {key} {summary.get(key)}, its config {config.get(key)}")
    for key in HEAD:
        if said[key] != meant[key]:
            raise RunError(f"it was changed: it begins with {key} {said[key]}, but the rest of it gives {meant[key]}")
    return Run(file, number, config, summary, columns, name_of(meant))


def head(config: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a line begins with, so that people find it: which run it is, and what came out."""
    metric = {key: summary[key] for key in keys_of_kind("task") if key in summary}
    values = (label_of(config), config["seed"], summary["status"], metric, identity(config))
    return dict(zip(HEAD, values, strict=True))


def name_of(beginning: Mapping[str, Any]) -> str:
    """Return the name, as ``identity.run_name`` gives it, of the run that a line begins with."""
    return f"{beginning['cell']}-seed{int(beginning['seed'])}-{beginning['identity']}"


def _by_column(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    keys: list[list[str]] = []
    columns: dict[str, list[Any]] = {}
    for row in rows:
        if list(row) not in keys:
            keys.append(list(row))
        for key, value in row.items():
            columns.setdefault(key, []).append(value)
    return {"keys": keys, "rows": [keys.index(list(row)) for row in rows], "columns": columns}


def _text(metrics: Mapping[str, Any]) -> bytes:
    """Return the bytes of ``metrics.jsonl``: each row as ``json.dumps`` writes it, with the values of its columns.

    Raises:
        ValueError: if a column has more values than the rows that have its key; a KeyError, IndexError or TypeError
            where something else is not as ``pack`` leaves it.
    """
    texts = {key: _texts(values) for key, values in metrics["columns"].items()}
    templates = [_template(*keys) for keys in metrics["keys"]]
    rows = [zip(*(texts[key] for key in keys), strict=False) for keys in metrics["keys"]]  # share columns
    text = "".join([templates[kind] % next(rows[kind], ()) for kind in metrics["rows"]])
    if left := [key for key, rest in texts.items() if next(rest, None) is not None]:
        raise ValueError(f"{left[0]} has more values than rows")
    return text.encode()


@cache
def _template(*keys: str) -> str:
    return "{" + ", ".join(json.dumps(key).replace("%", "%%") + ": %s" for key in keys) + "}\n"


def _texts(values: Sequence[Any]) -> Iterator[str]:
    """Return each value as JSON, which for most of them is what ``repr`` says, and fast."""
    plain = {*map(type, values)} <= {int, float}
    return map(repr if plain else json.dumps, values)
