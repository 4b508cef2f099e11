"""From text to token shards, in memory that does not grow with the corpus, and from where it was cut.

``journal.json`` in the folder keeps the settings and, after each complete shard, how far everything has come: the place
in the source, and the tokens of each split.  What a cut left behind that is cut off, and work goes on from there: the
bytes are those of an uncut run.

Ours, not map and save of ``datasets``: killed in its 8th of 11 batches, that tokenizes all 11 again, and it wants the
whole corpus on the disk first.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fogzo.checks import number, whole
from fogzo.data.base import DataError
from fogzo.data.shards import (
    FORMAT,
    JOURNAL,
    SPLITS,
    TOKENIZER,
    Manifest,
    ShardWriter,
    read_manifest,
    sha256_of,
    token_dtype,
)
from fogzo.data.sources import TextSource, chunks
from fogzo.data.tokenize import (
    check_vocabulary,
    encode,
    end_of_text,
    in_test,
    load_tokenizer,
    train_tokenizer,
    vocabulary_of,
)
from fogzo.errors import explained
from fogzo.runs.files import LOCK, atomic_write, locked

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REPORT_SECONDS = 10.0


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
        if self.trained_vocabulary is not None:
            check_vocabulary(self.trained_vocabulary)
        if not 0 < self.test_share < 1:
            raise DataError(f"test_share={self.test_share} is not possible: choose it between 0 and 1")
        whole(self.shard_tokens, "shard_tokens")
        whole(self.max_tokens, "max_tokens", lowest=0)
        number(self.training_megabytes, "training_megabytes", lowest=0)

    @property
    def trained_vocabulary(self) -> int | None:
        """Return the vocabulary of the tokenizer that is to be trained; ``None`` if there is one."""
        kind, _, size = self.tokenizer.partition(":")
        if kind == "train" and not size.isdecimal():
            raise DataError(f"tokenizer={self.tokenizer} names no size: write train:VOCABULARY, such as train:32768")
        return int(size) if kind == "train" else None

    def settings(self) -> dict[str, Any]:
        """Return what must be the same when work goes on after a cut."""
        local = Path(self.tokenizer)
        tokenizer = f"{local.name} {sha256_of(local)}" if local.is_file() else self.tokenizer
        values = {key: value for key, value in vars(self).items() if key not in ("source", "tokenizer")}
        return {**values, "tokenizer": tokenizer, **self.source.settings()}


def prepare(job: Job, folder: Path) -> str:
    """Make the set of shards in ``folder``, or go on with it; returns a sentence that says what is there.

    Raises:
        DataError: if the folder holds something else or cannot be written, or the source or tokenizer fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait=False, kind=DataError):
            journal = _open_journal(job, folder)
            if journal["finished"]:
                return f"{folder} is finished already: {_summary(folder)}"
            tokenizer = _tokenizer(job, folder, journal)
            begun = time.monotonic()
            tokens = _write(job, folder, journal, tokenizer)
            return f"{folder} is finished: {_summary(folder)} ({tokens / (time.monotonic() - begun):,.0f} tokens/s)"
    except OSError as error:
        raise DataError(
            f"{error.filename or folder} cannot be read or written ({error.strerror or error}): make room, and the "
            "same command goes on from the last complete shard, or name another folder with --out"
        ) from error


def _open_journal(job: Job, folder: Path) -> dict[str, Any]:
    settings, path = job.settings(), folder / JOURNAL
    nothing = {split: {"documents": 0, "tokens": 0} for split in SPLITS}
    if not path.exists():
        if others := sorted(file.name for file in folder.iterdir() if file.name not in (LOCK, f"{JOURNAL}.tmp")):
            raise DataError(f"{folder} holds {others[0]} but no {JOURNAL}: name an empty or new folder with --out")
        fresh = {"format": FORMAT, "settings": settings, "tokenizer": None, "position": None}
        return {**fresh, "splits": nothing, "finished": False}
    way_out = f"remove {folder}, and start again"
    with explained(path, way_out, problem="is damaged", kind=DataError, also=(KeyError, TypeError)):
        journal: dict[str, Any] = json.loads(path.read_bytes())
        old, new = journal["settings"] | {"format": journal["format"]}, settings | {"format": FORMAT}
        if not journal["finished"]:
            journal["splits"] = {s: {key: journal["splits"][s][key] for key in nothing[s]} for s in nothing}
    if changes := [_change(key, old.get(key), new.get(key)) for key in old | new if old.get(key) != new.get(key)]:
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


