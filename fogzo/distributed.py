"""Several processes, one training run: what they share, and the checks that they are still one.

Started by ``torchrun --nproc-per-node=N train.py ...``; a process by itself is rank 0 of 1, and nothing here costs it
anything.  All ranks hold the same weights, and what they decide together (losses, stop requests) is averaged or
gathered, so that they stay the same to the last bit.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class RanksDiffer(RuntimeError):
    """The processes of one run no longer compute the same thing."""


def world() -> tuple[int, int]:
    """This process's rank and the number of ranks."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def announced() -> tuple[int, int, int]:
    """Rank, rank on this machine and number of ranks, as torchrun announces them in the environment."""
    rank, local, ranks = (int(os.environ.get(name, 0)) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    return rank, local, max(ranks, 1)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Within: the ranks that torchrun started can talk, by NCCL on GPUs and by gloo elsewhere."""
    if announced()[2] == 1 or world()[1] > 1:
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        # DistributedDataParallel is held by cycles; one that outlives its group takes the group's threads down at exit,
        # and now and then the process with them
        gc.collect()
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks."""
    if world()[1] > 1:
        dist.barrier()


def gather(values: Tensor) -> Tensor:
    """One row a rank, in their order: shape (ranks, *values.shape)."""
    ranks = world()[1]
    if ranks == 1:
        return values.unsqueeze(0)
    rows = [torch.empty_like(values) for _ in range(ranks)]
    dist.all_gather(rows, values.contiguous())
    return torch.stack(rows)


def same_mean(losses: Tensor, checksum: Tensor | None) -> Tensor:
    """The mean over ranks of ``losses``, after making sure that all ranks stand where this one does.

    Raises:
        RanksDiffer: if ``checksum`` (of the displaced weights: weights, guide and noise in one number) is not the same
            to the last bit.
    """
    if world()[1] == 1:
        return losses
    own = losses.new_zeros(()) if checksum is None else checksum
    rows = gather(torch.cat([own.double().reshape(1), losses.double().flatten()]))
    check_same(rows[:, 0], "the weights, guides or noise of the probes")
    return rows[:, 1:].mean(0).view(losses.shape).to(losses)


def check_same(values: Tensor, what: str) -> None:
    """Refuse to go on if ``values``, one of each rank, are not all the same."""
    different = (values != values[0]).nonzero().flatten().tolist()
    if different and not bool(values.isnan().all()):
        raise RanksDiffer(
            f"rank {different[0]} differs from rank 0 in {what} ({values[different[0]].item():.17g} against "
            f"{values[0].item():.17g}): give all ranks the same seed, config and software, and resume from a checkpoint"
        )


def as_rank_0(tensors: Iterable[Tensor | None]) -> None:
    """Give all ranks rank 0's values, where each has computed the whole batch: the last bits may differ on GPUs."""
    if world()[1] > 1:
        for tensor in tensors:
            if tensor is not None:
                dist.broadcast(tensor, 0)


def share(total: int, rank: int, ranks: int) -> range:
    """Rank's part of ``range(total)``, in runs of nearly equal length."""
    return range(total * rank // ranks, total * (rank + 1) // ranks)


class _SumOverRanks(torch.autograd.Function):
    """All-reduce; its gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        grad = grad_outputs[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the whole batch of all ranks, for the CPU, which torch's SyncBatchNorm does not serve.

    Every rank has a batch of the same size.
    """

    def forward(self, input: Tensor) -> Tensor:
        ranks = world()[1]
        if ranks == 1 or not self.training:
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()  # under autocast it comes in bf16
        dims = [0, 2, 3]
        mean: Tensor = _SumOverRanks.apply(x.mean(dims)) / ranks
        centred = x - mean[:, None, None]
        variance: Tensor = _SumOverRanks.apply(centred.square().mean(dims)) / ranks
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
                count = input.numel() / input.shape[1] * ranks
                self.running_mean.lerp_(mean, self.momentum or 0.1)
                self.running_var.lerp_(variance * (count / (count - 1)), self.momentum or 0.1)
        normalised = centred * (variance + self.eps).rsqrt()[:, None, None]
        return (normalised * self.weight[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def synchronise_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Make batch-norm layers see the whole batch, so that N ranks compute what one would."""
    if world()[1] == 1:
        return model
    if device.type == "cuda":
        synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return synchronised
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = GlobalBatchNorm2d
    return model


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Sums in fp64, for exact evaluations."""
    if world()[1] == 1:
        return list(values)
    totals = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(totals)
    return [float(total) for total in totals]
