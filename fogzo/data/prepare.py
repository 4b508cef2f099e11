"""From text to token shards: in parallel, in memory that does not grow with the corpus, and from where it was cut.

``journal.json`` in the folder keeps the settings and, after each complete shard, how far everything has come: the place
in the source, and the tokens of each split.  What a cut left behind that is cut off, and work goes on from there: the
bytes are those of an uncut run.  Documents stay in the source's order, whatever the number of workers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fogzo.data.base import DataError
from fogzo.data.shards import (
    FORMAT,
    SPLITS,
    TOKENIZER,
    Manifest,
    ShardWriter,
    SplitManifest,
    read_manifest,
    sha256_of,
    token_dtype,
)
from fogzo.data.sources import TextSource
from fogzo.data.tokenize import (
    Encoder,
    check_vocabulary,
    encoded,
    end_of_text,
    in_test,
    load_tokenizer,
    train_tokenizer,
)
from fogzo.runs.files import atomic_write

JOURNAL = "journal.json"
REPORT_SECONDS = 10.0


@contextmanager
def locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold ``folder`` alone.  The lock dies with its process, so a kill leaves none behind.

    Raises:
        DataError: if another process holds it, and ``wait`` is false.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows; there, don't prepare the same set twice at a time
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise DataError(f"another process is at work in {folder}: wait for it, or name another folder") from error
        yield


@dataclass(frozen=True)
class Job:
    """What decides the bytes of a set.

    Args:
        tokenizer: a name on the hub, a path ending in .json, or ``train:VOCABULARY``.
        end_of_text: the token between documents; ``None``: one of ENDS_OF_TEXT.
        test_share: share of the documents that make the test split, chosen by the hash of their text.
        shard_tokens: tokens of a full shard.
        max_tokens: stop behind the document that reaches this number; 0: all.
        training_megabytes: a tokenizer is trained on the first so many million characters of the training split.
    """

    name: str
    source: TextSource
    tokenizer: str = "gpt2"
    end_of_text: str | None = None
    test_share: float = 0.001
    shard_tokens: int = 2**26
    max_tokens: int = 0
    training_megabytes: float = 100.0

    def __post_init__(self) -> None:
        kind, _, size = self.tokenizer.partition(":")
        if kind == "train" and not size.isdecimal():
            raise DataError(f"tokenizer={self.tokenizer} names no size: write train:VOCABULARY, such as train:32768")
        if kind == "train":
            check_vocabulary(int(size))
        if not 0 < self.test_share < 1:
            raise DataError(f"test_share={self.test_share} is not possible: choose it between 0 and 1")
        for name, least in (("shard_tokens", 1), ("max_tokens", 0), ("training_megabytes", 0)):
            if (value := getattr(self, name)) < least:
                raise DataError(f"{name}={value} is not possible: choose at least {least}")

    def settings(self) -> dict[str, Any]:
        local = Path(self.tokenizer)
        tokenizer = f"{local.name} {sha256_of(local)}" if local.is_file() else self.tokenizer
        own = {key: value for key, value in vars(self).items() if key not in ("source", "tokenizer")}
        return {**own, "tokenizer": tokenizer, **self.source.settings()}


def prepare(job: Job, folder: Path, workers: int = 1) -> str:
    """Make the set of shards in ``folder``, or go on with it; returns a sentence that says what is there.

    Raises:
        DataError: if the folder holds something else or cannot be written, or the source or tokenizer fails.
    """
    if workers < 1:
        raise DataError(f"workers={workers} is not possible: choose at least 1")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait=False):
            journal = _open_journal(job, folder)
            if journal["finished"]:
                return f"{folder} is finished already: {_summary(folder)}"
            _fix_tokenizer(job, folder, journal)
            seconds, tokens = _run(job, folder, journal, workers)
            rate = f"{tokens / seconds:,.0f} tokens/s, {workers} worker{'s' if workers > 1 else ''}"
            return f"{folder} is finished: {_summary(folder)} ({rate})"
    except OSError as error:
        raise DataError(
            f"{error.filename or folder} cannot be read or written ({error.strerror or error}): make room, and the "
            "same command goes on from the last complete shard, or name another folder with --out"
        ) from error
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed, probably for want of memory: give the same command with fewer --workers, and "
            "it goes on from the last complete shard"
        ) from error


def _open_journal(job: Job, folder: Path) -> dict[str, Any]:
    settings, path = job.settings(), folder / JOURNAL
    fresh = {"format": FORMAT, "settings": settings, "tokenizer": None, "position": None}
    if not path.exists():
        if others := sorted(file.name for file in folder.iterdir() if file.name not in (".lock", f"{JOURNAL}.tmp")):
            raise DataError(f"{folder} holds {others[0]} but no {JOURNAL}: name an empty or new folder with --out")
        return {**fresh, "splits": dict.fromkeys(SPLITS), "finished": False}
    try:
        journal: dict[str, Any] = json.loads(path.read_bytes())
        old = dict(journal["settings"]) | {"format": journal["format"]}
        _ = journal["tokenizer"], journal["position"], journal["finished"], [journal["splits"][s] for s in SPLITS]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): remove {folder}, and start again") from error
    new = settings | {"format": FORMAT}
    changes = [_change(key, old.get(key), new.get(key)) for key in old | new if old.get(key) != new.get(key)]
    if changes:
        raise DataError(
            f"{folder} was begun with other values ({'; '.join(changes)}): give those again, or name another --out"
        )
    return journal


def _change(key: str, old: Any, new: Any) -> str:
    if isinstance(old, list) and isinstance(new, list):  # of files: show those that differ
        old, new = [file for file in old if file not in new], [file for file in new if file not in old]
    return f"{key}: {str(old)[:100]} → {str(new)[:100]}"


def _save(folder: Path, journal: Mapping[str, Any]) -> None:
    atomic_write(folder / JOURNAL, (json.dumps(journal, indent=1, ensure_ascii=False) + "\n").encode())


def _fix_tokenizer(job: Job, folder: Path, journal: dict[str, Any]) -> None:
    """Put the tokenizer into the folder, once: a continued run takes it from there."""
    path = folder / TOKENIZER
    if journal["tokenizer"] is None:
        _save(folder, journal)  # from here on the folder is this job's
        kind, _, size = job.tokenizer.partition(":")
        tokenizer = train_tokenizer(_first_texts(job), int(size)) if kind == "train" else load_tokenizer(job.tokenizer)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        end_of_text(tokenizer, job.end_of_text)
        atomic_write(path, tokenizer.to_str(pretty=True).encode())
        journal["tokenizer"] = sha256_of(path)
        _save(folder, journal)
    elif not path.exists() or sha256_of(path) != journal["tokenizer"]:
        raise DataError(
            f"{path} is not the tokenizer that the shards were begun with: remove {folder}, and start again"
        )


def _first_texts(job: Job) -> Iterator[str]:
    left = job.training_megabytes * 1e6
    for chunk in job.source.chunks(None):
        for text in chunk.texts:
            if left <= 0:
                return
            if not in_test(text, job.test_share):
                left -= len(text)
                yield text


def _run(job: Job, folder: Path, journal: dict[str, Any], workers: int) -> tuple[float, int]:
    """Tokenize from the journal's position to the end; returns seconds and tokens of this session."""
    arguments = (folder / TOKENIZER, job.end_of_text, job.test_share)
    encoder = Encoder(*arguments)
    dtype, begun = token_dtype(encoder.vocabulary), time.monotonic()
    writers = {s: ShardWriter(folder, s, dtype, job.shard_tokens, journal["splits"][s]) for s in SPLITS}
    start = done = sum(writer.tokens for writer in writers.values())
    complete, reported = sum(len(writer.shards) for writer in writers.values()), begun
    reached = 0 < job.max_tokens <= done  # cut behind the last document
    chunks = iter(()) if reached else job.source.chunks(journal["position"])
    try:
        with closing(encoded(chunks, encoder, arguments, workers)) as results:
            for position, (tokens, lengths, testing) in results:
                if job.max_tokens and done + len(tokens) >= job.max_tokens:
                    documents = int(np.searchsorted(done + lengths.cumsum(), job.max_tokens)) + 1
                    lengths, testing = lengths[:documents], testing[:documents]
                    tokens = tokens[: lengths.sum()]
                for split, mine in (("train", ~testing), ("test", testing)):
                    writers[split].add(tokens[np.repeat(mine, lengths)], int(mine.sum()))
                done, journal["position"] = done + len(tokens), position
                if (now := sum(len(writer.shards) for writer in writers.values())) > complete:
                    complete = now
                    journal["splits"] = {split: writer.commit() for split, writer in writers.items()}
                    _save(folder, journal)
                if time.monotonic() > reported + REPORT_SECONDS:
                    reported = time.monotonic()
                    print(f"{done:,} tokens, {(done - start) / (reported - begun):,.0f} tokens/s", flush=True)
                if job.max_tokens and done >= job.max_tokens:
                    break
        _finish(job, folder, journal, encoder, {split: writer.finish() for split, writer in writers.items()})
    finally:
        for writer in writers.values():
            writer.close()
    return time.monotonic() - begun, done - start


def _finish(
    job: Job, folder: Path, journal: dict[str, Any], encoder: Encoder, splits: dict[str, SplitManifest]
) -> None:
    kind, _, size = job.tokenizer.partition(":")
    name = f"byte-level BPE {size}, trained on {job.name}" if kind == "train" else Path(job.tokenizer).name
    Manifest(
        name=job.name,
        tokenizer={"name": name, "sha256": journal["tokenizer"], "end_of_text": encoder.end},
        vocabulary=encoder.vocabulary,
        dtype=token_dtype(encoder.vocabulary).name,
        splits=splits,
        sources=job.source.account(journal["position"]),
    ).save(folder)
    _save(folder, journal | {"finished": True})


def _summary(folder: Path) -> str:
    manifest, sha256 = read_manifest(folder, f"remove {folder}, and start again")
    parts = [
        f"{name} {split.tokens:,} tokens of {split.documents:,} documents" for name, split in manifest.splits.items()
    ]
    empty = [name for name, split in manifest.splits.items() if not split.tokens]
    warning = f"; the {' and '.join(empty)} split is empty, so choose another --test-share" if empty else ""
    return f"{', '.join(parts)}, vocabulary {manifest.vocabulary:,}, SHA-256 {sha256[:12]}{warning}"
