"""Start the processes of one run, and let batch norm see the batch of all of them.

Started by ``torchrun --nproc-per-node=N train.py ...``.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fogzo.ranks import announced, world


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
