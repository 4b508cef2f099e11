"""What a step costs on a device, and its page: estimators on the paper's networks and batches, with made-up data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from bench_tools import of_recipe
from torch.profiler import ProfilerActivity, profile

from fogzo.training.compilation import How
from fogzo.training.ledger import PEAK
from fogzo.training.trainer import Trainer

# the paper's wall-time row (paper.md, section 4): 3.522 B tokens of STE take what 3.0 B take of 70 % STE, 30 % FOGZO
PAPERS_RATIO = (3.522 / 3.0 - 0.7) / 0.3
WAYS: dict[bool | str, str] = {False: "eager", True: "compiled", "reduce-overhead": "CUDA graphs"}


# llama_95m is the network of llama_30m (configs/networks.yaml): one row serves both
NETWORKS = {
    "DeiT-Tiny, 224 pixels": ("model=deit_tiny",),
    "ResNet-18, 224 pixels": ("model=resnet18",),
    "LLaMA-30M and 95M": ("model=llama_95m", "data.sequence=512"),
}
ESTIMATORS = ("ste", "fogzo", "one_sided", "nspsa")
SHARED = ("scale=paper", "data=synthetic", "epochs=null", "steps=1000000", "log_every=1000000", "checkpoint_every=0")


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


def measure(
    device: torch.device,
    networks: Mapping[str, Sequence[str]],
    seconds: float,
    *more: str,
    ways: Iterable[How] | None = None,
) -> list[Row]:
    """Return the rows of ``networks``, with about ``seconds`` of steps for each; ``more`` are further overrides.

    ``ways``: values of ``compile``; ``None``: those that the device has.
    """
    rows: list[Row] = []
    for network, keys in networks.items():
        for how in ways_on(device) if ways is None else ways:
            base: Row | None = None
            for estimator in ESTIMATORS:
                given = [*SHARED, *keys, *more, f"device={device}", f"compile={how}", f"estimator={estimator}"]
                row = _row(network, estimator, how, given, seconds, base)
                base = row if estimator == "ste" and row.seconds else base
                rows.append(row)
    return rows


def ways_on(device: torch.device) -> list[How]:
    """Return the values of ``compile`` that mean something on ``device``."""
    return [False, True, *(["reduce-overhead"] if device.type == "cuda" else [])]  # type: ignore[list-item]


def _row(network: str, estimator: str, how: How, given: list[str], seconds: float, base: Row | None) -> Row:
    try:
        one = of_recipe(*given)
        times, flops = _times(one, seconds)
        each = statistics.median(times)
        forwards, backwards = one.estimator.passes(1)
        forward, backward = one.ledger.forward_flops, one.ledger.backward_flops
        return Row(
            network,
            estimator,
            how,
            each,
            ratio=each / base.seconds if base and base.seconds else None,
            flop_limit=(forwards * forward + backwards * backward) / (forward + backward),
            kernels=_kernels(one),
            peak_bytes=PEAK.read(one.device),
            utilisation=flops / each / product_rate(one.device, one.settings.precision),
        )
    except RuntimeError as error:  # out of memory, or a kernel that is not there: the other rows count
        return Row(network, estimator, how, None, note=str(error).splitlines()[0][:120])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _times(one: Trainer, seconds: float, warm_up: int = 3) -> tuple[list[float], float]:
    """Return the seconds of single steps, and the FLOPs of one."""
    for step in range(warm_up):
        one.train_step(step)
    _wait(one.device)
    PEAK.forget(one.device)
    times: list[float] = []
    before = one.ledger.flops
    while len(times) < 3 or (sum(times) < seconds and len(times) < 100):
        begun = time.perf_counter()
        one.train_step(warm_up + len(times))
        _wait(one.device)
        times.append(time.perf_counter() - begun)
    return times, (one.ledger.flops - before) / len(times)


def _kernels(one: Trainer) -> int:
    cuda = one.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
        one.train_step(1000)
        _wait(one.device)
    if cuda:
        return sum(1 for event in seen.events() or () if str(event.device_type).endswith("CUDA"))
    return sum(1 for event in seen.events() or () if event.name.startswith("aten::"))


def product_rate(device: torch.device, precision: str) -> float:
    """Return the FLOP/s of one large matrix product."""
    size = 8192 if device.type == "cuda" else 256
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(size, size, device=device, dtype=dtype)
    times = []
    for _ in range(6):
        begun = time.perf_counter()
        a @ a
        _wait(device)
        times.append(time.perf_counter() - begun)
    return 2 * size**3 / min(times)


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
