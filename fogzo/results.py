"""Read run folders back, and say what is in them.  Needs no torch: records are text."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from fogzo.runs import RunError, one_line

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one reads 500 configs in a second, not in ten
# What a summary repeats of its config, and of the last row of its metrics: where they differ, somebody has edited one
OF_CONFIG = ("seed", "cell", "experiment", "scale", "phase")
OF_LAST_ROW = (
    "train_loss",
    "test_loss",
    "accuracy",
    "perplexity",
    "forwards",
    "backwards",
    "flops",
    "forward_equivalents",
    "seconds",
)


@dataclass(frozen=True)
class Run:
    """The record of a run that is over."""

    path: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]

    def metrics(self) -> list[dict[str, Any]]:
        """The logged rows, in order; none if the run diverged before the first.

        Raises:
            RunError: if the file is damaged.
        """
        return self._rows

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        file = self.path / "metrics.jsonl"
        if not file.exists():
            return []
        try:
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise RunError(f"{file} is damaged ({one_line(error)}): remove the folder and run it again") from error
        if not all(isinstance(row, dict) for row in rows):
            raise RunError(f"{file} is damaged (a line is no row): remove the folder and run it again")
        return rows


def read_yaml(path: Path) -> Any:
    """A YAML file's content; ``None`` if there is no such file."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader) if path.exists() else None


def load_runs(folder: Path, problems: list[str] | None = None) -> list[Run]:
    """Every run directly below ``folder`` that is over, sorted by name; unfinished ones are left out.

    Args:
        problems: if given, what is wrong with a record is added to it, a sentence each, and the record left out.

    Raises:
        RunError: if a record cannot be read, and ``problems`` is not given.
    """
    runs = []
    for summary_file in sorted(folder.glob("*/summary.json")):
        try:
            runs.append(_read(summary_file.parent))
        except RunError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return runs


def _read(path: Path) -> Run:
    try:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        config = yaml.load((path / "config.yaml").read_text(encoding="utf-8"), Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(
            f"the record in {path} cannot be read ({one_line(error)}): remove the folder and run it again"
        ) from error
    if not isinstance(summary, dict) or not isinstance(config, dict) or summary.get("seed") is None:
        raise RunError(f"the record in {path} lacks its seed or its config: remove the folder and run it again")
    return Run(path, config, summary)


def fault(run: Run) -> str | None:
    """Why a record is not to be believed, as a sentence; ``None``: nothing speaks against it.

    A summary repeats parts of the config and, of a finished run, the last row of its metrics.  (That the folder is
    named after the config is for ``fogzo.records`` to check.)
    """
    try:
        rows = run.metrics()
    except RunError as error:
        return str(error)
    again = "remove the folder and run it again"
    for key in OF_CONFIG:
        if run.summary.get(key) != run.config.get(key):
            both = f"{run.summary.get(key)} in its summary, {run.config.get(key)} in its config"
            return f"{run.path}: {key} is {both}: {again}"
    if run.summary.get("status") not in ("finished", "diverged"):
        return f"{run.path} has the status {run.summary.get('status')}, neither finished nor diverged: {again}"
    if run.summary["status"] == "finished":
        if not rows:
            return f"{run.path} is finished, but its metrics are missing: {again}"
        for key in OF_LAST_ROW:
            if key in rows[-1] and key in run.summary and rows[-1][key] != run.summary[key]:
                both = f"{run.summary[key]} in its summary, {rows[-1][key]} in its last row"
                return f"{run.path}: {key} is {both}: {again}"
    return None


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
    return f"{mean:,.{digits}f}" + (f" ± {std:,.{digits}f}" if std is not None else "")


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
