"""What has to hold on a GPU, each a function of the device: it needs torch alone, and its twin on the CPU is a test."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import fogzo
from fogzo.estimators import Estimator

Weights = list[fogzo.quantize.QuantizedWeight]
ESTIMATORS: dict[str, Callable[[Weights], Estimator]] = {
    "ste": fogzo.StraightThrough,
    "fogzo": partial(fogzo.FOGZO, beta=0.999),
    "nspsa": partial(fogzo.NSPSA, samples=4),
    "fogzo batched": partial(fogzo.FOGZO, samples=3, beta=0.99, probe_batch=3),
}
QUANTIZERS = {"fixed": fogzo.FixedScale(2), "lsq": fogzo.LSQ(2), "quest": fogzo.QuEST(2), "sign": fogzo.Sign()}
WIDTH = 256


class Loop:
    """A user's own loop: a small quantized network, its optimizer, and batches that are functions of the step."""

    def __init__(
        self,
        device: torch.device,
        estimator: str = "fogzo",
        quantizer: str = "lsq",
        precision: str = "fp32",
        **more: Any,
    ) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.Dropout(0.1)]
        self.model = fogzo.quantize_model(nn.Sequential(*layers), QUANTIZERS[quantizer]).to(device)
        self.device, self.precision, self.forward = device, precision, more.get("forward", self.model)
        self.part = more.get("part", slice(None))
        self.weights = fogzo.quantized_weights(self.model)
        self.estimator = ESTIMATORS[estimator](self.weights)
        fused = device.type == "cuda" or None
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=fused)

    def step(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(64, WIDTH, generator=generator), torch.randint(WIDTH, (64,), generator=generator)
        x, y = x[self.part].to(self.device), y[self.part].to(self.device)
        torch.manual_seed(step)

        def closure(*, backward: bool) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                loss = F.cross_entropy(self.forward(x).float(), y)
            if backward:
                loss.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        self.optimizer.zero_grad()
        estimate = self.estimator.estimate(closure, step=step)
        self.optimizer.step()
        return estimate.loss

    def state(self) -> dict[str, Any]:
        return copy.deepcopy({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()})


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Return whether all tensors of two state dicts agree to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def compiles(device: torch.device, mode: str | None = None, backend: str = "inductor") -> str:
    """``torch.compile`` gives the eager losses, and nothing is compiled again after the first two steps.

    With ``mode="reduce-overhead"`` passes are replayed as CUDA graphs; gradients outlive the probes of their step.
    """
    torch.compiler.reset()
    loop, plain = Loop(device), Loop(device)
    for one in (loop, plain):
        one.model.eval()
    loop.forward = torch.compile(loop.model, backend=backend, mode=mode if device.type == "cuda" else None)

    def both(step: int) -> tuple[float, float]:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return float(loop.step(step)), float(plain.step(step))

    losses = [both(step) for step in range(2)]
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    losses += [both(step) for step in range(2, 6)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before, "compiled again"
    assert all(abs(a - b) < 1e-2 * b for a, b in losses), losses
    return f"{before} graphs, at most {max(abs(a - b) for a, b in losses):.1e} apart"


def _rank(rank: int, device: torch.device, backend: str, folder: str) -> None:
    own = torch.device("cuda", rank % torch.cuda.device_count()) if device.type == "cuda" else device
    torch.set_num_threads(1)
    dist.init_process_group(backend, init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    loop = Loop(own, part=slice(rank * 32, rank * 32 + 32))
    loop.model.eval()
    loop.forward = nn.parallel.DistributedDataParallel(loop.model)
    for step in range(3):
        loop.step(step)
    torch.save({name: value.cpu() for name, value in loop.model.state_dict().items()}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def two_ranks(device: torch.device) -> str:
    """Two processes that share the batch stay the same to the last bit, and near what one computes."""
    backend = "nccl" if device.type == "cuda" and torch.cuda.device_count() > 1 else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (device, backend, folder), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
        ranks = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]
    assert same_bits(*ranks), "the ranks differ"
    one = Loop(device)
    one.model.eval()
    for step in range(3):
        one.step(step)
    apart = max(
        float((one.model.state_dict()[n].cpu() - w).abs().max()) for n, w in ranks[0].items() if w.is_floating_point()
    )
    assert apart < 5e-3, apart  # three steps of at most 1e-3 each
    return f"{backend}: at most {apart:.1e} from one process"


def trains(device: torch.device, estimator: str, quantizer: str) -> str:
    """Steps lower the loss of a batch that stays the same, weights stay finite, and codes are decided in fp32."""
    loop = Loop(device, estimator, quantizer)
    whole = loop.step
    losses = [float(whole(0)) for _ in range(30)]
    assert all(bool(p.isfinite().all()) for p in loop.model.parameters()), "a weight is not finite"
    if estimator != "nspsa":  # which needs more steps than these
        assert losses[-1] < losses[0], f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f}"
    return f"loss {losses[0]:.3f} to {losses[-1]:.3f}"


def restores(device: torch.device, estimator: str) -> str:
    """An estimate leaves weights and buffers as they were, bit for bit."""
    loop = Loop(device, estimator)
    loop.optimizer = torch.optim.SGD(loop.model.parameters(), lr=0.0)
    before = loop.state()["model"]
    for step in range(5):
        loop.step(step)
    assert same_bits(before, loop.model.state_dict()), "a weight has moved"
    return "bit for bit"


def like_the_cpu(device: torch.device, estimator: str) -> str:
    """The first loss is the CPU's, to what fp32 keeps: the same initial weights, batch and codes."""
    losses = []
    for place in (torch.device("cpu"), device):
        loop = Loop(place, estimator)
        loop.model.eval()  # generators of dropout differ
        losses.append(float(loop.step(0)))
    assert abs(losses[0] - losses[1]) < 1e-4 * losses[0], losses
    return f"{abs(losses[0] - losses[1]):.1e} apart"


def in_bf16(device: torch.device) -> str:
    """Under autocast latent weights and gradients stay fp32, and pairs still measure something."""
    loop, plain = Loop(device, precision="bf16"), Loop(device)
    losses = [(float(loop.step(step)), float(plain.step(step))) for step in range(5)]
    assert all(w.latent.dtype == torch.float32 for w in loop.weights)
    assert all(abs(a - b) < 0.05 * b for a, b in losses), losses
    return f"at most {max(abs(a - b) for a, b in losses):.1e} from fp32"


def resumes(device: torch.device, estimator: str) -> str:
    """What is killed after step 3 and goes on from its state ends bit for bit as what was not."""
    whole, killed = Loop(device, estimator), Loop(device, estimator)
    for step in range(6):
        whole.step(step)
    for step in range(3):
        killed.step(step)
    state, again = killed.state(), Loop(device, estimator)
    again.model.load_state_dict(state["model"])
    again.optimizer.load_state_dict(state["optimizer"])
    for step in range(3, 6):
        again.step(step)
    assert same_bits(whole.model.state_dict(), again.model.state_dict()), "the weights differ"
    return "bit for bit"


def one_buffer(device: torch.device) -> str:
    """A FOGZO step takes at its peak no more than one weight-sized buffer beyond a step of the STE."""
    peaks = []
    for name in ("ste", "fogzo"):
        loop = Loop(device, name)
        loop.step(0)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            loop.step(1)
            peaks.append(torch.cuda.max_memory_allocated(device))
        else:
            from fogzo.training.costs import PeakTensorMemory  # needs more than torch, and no GPU does

            with PeakTensorMemory([*loop.model.parameters(), *loop.model.buffers()]) as peak:
                loop.step(1)
            peaks.append(peak.most)
    size = sum(weight.latent.numel() * 4 for weight in loop.weights)
    buffers = (peaks[1] - peaks[0]) / size
    assert buffers < 1.1, f"{buffers:.2f} buffers"
    return f"{buffers:.2f} buffers"


CHECKS: dict[str, Callable[[torch.device], str]] = {
    **{f"trains {e}, {q}": partial(trains, estimator=e, quantizer=q) for e in ESTIMATORS for q in QUANTIZERS},
    **{f"restores weights, {e}": partial(restores, estimator=e) for e in ESTIMATORS},
    **{f"first loss as on the CPU, {e}": partial(like_the_cpu, estimator=e) for e in ESTIMATORS},
    "bf16 autocast": in_bf16,
    "compile": compiles,
    "compile, CUDA graphs": partial(compiles, mode="reduce-overhead"),
    **{f"kill and resume, {e}": partial(resumes, estimator=e) for e in ESTIMATORS},
    "memory of one buffer": one_buffer,
    "two ranks": two_ranks,
}
