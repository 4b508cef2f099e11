"""What has to hold of a compiled network on a GPU, replayed as CUDA graphs or not; or on the CPU."""

from __future__ import annotations

import torch
from gpu_loop import Loop


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
