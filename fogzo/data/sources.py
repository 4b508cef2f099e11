"""Where text comes from: local files and streamed data sets, read in order and from any position on."""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from fogzo.data.base import DataError
from fogzo.data.shards import sha256_of
from fogzo.errors import explained, one_line

CHUNK = 2**19  # characters that are tokenized at a time, by all cores; the manifest's counts of what was read step so
LONGEST = 2**20  # characters; a longer stretch of a .txt file is cut at a line's end
SEPARATOR = "<|endoftext|>"
SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".txt", ".txt.gz")
Position = dict[str, Any]  # where a source goes on; JSON


class Chunk(NamedTuple):
    texts: list[str]
    position: Position  # behind them


class TextSource(Protocol):
    """Documents in a fixed order, from any position on."""

    def settings(self) -> dict[str, Any]:
        """Return what must be the same when work goes on after a cut."""

    def documents(self, position: Position | None) -> Iterator[str]:
        """Yield the documents behind ``position`` (``None``: all)."""

    def position(self) -> Position:
        """Return the position behind the document that ``documents`` yielded last."""

    def account(self, position: Position) -> list[dict[str, Any]]:
        """Return what was read up to ``position``, for the manifest."""


def chunks(source: TextSource, position: Position | None) -> Iterator[Chunk]:
    """Yield the documents behind ``position``, about CHUNK characters at a time; empty ones are left out.

    Half of a surrogate pair, which JSON can spell but no tokenizer takes, becomes a question mark.
    """
    texts: list[str] = []
    size = 0
    for text in source.documents(position):
        if text.strip():
            texts.append(text.encode("utf-8", "replace").decode())
            size += len(text)
        if size >= CHUNK:
            yield Chunk(texts, source.position())
            texts, size = [], 0
    yield Chunk(texts, source.position())


class Files:
    """Local files: .jsonl (.json), an object a line; .txt, documents between lines ``<|endoftext|>``; also with .gz.

    Raises:
        DataError: if a pattern fits no file, or a file is none of these.
    """

    def __init__(self, patterns: Sequence[str], text_field: str = "text") -> None:
        names: set[str] = set()
        for pattern in patterns:
            if not (found := glob.glob(pattern, recursive=True)):  # noqa: PTH207  (pathlib's refuses absolute patterns)
                raise DataError(f"no file fits {pattern!r}: give paths or patterns of {', '.join(SUFFIXES)} files")
            names.update(found)
        self.paths, self.text_field = [Path(name) for name in sorted(names)], text_field
        for path in self.paths:
            if not path.name.endswith(SUFFIXES):
                raise DataError(f"{path} is none of {', '.join(SUFFIXES)}: convert it, or narrow the pattern")
        self._file = self._record = 0  # the next file, and how many of its records were read

    def settings(self) -> dict[str, Any]:
        return {"files": [f"{p.name} ({p.stat().st_size} bytes)" for p in self.paths], "text_field": self.text_field}

    def documents(self, position: Position | None) -> Iterator[str]:
        first, done = (position["file"], position["record"]) if position else (0, 0)
        for index, path in enumerate(self.paths[first:], first):
            for number, record in enumerate(_records(path), 1):
                if index > first or number > done:
                    self._file, self._record = index, number
                    yield self._text(record, f"{path}, line {number},") if _is_json(path) else record
        self._file, self._record = len(self.paths), 0

    def position(self) -> Position:
        return {"file": self._file, "record": self._record}

    def _text(self, line: str, where: str) -> str:
        if not line.strip():
            return ""
        with explained(
            where, "mend it, write one object a line, or leave it out", problem="is not JSON", kind=DataError
        ):
            fields = json.loads(line)
        return _field(fields, self.text_field, where)

    def account(self, position: Position) -> list[dict[str, Any]]:
        read = self.paths[: position["file"] + (position["record"] > 0)]
        return [{"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in read]


class Streamed:
    """A data set of the Hugging Face hub, or a local folder in one of its formats, streamed with ``datasets``."""

    def __init__(
        self, dataset: str, config: str | None, split: str, text_field: str = "text", revision: str | None = None
    ) -> None:
        self.source = {"dataset": dataset, "config": config, "split": split, "revision": revision}
        self.text_field = text_field
        self._stream: Any = None
        self._record = 0

    def settings(self) -> dict[str, Any]:
        return {**self.source, "text_field": self.text_field}

    def documents(self, position: Position | None) -> Iterator[str]:
        """Yield the texts from ``position`` on; ``None``: from the first."""
        from datasets import load_dataset

        self._record = position["record"] if position else 0
        name, config, split, revision = self.source.values()
        try:
            self._stream = load_dataset(name, config, split=split, revision=revision, streaming=True)
            if position:
                self._stream.load_state_dict(position["state"])
            for fields in self._stream:
                self._record += 1
                yield _field(fields, self.text_field, f"{name}, record {self._record},")
        except DataError:
            raise
        except Exception as error:  # of whatever library fetches
            raise DataError(
                f"{name} could not be read behind record {self._record:,} ({one_line(error)}): give the same command "
                "again when it can be reached, or take local files with --files PATTERN"
            ) from error

    def position(self) -> Position:
        return {"record": self._record, "state": self._stream.state_dict()}

    def account(self, position: Position) -> list[dict[str, Any]]:
        return [{**self.source, "records": position["record"]}]


def _field(fields: Any, text_field: str, where: str) -> str:
    if not isinstance(fields, dict):
        raise DataError(f"{where} is a {type(fields).__name__} where an object is needed: write one object a line")
    if not isinstance(text := fields.get(text_field), str):
        known = ", ".join(fields)[:200]
        raise DataError(f"{where} has no text under {text_field!r}, but fields {known}: name another with --text-field")
    return text


def _is_json(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith((".jsonl", ".json"))


def _records(path: Path) -> Iterator[str]:
    """The lines of a JSON file, the documents of a text file."""
    way_out = "replace it or leave it out, and start again in an empty folder"
    packed = path.suffix == ".gz"
    with (
        explained(path, way_out, problem="cannot be read to its end", kind=DataError, also=(zlib.error,)),
        gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8") as file,
    ):
        yield from file if _is_json(path) else _documents(file)


def _documents(file: IO[str]) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    while line := file.readline(LONGEST):
        if line.strip() == SEPARATOR or size >= LONGEST:
            yield "".join(lines)
            lines, size = [], 0
        if line.strip() != SEPARATOR:
            lines.append(line)
            size += len(line)
    yield "".join(lines)
