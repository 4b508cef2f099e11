"""Images of coming batches, read by other processes while training computes.

Not torch's DataLoader: it ends the run when one of its processes is killed, in whatever line the main process happens
to be; processes that ignore stop signals, as these do, make it hang at exit; and each batch goes to one process whole,
so that the first takes ``workers`` times as long.
"""

from __future__ import annotations

import atexit
import math
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch
from torch import Tensor

from fogzo.data.base import DataError

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
    """Yield each job with its images, in order; ``workers`` processes are up to ``AHEAD`` batches ahead.

    Raises:
        DataError: if an image cannot be read, or a process is gone.
    """
    if not workers:
        yield from ((job, read(job.paths, job.seeds)) for job in jobs)
        return
    waiting: deque[tuple[Job, Future[Tensor]]] = deque()
    # the thread ends last: what it waits for is cancelled then
    with ThreadPoolExecutor(1) as joiner, reading_processes(workers) as processes:
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


def _join(parts: Sequence[Future[Tensor]], pin: bool) -> Tensor:
    read = [part.result() for part in parts]
    whole = torch.empty(sum(map(len, read)), *read[0].shape[1:], pin_memory=pin)
    return torch.cat(read, out=whole)


@contextmanager
def reading_processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Within: ``workers`` processes that outlive stop signals, and neither the context nor this process.

    They start anew (spawn): forked ones could inherit locks that another thread holds.

    Raises:
        DataError: if one of them is gone.
    """
    context = get_context("spawn")
    theirs, lifeline = context.Pipe(duplex=False)
    processes = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(theirs,))
    try:
        yield processes
    except BrokenProcessPool as error:
        lifeline.close()  # ends the other processes, which ignore the pool's SIGTERM
        raise DataError(
            "a process that reads images was killed, perhaps for lack of memory: lower data.workers or batch_size"
        ) from error
    finally:
        processes.shutdown(cancel_futures=True)


def _start(lifeline: Connection) -> None:
    """Set up a process that reads images for another one, until that closes its end of ``lifeline`` or dies."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="PIL")  # some of ImageNet's files have odd EXIF data
    # Signals that stop a run may reach all of its processes; the main one wants its batch still, and ends this one.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    # As forked processes leave: torch's threads make a started one abort when it tidies up (seen with torch 2.14).
    atexit.register(os._exit, 0)


def _end_with(lifeline: Connection) -> None:
    with suppress(EOFError, OSError):
        lifeline.recv()
    os._exit(0)
