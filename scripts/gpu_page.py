"""The page of what a step costs on a device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

# the paper's wall-time row (paper.md, section 4): 3.522 B tokens of STE take what 3.0 B take of 70 % STE, 30 % FOGZO
PAPERS_RATIO = (3.522 / 3.0 - 0.7) / 0.3
WAYS: dict[bool | str, str] = {False: "eager", True: "compiled", "reduce-overhead": "CUDA graphs"}


class Row(NamedTuple):
    """What was measured of one network, estimator and way to run it."""

    network: str
    estimator: str
    compiled: bool | str  # as the key compile
    seconds: float | None  # a step; None: it did not fit, or another error, which stands in ``note``
    ratio: float | None = None  # to the STE's step, run alike
    flop_limit: float | None = None  # what the ratio would be if time were FLOPs
    kernels: int | None = None  # that a step starts; on the CPU: operations
    peak_bytes: int | None = None
    utilisation: float | None = None  # FLOP/s over those of one large product in the same precision, measured here
    note: str = ""


def page(rows: Iterable[Row], machine: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = [
        "# What a step costs here",
        "",
        ", ".join(f"{name} {value}" for name, value in machine.items()),
        "",
        f"FOGZO over STE in the paper: {PAPERS_RATIO:.2f}x, by its wall-time row of LLaMA-30M on one RTX 5090.",
        "",
        "| network | estimator | how | s a step | over STE | FLOP limit | kernels | peak, GiB | utilisation |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        how = WAYS[row.compiled]
        if row.seconds is None:
            lines.append(f"| {row.network} | {row.estimator} | {how} | not run: {row.note} |" + " |" * 5)
            continue
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}x"
        peak = "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**30:.2f}"
        lines.append(
            f"| {row.network} | {row.estimator} | {how} | {row.seconds:.4f} | {ratio} | {row.flop_limit:.2f}x | "
            f"{row.kernels:,} | {peak} | {100 * (row.utilisation or 0):.0f} % |"
        )
    return "\n".join(lines) + "\n"
