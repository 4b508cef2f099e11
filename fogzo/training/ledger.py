"""What training costs, counted where it happens."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fogzo.training.memory import PEAK

TIMES = ("seconds", "cpu_seconds", "data_seconds")


@dataclass
class ComputeLedger:
    """Running totals of a run, charged by the closure.

    ``forwards`` and ``backwards`` count passes over a whole batch; ``examples`` and ``seconds`` are added by the
    trainer, once a step, as are ``data_seconds``, the part of ``seconds`` in which a step waited for its batch, and
    ``cpu_seconds``, what this process's threads computed meanwhile: less in doubt than ``seconds`` on a busy machine.
    ``flops`` multiplies the passes by what torch's flop counter saw in one of each (matrix
    products and convolutions; evaluation is not counted).  ``forward_equivalents`` = forwards + 2 backwards is the
    convention behind the paper's 5/3, whatever a backward pass really costs: in the MLP, whose first layer needs no
    gradient of its input, it is nearer to 1 forward.
    """

    forward_flops: float  # an example's share of a forward pass
    backward_flops: float
    forwards: int = 0
    backwards: int = 0
    flops: float = 0.0
    examples: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    data_seconds: float = 0.0
    peak_memory_bytes: int | None = None  # over all processes that a run was resumed in; None: not known

    def charge(self, *, forwards: int = 0, backwards: int = 0, examples: int) -> None:
        """Count passes over a batch of ``examples``."""
        self.forwards += forwards
        self.backwards += backwards
        self.flops += examples * (forwards * self.forward_flops + backwards * self.backward_flops)

    def note_memory(self, device: torch.device) -> None:
        """Bring ``peak_memory_bytes`` up to date."""
        peak = PEAK.read(device)
        self.peak_memory_bytes = None if peak is None else max(peak, self.peak_memory_bytes or 0)

    @property
    def forward_equivalents(self) -> int:
        return self.forwards + 2 * self.backwards

    def row(self) -> dict[str, float | None]:
        """The totals as they stand in a logged row."""
        counted = ("forwards", "backwards", "flops", "forward_equivalents", "examples")
        return {name: getattr(self, name) for name in (*counted, *TIMES, "peak_memory_bytes")}

    def state_dict(self) -> dict[str, float | None]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """``bf16``: bf16 for the network's products; weights and their quantization stay in fp32.  ``fp32``: nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def measure_flops(loss: Callable[[], Tensor]) -> tuple[float, float]:
    """FLOPs of one forward and of one backward pass of ``loss``, by ``torch.utils.flop_counter``.  Fills ``.grad``."""
    # the counter has no formula for the CPU's fused attention, and sees plain products in its place
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward, torch.enable_grad():
            value = loss()
        with FlopCounterMode(display=False) as backward:
            value.backward()  # type: ignore[no-untyped-call]
    return float(forward.get_total_flops()), float(backward.get_total_flops())
