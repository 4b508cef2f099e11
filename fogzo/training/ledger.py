"""What training costs, counted where it happens: passes, FLOPs, time and memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fogzo.quantizers.shared import each_by_itself
from fogzo.runs.schema import COSTS

PROC = Path("/proc/self")  # Linux: writing 5 to clear_refs makes the present memory the largest so far (VmHWM)


class PeakMemory:
    """The most memory that a run's training steps took, also where one process carries out many runs.

    Of CUDA: the most that tensors took.  Of the CPU: the process's largest resident set, libraries included.  It counts
    from the last :meth:`forget` on.  Where the system cannot forget what was before (not Linux), only the first run of
    a process is known, with its evaluations.
    """

    def __init__(self) -> None:
        self.runs, self.forgot = 0, False

    def next_run(self) -> None:
        """Note that another run begins in this process."""
        self.runs += 1

    def forget(self, device: torch.device) -> None:
        """Leave out what was taken until now, if the system can."""
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            (PROC / "clear_refs").write_text("5")
            self.forgot = True
        except OSError:
            self.forgot = False

    def read(self, device: torch.device) -> int | None:
        """Return bytes; ``None``: not known."""
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device)
        if self.forgot:
            lines = (PROC / "status").read_text().splitlines()
            return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
        if self.runs > 1:
            return None
        try:
            import resource
        except ImportError:  # not on Windows
            return None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


PEAK = PeakMemory()  # of this process


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
        """Return the totals as they stand in a logged row."""
        return {key: getattr(self, key) for key in COSTS}

    def state_dict(self) -> dict[str, float | None]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        """Go on from these totals; what a pass costs stays this run's own, whose batch may be another."""
        for name, value in state.items():
            if name not in ("forward_flops", "backward_flops"):
                setattr(self, name, value)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context of a precision: with ``bf16`` the network's products are in bf16, with ``fp32`` nothing is.

    Weights and their quantization stay in fp32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def measure_flops(loss: Callable[[], Tensor]) -> tuple[float, float]:
    """Return the FLOPs of one forward and one backward pass of ``loss``, by torch's flop counter.  Fills ``.grad``.

    Each layer counts what rounding its inputs takes, also where that is done once for several.
    """
    # the counter has no formula for the CPU's fused attention, and sees plain products in its place
    with sdpa_kernel(SDPBackend.MATH), each_by_itself():
        with FlopCounterMode(display=False) as forward, torch.enable_grad():
            value = loss()
        with FlopCounterMode(display=False) as backward:
            value.backward()  # type: ignore[no-untyped-call]
    return float(forward.get_total_flops()), float(backward.get_total_flops())
