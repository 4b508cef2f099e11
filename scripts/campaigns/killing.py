"""Processes that are killed at a given moment, and then allowed to end."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from campaign import differing
from processes import FAULT, SAID, WHOLE, Outcome, ended, started, told

Case = Callable[[int], Outcome]  # of a rank
TOUCHES = ("open", "os.rename", "os.remove", "os.truncate", "os.link", "os.mkdir")


def watched(case: Callable[[], Outcome], at: int, wait: float, hits: Path) -> Outcome:
    """Carry out ``case`` and count how often it touches files; the ``at``-th time it dies, after ``wait`` seconds."""
    touched = 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal touched
        if event not in TOUCHES or (event == "open" and not set(str(args[1])) & set("wax+")):
            return
        touched += 1
        if touched == at:
            os.write(log, f"{event} {called(Path(str(args[0])))}".encode())
            if wait:
                signal.setitimer(signal.ITIMER_REAL, wait)  # nothing catches it: as sudden as SIGKILL
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    log = os.open(hits, os.O_WRONLY | os.O_CREAT)
    sys.addaudithook(watch)
    word, text = told(case)
    return word, text or str(touched)


def called(path: Path) -> str:
    """Return what a file or folder is called in any run."""
    if path.parent.name in ("runs", "mlp_compute_tuning"):
        return "run folder"
    return path.name.partition("-0")[0]


def carried_out(case: Case, ranks: int, folder: Path, kill: tuple[int, int, float, float]) -> Outcome:
    """Start a process for each rank and kill one: ``kill`` is which, at which touch, how long after it, or when."""
    who, at, wait, clock = kill
    parts = [partial(watched, partial(case, rank), at * (rank == who), wait, folder / "hit") for rank in range(ranks)]
    processes = [started(part, folder) for part in parts]
    if clock:
        time.sleep(clock)
        os.kill(processes[who][0], signal.SIGKILL)
    first = ended(*processes[who])
    for child, reading in processes[:who] + processes[who + 1 :]:
        if first[0] == FAULT:  # as torchrun ends the others when one is gone
            os.kill(child, signal.SIGKILL)
        ended(child, reading)
    return first


def tried(case: Case, ranks: int, dice: random.Random, whole: Path, folder: Path) -> tuple[list[str], str]:
    """Carry out ``case`` in one folder, and in another with up to seven kills before it may end.

    Returns where it was killed, and what is wrong with its end if anything.
    """
    begun = time.monotonic()
    word, text = carried_out(case, ranks, whole, (0, 0, 0, 0))
    lasted = time.monotonic() - begun
    if word != WHOLE:
        return [], "" if word == SAID else text
    places: list[str] = []
    for _ in range(dice.randint(2, 7)):
        who, at, wait = dice.randrange(ranks), dice.randint(1, max(int(text), 1)), dice.choice([0, 1e-4, 3e-3])
        by_clock = dice.random() < 0.4 or who > 0  # rank 0 alone writes
        kill = (who, 0, 0, dice.uniform(0.01, lasted)) if by_clock else (who, at, wait * dice.random(), 0)
        (hit := folder / "hit").unlink(missing_ok=True)
        word, said = carried_out(case, ranks, folder, kill)
        if word == WHOLE:
            break
        place = "by the clock" if by_clock else hit.read_text()
        if not place or not (said.startswith("it died of") or word == SAID):
            return places, said
        places.append(f"rank {who}, {place}" if ranks > 1 else place)
    if word != WHOLE and (end := carried_out(case, ranks, folder, (0, 0, 0, 0)))[0] != WHOLE:
        return places, end[1]
    return places, differing(whole / "results", folder / "results")
