"""Token shards: text as memory-mapped files of token numbers, and the manifest that says what is in them.

    folder/
        train-00000.bin ...     token numbers, little-endian uint16 (vocabulary up to 65,536) or uint32, nothing else
        test-00000.bin ...
        tokenizer.json          what made them
        manifest.json           written last: its presence means that the folder is complete
        .verified               names the sizes and times of shards that were hashed, so that no later start hashes them

A split is one stream: its documents one after the other, each followed by the end-of-text token.  A shard ends where it
is full, within a document if need be; joined in order, the shards are the stream.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fogzo.data.base import DataError
from fogzo.runs.files import atomic_write

FORMAT = "fogzo-tokens-1"
MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"
SPLITS = ("train", "test")
MARK = ".verified"
VERIFIED_BYTES = 256 * 2**20  # sets up to this size are hashed whenever they are opened: a second at most
Tokens = npt.NDArray[Any]  # uint16 or uint32


@dataclass(frozen=True)
class Shard:
    file: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class SplitManifest:
    documents: int
    tokens: int
    shards: tuple[Shard, ...]

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> SplitManifest:
        shards = tuple(Shard(str(s["file"]), int(s["tokens"]), str(s["sha256"])) for s in record["shards"])
        if sum(shard.tokens for shard in shards) != record["tokens"]:
            raise ValueError("the tokens of the shards do not add up")
        return cls(int(record["documents"]), int(record["tokens"]), shards)


@dataclass(frozen=True)
class Manifest:
    """``tokenizer``: name, sha256 (of tokenizer.json), end_of_text (token number);  ``sources``: what the text was."""

    name: str
    tokenizer: dict[str, Any]
    vocabulary: int
    dtype: str
    splits: dict[str, SplitManifest]
    sources: list[dict[str, Any]]

    def save(self, folder: Path) -> None:
        record = {"format": FORMAT, **asdict(self)}
        atomic_write(folder / MANIFEST, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())


def token_dtype(vocabulary: int) -> np.dtype[Any]:
    """The smallest of the two types that holds ``vocabulary`` different tokens."""
    return np.dtype("<u2" if vocabulary <= 2**16 else "<u4")


def read_manifest(folder: Path, way_out: str) -> tuple[Manifest, str]:
    """The manifest and its SHA-256; ``way_out`` closes the sentence that says what is wrong with it.

    Raises:
        DataError: if it cannot be read, or is of another format.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
        record = json.loads(content)
        if (found := record["format"]) != FORMAT:
            raise DataError(f"{path} is of format {found!r}, this version reads {FORMAT!r}: {way_out}")
        manifest = Manifest(
            name=str(record["name"]),
            tokenizer={key: record["tokenizer"][key] for key in ("name", "sha256", "end_of_text")},
            vocabulary=int(record["vocabulary"]),
            dtype=str(record["dtype"]),
            splits={split: SplitManifest.read(record["splits"][split]) for split in SPLITS},
            sources=list(record["sources"]),
        )
        if (needed := token_dtype(manifest.vocabulary).name) != manifest.dtype:
            raise ValueError(f"dtype {manifest.dtype} where a vocabulary of {manifest.vocabulary} takes {needed}")
    except DataError:
        raise
    except (OSError, KeyError, TypeError, ValueError) as error:  # ValueError: also no JSON, no UTF-8
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise DataError(f"{path} is not a manifest of token shards ({reason}): {way_out}") from error
    return manifest, hashlib.sha256(content).hexdigest()


def map_shards(folder: Path, manifest: Manifest, way_out: str, *, verify: bool | None) -> dict[str, list[Tokens]]:
    """The shards of each split, memory-mapped, after a check of their sizes and, with ``verify``, their hashes.

    ``verify=None`` hashes what holds up to 256 MiB in all, and larger sets once: a mark is left that names the hashes,
    sizes and times of what was found whole, and counts until one of them changes.

    Raises:
        DataError: if a file is missing, or is not what the manifest says.
    """
    dtype = np.dtype(manifest.dtype).newbyteorder("<")
    _check(folder / TOKENIZER, manifest.tokenizer["sha256"], way_out)
    shards = {folder / shard.file: shard for split in manifest.splits.values() for shard in split.shards}
    for path, shard in shards.items():
        expected = shard.tokens * dtype.itemsize
        if not path.is_file():
            raise DataError(f"{path} is missing or cannot be read (no such file): {way_out}")
        if (found := path.stat().st_size) != expected:
            raise DataError(f"{path} has {found:,} bytes where the manifest says {expected:,}: {way_out}")
    size = sum(shard.tokens for shard in shards.values()) * dtype.itemsize
    mark = _mark(shards)
    if verify or (verify is None and (size <= VERIFIED_BYTES or not _is_marked(folder, mark))):
        if size > VERIFIED_BYTES:
            print(f"hashing {size / 1e9:,.1f} GB of tokens in {folder}", flush=True)
        for path, shard in shards.items():
            _check(path, shard.sha256, way_out)
        if size > VERIFIED_BYTES:
            with suppress(OSError):  # a folder that cannot be written is hashed again next time
                atomic_write(folder / MARK, mark.encode())
    return {
        name: [np.memmap(folder / shard.file, dtype=dtype, mode="r") for shard in split.shards]
        for name, split in manifest.splits.items()
    }


