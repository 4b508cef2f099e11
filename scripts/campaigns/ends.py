"""What a run, a search or records end with, and how two such ends differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

TIMES = ("seconds", "cpu_seconds", "data_seconds", "peak_memory_bytes", "digest", "metrics_bytes", "metrics_sha256")


def differing(whole: Path, folder: Path) -> str:
    """Return in which files two folders of results differ, and in what."""
    expected, found = end_of(whole), end_of(folder)
    files = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    return ", ".join(f"{name} {rows_differing(expected.get(name), found.get(name))}" for name in files)


def rows_differing(one: Any, other: Any) -> list[str]:
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
        elif file.name == "chosen.yaml" or (file.parent.name == "records" and file.suffix == ".jsonl"):
            kept[name] = file.read_bytes()
        elif file.suffix in (".json", ".jsonl"):
            rows = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
            kept[name] = [{key: value for key, value in json.loads(row).items() if key not in TIMES} for row in rows]
        elif file.is_file() and file.name not in (".lock", "tuning.lock", "config.yaml"):
            kept[name] = "left behind"
    return kept


def bits(state: Any) -> Any:
    """Return a state with bytes in place of its tensors."""
    if isinstance(state, dict):
        return {key: bits(value) for key, value in state.items() if key not in TIMES}
    parts = [bits(value) for value in state] if isinstance(state, list | tuple) else state
    return parts.numpy().tobytes() if isinstance(parts, torch.Tensor) else parts
