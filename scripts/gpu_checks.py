"""What has to hold on a GPU, each a function of the device: it needs torch alone, and its twin on the CPU is a test."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from gpu_compile import compiles
from gpu_loop import ESTIMATORS, QUANTIZERS, Loop, same_bits
from gpu_ranks import two_ranks


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
