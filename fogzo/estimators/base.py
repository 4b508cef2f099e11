"""What a gradient estimator is: it fills ``.grad`` from a closure, as a pure function of (parameters, batch, step)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Closure(Protocol):
    """This step's loss at the current parameters, a scalar.

    With ``backward=True`` it also calls ``backward()``, so that ``.grad`` holds the straight-through gradient of the
    whole batch (micro-batches live inside).  Otherwise it is called under ``torch.no_grad()``.
    """

    def __call__(self, *, backward: bool) -> Tensor: ...


@dataclass(frozen=True)
class Estimate:
    """What one estimate saw; all tensors are detached scalars, left on their device.

    Attributes:
        loss: the loss at the undisplaced weights; for an estimate without a first-order pass the mean over its
            probes, which differs by O(ε²).
        beta: β of this step; ``None`` for estimators without one.
        agreement: measured slope along ĝ over ‖g‖.  1: the STE gradient predicts the loss of the quantized network;
            0: it is orthogonal to the truth; nan: it is zero; ``None``: nothing was measured.
        zero_probes: share of the pairs whose two losses were equal to the last bit: probes that crossed no rounding
            boundary, or none that matters.  ``None``: no pairs.
        guide_norm: ‖g‖ of the STE gradient over the quantized weights, in units of the noise (ε·α).
        crossings: codes in which the two probes of the step's first pair differ.  Near 0 the pair measures nothing, or
            chance; ``None``: not counted in this step.
    """

    loss: Tensor
    beta: float | None = None
    agreement: Tensor | None = None
    zero_probes: Tensor | None = None
    guide_norm: Tensor | None = None
    crossings: Tensor | None = None


class Estimator(ABC):
    """Contract: no optimizer, no loop, no hidden state; parameters and buffers are afterwards what they were."""

    @abstractmethod
    def estimate(self, closure: Closure, *, step: int = 0) -> Estimate:
        """Fill ``.grad`` of every trainable parameter for training step ``step``, and say what was seen.

        ``.grad`` must be empty on entry (``optimizer.zero_grad()``): estimators refuse anything but zeros, the STE if
        it was given the weights.  Weights are restored bit for bit also when the closure raises; ``.grad`` is then
        undefined.
        """


def check_whole(value: int, *, name: str, lowest: int = 1) -> int:
    """Return ``value`` if it is a whole number of at least ``lowest``, else raise ``ValueError``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise ValueError(f"{name}={value!r} is not possible: give a whole number of at least {lowest}")
    return value
