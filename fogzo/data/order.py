"""Which examples a training step sees, and their batch: a function of (seed, step), so the position is one integer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fogzo.data.base import Batch, Selection, Split
from fogzo.seeding import derive_seed


class DataOrder:
    """A fresh permutation of ``examples`` for each epoch; batches run across the borders of epochs.

    >>> order = DataOrder(examples=5, batch_size=2, seed=0)
    >>> seen = torch.cat([order.batch(step) for step in range(5)])      # two epochs in five batches
    >>> sorted(seen[:5].tolist()), sorted(seen[5:].tolist())
    ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])

    ``repeats`` > 1 shows each example that many times in a row, augmented anew, and 1/repeats of them an epoch (DeiT's
    repeated augmentation).
    """

    def __init__(self, examples: int, batch_size: int, seed: int, repeats: int = 1) -> None:
        if not 1 <= batch_size <= examples:
            raise ValueError(
                f"batch_size={batch_size} is not possible with {examples} training examples: give 1 to {examples}"
            )
        if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
            raise ValueError(f"repeats={repeats!r} is not possible: give a whole number of at least 1")
        self.examples, self.batch_size, self.seed, self.repeats = examples, batch_size, seed, repeats
        self._permutations: dict[int, Tensor] = {}  # of the epochs that the last batch touched

    def batch(self, step: int) -> Tensor:
        """Return the indices of the examples of training step ``step`` (from 0), int64, shape (batch_size,)."""
        start = step * self.batch_size
        first, last = start // self.examples, (start + self.batch_size - 1) // self.examples
        offset = start - first * self.examples
        self._permutations = {epoch: self._permutation(epoch) for epoch in range(first, last + 1)}
        if first == last:  # nearly always, and small networks take a step in the time of a few small tensors
            return self._permutations[first][offset : offset + self.batch_size]
        return torch.cat(list(self._permutations.values()))[offset : offset + self.batch_size]

    def _permutation(self, epoch: int) -> Tensor:
        if epoch in self._permutations:
            return self._permutations[epoch]
        generator = torch.Generator().manual_seed(derive_seed("epoch", self.seed, epoch))
        permutation = torch.randperm(self.examples, generator=generator)
        return permutation.repeat_interleave(self.repeats)[: self.examples] if self.repeats > 1 else permutation


class Feed:
    """Batch of any step; steps asked for in turn are read ahead by splits that can.

    ``share`` are the offsets within each batch that this process takes: all of them, or a rank's part.
    """

    def __init__(self, split: Split, order: DataOrder, seed: int, share: range) -> None:
        self.split, self.order, self.seed, self.share = split, order, seed, share
        self._stream: Iterator[Batch] | None = None
        self._next_step = 0

    def batch(self, step: int) -> Batch:
        """Return this process's part of the batch of training step ``step`` (from 0), on the split's device."""
        if self._stream is None or step != self._next_step:
            self.close()
            self._stream = self.split.load(self._selections(step), seed=self.seed)
        self._next_step = step + 1
        return next(self._stream)

    def close(self) -> None:
        """Stop reading ahead."""
        stop = getattr(self._stream, "close", None)
        self._stream = None
        if stop is not None:
            stop()

    def _selections(self, step: int) -> Iterator[Selection]:
        part = slice(self.share.start, self.share.stop)
        offsets = torch.arange(self.share.start, self.share.stop)
        while True:
            yield Selection(self.order.batch(step)[part], offsets + step * self.order.batch_size)
            step += 1
