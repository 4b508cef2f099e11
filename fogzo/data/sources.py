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

CHUNK = 2**19  # characters that go to a worker at a time: about 0.1 s of work
LONGEST = 2**20  # characters; a longer stretch of a .txt file is cut at a line's end
SEPARATOR = "<|endoftext|>"
SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".txt", ".txt.gz")


class Chunk(NamedTuple):
    texts: list[str]
    position: dict[str, Any]  # where the source goes on behind them; JSON


class TextSource(Protocol):
    """Documents in a fixed order, from any position on; empty ones are left out."""

    def settings(self) -> dict[str, Any]:
        """What must be the same when work goes on after a cut."""

    def chunks(self, position: dict[str, Any] | None) -> Iterator[Chunk]:
        """Documents behind ``position`` (``None``: all), about CHUNK characters at a time."""

    def account(self, position: dict[str, Any]) -> list[dict[str, Any]]:
        """What was read up to ``position``, for the manifest."""


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

    def settings(self) -> dict[str, Any]:
        return {"files": [f"{p.name} ({p.stat().st_size} bytes)" for p in self.paths], "text_field": self.text_field}

    def chunks(self, position: dict[str, Any] | None) -> Iterator[Chunk]:
        position = position or {"file": 0, "record": 0}
        texts: list[str] = []
        size = 0
        for index in range(position["file"], len(self.paths)):
            done = position["record"] if index == position["file"] else 0
            for number, record in enumerate(_records(self.paths[index]), 1):
                if number <= done:
                    continue
                text = self._text(record, self.paths[index], number)
                if text.strip():
                    texts.append(text)
                    size += len(text)
                if size >= CHUNK:
                    yield Chunk(texts, {"file": index, "record": number})
                    texts, size = [], 0
        yield Chunk(texts, {"file": len(self.paths), "record": 0})

    def _text(self, record: str, path: Path, number: int) -> str:
        if not _is_json(path) or not record.strip():
            return record
        try:
            fields = json.loads(record)
        except ValueError as error:
            raise DataError(f"{path}, line {number}, is not JSON ({error}): mend the line, or leave it out") from error
        return _field(fields, self.text_field, f"{path}, line {number},")

    def account(self, position: dict[str, Any]) -> list[dict[str, Any]]:
        read = self.paths[: position["file"] + (position["record"] > 0)]
        return [{"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in read]


class Streamed:
    """A data set of the Hugging Face hub, or a local folder in one of its formats, streamed with ``datasets``."""

    def __init__(
        self, dataset: str, config: str | None, split: str, text_field: str = "text", revision: str | None = None
    ) -> None:
        self.source = {"dataset": dataset, "config": config, "split": split, "revision": revision}
        self.text_field = text_field

    def settings(self) -> dict[str, Any]:
        return {**self.source, "text_field": self.text_field}

    def chunks(self, position: dict[str, Any] | None) -> Iterator[Chunk]:
        from datasets import load_dataset

        number = position["record"] if position else 0
        texts: list[str] = []
        size = 0
        name, config, split, revision = self.source.values()
        try:
            stream = load_dataset(name, config, split=split, revision=revision, streaming=True)
            if position:
                stream.load_state_dict(position["state"])
            for fields in stream:
                number += 1
                text = _field(fields, self.text_field, f"{name}, record {number},")
                if text.strip():
                    texts.append(text)
                    size += len(text)
                if size >= CHUNK:
                    yield Chunk(texts, {"record": number, "state": stream.state_dict()})
                    texts, size = [], 0
            yield Chunk(texts, {"record": number, "state": stream.state_dict()})
        except DataError:
            raise
        except Exception as error:  # of whatever library fetches
            raise DataError(
                f"{name} could not be read behind record {number:,} ({' '.join(str(error).split())[:200]}): give the "
                "same command again when it can be reached, or take local files with --files PATTERN"
            ) from error

    def account(self, position: dict[str, Any]) -> list[dict[str, Any]]:
        return [{**self.source, "records": position["record"]}]


def _field(fields: Any, text_field: str, where: str) -> str:
    text = fields.get(text_field) if isinstance(fields, dict) else None
    if not isinstance(text, str):
        known = f"fields {', '.join(fields)}" if isinstance(fields, dict) else f"a {type(fields).__name__}"
        raise DataError(f"{where} has no text under {text_field!r}, but {known[:200]}: name another with --text-field")
    return text


def _is_json(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith((".jsonl", ".json"))


def _records(path: Path) -> Iterator[str]:
    """The lines of a JSON file, the documents of a text file."""
    number = 0
    try:
        with _open(path) as file:
            for record in file if _is_json(path) else _documents(file):
                yield record
                number += 1
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read behind record {number:,} ({error}): replace it or leave it out, and start again in "
            "an empty folder"
        ) from error


def _open(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")


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
