"""Read run folders back, and say what is in them.  Needs no torch: records are text."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from fogzo.runs.folder import Loader, RunError, one_line, parse_config
from fogzo.runs.identity import digest_of

# What every row has, as a number; the costs among them, and the steps, a finished run's summary has too
OF_ROW = ("step", "loss", "forwards", "backwards", "flops", "forward_equivalents", "examples", "seconds")
OF_FINISHED = ("steps", "forward_equivalents", "flops", "seconds")
WORDS = ("event",)  # in a row: no number
NOT_KNOWN = ("loss", "peak_memory_bytes")  # may be null: no loss of the row was finite, memory could not be read
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
    "cpu_seconds",
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


def read_yaml(path: Path) -> dict[str, Any] | None:
    """The keys and values of a YAML file that people edit; ``None`` if there is no such file, or nothing in it.

    Raises:
        RunError: if it cannot be read, as with the marks of a merge in it, or holds something else.
    """
    return parse_yaml(path, path.read_bytes()) if path.exists() else None


def parse_yaml(path: Path, data: bytes) -> dict[str, Any] | None:
    """What ``read_yaml`` gives, of a file's bytes."""
    way_out = "mend it, or put back the version that was committed"
    try:
        content = yaml.load(data, Loader)
    except (ValueError, yaml.YAMLError) as error:
        raise RunError(f"{path} cannot be read ({one_line(error)}): {way_out}") from error
    if content is not None and not isinstance(content, dict):
        raise RunError(f"{path} holds {str(content)[:40]!r}, no keys with values: {way_out}")
    return content


def load_runs(folder: Path, problems: dict[Path, str] | None = None) -> list[Run]:
    """Every run directly below ``folder`` that is over, sorted by name; unfinished ones are left out.

    Args:
        problems: if given, what is wrong with a record is added to it, a sentence by folder, and the record left out.

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
            problems[summary_file.parent] = str(error)
    return runs


def _read(path: Path) -> Run:
    try:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        config = parse_config((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunError(
            f"the record in {path} cannot be read ({one_line(error)}): remove the folder and run it again"
        ) from error
    if not isinstance(summary, dict) or not isinstance(config, dict) or summary.get("seed") is None:
        raise RunError(f"the record in {path} lacks its seed or its config: remove the folder and run it again")
    return Run(path, config, summary)


def fault(run: Run) -> str | None:
    """Why a record is not to be believed, as a sentence; ``None``: nothing speaks against it.

    A summary repeats parts of the config and, of a finished run, the last row of its metrics; it holds the costs, and a
    digest of all that it and the metrics say.  (That the folder is named after the
    config is for ``fogzo.evidence.records``.)
    """
    try:
        run.metrics()
    except RunError as error:
        return str(error)
    # the digest last: the others can say what is wrong
    found = (check(run) for check in (_wrong_summary, _wrong_row, _wrong_end, _wrong_digest))
    reason = next((reason for reason in found if reason is not None), None)
    return None if reason is None else f"{run.path}: {reason}: remove the folder and run it again"


def is_finite(value: Any) -> bool:
    """Whether ``value`` is a finite number, and not too large for a float.

    >>> is_finite(1), is_finite(float("nan")), is_finite("many"), is_finite(True), is_finite(10**400)
    (True, False, False, False, False)
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _wrong_summary(run: Run) -> str | None:
    for key in OF_CONFIG:
        if run.summary.get(key) != run.config.get(key):
            return f"{key} is {run.summary.get(key)} in its summary, {run.config.get(key)} in its config"
    status = run.summary.get("status")
    if status not in ("finished", "diverged"):
        return f"its status is {status}, neither finished nor diverged"
    for key in OF_FINISHED if status == "finished" else ():
        if not is_finite(run.summary.get(key)):
            return f"{key} is {run.summary.get(key)} in its summary, no finite number"
    return None


def _wrong_row(run: Run) -> str | None:
    diverged = run.summary["status"] == "diverged"
    for number, row in enumerate(run.metrics(), 1):
        for key in OF_ROW:
            if key not in row:
                return f"row {number} of its metrics has no {key}"
        for key, value in row.items():
            unknown = (value is None and key in NOT_KNOWN) or (diverged and key == "loss")
            if not (unknown or key in WORDS or is_finite(value)):
                return f"in row {number} of its metrics {key} is {value}, no finite number"
    return None


def _wrong_end(run: Run) -> str | None:
    if run.summary["status"] != "finished":
        return None
    if not run.metrics():
        return "it is finished, but its metrics are missing"
    last = run.metrics()[-1]
    for key, in_summary, in_row in [("step", "steps", "step"), *((key, key, key) for key in OF_LAST_ROW)]:
        if run.summary.get(in_summary) != last.get(in_row):
            return f"{key} is {run.summary.get(in_summary)} in its summary, {last.get(in_row)} in its last row"
    return None


def _wrong_digest(run: Run) -> str | None:
    digest = run.summary.get("digest")
    if digest is None:
        return "it has no digest, so nothing shows that it is as the run left it"
    if digest != digest_of(run.summary, run.path / "metrics.jsonl"):
        return "it was changed by hand: its numbers are not those that its digest was made of"
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
