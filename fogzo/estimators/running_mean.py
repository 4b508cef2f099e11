"""A mean over past steps that is part of an estimator's state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RunningMean:
    """Mean of the values of past steps, older ones counting less; a tensor, so that nothing waits for a GPU."""

    def __init__(self, memory: float = 0.95) -> None:
        self.memory, self.steps = memory, 0
        self.smoothed = torch.zeros((), dtype=torch.float64)

    def subtract_from(self, values: Tensor) -> Tensor:
        """Return ``values`` less the mean of the steps before, and take them into it.

        The mean knows nothing of this step's noise, so that subtracting it adds no bias.  In the first step there is
        none, and nothing is subtracted.
        """
        before = self.value().to(values)
        self.add(values)
        return values - before

    def add(self, values: Tensor) -> None:
        """Take a step's values into the mean."""
        mean = values.detach().double().mean()
        self.smoothed = self.memory * self.smoothed.to(mean) + (1 - self.memory) * mean
        self.steps += 1

    def value(self) -> Tensor:
        """Return the mean so far, 0 before the first step; shape ()."""
        return self.smoothed / (1 - self.memory**self.steps) if self.steps else self.smoothed

    def state_dict(self) -> dict[str, Any]:
        return {"smoothed": self.smoothed, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.smoothed, self.steps = state["smoothed"], state["steps"]
