"""Image sets that fit into memory, as normalised tensors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fogzo.data.base import Split


@dataclass(frozen=True)
class TensorSplit(Split):
    """``inputs``: float32, (N, 1, 28, 28), normalised;  ``targets``: int64, (N,)."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        indices = indices.to(self.targets.device)
        # index_select copies rows whole: 8 times as fast as self.inputs[indices] on the CPU
        return self.inputs.index_select(0, indices), self.targets.index_select(0, indices)

    def to(self, device: torch.device) -> TensorSplit:
        return TensorSplit(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class ImageData:
    """A training and a test split, with the name and hash that go into the record."""

    name: str
    train: TensorSplit
    test: TensorSplit
    classes: int
    sha256: str

    def to(self, device: torch.device) -> ImageData:
        return ImageData(self.name, self.train.to(device), self.test.to(device), self.classes, self.sha256)

    def describe(self) -> dict[str, str | int]:
        """What a run's record keeps of its data."""
        return {"name": self.name, "train": len(self.train), "test": len(self.test), "sha256": self.sha256}


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 over the bytes of ``arrays``."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def split(images: np.ndarray, labels: np.ndarray, mean: float, std: float) -> TensorSplit:
    """From uint8 images (N, 28, 28) and labels (N,); ``mean`` and ``std`` are those of the pixels in [0, 1]."""
    inputs = torch.from_numpy(images.astype(np.float32)).div_(255).sub_(mean).div_(std)
    return TensorSplit(inputs.view(-1, 1, 28, 28), torch.from_numpy(labels.astype(np.int64)))
