"""What a run's config computes, as eight digits, and its record, as a digest: what tells runs and slips apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Keys that change where a run lies or what it shows, and not one bit of its result
PRESENTATION = (
    "logger",
    "progress",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_best",
    "experiment",
    "cell",
    "data.root",
    "data.workers",
    "data.verify",
    "plan",
    "sustained_flops",
)

# Keys that came after the first records, with the value that means what was done before there was the key: at that
# value they are left out of a run's identity, so that old records are still found
ADDED = {
    "activations.name": "none",
    "parallel": "data",
    "evaluation_tokens": 131072,
    "evaluation_examples": None,
    "spike_factor": 3.0,
    "stop_on": "nonfinite",
    "deterministic": True,
    "begin_from": None,
}


def identity(config: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that name what ``config`` computes."""
    return hashlib.sha256(json.dumps(dict(_result_keys(config)), sort_keys=True).encode()).hexdigest()[:8]


def digest_of(summary: Mapping[str, Any], metrics_file: Path) -> str:
    """The SHA-256 (64 hexadecimal digits) of a record: the bytes of its metrics, and all else that its summary says.

    No signature, which nobody else could make: it tells what a slip of an editor, a merge or a disk changed.

    Raises:
        OSError: if the metrics cannot be read.  A run that diverged before its first row has none: as if empty.
    """
    rest = {key: value for key, value in summary.items() if key != "digest"}
    metrics = hashlib.sha256(metrics_file.read_bytes() if metrics_file.exists() else b"").hexdigest()
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{metrics} {canonical}".encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines such as ``optimizer.lr: 0.1 → 0.2`` for every key in which two configs differ and that changes results."""
    before, after = dict(_result_keys(old)), dict(_result_keys(new))
    keys = [*before, *(key for key in after if key not in before)]
    pairs = {key: tuple(side.get(key, ADDED.get(key)) for side in (before, after)) for key in keys}
    return [f"{key}: {was} → {now}" for key, (was, now) in pairs.items() if was != now]


def _result_keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if prefix + key in PRESENTATION:
            continue
        if isinstance(value, Mapping):
            yield from _result_keys(value, f"{prefix}{key}.")
        elif prefix + key not in ADDED or ADDED[prefix + key] != value:
            yield prefix + key, value
