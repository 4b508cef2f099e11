"""Processes that stay alive and train one run after another: torch loads once in each, not once a run."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from fogzo.errors import UserError
from fogzo.evidence.parse import CONFIGS
from fogzo.runs.folder import InUseError

PATIENCE = 60.0  # seconds for another process to leave a run's folder, such as a worker whose parent was killed


def pool(jobs: int) -> ProcessPoolExecutor:
    """Return ``jobs`` workers for ``run``; they stop, with a checkpoint, when this process is gone."""
    if jobs < 1:
        raise UserError(f"jobs={jobs} is not possible: give at least 1 process")
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_watch_parent)


def run(overrides: Sequence[str]) -> dict[str, Any] | None:
    """Train what ``python train.py`` with these overrides would, in the same folder, and print nothing.

    Returns the summary, or ``None`` if the run diverged.

    Raises:
        UserError: for a config that will not do.
        RuntimeError: if the run was stopped by a signal.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    from fogzo.training.launch import train
    from fogzo.training.signals import Interrupted
    from fogzo.training.watch import Diverged

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = compose("train", list(overrides))
    except HydraException as error:
        raise UserError(" ".join(str(error).split())) from None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        started = time.monotonic()
        while True:
            try:
                return train(cfg)
            except Diverged:
                return None
            except InUseError:
                if time.monotonic() - started > PATIENCE:
                    raise
                time.sleep(1)
            except Interrupted as stop:
                if (parent := multiprocessing.parent_process()) is not None and not parent.is_alive():
                    os._exit(1)  # nobody is left to hear of it
                raise RuntimeError(str(stop)) from None


def _watch_parent() -> None:
    threading.Thread(target=_follow_the_parent, daemon=True).start()


def _follow_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)  # a run that goes on saves a checkpoint and stops
    time.sleep(PATIENCE / 2)
    os._exit(1)
