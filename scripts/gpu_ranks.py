"""What has to hold of two processes on a GPU, or on one each where there are two; or on the CPU."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from gpu_loop import Loop, same_bits
from torch import nn


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
