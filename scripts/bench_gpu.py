"""What a step costs on a device: estimators on the paper's networks and batches, with made-up data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence

import torch
from bench_tools import of_recipe
from gpu_page import Row
from torch.profiler import ProfilerActivity, profile

from fogzo.training.compilation import How
from fogzo.training.ledger import PEAK
from fogzo.training.trainer import Trainer

# llama_95m is the network of llama_30m (configs/networks.yaml): one row serves both
NETWORKS = {
    "DeiT-Tiny, 224 pixels": ("model=deit_tiny",),
    "ResNet-18, 224 pixels": ("model=resnet18",),
    "LLaMA-30M and 95M": ("model=llama_95m", "data.sequence=512"),
}
ESTIMATORS = ("ste", "fogzo", "one_sided", "nspsa")
SHARED = ("scale=paper", "data=synthetic", "epochs=null", "steps=1000000", "log_every=1000000", "checkpoint_every=0")


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
