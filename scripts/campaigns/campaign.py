"""What the campaigns share: their arguments, the file of their results, configs, and how two ends differ."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
KEPT = ROOT / "outputs/campaigns"
DATA = ROOT / "data"  # all cases share what is prepared


class Campaign:
    """The cases of a campaign by number, and a file with a line for each: one that was cut short goes on from there.

    Args:
        name: of the file, with the seed from the command line.
        what: it is, for --help.
        count: of cases, where the command line does not say.
    """

    def __init__(self, name: str, what: str | None, count: int) -> None:
        parser = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("count", nargs="?", type=int, default=count)
        parser.add_argument("--seed", type=int, default=0, help="cases of another seed are others")
        parser.add_argument("--only", type=int, help="the number of a single case, which is not written down")
        given = parser.parse_args()
        self.count, self.seed, self.only = given.count, given.seed, given.only
        KEPT.mkdir(parents=True, exist_ok=True)
        DATA.mkdir(exist_ok=True)  # a fresh clone has none, and a link to nothing is not writable
        self.file = KEPT / f"{name}-{given.seed}.jsonl"
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def numbers(self) -> Iterator[int]:
        """Yield the numbers of the cases to carry out, as long as :meth:`done` says that there are too few."""
        if self.only is not None:
            yield self.only
            return
        while self.done() < self.count:
            yield len(self.rows)

    def done(self) -> int:
        """Return how much has been done of what is counted: cases, or the kills in them."""
        return sum(row.get("counts", 1) for row in self.rows)

    def note(self, wrong: str, kind: dict[str, str], **more: Any) -> None:
        """Write down what became of a case: what is wrong with it, if anything, and of what kinds it was."""
        row = {"wrong": wrong, "kind": kind, **more}
        if self.only is None:
            with self.file.open("a") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if wrong:
            print(f"{len(self.rows)} WRONG: {wrong}: {kind} {more}", flush=True)
        self.rows.append(row)

    def summary(self) -> bool:
        """Print how many cases there were of each kind; return whether anything was wrong."""
        kinds: dict[str, Counter[str]] = {}
        for row in self.rows:
            for key, value in row["kind"].items():
                kinds.setdefault(key, Counter())[value] += 1
            for place in row.get("places", ()):
                kinds.setdefault("places", Counter())[place] += 1
        for key, counts in kinds.items():
            print(f"{key}: {', '.join(f'{value} {count}' for value, count in counts.most_common())}")
        wrong = sum(bool(row["wrong"]) for row in self.rows)
        print(f"{self.done()} in {len(self.rows)} cases, seed {self.seed}: {wrong} wrong ({self.file})")
        return wrong > 0


def composed(overrides: Sequence[str]) -> DictConfig:
    """Return the config of these overrides, with Hydra at hand afterwards as in a run of train.py."""
    GlobalHydra.instance().clear()
    initialize_config_dir(str(CONFIGS), version_base="1.3")
    return compose("train", list(overrides))


def options(group: str) -> list[str]:
    """Return what can be chosen in a config group that has a file for each choice."""
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


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
