"""What a model is trained for: a loss for the estimator's closure, and sums for an exact evaluation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fogzo.data import Batch, Data, Split, TextData
from fogzo.ranks import sum_over_ranks, world

Network = Callable[..., Any]


class Task(ABC):
    """A loss, and metrics of the quantized network in evaluation mode.

    Attributes:
        metric: the one that a run is known by.
        higher_is_better: of the metric.
    """

    metric: str
    higher_is_better: bool

    def __init__(self, data: Data, evaluation_batch: int, train_examples: int, test_examples: int) -> None:
        self.data = data
        self.evaluation_batch = evaluation_batch
        # how much of the splits is evaluated: evenly spread, in a fixed order
        self.train_examples, self.test_examples = train_examples, test_examples

    @abstractmethod
    def loss(self, model: Network, batch: Batch) -> Tensor:
        """Return the mean loss of a batch, a scalar."""

    @abstractmethod
    def metrics(self, train: list[float], test: list[float]) -> dict[str, float]:
        """Return the metrics from two results of :meth:`sums` (added up over a split)."""

    @abstractmethod
    def sums(self, model: Network, batch: Batch) -> list[Tensor]:
        """Return what is added up over a split: summed loss, predictions, right ones among them (0 where no metric)."""

    @torch.no_grad()
    def evaluate(self, model: nn.Module, told: Sequence[Callable[[int, int], None]] = ()) -> dict[str, float]:
        """Return metrics over the test split and a part of the training split; exact for any number of ranks.

        Those that are ``told`` hear after each batch how many are done, and of how many.
        """
        splits = [(self.data.train, self.train_examples), (self.data.test, self.test_examples)]
        batches = [self._batches(split, examples) for split, examples in splits]
        done, of = 0, sum(map(len, batches))
        totals = [[0.0, 0.0, 0.0] for _ in splits]
        was_training = model.training
        model.eval()
        try:
            with parametrize.cached():  # quantize once, not once a batch
                for total, (split, _), parts in zip(totals, splits, batches, strict=True):
                    for part in parts:
                        for place, value in enumerate(self.sums(model, split.batch(part))):
                            total[place] += float(value)
                        done += 1
                        for tell in told:
                            tell(done, of)
        finally:
            model.train(was_training)
        device = next(model.parameters()).device
        # divided once, by the metrics, so that ragged batches and ranks count right
        return self.metrics(*(sum_over_ranks(total, device) for total in totals))

    def _batches(self, split: Split, examples: int) -> Sequence[Tensor]:
        """Return this rank's batches of ``examples`` of a split: whole ones, which one process would take too."""
        examples = min(examples, len(split))
        rank, ranks = world()
        return torch.split(torch.arange(examples) * len(split) // examples, self.evaluation_batch)[rank::ranks]


class Classification(Task):
    """Cross-entropy (soft targets too) and top-1 accuracy in %."""

    metric, higher_is_better = "accuracy", True

    def __init__(self, data: Data, evaluation_batch: int = 2000, evaluation_examples: int | None = None) -> None:
        """Take ``evaluation_examples`` of either split; ``None``: 10,000 of the training split, all of the other."""
        train, test = evaluation_examples or 10_000, evaluation_examples or len(data.test)
        super().__init__(data, evaluation_batch, train, test)

    def loss(self, model: Network, batch: Batch) -> Tensor:
        inputs, targets = batch
        return F.cross_entropy(model(inputs), targets)

    def sums(self, model: Network, batch: Batch) -> list[Tensor]:
        inputs, targets = batch
        logits = model(inputs).float()
        correct = (logits.argmax(1) == targets).sum()
        return [F.cross_entropy(logits, targets, reduction="sum"), torch.tensor(len(targets)), correct]

    def metrics(self, train: list[float], test: list[float]) -> dict[str, float]:
        return {
            "train_loss": train[0] / train[1],
            "test_loss": test[0] / test[1],
            "accuracy": 100 * (test[2] / test[1]),
        }


class LanguageModelling(Task):
    """Next-token cross-entropy, in nats a token, and perplexity of (a part of) the test split."""

    metric, higher_is_better = "perplexity", False

    def __init__(self, data: TextData, evaluation_tokens: int = 2**17, evaluation_batch: int = 0) -> None:
        self.windows = max(1, evaluation_tokens // data.sequence)
        # 128 MiB of logits, but at least 8 windows: 0.8 GiB with the paper's vocabulary
        batch = evaluation_batch or max(8, 2**25 // (data.sequence * data.vocabulary))
        super().__init__(data, batch, train_examples=max(1, self.windows // 2), test_examples=self.windows)

    def loss(self, model: Network, batch: Batch) -> Tensor:
        inputs, targets = batch
        logits = model(input_ids=inputs, use_cache=False).logits  # (B, T, vocabulary)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def sums(self, model: Network, batch: Batch) -> list[Tensor]:
        inputs, targets = batch
        logits = model(input_ids=inputs, use_cache=False).logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        return [loss, torch.tensor(targets.numel()), torch.tensor(0)]

    def metrics(self, train: list[float], test: list[float]) -> dict[str, float]:
        test_loss = test[0] / test[1]
        perplexity = math.exp(test_loss) if test_loss < 700 else math.inf
        return {"train_loss": train[0] / train[1], "test_loss": test_loss, "perplexity": perplexity}


def task_of(data: Data, evaluation_tokens: int = 2**17, evaluation_examples: int | None = None) -> Task:
    """Return the task that a data set is for; text is evaluated on ``evaluation_tokens`` of its test split, images on
    ``evaluation_examples`` of either split (``None``: see :class:`Classification`)."""
    return (
        LanguageModelling(data, evaluation_tokens)
        if isinstance(data, TextData)
        else Classification(data, _images_at_a_time(data), evaluation_examples)
    )


def _images_at_a_time(data: Data) -> int:
    """Return the images of an evaluation batch: 2,000 of 28 pixels, fewer of larger ones."""
    values = data.test.batch(torch.arange(1))[0].numel()
    return max(1, min(2000, 40_000_000 // values))
