"""Speed and memory, each figure beside its limit:  python scripts/bench.py [--quick]

Everything that is compared runs in one process, alternating, and medians are quoted: this is about ratios, not about
the machine.  The FLOP limit is what torch's flop counter says the ratio would be if time were FLOPs.
"""

from __future__ import annotations

import argparse
import statistics
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo.utils
from hydra import compose, initialize_config_dir
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fogzo
from fogzo.build import build, measure_ledger
from fogzo.compute import ComputeLedger
from fogzo.data import ImageData, mnist5k
from fogzo.estimators import Estimator
from fogzo.models import mlp
from fogzo.settings import Settings
from fogzo.tasks import Classification
from fogzo.trainer import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few repetitions: checks that it runs, not how fast")
    parser.add_argument("--only", choices=("method", "models"), help="one half of the figures")
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else 40
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads unless said otherwise, {rounds} rounds or more\n"
    )
    if arguments.only != "models":
        method(mnist5k(), rounds)
    if arguments.only != "method":
        models(max(rounds // 4, 2))


def method(data: ImageData, rounds: int) -> None:
    """Figures of the method, on the MLP and a small ViT."""
    for make, name, batch, limit, threads in ((quantized_mlp, "MLP", 1024, 1.70, 1), (vit, "ViT 6x192", 64, 1.65, 0)):
        step_ratio(make, name, batch, limit, threads, data, rounds if name != "MLP" else 5 * rounds)
    memory(data)
    batched_probes(data, max(rounds // 8, 1))
    trainer_overhead(data, rounds)


def models(rounds: int) -> None:
    """Figures of the mini recipes: FOGZO, compiled and W2A2 steps, and what data loading takes."""
    for name in ("deit_tiny", "resnet18", "llama_mini"):
        ste, own = (of_recipe(f"model={name}", f"estimator={estimator}") for estimator in ("ste", "fogzo"))
        ratio, (before, after) = step_times(ste, own, rounds)
        forward, backward = ste.ledger.forward_flops, ste.ledger.backward_flops
        print(
            f"FOGZO n=1 / STE step, {name}, mini recipe: {ratio:.2f}x ({after:.0f} / {before:.0f} ms)   "
            f"limit 1.70x, FLOP limit {(3 * forward + backward) / (forward + backward):.2f}x"
        )
        print(f"  data loading: {100 * loading(ste, rounds) / before:.2f} % of an STE step   limit 5 %")
    for estimator in ("ste", "fogzo"):
        eager, compiled = (
            of_recipe("model=llama_mini", f"estimator={estimator}", f"compile={on}") for on in (False, True)
        )
        for step in range(3):
            compiled.train_step(step)
        compilations = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        ratio, (before, after) = step_times(eager, compiled, rounds)
        again = torch._dynamo.utils.counters["stats"]["unique_graphs"] - compilations
        print(
            f"compiled / eager step, llama_mini, {estimator}: {ratio:.2f}x ({after:.0f} / {before:.0f} ms), "
            f"{again} recompilations after step 3   limit 1.00x, 0"
        )
    plain, quest = (
        of_recipe("model=llama_mini", "estimator=ste", f"quantizer={quantizer}", f"activations={quantizer}")
        for quantizer in ("none", "quest")
    )
    ratio, (before, after) = step_times(plain, quest, rounds)
    print(f"W2A2 QuEST / full-precision step, llama_mini: {ratio:.2f}x ({after:.0f} / {before:.0f} ms)   limit 2.0x")


def of_recipe(*overrides: str) -> Trainer:
    """A trainer from the configs, as train.py makes it, without a folder."""
    configs = Path(__file__).resolve().parent.parent / "configs"
    with initialize_config_dir(str(configs), version_base="1.3"):
        return build(compose("train", list(overrides)))


def step_times(one: Trainer, other: Trainer, rounds: int) -> tuple[float, tuple[float, float]]:
    """Median ratio other / one of their steps, and the median milliseconds of each."""
    times = alternate([partial(one.train_step, 0), partial(other.train_step, 0)], rounds)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    return ratio, (statistics.median(times[0]) * 1e3, statistics.median(times[1]) * 1e3)


def loading(one: Trainer, rounds: int) -> float:
    """Milliseconds that a step waits for its batch."""
    (times,) = alternate([partial(one.feed.batch, 0)], 10 * rounds)
    return statistics.median(times) * 1e3


def step_ratio(
    make: Callable[[], nn.Module], name: str, batch: int, limit: float, threads: int, data: ImageData, rounds: int
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
            f"target {limit:.2f}x, FLOP limit {flop_limit:.2f}x"
        )
    torch.set_num_threads(before)


def memory(data: ImageData) -> None:
    """Peak tensor memory of a FOGZO step over that of an STE step, in weight-sized buffers."""
    for make, name, batch in ((quantized_mlp, "MLP", 64), (vit, "ViT 6x192", 8)):
        peaks = []
        for estimator in (lambda weights: fogzo.StraightThrough(), partial(fogzo.FOGZO, beta=0.999)):
            one = trainer(make(), estimator, data, batch)
            one.train_step(0)  # the optimizer's buffers
            state = [buffer for values in one.optimizer.state.values() for buffer in values.values()]
            with PeakTensorMemory([*one.model.parameters(), *one.model.buffers(), *state]) as peak:
                one.train_step(1)
            peaks.append(peak.most)
        size = sum(w.latent.numel() * 4 for w in fogzo.quantized_weights(one.model))
        print(
            f"peak tensor memory, {name}, batch {batch}: FOGZO - STE = {(peaks[1] - peaks[0]) / 2**20:.2f} MiB = "
            f"{(peaks[1] - peaks[0]) / size:.2f} weight-sized buffers   limit 1"
        )


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


def trainer_overhead(data: ImageData, rounds: int) -> None:
    """The trainer's step over a bare loop's with the same forward, backward and optimizer step (STE)."""
    one = trainer(vit(), lambda weights: fogzo.StraightThrough(), data, 64)
    model, optimizer = vit(), None
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    batch = data.train.batch(torch.arange(64))

    def bare() -> None:
        optimizer.zero_grad()
        one.task.loss(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    times = alternate([partial(one.train_step, 0), bare], rounds)
    ratio = statistics.median(t / b for t, b in zip(*times, strict=True))
    print(f"trainer's step / bare loop, ViT 6x192, batch 64: {100 * (ratio - 1):+.1f} %   limit +5 %")


def trainer(model: nn.Module, estimator: Callable[[Any], Estimator], data: ImageData, batch: int) -> Trainer:
    """A trainer without a folder, for single steps."""
    task = Classification(data)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    ledger: ComputeLedger = measure_ledger(model, task, batch)
    return Trainer(
        model=model,
        task=task,
        estimator=estimator(fogzo.quantized_weights(model)),
        optimizer=optimizer,
        schedule=lambda step: 1.0,
        ledger=ledger,
        settings=Settings(steps=1000, batch_size=batch, seed=0),
    )


def quantized_mlp() -> nn.Module:
    torch.manual_seed(0)
    return fogzo.quantize_model(mlp(), fogzo.FixedScale(2, scale_in_std=2.0), biases=True)


def vit() -> nn.Module:
    """6 blocks of width 192 on 28-pixel digits with patches of 4; the blocks' linear layers are quantized."""
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=28, patch_size=4, in_chans=1, num_classes=10, embed_dim=192, depth=6, num_heads=3
    )
    return fogzo.quantize_model(model, fogzo.FixedScale(2), skip=["patch_embed", "head"])


def alternate(functions: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of each function in each round, one after the other in every round; the first two rounds don't count."""
    times: list[list[float]] = [[] for _ in functions]
    for round_number in range(rounds + 2):
        for function, own in zip(functions, times, strict=True):
            begun = time.perf_counter()
            function()
            if round_number >= 2:
                own.append(time.perf_counter() - begun)
    return times


class PeakTensorMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within: follows the storages that operations return, and keeps the most bytes alive at one time in ``most``.

    ``existing`` counts from the start: an in-place operation returns tensors that were there before.
    """

    def __init__(self, existing: list[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive, self.most = 0, 0
        self.seen: dict[int, int] = {}
        for tensor in existing:
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.seen:
            self.seen[key] = storage.nbytes()
            self.alive += self.seen[key]
            self.most = max(self.most, self.alive)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.alive -= self.seen.pop(key, 0)


if __name__ == "__main__":
    main()
