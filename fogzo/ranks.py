"""Several processes, one training run: what they share, and the checks that they are still one.

A process by itself is rank 0 of 1, and nothing here costs it anything.  All ranks hold the same weights, and what they
decide together (losses, stop requests) is averaged or gathered, so that they stay the same to the last bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


class RanksDiffer(RuntimeError):
    """The processes of one run no longer compute the same thing."""


def world() -> tuple[int, int]:
    """Return this process's rank and the number of ranks."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def announced() -> tuple[int, int, int]:
    """Return rank, rank on this machine and number of ranks, as torchrun announces them in the environment."""
    rank, local, ranks = (int(os.environ.get(name, 0)) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    return rank, local, max(ranks, 1)


def barrier() -> None:
    """Wait for all ranks."""
    if world()[1] > 1:
        dist.barrier()


def gather(values: Tensor) -> Tensor:
    """Return one row a rank, in their order: shape (ranks, *values.shape)."""
    ranks = world()[1]
    if ranks == 1:
        return values.unsqueeze(0)
    rows = [torch.empty_like(values) for _ in range(ranks)]
    dist.all_gather(rows, values.contiguous())
    return torch.stack(rows)


def largest(number: int) -> int:
    """Return the largest over the ranks of a whole number, which stays on the host: no device is waited for."""
    return number if world()[1] == 1 else int(gather(torch.tensor(number)).max())


def same_mean(losses: Tensor, checksum: Tensor | None) -> Tensor:
    """Return the mean over ranks of ``losses``, after making sure that all ranks stand where this one does.

    Raises:
        RanksDiffer: if ``checksum`` (of the displaced weights: weights, guide and noise in one number) is not the same
            to the last bit.
    """
    if world()[1] == 1:
        return losses
    compared = losses.new_zeros(()) if checksum is None else checksum
    rows = gather(torch.cat([compared.double().reshape(1), losses.double().flatten()]))
    check_same(rows[:, 0], "the weights, guides or noise of the probes")
    return rows[:, 1:].mean(0).view(losses.shape)  # in fp64: what is left to do is to take differences


_unread: list[tuple[Tensor, str]] | None = None  # what ranks have to agree in, within checks_deferred


@contextmanager
def checks_deferred() -> Iterator[None]:
    """Within: :func:`check_same` waits for no device, and what it was given is looked at by :func:`settle_checks`."""
    global _unread
    before, _unread = _unread, []
    try:
        yield
    finally:
        _unread = before


def settle_checks() -> None:
    """Look at what was deferred.

    Raises:
        RanksDiffer: as :func:`check_same` would have.
    """
    global _unread
    if _unread:
        unread, _unread = _unread, None
        try:
            for values, what in unread:
                check_same(values, what)
        finally:
            _unread = []


def check_same(values: Tensor, what: str) -> None:
    """Refuse to go on if ``values``, one of each rank, are not all the same."""
    if len(values) == 1:
        return
    if _unread is not None:
        _unread.append((values, what))
        return
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
    """Return rank's part of ``range(total)``, in runs of nearly equal length."""
    return range(total * rank // ranks, total * (rank + 1) // ranks)


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Return sums in fp64, for exact evaluations."""
    if world()[1] == 1:
        return list(values)
    totals = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(totals)
    return [float(total) for total in totals]
