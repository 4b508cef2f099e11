"""Token shards: text as memory-mapped files of token numbers, and the manifest that says what is in them.

    folder/
        train-00000.bin ...     token numbers, little-endian uint16 (vocabulary up to 65,536) or uint32, nothing else
        test-00000.bin ...
        tokenizer.json          what made them
        journal.json            with which options, and how far that has come
        manifest.json           written last: its presence means that the folder is complete
        .verified               names the sizes and times of shards that were hashed, so that no later start hashes them

A split is one stream: its documents one after the other, each followed by the end-of-text token.  A shard ends where it
is full, within a document if need be; joined in order, the shards are the stream.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fogzo.data.base import DataError
from fogzo.errors import explained
from fogzo.runs.files import atomic_write

FORMAT = "fogzo-tokens-1"
MANIFEST, TOKENIZER, JOURNAL = "manifest.json", "tokenizer.json", "journal.json"
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
    """Return the smaller of the two types that holds ``vocabulary`` different tokens."""
    return np.dtype("<u2" if vocabulary <= 2**16 else "<u4")


def read_manifest(folder: Path, way_out: str) -> tuple[Manifest, str]:
    """Return the manifest in ``folder`` and its SHA-256; ``way_out`` ends the sentence that says what is wrong with it.

    Raises:
        DataError: if it cannot be read, or is of another format.
    """
    path = folder / MANIFEST
    problem = "is not a manifest of token shards"
    with explained(path, way_out, problem=problem, kind=DataError, also=(KeyError, TypeError)):
        content = path.read_bytes()
        record = dict(json.loads(content))
        if (found := record.pop("format")) != FORMAT:
            raise DataError(f"{path} is of format {found!r}, this version reads {FORMAT!r}: {way_out}")
        splits = {}
        for split in SPLITS:
            listed = record["splits"][split]
            splits[split] = SplitManifest(**listed | {"shards": tuple(Shard(**shard) for shard in listed["shards"])})
        manifest = Manifest(**record | {"splits": splits})
        if (needed := token_dtype(manifest.vocabulary).name) != manifest.dtype:
            raise ValueError(f"dtype {manifest.dtype} where a vocabulary of {manifest.vocabulary} takes {needed}")
    return manifest, hashlib.sha256(content).hexdigest()


def map_shards(folder: Path, manifest: Manifest, way_out: str, *, verify: bool | None) -> dict[str, list[Tokens]]:
    """Return the shards of each split, memory-mapped, after a check of their sizes and, with ``verify``, their hashes.

    ``verify=None`` hashes what holds up to 256 MiB in all, and larger sets once: a mark is left that names the hashes,
    sizes and times of what was found whole, and counts until one of them changes.

    Raises:
        DataError: if a file is missing, or is not what the manifest says.
    """
    dtype = token_dtype(manifest.vocabulary)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    with explained(folder, way_out, kind=DataError):
        stats = [(folder / shard.file).stat() for shard in shards]
    for shard, stat in zip(shards, stats, strict=True):
        if stat.st_size != (expected := shard.tokens * dtype.itemsize):
            found = f"{folder / shard.file} has {stat.st_size:,} bytes"
            raise DataError(f"{found} where the manifest says {expected:,}: {way_out}")
    size = sum(stat.st_size for stat in stats)
    rows = [[s.file, s.sha256, stat.st_size, stat.st_mtime_ns] for s, stat in zip(shards, stats, strict=True)]
    mark = hashlib.sha256(json.dumps(rows).encode()).hexdigest().encode()
    if size <= VERIFIED_BYTES:
        if verify is not False:
            _check_hashes(folder, shards, way_out)
    elif verify or (verify is None and not _is_marked(folder, mark)):
        print(f"hashing {size / 1e9:,.1f} GB of tokens in {folder}", flush=True)
        _check_hashes(folder, shards, way_out)
        with suppress(OSError):  # a folder that cannot be written is hashed again next time
            atomic_write(folder / MARK, mark)
    return {
        name: [np.memmap(folder / shard.file, dtype=dtype, mode="r") for shard in split.shards]
        for name, split in manifest.splits.items()
    }


def _is_marked(folder: Path, mark: bytes) -> bool:
    with suppress(OSError):
        return (folder / MARK).read_bytes() == mark
    return False


def _check_hashes(folder: Path, shards: Sequence[Shard], way_out: str) -> None:
    for shard in shards:
        path = folder / shard.file
        with explained(path, way_out, kind=DataError):
            found = sha256_of(path)
        if found != shard.sha256:
            raise DataError(f"{path} has SHA-256 {found[:12]}..., the manifest says {shard.sha256[:12]}...: {way_out}")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ShardWriter:
    """Writes one split's stream.  The bytes depend on the stream and ``shard_tokens``, not on how it was handed over.

    Args:
        folder: where the shards go; it exists.
        shard_tokens: tokens of a full shard; only the last one has fewer.
        documents: of the stream, that an earlier writer committed.
        tokens: of these documents; whatever the folder holds behind them is cut off.

    Raises:
        DataError: if the folder does not hold what was committed.
    """

    def __init__(
        self, folder: Path, split: str, dtype: np.dtype[Any], shard_tokens: int, documents: int = 0, tokens: int = 0
    ) -> None:
        self.folder, self.split, self.dtype, self.shard_tokens = folder, split, dtype, shard_tokens
        self.documents, self.tokens = documents, tokens
        self._unsynced: set[Path] = set()
        committed = {}
        for start in range(0, tokens, shard_tokens):
            path, expected = self._path(start), min(shard_tokens, tokens - start) * dtype.itemsize
            if (found := path.stat().st_size if path.is_file() else 0) < expected:
                raise DataError(
                    f"{path} has {found:,} bytes, but {expected:,} were written when this was cut: remove {folder}, "
                    "and start again"
                )
            committed[path] = expected
        for path in folder.glob(f"{split}-*.bin"):
            if path in committed:
                os.truncate(path, committed[path])
            else:
                path.unlink()

    def _path(self, token: int) -> Path:
        """Where token number ``token`` of the stream lies."""
        return self.folder / f"{self.split}-{token // self.shard_tokens:05d}.bin"

    def add(self, tokens: Tokens, documents: int) -> None:
        """Append whole documents, each with its end-of-text token."""
        self.documents += documents
        while len(tokens):
            path, room = self._path(self.tokens), self.shard_tokens - self.tokens % self.shard_tokens
            part = np.ascontiguousarray(tokens[:room], dtype=self.dtype)
            with path.open("ab") as file:
                file.write(part.data)
            self._unsynced.add(path)
            self.tokens += len(part)
            tokens = tokens[room:]

    @property
    def full_shards(self) -> int:
        return self.tokens // self.shard_tokens

    def commit(self) -> dict[str, int]:
        """Put on the disk what was added so far, and return the arguments that a new writer goes on from."""
        for path in self._unsynced:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        self._unsynced.clear()
        return {"documents": self.documents, "tokens": self.tokens}

    def finish(self) -> SplitManifest:
        """Return what the manifest says of the split."""
        self.commit()
        paths = [self._path(start) for start in range(0, self.tokens, self.shard_tokens)]
        shards = (Shard(path.name, path.stat().st_size // self.dtype.itemsize, sha256_of(path)) for path in paths)
        return SplitManifest(self.documents, self.tokens, tuple(shards))
