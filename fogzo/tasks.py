"""What a model is trained for: a loss for the estimator's closure, and sums for an exact evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fogzo.data import ImageData, Split


@dataclass(frozen=True)
class Classification:
    """Cross-entropy and top-1 accuracy."""

    data: ImageData
    evaluation_batch: int = 2000
    train_examples: int = 10_000  # of the training split, for train_loss: the first ones, in a fixed order

    def loss(self, model: Callable[[Tensor], Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        return F.cross_entropy(model(inputs), targets)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """``train_loss``, ``test_loss`` and ``accuracy`` (test, in %) of the quantized network, in evaluation mode."""
        was_training = model.training
        model.eval()
        try:
            with parametrize.cached():  # quantize once, not once a batch
                train_loss, _ = self._means(model, self.data.train, self.train_examples)
                test_loss, accuracy = self._means(model, self.data.test, len(self.data.test))
        finally:
            model.train(was_training)
        return {"train_loss": train_loss, "test_loss": test_loss, "accuracy": 100 * accuracy}

    def _means(self, model: nn.Module, split: Split, examples: int) -> tuple[float, float]:
        """Mean loss and accuracy over the first ``examples``; divided once, so that ragged batches count right."""
        losses, correct, count = 0.0, 0, 0
        indices = torch.arange(min(examples, len(split)), device=split.targets.device)
        for part in torch.split(indices, self.evaluation_batch):
            inputs, targets = split.batch(part)
            logits = model(inputs).float()
            losses += float(F.cross_entropy(logits, targets, reduction="sum"))
            correct += int((logits.argmax(1) == targets).sum())
            count += len(targets)
        return losses / count, correct / count
