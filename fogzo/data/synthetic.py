"""Made-up images or tokens of any shape, on the device from the start: for timing, where data must cost nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fogzo.checks import whole
from fogzo.data.base import Batch
from fogzo.data.text import TextData, TokenSplit
from fogzo.data.vision import ImageData, TensorSplit
from fogzo.errors import UserError

DISTINCT = 64  # examples that are made; others are these again, so that no number of them takes memory


@dataclass(frozen=True)
class SyntheticSplit(TensorSplit):
    """``examples`` of which the first ``len(targets)`` are all that there are: example i is i modulo their number."""

    examples: int = 0

    def __len__(self) -> int:
        return self.examples

    def batch(self, indices: Tensor) -> Batch:
        return super().batch(indices % len(self.targets))

    def to(self, device: torch.device) -> SyntheticSplit:
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


class SyntheticTokens(TokenSplit):
    """The same for windows of tokens: ``windows``, int64, (N, T + 1)."""

    def __init__(self, windows: Tensor, examples: int) -> None:
        super().__init__([], windows.shape[1] - 1, windows.device)
        self.windows, self.examples = windows, examples

    @property
    def tokens(self) -> int:
        return self.examples * self.sequence + 1

    def batch(self, indices: Tensor) -> Batch:
        block = self.windows.index_select(0, (indices % len(self.windows)).to(self.device, non_blocking=True))
        return block[:, :-1].contiguous(), block[:, 1:].contiguous()

    def to(self, device: torch.device) -> SyntheticTokens:
        return SyntheticTokens(self.windows.to(device), self.examples)


def synthetic(
    image: Sequence[int] = (3, 224, 224),
    classes: int = 100,
    sequence: int | None = None,
    vocabulary: int = 50304,
    examples: int = 2**20,
    **of_other_data: Any,
) -> ImageData | TextData:
    """Return normal noise for pixels with labels at random, or tokens at random where ``sequence`` is given.

    Args:
        image: channels, height and width.
        classes: of images.
        sequence: tokens of a window; ``None``: images.
        vocabulary: of tokens.
        examples: of the training split; the test split has 64.
        of_other_data: what recipes set for the data that they are for (augmentation, say); it changes nothing here.

    Raises:
        UserError: for a shape that is not possible.
    """
    whole(examples, "examples"), whole(classes, "classes"), whole(vocabulary, "vocabulary", lowest=2)
    if len(image) != 3:
        raise UserError(f"data.image={list(image)} is no shape: give channels, height and width, such as [3,224,224]")
    shape = [whole(size, "image") for size in image]
    made = {"sequence": whole(sequence, "sequence"), "vocabulary": vocabulary} if sequence else {"image": shape}
    sha256 = hashlib.sha256(json.dumps(made | {"classes": classes}).encode()).hexdigest()
    generator = torch.Generator().manual_seed(0)
    if sequence:
        windows = torch.randint(vocabulary, (DISTINCT, sequence + 1), generator=generator)
        train, test = (SyntheticTokens(windows, count) for count in (examples, DISTINCT))
        return TextData("synthetic", train, test, vocabulary, sequence, "none: tokens at random", sha256)
    inputs = torch.randn(DISTINCT, *shape, generator=generator)
    targets = torch.randint(classes, (DISTINCT,), generator=generator)
    of_images = (SyntheticSplit(inputs, targets, count) for count in (examples, DISTINCT))
    return ImageData("synthetic", next(of_images), next(of_images), classes, sha256)
