"""Figures of the method, on the MLP and a small ViT."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch
from bench_tools import alternate, extra_memory, quantized_mlp, trainer, vit
from torch import nn

import fogzo
from fogzo.data import ImageData


def method(data: ImageData, rounds: int) -> None:
    """All of them."""
    for make, name, batch, threads in ((quantized_mlp, "MLP", 1024, 1), (vit, "ViT 6x192", 64, 0)):
        step_ratio(make, name, batch, threads, data, rounds if name != "MLP" else 5 * rounds)
    memory(data)
    batched_probes(data, max(rounds // 8, 1))
    trainer_overhead(data, max(rounds // 4, 1))


def step_ratio(
    make: Callable[[], nn.Module], name: str, batch: int, threads: int, data: ImageData, rounds: int
) -> None:
    """One FOGZO (n = 1) step over one STE step, in the trainer: data, estimate and optimizer."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    ste = trainer(make(), lambda weights: fogzo.StraightThrough(), data, batch)
    ledger = ste.ledger
    both = ledger.forward_flops + ledger.backward_flops
    flop_limit = (both + 2 * ledger.forward_flops) / both
    for probe_batch in (0, 1):
        own = trainer(make(), partial(fogzo.FOGZO, beta=0.999, probe_batch=probe_batch), data, batch)
        times = alternate([partial(ste.train_step, 0), partial(own.train_step, 0)], rounds)
        ratio = statistics.median(f / s for s, f in zip(*times, strict=True))
        how = "pair evaluated together" if probe_batch else "one loss at a time"
        print(
            f"FOGZO n=1 / STE step, {name}, batch {batch}, {torch.get_num_threads()} threads, {how}: {ratio:.2f}x "
            f"({statistics.median(times[1]) * 1e3:.2f} / {statistics.median(times[0]) * 1e3:.2f} ms)   "
            f"limit {1.03 * flop_limit:.2f}x, 3 % above the FLOP limit"
        )
    torch.set_num_threads(before)


def memory(data: ImageData) -> None:
    """Peak tensor memory of a FOGZO step over that of an STE step, in weight-sized buffers."""
    for make, name, batch in ((quantized_mlp, "MLP", 64), (vit, "ViT 6x192", 8)):
        ste = trainer(make(), lambda weights: fogzo.StraightThrough(), data, batch)
        own = trainer(make(), partial(fogzo.FOGZO, beta=0.999), data, batch)
        print(f"peak tensor memory, {name}, batch {batch}: {extra_memory(ste, own)}")


def batched_probes(data: ImageData, rounds: int) -> None:
    """n-SPSA with n = 796 on the MLP: one loss at a time over batched probes."""
    n = 796
    makers = [partial(fogzo.NSPSA, samples=n, probe_batch=size) for size in (0, 100)]
    trainers = [trainer(quantized_mlp(), make, data, 256) for make in makers]
    times = alternate([partial(one.train_step, 0) for one in trainers], rounds)
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    each = [statistics.median(t) / n * 1e6 for t in times]
    print(
        f"n-SPSA n={n}, MLP, batch 256: one by one / batched (probe_batch 100): {ratio:.1f}x "
        f"({each[0]:.0f} / {each[1]:.0f} µs a pair)   target 8x"
    )
    chunk, batch = 100, 256
    hidden, head, images = torch.rand(2 * chunk * 10, 784), torch.rand(2 * chunk, 10, 10), torch.rand(784, batch)

    def products() -> None:
        for _ in range(n // chunk):
            torch.bmm(head, (hidden @ images).view(2 * chunk, 10, batch))

    times = alternate([partial(trainers[1].train_step, 0), products], rounds)
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True)) * (n // chunk * chunk / n)
    print(
        f"n-SPSA n={n}, MLP, batch {batch}, batched: {ratio:.2f}x of the time of its bare matrix products   limit 1.15x"
    )


def trainer_overhead(data: ImageData, rounds: int, steps: int = 10) -> None:
    """``fit`` for so many steps over a bare loop with the same batches, backward passes and optimizer steps (STE)."""
    one = trainer(vit(), lambda weights: fogzo.StraightThrough(), data, 64, steps)

    def no_evaluation(model: nn.Module, told: Sequence[Callable[[int, int], None]] = ()) -> dict[str, float]:
        return {"accuracy": 0.0}

    one.task.evaluate = no_evaluation  # type: ignore[method-assign]  # which ends every fit
    model = vit()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def fit() -> None:
        one.step = 0
        one.fit()

    def bare() -> None:
        for step in range(steps):
            optimizer.zero_grad()
            one.task.loss(model, data.train.batch(one.order.batch(step))).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    times = alternate([fit, bare], rounds)
    ratio = statistics.median(t / b for t, b in zip(*times, strict=True))
    print(
        f"fit / bare loop, {steps} steps, ViT 6x192, batch 64: {100 * (ratio - 1):+.1f} % "
        f"({statistics.median(times[0]) / steps * 1e3:.2f} / {statistics.median(times[1]) / steps * 1e3:.2f} ms a step)"
        "   limit +5 %"
    )
