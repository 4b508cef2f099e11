"""Read run folders back, and make tables of them.  Needs no torch: records are text."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fogzo.runs import RunError, one_line


@dataclass(frozen=True)
class Run:
    """A finished run's record."""

    path: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]

    def metrics(self) -> list[dict[str, Any]]:
        """The logged rows, in order; none if the run diverged before the first."""
        if not (self.path / "metrics.jsonl").exists():
            return []
        lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise RunError(
                f"{self.path / 'metrics.jsonl'} is damaged ({error}): remove the folder and run it again"
            ) from error


def load_runs(folder: Path) -> list[Run]:
    """Every finished run directly below ``folder``, sorted by name; unfinished ones are left out.

    Raises:
        RunError: if a record cannot be read.
    """
    runs = []
    for summary_file in sorted(folder.glob("*/summary.json")):
        path = summary_file.parent
        try:
            summary = json.loads(summary_file.read_text(encoding="utf-8"))
            config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise RunError(
                f"the record in {path} cannot be read ({one_line(error)}): remove the folder and run it again"
            ) from error
        if not isinstance(summary, dict) or not isinstance(config, dict) or summary.get("seed") is None:
            raise RunError(f"the record in {path} lacks its seed or its config: remove the folder and run it again")
        runs.append(Run(path, config, summary))
    return runs


def by_cell(runs: Iterable[Run], cells: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, dict[int, Run]]:
    """Runs by cell and seed.

    Raises:
        RunError: if two runs claim one place, or a run is not what its cell says.
    """
    table: dict[str, dict[int, Run]] = {cell: {} for cell in cells}
    for run in runs:
        cell, seed = run.summary["cell"], run.summary["seed"]
        if cell not in table or seed not in seeds:
            continue
        wrong = [override for override in cells[cell]["overrides"] if not _holds(run.config, override)]
        if wrong:
            raise RunError(f"{run.path} claims cell {cell} but was not run with {', '.join(wrong)}: remove that folder")
        if seed in table[cell]:
            other = table[cell][seed].path
            raise RunError(f"{run.path} and {other} both claim cell {cell}, seed {seed}: remove the stale one")
        table[cell][seed] = run
    return table


def _holds(config: Any, override: str) -> bool:
    key, _, text = override.partition("=")
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    # a group's choice is recorded as its name
    return bool(config["name"] == text) if isinstance(config, Mapping) else bool(config == yaml.safe_load(text))


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation; no deviation from fewer than two values.

    >>> mean_std([1.0, 3.0])
    (2.0, 1.4142135623730951)
    """
    mean = statistics.fmean(values)
    return mean, statistics.stdev(values) if len(values) > 1 else None


def spread(values: Sequence[float], digits: int) -> str:
    """``mean ± std`` of finite values, or a dash.

    >>> spread([0.5, 0.7], 2), spread([], 2)
    ('0.60 ± 0.14', '–')
    """
    if not values or not all(math.isfinite(value) for value in values):
        return "–"
    mean, std = mean_std(values)
    return f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if std is not None else "")


def cost_to_reach(
    rows: Iterable[Mapping[str, Any]], loss: float, cost: str, metric: str = "train_loss"
) -> float | None:
    """The first logged ``cost`` at which ``metric`` is at most ``loss``; ``None``: not reached.

    >>> cost_to_reach([{"c": 1, "train_loss": 2.0}, {"c": 2, "train_loss": 0.9}], 1.0, "c")
    2
    """
    for row in rows:
        if row.get(metric) is not None and row[metric] <= loss:
            reached: float = row[cost]
            return reached
    return None
