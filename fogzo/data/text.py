"""Text for language models: windows of tokens, and sets of token shards as data."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fogzo.checks import whole
from fogzo.data.base import Batch, Data, DataError, Split
from fogzo.data.shards import JOURNAL, MANIFEST, SPLITS, TOKENIZER, Tokens, map_shards, read_manifest

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
    """

    def __init__(self, shards: Sequence[Tokens], sequence: int, device: torch.device | None = None) -> None:
        self.shards, self.sequence = shards, sequence
        self.device = torch.device("cpu") if device is None else device
        self.ends = list(accumulate(len(shard) for shard in shards))  # of the shards, in the stream

    @property
    def tokens(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __len__(self) -> int:
        return max(0, self.tokens - 1) // self.sequence  # each window needs the token behind it too

    def batch(self, indices: Tensor) -> Batch:
        """Return inputs and targets, int64, both (B, T), the targets one token further on."""
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
            row[filled : filled + len(part)] = part
            filled, shard = filled + len(part), shard + 1

    def to(self, device: torch.device) -> TokenSplit:
        return TokenSplit(self.shards, self.sequence, device)


@dataclass(frozen=True)
class TextData(Data):
    """Splits of one set of token shards.

    ``vocabulary`` is the tokenizer's; a model's may be larger.  ``sha256`` is the manifest's, which holds the hashes of
    the shards and of the tokenizer.
    """

    train: TokenSplit
    test: TokenSplit
    vocabulary: int
    sequence: int
    tokenizer: str
    sha256: str
    sources: list[dict[str, Any]] = field(default_factory=list)
    tokenizer_file: Path | None = None

    def describe(self) -> dict[str, Any]:
        """Return what a run's record keeps of its data; ``train`` and ``test`` count windows."""
        listed = len(self.sources) <= LISTED_SOURCES
        return {
            "name": self.name,
            "train": len(self.train),
            "test": len(self.test),
            "train_tokens": getattr(self.train, "tokens", len(self.train) * self.sequence),
            "test_tokens": self.test.tokens,
            "vocabulary": self.vocabulary,
            "tokenizer": self.tokenizer,
            "sequence": self.sequence,
            "sha256": self.sha256,
            "sources": self.sources if listed else f"{len(self.sources)} files, listed in the manifest",
        }


def open_text(folder: Path, sequence: int, way_out: str, *, name: str = "", verify: bool | None = None) -> TextData:
    """Return the set of token shards in ``folder``, under its own name or ``name``.

    Args:
        way_out: what to do about a damaged set; it ends the error's sentence.
        verify: hash every shard; ``None``: if they hold up to 256 MiB in all, or were not hashed before.

    Raises:
        DataError: if the set is damaged, or has no window of ``sequence`` tokens.
        UserError: if ``sequence`` is not a positive whole number.
    """
    whole(sequence, "data.sequence")
    manifest, sha256 = read_manifest(folder, way_out)
    mapped = map_shards(folder, manifest, way_out, verify=verify)
    splits = {split: TokenSplit(mapped[split], sequence) for split in SPLITS}
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
        tokenizer_file=folder / TOKENIZER,
    )


def text_folder(name: str, root: str | Path) -> Path:
    """Return where the prepared set ``name`` lies: in a folder of that name in ``root``, and ``text`` in ``root``."""
    return Path(root) if name == "text" else Path(root) / name


def prepared_text(name: str, root: str | Path = "data", sequence: int = 512, verify: bool | None = None) -> TextData:
    """Return the set that ``scripts/prepare_text.py --name NAME --out root/NAME`` made (``--out root`` of ``text``).

    Raises:
        DataError: if it is not there, unfinished or damaged.
    """
    folder = text_folder(name, root)
    command = f"`python scripts/prepare_text.py --name {name} --files 'FOLDER/*.jsonl.gz' --out {folder}`"
    if name == "c4":
        command = f"`python scripts/prepare_text.py --name c4 {C4} --out {folder}` ({LONGER})"
    if not (folder / MANIFEST).exists():
        state = "is unfinished" if (folder / JOURNAL).exists() else "is not there"
        raise DataError(
            f"the text set {name} in {folder} {state} (no {MANIFEST}): make it, or go on where it was cut, with "
            f"{command}, name another place with data.root=FOLDER, or use the embedded text with data=pydocs"
        )
    again = f"remove {folder} and make it again, with {command} or the options that its {JOURNAL} keeps"
    return open_text(folder, sequence, again, name=name, verify=verify)


def own_text(root: str | Path = "data/text", sequence: int = 512, verify: bool | None = None) -> TextData:
    """Return any set that ``scripts/prepare_text.py --out root`` has made; see :func:`prepared_text`."""
    return prepared_text("text", root, sequence, verify)


def c4(root: str | Path = "data", sequence: int = 512, verify: bool | None = None) -> TextData:
    """Return C4 (English) as ``scripts/prepare_text.py`` leaves it in ``root/c4``; see :func:`prepared_text`."""
    return prepared_text("c4", root, sequence, verify)