def _mark(shards: Mapping[Path, Shard]) -> str:
    """A hash of the shards' names, expected hashes, sizes and modification times."""
    stats = {path: path.stat() for path in shards}
    rows = [[p.name, shard.sha256, stats[p].st_size, stats[p].st_mtime_ns] for p, shard in shards.items()]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _is_marked(folder: Path, mark: str) -> bool:
    try:
        return (folder / MARK).read_text() == mark
    except (OSError, ValueError):
        return False


def _check(path: Path, expected: str, way_out: str) -> None:
    try:
        found = sha256_of(path)
    except OSError as error:
        raise DataError(f"{path} is missing or cannot be read ({error.strerror}): {way_out}") from error
    if found != expected:
        raise DataError(f"{path} has SHA-256 {found[:12]}..., the manifest says {expected[:12]}...: {way_out}")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ShardWriter:
    """Writes one split's stream.  The bytes depend on the stream and ``shard_tokens``, not on how it was handed over.

    Args:
        folder: where the shards go; it exists.
        shard_tokens: tokens of a full shard; only the last one has fewer.
        state: what :meth:`commit` returned; whatever was written after it is cut off.
    """

    def __init__(
        self, folder: Path, split: str, dtype: np.dtype[Any], shard_tokens: int, state: Mapping[str, Any] | None = None
    ) -> None:
        self.folder, self.split, self.dtype, self.shard_tokens = folder, split, dtype, shard_tokens
        state = {"documents": 0, "shards": [], "partial": 0} if state is None else state
        self.documents = int(state["documents"])
        self.shards = [Shard(**shard) for shard in state["shards"]]
        self._partial = int(state["partial"])  # tokens in the shard that is being filled
        for shard in self.shards:
            self._check_size(self.folder / shard.file, shard.tokens)
        path = self._path()
        if self._partial:
            self._check_size(path, self._partial, exactly=False)
            os.truncate(path, self._partial * dtype.itemsize)
        keep = {shard.file for shard in self.shards} | ({path.name} if self._partial else set())
        for file in folder.glob(f"{split}-*.bin"):
            if file.name not in keep:
                file.unlink()
        self._file = path.open("ab")
        self._sha = hashlib.sha256()
        if self._partial:
            with path.open("rb") as written:
                while chunk := written.read(2**20):
                    self._sha.update(chunk)

    def _path(self) -> Path:
        return self.folder / f"{self.split}-{len(self.shards):05d}.bin"

    def _check_size(self, path: Path, tokens: int, *, exactly: bool = True) -> None:
        expected, found = tokens * self.dtype.itemsize, path.stat().st_size if path.is_file() else 0
        if found < expected or (exactly and found != expected):
            raise DataError(
                f"{path} has {found:,} bytes, but {expected:,} were written when this was cut: remove {self.folder}, "
                "and start again"
            )

    @property
    def tokens(self) -> int:
        return sum(shard.tokens for shard in self.shards) + self._partial

    def add(self, tokens: Tokens, documents: int) -> None:
        """Append whole documents, each with its end-of-text token."""
        self.documents += documents
        while len(tokens):
            part = np.ascontiguousarray(tokens[: self.shard_tokens - self._partial], dtype=self.dtype)
            self._file.write(part.data)
            self._sha.update(part.data)
            self._partial += len(part)
            tokens = tokens[len(part) :]
            if self._partial == self.shard_tokens:
                self._end_shard()
                self._file = self._path().open("wb")

    def _end_shard(self) -> None:
        self._sync()
        self._file.close()
        self.shards.append(Shard(self._path().name, self._partial, self._sha.hexdigest()))
        self._partial, self._sha = 0, hashlib.sha256()

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def commit(self) -> dict[str, Any]:
        """Put on the disk what was added so far, and return the state that a new writer goes on from."""
        self._sync()
        return {"documents": self.documents, "shards": [asdict(s) for s in self.shards], "partial": self._partial}

    def finish(self) -> SplitManifest:
        if self._partial:
            self._end_shard()
        else:
            self.close()
            self._path().unlink(missing_ok=True)  # opened, and nothing came
        return SplitManifest(self.documents, sum(shard.tokens for shard in self.shards), tuple(self.shards))

    def close(self) -> None:
        with suppress(OSError):  # a full disk shows again when buffers are flushed
            self._file.close()
