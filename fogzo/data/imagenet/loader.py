"""Images of coming batches, read by other processes while training computes."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from typing import NamedTuple

import torch
from torch import Tensor

from fogzo.data.base import DataError
from fogzo.data.imagenet.augment import start_reader

CHUNK = 32  # images that a process reads at a time
AHEAD = 3  # batches under way, the one that is asked for included


class Job(NamedTuple):
    """What is to be read for one batch."""

    paths: list[str]
    seeds: list[int]  # of the images' augmentation
    targets: Tensor
    mixing_seed: int


def read_ahead(
    read: Callable[[Sequence[str], Sequence[int]], Tensor], jobs: Iterator[Job], workers: int, *, pin: bool
) -> Iterator[tuple[Job, Tensor]]:
    """Each job with its images, in order; ``workers`` processes are up to ``AHEAD`` batches ahead.

    Not torch's DataLoader, which ends the run when a stop signal takes one of its workers along, in whatever line the
    main process happens to be; and which gives whole batches to workers, so that the first takes ``workers`` times as
    long.  Processes start anew (spawn): forked ones could inherit locks that another thread holds.

    Raises:
        DataError: if an image cannot be read, or a process is gone.
    """
    if not workers:
        yield from ((job, read(job.paths, job.seeds)) for job in jobs)
        return
    context = get_context("spawn")
    theirs, lifeline = context.Pipe(duplex=False)
    processes = ProcessPoolExecutor(workers, context, initializer=start_reader, initargs=(theirs,))
    joiner = ThreadPoolExecutor(1)
    waiting: deque[tuple[Job, Future[Tensor]]] = deque()
    try:
        while True:
            for job in islice(jobs, AHEAD - len(waiting)):
                size = min(CHUNK, math.ceil(len(job.paths) / workers))
                starts = range(0, len(job.paths), size)
                parts = [processes.submit(read, job.paths[i : i + size], job.seeds[i : i + size]) for i in starts]
                waiting.append((job, joiner.submit(_join, parts, pin)))
            if not waiting:
                return
            job, inputs = waiting.popleft()
            yield job, inputs.result()
    except BrokenProcessPool as error:
        lifeline.close()  # ends the other processes, which ignore the pool's SIGTERM
        raise DataError(
            "a process that reads images was killed, perhaps for lack of memory: lower data.workers or batch_size"
        ) from error
    finally:
        processes.shutdown(cancel_futures=True)
        joiner.shutdown()  # its tasks end now, as what they wait for is cancelled


def _join(parts: Sequence[Future[Tensor]], pin: bool) -> Tensor:
    read = [part.result() for part in parts]
    whole = torch.empty(sum(map(len, read)), *read[0].shape[1:], pin_memory=pin)
    return torch.cat(read, out=whole)
