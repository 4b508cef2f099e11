"""Processes that are killed at a given moment, and what a run leaves, to be held against that of another."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from campaign import FAULT, SAID, WHOLE, Outcome, ended, started, told

Case = Callable[[int], Outcome]  # of a rank
TIMES = ("seconds", "cpu_seconds", "data_seconds", "peak_memory_bytes", "digest", "metrics_bytes")
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
            os.write(log, f"{event} {Path(str(args[0])).name.partition('-0')[0]}".encode())
            if wait:
                signal.setitimer(signal.ITIMER_REAL, wait)  # nothing catches it: as sudden as SIGKILL
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    log = os.open(hits, os.O_WRONLY | os.O_CREAT)
    sys.addaudithook(watch)
    word, text = told(case)
    return word, text or str(touched)


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


def tried(case: Case, ranks: int, dice: random.Random, top: Path, places: Counter[str]) -> tuple[int, str]:
    """Kill ``case`` up to three times and let it end; return how often it was killed, and what is wrong if anything."""
    whole, folder = top / "whole", top / "killed"
    begun = time.monotonic()
    word, text = carried_out(case, ranks, whole, (0, 0, 0, 0))
    lasted = time.monotonic() - begun
    if word != WHOLE:
        return 0, "" if word == SAID else text
    kills, outcome = 0, (FAULT, "")
    for _ in range(dice.randint(1, 3)):
        at, wait = dice.randint(1, max(int(text), 1)), dice.choice([0, dice.uniform(1e-5, 3e-3)])
        by_clock = dice.random() < 0.4
        kill = (dice.randrange(ranks), 0 if by_clock else at, wait, dice.uniform(0.01, lasted) if by_clock else 0)
        (folder / "hit").unlink(missing_ok=True)
        outcome = carried_out(case, ranks, folder, kill)
        if outcome[0] == WHOLE:
            break
        if not outcome[1].startswith("it died of"):
            return kills, outcome[1]
        kills += 1
        places["by the clock" if by_clock else (folder / "hit").read_text()] += 1
    if outcome[0] != WHOLE and (outcome := carried_out(case, ranks, folder, (0, 0, 0, 0)))[0] != WHOLE:
        return kills, outcome[1]
    expected, found = end_of(whole / "results"), end_of(folder / "results")
    files = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    return kills, ", ".join(f"{name} {differing(expected.get(name), found.get(name))}" for name in files)


def differing(one: Any, other: Any) -> list[str]:
    """Return the keys in which the rows of two files differ, or how many rows they have."""
    if not isinstance(one, list) or not isinstance(other, list) or len(one) != len(other):
        return [f"{type(part).__name__} of {len(part or ())}" for part in (one, other)]
    return sorted({key for a, b in zip(one, other, strict=True) for key in {**a, **b} if a.get(key) != b.get(key)})


def end_of(results: Path) -> Any:
    """Return all that runs and records end with, times left out."""
    kept: dict[str, Any] = {}
    for file in sorted(results.rglob("*")):
        name = str(file.relative_to(results))
        if file.suffix == ".pt":
            kept[name] = bits(torch.load(file, weights_only=True))
        elif file.parent.name == "records" and file.suffix == ".jsonl":
            kept[name] = file.read_bytes()
        elif file.suffix in (".json", ".jsonl"):
            rows = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
            kept[name] = [{key: value for key, value in json.loads(row).items() if key not in TIMES} for row in rows]
        elif file.is_file() and file.name not in (".lock", "config.yaml"):
            kept[name] = "left behind"
    return kept


def bits(state: Any) -> Any:
    """Return a state with bytes in place of its tensors."""
    if isinstance(state, dict):
        return {key: bits(value) for key, value in state.items() if key not in TIMES}
    parts = [bits(value) for value in state] if isinstance(state, list | tuple) else state
    return parts.numpy().tobytes() if isinstance(parts, torch.Tensor) else parts
