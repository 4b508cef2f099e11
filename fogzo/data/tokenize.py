"""Text to tokens: tokenizers by name, from a file or trained on the spot.

The library tokenizes in threads of its own, on all cores; what Python does beside it keeps up with 16 of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fogzo.checks import whole
from fogzo.data.base import DataError
from fogzo.data.shards import Tokens
from fogzo.errors import one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"  # of the tokenizers that we train
# how open tokenizers call it, the most telling name first
ENDS_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[EOS]", "[SEP]")


def in_test(key: str, share: float) -> bool:
    """Whether a document belongs to the test split: decided by the hash of ``key``, so other documents don't matter."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "replace")).digest()[:8]) < share * 2**64


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer with at most ``vocabulary`` tokens; the same texts give the same tokenizer.

    Raises:
        UserError: if ``vocabulary`` does not hold all bytes and the end of text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    check_vocabulary(vocabulary)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def check_vocabulary(vocabulary: int) -> None:
    """Refuse a vocabulary that does not hold the 256 bytes and the end of text."""
    whole(vocabulary, "vocabulary", lowest=257, hint=", for 256 bytes and the end of text")


def vocabulary_of(tokenizer: Tokenizer) -> int:
    """Return one more than the largest token number: what an embedding needs."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def end_of_text(tokenizer: Tokenizer, name: str | None = None) -> int:
    """Return the number of the token between documents, called ``name``, or one of the usual names.

    Raises:
        DataError: if there is none.
    """
    for candidate in ENDS_OF_TEXT if name is None else (name,):
        if (number := tokenizer.token_to_id(candidate)) is not None:
            return number
    sought = f"no token {name!r}" if name else f"none of the end-of-text tokens {', '.join(ENDS_OF_TEXT)}"
    raise DataError(f"the tokenizer has {sought}: name the one that it has with --end-of-text TOKEN")


def encode(tokenizer: Tokenizer, texts: Sequence[str], end: int, dtype: np.dtype[Any]) -> tuple[Tokens, np.ndarray]:
    """Return all documents in one row, (tokens,) of ``dtype``, each closed by ``end``; and their lengths, int64.

    Special tokens that a text spells out are encoded as the characters they are.
    """
    tokenizer.encode_special_tokens = True  # not kept in its json
    rows = [row.ids for row in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    lengths = np.array([len(row) + 1 for row in rows], dtype=np.int64)
    closed = chain.from_iterable(chain(row, (end,)) for row in rows)
    return np.fromiter(closed, dtype=dtype, count=int(lengths.sum())), lengths


def load_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer of a local ``tokenizer.json``, or that of a name on the Hugging Face hub.

    Raises:
        DataError: if it is neither there nor can be fetched.
    """
    from tokenizers import Tokenizer

    ways_out = "give a local one with --tokenizer PATH/tokenizer.json, or train one with --tokenizer train:32768"
    if name.endswith(".json") and not Path(name).is_file():
        raise DataError(f"the tokenizer {name} is not there: {ways_out}")
    try:
        return Tokenizer.from_file(name) if Path(name).is_file() else Tokenizer.from_pretrained(name)
    except Exception as error:  # plain Exception from the library's Rust part, anything from the network
        raise DataError(f"the tokenizer {name} could not be read or fetched ({one_line(error)}): {ways_out}") from error
