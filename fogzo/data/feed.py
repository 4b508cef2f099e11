"""The training batches of one process, as a function of the step."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fogzo.data.base import Batch, Selection, Split
from fogzo.data.order import DataOrder


class Feed:
    """Batch of any step; steps asked for in turn are read ahead by splits that can.

    ``share`` are the offsets within each batch that this process takes: all of them, or a rank's part.
    """

    def __init__(self, split: Split, order: DataOrder, seed: int, share: range) -> None:
        self.split, self.order, self.seed, self.share = split, order, seed, share
        self._stream: Iterator[Batch] | None = None
        self._next_step = 0

    def batch(self, step: int) -> Batch:
        """This process's part of the batch of training step ``step`` (from 0), on the split's device."""
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
        own = slice(self.share.start, self.share.stop)
        offsets = torch.arange(self.share.start, self.share.stop)
        while True:
            yield Selection(self.order.batch(step)[own], offsets + step * self.order.batch_size)
            step += 1
