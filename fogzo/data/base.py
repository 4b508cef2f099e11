"""What the trainer needs of a data set: examples reached by their index, so that the position is one integer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from fogzo.errors import UserError

Batch = tuple[Tensor, Tensor]  # inputs and targets


class DataError(UserError):
    """A data set is missing or damaged; the message says which, where, and what to do."""


class Facts(NamedTuple):
    """What is known of a set of images without reading it."""

    train: int  # examples
    test: int
    image: tuple[int, int, int]  # channels, height, width in pixels, as training takes them if nothing else is said
    classes: int
    sha256: str | None = None  # that ``describe()`` gives; None: only reading the data tells


# ImageNet-100's counts are those of CMC's list of classes
FACTS = {
    "mnist5k": Facts(
        train=4_000,
        test=1_000,
        image=(1, 28, 28),
        classes=10,
        sha256="1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa",
    ),
    "mnist": Facts(60_000, 10_000, (1, 28, 28), 10),
    "fashion_mnist": Facts(60_000, 10_000, (1, 28, 28), 10),
    "imagenet100": Facts(126_689, 5_000, (3, 224, 224), 100),
    "imagenet1k": Facts(1_281_167, 50_000, (3, 224, 224), 1000),
}


class Selection(NamedTuple):
    """Examples of one batch.  Both are int64, on the CPU, of shape (B,)."""

    indices: Tensor  # which examples
    positions: (
        Tensor  # their places in the whole training's sequence (step · batch size + offset): they seed augmentation
    )


class Split(ABC):
    """A training or test split.  What it yields lies on the device that :meth:`to` was given last."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Tensor) -> Batch:
        """Return examples as they are evaluated, without augmentation; ``indices`` int64, shape (B,)."""

    @abstractmethod
    def to(self, device: torch.device) -> Split:
        """Return the same split, yielding its batches on ``device``."""

    def load(self, selections: Iterable[Selection], *, seed: int) -> Iterator[Batch]:
        """Yield the batches of ``selections``, in order, augmented as for training.

        A split that reads files may read ahead in other processes; what it yields is a function of the selection and
        ``seed`` all the same.
        """
        for selection in selections:
            yield self.batch(selection.indices)


def check_part(examples: int, there: int) -> None:
    """Refuse to train on ``examples`` where there are none, or more than are ``there``."""
    if not 1 <= examples <= there:
        raise UserError(
            f"training_examples={examples} is not possible: give 1 to {there}, as many as the training set has"
        )


class Subset(Split):
    """``examples`` of a split, evenly spread over it, as if it held no others."""

    def __init__(self, split: Split, examples: int) -> None:
        check_part(examples, len(split))
        self.split, self.examples = split, examples

    def __len__(self) -> int:
        return self.examples

    def batch(self, indices: Tensor) -> Batch:
        return self.split.batch(self._in_whole(indices))

    def to(self, device: torch.device) -> Subset:
        return Subset(self.split.to(device), self.examples)

    def load(self, selections: Iterable[Selection], *, seed: int) -> Iterator[Batch]:
        return self.split.load((Selection(self._in_whole(one.indices), one.positions) for one in selections), seed=seed)

    def _in_whole(self, indices: Tensor) -> Tensor:
        return indices * len(self.split) // self.examples


@dataclass(frozen=True)
class Data(ABC):
    """A training and a test split, with what goes into the record."""

    name: str
    train: Split
    test: Split

    def to(self, device: torch.device) -> Self:
        return replace(self, train=self.train.to(device), test=self.test.to(device))

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what a run's record keeps of its data: name, sizes, hash."""
