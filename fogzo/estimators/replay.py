"""One world for a pair of probes: the same random numbers, and batch-norm statistics that stand still.

The two losses of a pair differ by about 1e-5 of their size.  Another dropout mask would drown that difference, and
running statistics updated by a perturbed forward pass would be wrong (paper.md, section 2, "The pair sees one world").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def tracking_norms(model: nn.Module) -> list[Any]:
    """The normalisation layers that would update running statistics in a forward pass now."""
    return [m for m in model.modules() if m.training and getattr(m, "track_running_stats", False)]


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Within: batch-norm layers normalise as they would, but leave their running statistics alone."""
    norms = tracking_norms(model)
    try:
        for norm in norms:
            # in training mode a norm layer that doesn't track uses the very same batch statistics
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


class RandomState:
    """The state of torch's global generators (CPU and the given devices), to be put back any number of times.

    Random numbers that the closure draws must come from these.  Python's and NumPy's generators are not covered: draw
    augmentations before the closure is called, as data loaders do.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self.devices = {device for device in devices if device.type != "cpu"}
        self.cpu = torch.get_rng_state()
        self.others = {device: torch.get_device_module(device).get_rng_state(device) for device in self.devices}

    def now(self) -> RandomState:
        """The present state of the same generators."""
        return RandomState(self.devices)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        for device, state in self.others.items():
            torch.get_device_module(device).set_rng_state(state, device)


@contextmanager
def same_world(model: nn.Module, random_state: RandomState, *, first_pass_done: bool) -> Iterator[None]:
    """Within: forward passes may start from ``random_state`` again, and leave batch-norm statistics alone.

    Afterwards the generators are where one forward pass leaves them: where they were, if that pass came before.
    """
    after = random_state.now() if first_pass_done else None
    try:
        with frozen_statistics(model):
            yield
    finally:
        if after is not None:
            after.restore()
