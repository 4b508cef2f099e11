"""Text to tokens: tokenizers by name, from a file or trained on the spot, and the processes that use them."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fogzo.data.base import DataError
from fogzo.data.shards import Tokens, token_dtype
from fogzo.data.sources import Chunk

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"  # of the tokenizers that we train
# how open tokenizers call it, the most telling name first
ENDS_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[EOS]", "[SEP]")
SMALLEST_VOCABULARY = 257  # every byte, and the end of text


def in_test(key: str, share: float) -> bool:
    """Whether a document belongs to the test split: decided by the hash of ``key``, so other documents don't matter."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "replace")).digest()[:8]) < share * 2**64


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer with at most ``vocabulary`` tokens; the same texts give the same tokenizer.

    Raises:
        ValueError: if ``vocabulary`` does not hold all bytes and the end of text.
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
    if vocabulary < SMALLEST_VOCABULARY:
        raise ValueError(f"vocabulary={vocabulary} is too small: 256 bytes and the end of text need 257")


def vocabulary_of(tokenizer: Tokenizer) -> int:
    """One more than the largest token number: what an embedding needs."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def end_of_text(tokenizer: Tokenizer, name: str | None = None) -> int:
    """The number of the token between documents, called ``name``, or one of the usual names.

    Raises:
        DataError: if there is none.
    """
    for candidate in ENDS_OF_TEXT if name is None else (name,):
        if (number := tokenizer.token_to_id(candidate)) is not None:
            return number
    sought = f"no token {name!r}" if name else f"none of the end-of-text tokens {', '.join(ENDS_OF_TEXT)}"
    raise DataError(f"the tokenizer has {sought}: name the one that it has with --end-of-text TOKEN")


def encode(tokenizer: Tokenizer, texts: Sequence[str], end: int, dtype: np.dtype[Any]) -> tuple[Tokens, np.ndarray]:
    """All documents in one row, (tokens,) of ``dtype``, each closed by ``end``; and their lengths, int64, (documents,).

    Special tokens that a text spells out are encoded as the characters they are.
    """
    tokenizer.encode_special_tokens = True  # not kept in its json
    rows = [row.ids for row in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    lengths = np.fromiter((len(row) + 1 for row in rows), dtype=np.int64, count=len(rows))
    flat = np.fromiter((token for row in rows for token in (*row, end)), dtype=dtype, count=int(lengths.sum()))
    return flat, lengths


def load_tokenizer(name: str) -> Tokenizer:
    """From a local ``tokenizer.json``, or by its name on the Hugging Face hub.

    Raises:
        DataError: if it is neither there nor can be fetched.
    """
    from tokenizers import Tokenizer

    ways_out = "give a local one with --tokenizer PATH/tokenizer.json, or train one with --tokenizer train:32768"
    try:
        if Path(name).is_file():
            return Tokenizer.from_file(name)
        if name.endswith(".json"):
            raise DataError(f"the tokenizer {name} is not there: {ways_out}")
        return Tokenizer.from_pretrained(name)
    except DataError:
        raise
    except Exception as error:  # plain Exception from the library's Rust part, anything from the network
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"the tokenizer {name} could not be read or fetched ({reason}): {ways_out}") from error


class Encoder:
    """A chunk's tokens, their number in each document, and which documents are for testing; runs in the workers."""

    def __init__(self, tokenizer: Path, end: str | None, test_share: float) -> None:
        self.tokenizer = load_tokenizer(str(tokenizer))
        self.end, self.test_share = end_of_text(self.tokenizer, end), test_share
        self.vocabulary = vocabulary_of(self.tokenizer)

    def __call__(self, texts: Sequence[str]) -> tuple[Tokens, np.ndarray, np.ndarray]:
        tokens, lengths = encode(self.tokenizer, texts, self.end, token_dtype(self.vocabulary))
        return tokens, lengths, np.array([in_test(text, self.test_share) for text in texts], dtype=bool)


Encoded = tuple[Tokens, np.ndarray, np.ndarray]
_encoder: Encoder | None = None  # of a worker process


def encoded(
    chunks: Iterator[Chunk], encoder: Encoder, arguments: tuple[Any, ...], workers: int
) -> Generator[tuple[dict[str, Any], Encoded]]:
    """The chunks' positions and tokens, in order; never more than two chunks a worker are under way."""
    if workers == 1:
        for chunk in chunks:
            yield chunk.position, encoder(chunk.texts)
        return
    # spawned, not forked: the tokenizer's threads and torch's do not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, arguments) as pool:
        waiting: deque[tuple[dict[str, Any], Future[Encoded]]] = deque()
        try:
            for chunk in chunks:
                waiting.append((chunk.position, pool.submit(_encode, chunk.texts)))
                if len(waiting) >= 2 * workers:
                    position, future = waiting.popleft()
                    yield position, future.result()
            while waiting:
                position, future = waiting.popleft()
                yield position, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start_worker(*arguments: Any) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encoder = Encoder(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # returns when it was killed too; without this, its workers would wait for ever
    os._exit(1)


def _encode(texts: list[str]) -> Encoded:
    assert _encoder is not None
    return _encoder(texts)
