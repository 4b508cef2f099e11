"""Text for language models: windows of tokens, and sets of token shards as data."""

from __future__ import annotations

import bisect
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fogzo.data.base import FACTS, Batch, DataError, Split
from fogzo.data.shards import MANIFEST, SPLITS, Manifest, Tokens, map_shards, read_manifest

# What C4 is made with: tokens of the recipes of 1 and 3 B tokens, and the test split.  Other recipes take more.
C4 = "--dataset allenai/c4 --config en --max-tokens 3_100_000_000"
LONGER = "--max-tokens 13_400_000_000 for llama_20m, 10_300_000_000 for llama_200m, 20_600_000_000 for llama_300m"
LISTED_SOURCES = 16  # a longer list is only counted in a run's record; the manifest keeps it whole


class TokenSplit(Split):
    """Windows of ``sequence`` tokens: window i predicts tokens i·T+1 ... i·T+T from tokens i·T ... i·T+T-1.

    Windows lie side by side in the joined stream of the shards, across the borders of documents and shards, so they do
    not depend on how the stream was cut; the rest after the last whole window is left out.

    Args:
        shards: token numbers, each (tokens,), integers; memory-mapped or not.
        sequence: T, the tokens of a window.
        vocabulary: tokens are below it; ``None``: any are taken.
        way_out: what to do about tokens that are not; it ends the error's sentence.
    """

    def __init__(
        self,
        shards: Sequence[Tokens],
        sequence: int,
        device: torch.device | None = None,
        *,
        vocabulary: int | None = None,
        way_out: str = "make it again",
    ) -> None:
        self.shards, self.sequence, self.vocabulary, self.way_out = shards, sequence, vocabulary, way_out
        self.device = torch.device("cpu") if device is None else device
        self.ends = list(accumulate(len(shard) for shard in shards))  # of the shards, in the stream

    @property
    def tokens(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __len__(self) -> int:
        return max(0, self.tokens - 1) // self.sequence  # each window needs the token behind it too

    def batch(self, indices: Tensor) -> Batch:
        """Inputs and targets, int64, both (B, T), the targets one token further on.

        Raises:
            DataError: for a token beyond the vocabulary, which an embedding would refuse without a word of where it is.
        """
        cuda = self.device.type == "cuda"
        block = torch.empty((len(indices), self.sequence + 1), dtype=torch.int64, pin_memory=cuda)
        rows = block.numpy()
        for row, index in zip(rows, indices.tolist(), strict=True):
            if not 0 <= index < len(self):
                raise IndexError(f"window {index} is not among the {len(self)} of this split")
            self._read(index * self.sequence, row)
        block = block.to(self.device, non_blocking=cuda)  # torch keeps the pinned memory until the copy is done
        return block[:, :-1].contiguous(), block[:, 1:].contiguous()

    def _read(self, start: int, row: np.ndarray) -> None:
        """Fill ``row`` (T+1,) with the stream's tokens from ``start`` on."""
        shard = bisect.bisect_right(self.ends, start)
        filled = 0
        while filled < len(row):
            offset = start + filled - (self.ends[shard] - len(self.shards[shard]))
            part = self.shards[shard][offset : offset + len(row) - filled]
            if self.vocabulary is not None and (highest := int(part.max())) >= self.vocabulary:
                name = getattr(self.shards[shard], "filename", f"shard {shard}")
                raise DataError(
                    f"{name} holds token {highest} between its tokens {offset:,} and {offset + len(part):,}, beyond "
                    f"the vocabulary of {self.vocabulary:,}: {self.way_out}"
                )
            row[filled : filled + len(part)] = part
            filled, shard = filled + len(part), shard + 1

    def to(self, device: torch.device) -> TokenSplit:
        return TokenSplit(self.shards, self.sequence, device, vocabulary=self.vocabulary, way_out=self.way_out)


@dataclass(frozen=True)
class TextData:
    """A training and a test split of one set of token shards, with what goes into the record.

    ``vocabulary`` is the tokenizer's; a model's may be larger.  ``sha256`` is the manifest's, which holds the hashes of
    the shards and of the tokenizer.
    """

    name: str
    train: TokenSplit
    test: TokenSplit
    vocabulary: int
    sequence: int
    tokenizer: str
    sha256: str
    sources: list[dict[str, Any]] = field(default_factory=list)

    def to(self, device: torch.device) -> TextData:
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    def describe(self) -> dict[str, Any]:
        """What a run's record keeps of its data; ``train`` and ``test`` count windows."""
        listed = len(self.sources) <= LISTED_SOURCES
        return {
            "name": self.name,
            "train": len(self.train),
            "test": len(self.test),
            "train_tokens": self.train.tokens,
            "test_tokens": self.test.tokens,
            "vocabulary": self.vocabulary,
            "tokenizer": self.tokenizer,
            "sequence": self.sequence,
            "sha256": self.sha256,
            "sources": self.sources if listed else f"{len(self.sources)} files, listed in the manifest",
        }


def open_text(folder: Path, sequence: int, way_out: str, *, name: str = "", verify: bool | None = None) -> TextData:
    """The set of token shards in ``folder``, under its own name or ``name``.

    Args:
        way_out: what to do about a damaged set; it ends the error's sentence.
        verify: hash every shard; ``None``: if they hold up to 256 MiB in all, or were not hashed before.

    Raises:
        DataError: if the set is damaged, or has no window of ``sequence`` tokens.
        ValueError: if ``sequence`` is not positive.
    """
    if sequence < 1:
        raise ValueError(f"sequence={sequence} is not possible: a window has at least 1 token")
    manifest, sha256 = read_manifest(folder, way_out)
    mapped = map_shards(folder, manifest, way_out, verify=verify)
    limits: dict[str, Any] = {"vocabulary": manifest.vocabulary, "way_out": way_out}
    splits = {split: TokenSplit(mapped[split], sequence, **limits) for split in SPLITS}
    for split, part in splits.items():
        if not len(part):
            raise DataError(
                f"sequence={sequence} is too long for the {split} split in {folder}, which has {part.tokens:,} tokens: "
                f"choose sequence up to {max(part.tokens - 1, 0):,}, or prepare more text"
            )
    return TextData(
        name=name or manifest.name,
        train=splits["train"],
        test=splits["test"],
        vocabulary=manifest.vocabulary,
        sequence=sequence,
        tokenizer=f"{manifest.tokenizer['name']} ({manifest.tokenizer['sha256'][:12]})",
        sha256=sha256,
        sources=manifest.sources,
    )


def prepared_text(name: str, root: str | Path = "data", sequence: int = 512, verify: bool | None = None) -> TextData:
    """The set that ``scripts/prepare_text.py --out root/name`` made.

    Raises:
        DataError: if it is not there, unfinished or damaged.
    """
    folder = Path(root) / name
    source = C4 if name == "c4" else "--files 'FOLDER/*.jsonl.gz'"
    command = _command(name, source, folder) + (f" ({LONGER})" if name == "c4" else "")
    if not (folder / MANIFEST).exists():
        state = "is unfinished" if (folder / "journal.json").exists() else "is not there"
        raise DataError(
            f"the text set {name} in {folder} {state} (no {MANIFEST}): make it, or go on where it was cut, with "
            f"{command}, name another place with data.root=FOLDER, or use the embedded text with data=pydocs"
        )
    manifest, _ = read_manifest(folder, f"remove {folder} and make it again with {command}")
    again = _command(name, made_from(manifest), folder)
    return open_text(folder, sequence, f"remove {folder} and make it again with {again}", name=name, verify=verify)


def known_sha256(name: str, root: str | Path) -> str | None:
    """Return the ``sha256`` that the data set ``name`` in ``root`` would describe itself with, without reading it.

    ``None`` where only reading tells (images, the embedded text), or where the set is not there.
    """
    if name in FACTS:
        return FACTS[name].sha256
    manifest = Path(root) / name / MANIFEST
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None


def prepared_tokens(name: str, root: str | Path) -> int | None:
    """Return the training tokens of the prepared text ``name`` in ``root``, by its manifest; ``None`` if there is none.

    Raises:
        DataError: for a manifest that is damaged.
    """
    folder = Path(root) / name
    if not (folder / MANIFEST).is_file():
        return None
    manifest, _ = read_manifest(folder, f"remove {folder} and make it again")
    return manifest.splits["train"].tokens


def _command(name: str, source: str, folder: Path) -> str:
    return f"`python scripts/prepare_text.py --name {name} {source} --out {folder}`"


def made_from(manifest: Manifest) -> str:
    """The options of ``scripts/prepare_text.py`` that make a set again, as far as its manifest tells.

    Of local files it keeps the names only, so FOLDER stands for where they are.  As many tokens as there are end behind
    the same document.
    """
    first = manifest.sources[0] if manifest.sources else {}
    if "dataset" in first:
        named = {"dataset": None, "config": None, "split": "train", "revision": None}
        options = [f"--{key} {first[key]}" for key, default in named.items() if first.get(key) not in (None, default)]
    else:
        names = [str(source.get("file", "*")) for source in manifest.sources] or ["*.jsonl.gz"]
        begin = os.path.commonprefix(names)  # noqa: RUF071  (of names, by characters)
        options = [f"--files 'FOLDER/{begin}{'*' * (len(names) > 1)}'"]
    tokenizer = str(manifest.tokenizer["name"])
    if trained := re.match(r"byte-level BPE (\d+), trained on ", tokenizer):
        options.append(f"--tokenizer train:{trained[1]}")
    elif tokenizer != "gpt2":
        options.append(f"--tokenizer {'FOLDER/' * tokenizer.endswith('.json')}{tokenizer}")
    return " ".join([*options, f"--max-tokens {sum(split.tokens for split in manifest.splits.values()):_}"])


def c4(root: str | Path = "data", sequence: int = 512, verify: bool | None = None) -> TextData:
    """C4 (English) as ``scripts/prepare_text.py`` leaves it in ``root/c4``."""
    return prepared_text("c4", root, sequence, verify)
