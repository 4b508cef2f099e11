"""Images read by other processes are those that one process reads, whatever befalls it."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from helpers.images import cut, data, equal, global_generators_untouched, refused_with, selections

from fogzo.data.imagenet.augment import own_cores


def test_processes_change_nothing_survive_signals_that_stop_a_run_and_name_an_image_that_is_cut_short(tree):
    expected = list(data(tree, mixing=True).train.load(selections(), seed=5))
    before = set(multiprocessing.active_children())
    with global_generators_untouched():
        stream = data(tree, mixing=True, workers=2).train.load(selections(last=10**9), seed=5)
        batches = [next(stream)]
        workers = set(multiprocessing.active_children()) - before
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
            for worker in workers:
                os.kill(worker.pid, number)
        batches += [next(stream) for _ in expected[1:]]
    assert equal(batches, expected)
    assert len(workers) == 2
    damaged = cut(tree / "train" / "n002" / "n002_3.JPEG")  # after the tree was looked at
    with refused_with(f"{damaged} cannot be read as an image", "truncated", "fetch that file again"):
        list(stream)
    assert not set(multiprocessing.active_children()) - before


def test_a_process_that_the_system_kills_ends_the_run_in_one_sentence(small):
    stream = data(small, workers=1).train.load(selections(last=10**9), seed=5)
    before = set(multiprocessing.active_children())
    next(stream)
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGKILL)  # as when memory is short
    with refused_with("a process that reads images was killed", "data.workers"):
        list(stream)
    assert not set(multiprocessing.active_children()) - before


DAMAGES = {"truncated": cut, "cannot identify": lambda file: file.write_text("no image"), "No such file": Path.unlink}


@pytest.mark.parametrize("reason", DAMAGES)
def test_an_image_that_cannot_be_read_is_named_with_the_reason(tree, reason):
    damaged = tree / "train" / "n002" / "n002_3.JPEG"
    found = data(tree).train
    DAMAGES[reason](damaged)
    with refused_with(f"{damaged} cannot be read as an image", reason, "fetch that file again"):
        list(found.load(selections(), seed=0))
    with refused_with(f"{damaged} cannot be read as an image", reason):
        found.batch(torch.arange(18))


def test_workers_are_the_cores_of_this_process(small, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert data(small, workers=None).train.workers == own_cores() >= 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100000")
    assert own_cores() == 1
