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
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from fogzo.ranks import announced, world


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Within: the ranks that torchrun started can talk, by NCCL on GPUs and by gloo elsewhere."""
    if announced()[2] == 1 or world()[1] > 1:
        yield
        return
    # gloo for what is on the host, such as a stop signal
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
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


def global_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return what ``F.batch_norm`` would for the batch of all ranks, of which each has a part of the same size.

    Shape (N, C, ...) → the same.  Running statistics follow the whole batch; without ``training`` ranks don't matter.
    """
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    ranks = world()[1]
    x = input if input.dtype == torch.float64 else input.float()  # under autocast it comes in bf16
    dims, shape = [0, *range(2, input.dim())], [-1, *[1] * (input.dim() - 2)]
    mean: Tensor = _SumOverRanks.apply(x.mean(dims)) / ranks
    centred = x - mean.view(shape)
    variance: Tensor = _SumOverRanks.apply(centred.square().mean(dims)) / ranks
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            count = input.numel() / input.shape[1] * ranks
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (count / (count - 1)), momentum)
    normalised = centred * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        normalised = normalised * weight.view(shape)
    return (normalised if bias is None else normalised + bias.view(shape)).to(input.dtype)


class _BatchNormOverRanks(TorchFunctionMode):
    """Within: ``F.batch_norm`` is :func:`global_batch_norm`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (global_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _over_ranks(kind: type[_BatchNorm]) -> type[_BatchNorm]:
    """Return a subclass of a batch norm's class that sees the batch of all ranks."""

    def forward(self: _BatchNorm, *inputs: Tensor) -> Any:
        with _BatchNormOverRanks():
            return kind.forward(self, *inputs)

    return type(f"Global{kind.__name__}", (kind,), {"forward": forward})


def synchronise_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Make batch-norm layers see the whole batch, so that N ranks compute what one would, and return the model.

    On the CPU, which torch's SyncBatchNorm does not serve, each layer keeps its class, momentum and what a subclass
    adds (an activation, say), and gets another ``F.batch_norm`` underneath.
    """
    if world()[1] == 1:
        return model
    if device.type == "cuda":
        synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return synchronised
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
            module.__class__ = _over_ranks(type(module))
    return model
