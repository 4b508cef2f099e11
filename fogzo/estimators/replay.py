"""One world for a pair of probes: the same random numbers, and buffers that stand still.

The two losses of a pair differ by about 1e-5 of their size.  Another dropout mask would drown that difference, and so
would a buffer that the first of the two passes has moved (a spectral norm's vectors, say); running statistics updated
by a perturbed forward pass would be wrong (paper.md, section 2, "The pair sees one world").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fogzo.quantizers import Quantizer


def tracking_norms(model: nn.Module) -> list[Any]:
    """Return the normalisation layers that would update running statistics in a forward pass now."""
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


class Buffers:
    """The buffers of a model as they stand, to be put back after forward passes that write them, whatever layers do it.

    torch's batch norms, which :func:`frozen_statistics` holds still, and quantizers write none, and are not copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self.places: list[tuple[nn.Module, str, Tensor, Tensor]] = [
            (module, name, buffer, buffer.clone())
            for module in model.modules()
            if not isinstance(module, Quantizer) and type(module).forward is not _BatchNorm.forward
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        self.versions = [buffer._version for _, _, buffer, _ in self.places]
        self.written = False

    def restore(self) -> None:
        """Put back what has been written or replaced since; ``written`` says whether anything ever was."""
        for i, (module, name, buffer, kept) in enumerate(self.places):
            if module._buffers.get(name) is buffer and buffer._version == self.versions[i]:
                continue  # nearly always: a glance at a counter, not at values
            self.written = True
            module._buffers[name] = buffer
            buffer.copy_(kept)
            self.versions[i] = buffer._version


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
        """Return the present state of the same generators."""
        return RandomState(self.devices)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        for device, state in self.others.items():
            torch.get_device_module(device).set_rng_state(state, device)


class World:
    """What the passes of one step share: generators and buffers, put back before each of them."""

    def __init__(self, model: nn.Module, random_state: RandomState) -> None:
        self.random_state, self.buffers = random_state, Buffers(model)

    def restore(self) -> None:
        self.random_state.restore()
        self.buffers.restore()


@contextmanager
def same_world(model: nn.Module, random_state: RandomState, *, first_pass_done: bool) -> Iterator[World]:
    """Within: forward passes may begin in the same world again, and leave batch-norm statistics alone.

    Afterwards buffers are what they were, and the generators are where one forward pass leaves them: where they were,
    if that pass came before.
    """
    after = random_state.now() if first_pass_done else None
    with frozen_statistics(model):
        world = World(model, random_state)
        try:
            yield world
        finally:
            world.buffers.restore()
            if after is not None:
                after.restore()
