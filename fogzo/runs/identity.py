"""What a run's config computes, as eight digits, and its record, as a digest: what tells runs and slips apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
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
    "model.path",
    "init_from",  # of what lies outside the config the content counts, by its SHA-256 (content.init_from)
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
    "training_examples": None,
    "model.embedding": 128,
    "model.blocks": 4,
    "model.first_width": 16,
    "spike_factor": 3.0,
    "stop_on": "nonfinite",
    "deterministic": True,
    "begin_from": None,
    "quantize.bits": None,
    "quantizer.lsq.per_channel": False,  # of this choice alone: others had the key from the first
    "pull.strength": 0.0,
    "pull.start": 0.8,
    "estimator.noise": "smoothing",
    "estimator.generator": "mt19937",
}
NEVER = object()  # equal to no value


def identity(config: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits that name what ``config`` computes."""
    return hashlib.sha256(json.dumps(dict(_result_keys(config)), sort_keys=True).encode()).hexdigest()[:8]


def label_of(config: Mapping[str, Any]) -> str:
    """Return what a run is called in its experiment: its cell, or ``model-quantizer-estimator`` where there is none."""
    groups = ("model", "quantizer", "estimator")
    return str(config.get("cell") or "-".join(config[group]["name"] for group in groups))


def run_name(config: Mapping[str, Any]) -> str:
    """Return the name that no other run of the experiment has: readable first, then the config's identity."""
    return f"{label_of(config)}-seed{config['seed']}-{identity(config)}"


def digest_of(summary: Mapping[str, Any], metrics: bytes) -> str:
    """Return the SHA-256 (64 hexadecimal digits) of a record: its metrics, and all else that its summary says.

    No signature, which nobody else could make: it tells what a slip of an editor, a merge or a disk changed.

    Args:
        metrics: the bytes of ``metrics.jsonl``; empty for a run that diverged before its first row.
    """
    rest = {key: value for key, value in summary.items() if key != "digest"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{hashlib.sha256(metrics).hexdigest()} {canonical}".encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return ``optimizer.lr: 0.1 → 0.2`` and so on for every key of results in which two configs differ."""
    before, after = dict(_result_keys(old)), dict(_result_keys(new))
    keys = [*before, *(key for key in after if key not in before)]
    pairs = {key: tuple(side.get(key, ADDED.get(key)) for side in (before, after)) for key in keys}
    return [f"{key}: {was} → {now}" for key, (was, now) in pairs.items() if was != now]


def _result_keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    of_choice = f"{prefix}{config.get('name')}."
    for key, value in config.items():
        name = prefix + key
        if name in PRESENTATION:
            continue
        if isinstance(value, dict):
            yield from _result_keys(value, f"{name}.")
        elif ADDED.get(name, NEVER) != value and ADDED.get(of_choice + key, NEVER) != value:
            yield name, value