def _tokenizer(job: Job, folder: Path, journal: dict[str, Any]) -> Tokenizer:
    """The tokenizer in the folder; it is put there at the start, and a continued run takes it from there."""
    path = folder / TOKENIZER
    if journal["position"] is None:
        vocabulary = job.trained_vocabulary
        tokenizer = train_tokenizer(_first_texts(job), vocabulary) if vocabulary else load_tokenizer(job.tokenizer)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        end_of_text(tokenizer, job.end_of_text)
        content = tokenizer.to_str(pretty=True).encode()
        journal["tokenizer"] = hashlib.sha256(content).hexdigest()
        _save(folder, journal)  # from here on the folder is this job's, and not before: a failed start leaves it free
        atomic_write(path, content)
    elif not path.exists() or sha256_of(path) != journal["tokenizer"]:
        raise DataError(
            f"{path} is not the tokenizer that the shards were begun with: remove {folder}, and start again"
        )
    return load_tokenizer(str(path))


def _first_texts(job: Job) -> Iterator[str]:
    left = job.training_megabytes * 1e6
    for chunk in chunks(job.source, None):
        for text in chunk.texts:
            if left <= 0:
                return
            if not in_test(text, job.test_share):
                left -= len(text)
                yield text


def _write(job: Job, folder: Path, journal: dict[str, Any], tokenizer: Tokenizer) -> int:
    """Tokenize from the journal's position to the end; returns the tokens of this session."""
    end, dtype = end_of_text(tokenizer, job.end_of_text), token_dtype(vocabulary_of(tokenizer))
    writers = {s: ShardWriter(folder, s, dtype, job.shard_tokens, **journal["splits"][s]) for s in SPLITS}
    start = done = sum(writer.tokens for writer in writers.values())
    complete = sum(writer.full_shards for writer in writers.values())
    begun = reported = time.monotonic()
    limit = job.max_tokens or math.inf
    for chunk in chunks(job.source, journal["position"]) if done < limit else ():
        tokens, lengths = encode(tokenizer, chunk.texts, end, dtype)
        if done + len(tokens) >= limit:
            lengths = lengths[: np.searchsorted(done + lengths.cumsum(), limit) + 1]
            tokens = tokens[: lengths.sum()]
        texts = chunk.texts[: len(lengths)]
        testing = np.fromiter((in_test(text, job.test_share) for text in texts), dtype=bool, count=len(texts))
        for split, chosen in (("train", ~testing), ("test", testing)):
            writers[split].add(tokens[np.repeat(chosen, lengths)], int(chosen.sum()))
        done, journal["position"] = done + len(tokens), chunk.position
        if (now := sum(writer.full_shards for writer in writers.values())) > complete:
            complete = now
            journal["splits"] = {split: writer.commit() for split, writer in writers.items()}
            _save(folder, journal)
        if time.monotonic() > reported + REPORT_SECONDS:
            reported = time.monotonic()
            print(f"{done:,} tokens, {(done - start) / (reported - begun):,.0f} tokens/s", flush=True)
        if done >= limit:
            break
    trained = f"byte-level BPE {job.trained_vocabulary}, trained on {job.name}"
    name = Path(job.tokenizer).name if job.trained_vocabulary is None else trained
    Manifest(
        name=job.name,
        tokenizer={"name": name, "sha256": journal["tokenizer"], "end_of_text": end},
        vocabulary=vocabulary_of(tokenizer),
        dtype=dtype.name,
        splits={split: writer.finish() for split, writer in writers.items()},
        sources=job.source.account(journal["position"]),
    ).save(folder)
    _save(folder, journal | {"finished": True})
    return done - start


def _summary(folder: Path) -> str:
    manifest, sha256 = read_manifest(folder, f"remove {folder}, and start again")
    splits = manifest.splits.items()
    counts = [f"{name} {split.tokens:,} tokens of {split.documents:,} documents" for name, split in splits]
    empty = [name for name, split in splits if not split.tokens]
    warning = f"; the {' and '.join(empty)} split is empty, so choose another --test-share" if empty else ""
    return f"{', '.join(counts)}, vocabulary {manifest.vocabulary:,}, SHA-256 {sha256[:12]}{warning}"
