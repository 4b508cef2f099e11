"""The most memory that a run took, also where one process carries out many runs."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

PROC = Path("/proc/self")  # Linux: writing 5 to clear_refs makes the present memory the largest so far (VmHWM)


class PeakMemory:
    """Of CUDA: the most that tensors took.  Of the CPU: the process's largest resident set, libraries included.

    It counts from :meth:`begin` on.  Where the system cannot forget what was before (not Linux), only the first run of
    a process is known.
    """

    def __init__(self) -> None:
        self.runs, self.forgot = 0, False

    def begin(self, device: torch.device) -> None:
        """A run begins."""
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self.runs += 1
        try:
            (PROC / "clear_refs").write_text("5")
            self.forgot = True
        except OSError:
            self.forgot = False

    def read(self, device: torch.device) -> int | None:
        """Bytes; ``None``: not known."""
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
