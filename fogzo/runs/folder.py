"""Run folders: addressed by their config, append-only metrics, a summary when finished.

    results_dir/runs/<experiment>/<name>-<hash>/
        config.yaml      what was asked for
        metrics.jsonl    one row a logged step
        summary.json     the outcome; its presence means that the run is over; its digest tells later edits
        model.pt         the trained weights, a state_dict
        checkpoint.pt    while it goes on (the last good one stays if it diverges)

Of a run that is over, ``fogzo.runs.packed`` makes one line.  No torch here: tables are made from records alone.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from fogzo.errors import UserError, explained
from fogzo.runs.files import Loader, atomic_write
from fogzo.runs.identity import differences, digest_of

# What a process may leave behind that is killed before there is a config.yaml
FIRST_FILES = (".lock", ".writable", ".writable.tmp", "config.yaml.tmp")
GOES_ON = "the same command goes on from the last checkpoint"


class RunError(UserError):
    """A run folder can't be used; the message names it, says why, and what to do."""


def parse_config(text: str) -> Any:
    """Return what a ``config.yaml`` says.

    Raises:
        ValueError: for a key that is no word, or a value that no run writes there, such as a date.
        yaml.YAMLError: for what is no YAML.
    """
    config = yaml.load(text, Loader)
    _check_plain(config, "")
    return config


def _check_plain(value: Any, where: str) -> None:
    """Refuse what has no identity: an editor's slip makes numbers of keys, and dates of values."""
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"{where}{odd[0]} is a key that is no word")
        for key, inner in value.items():
            _check_plain(inner, f"{where}{key}.")
    elif isinstance(value, list):
        for inner in value:
            _check_plain(inner, where)
    elif value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"{where.removesuffix('.')} is {value}, no number, word, list or group")


class InUseError(RunError):
    """Another process is at work in a run folder."""


class RunFolder:
    """One run's folder, held by one process at a time.

    Args:
        path: where the run lives; made if it is missing.
        config: plain, resolved values.
        place: the key that says where ``path`` is, for messages.

    Raises:
        RunError: if the folder can't be written, is in use, holds another config, or holds files of something else.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], *, place: str = "results_dir") -> None:
        self.path, self.config, self.place = path, config, place
        self._check_config()
        self._make()
        self._lock()
        if not self.config_file.exists():
            self.keep("config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True).encode())

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def checkpoint_file(self) -> Path:
        return self.path / "checkpoint.pt"

    @classmethod
    def view(cls, path: Path, config: Mapping[str, Any]) -> RunFolder:
        """Return the folder to read from only: nothing is made or locked."""
        folder = cls.__new__(cls)
        folder.path, folder.config = path, config
        return folder

    @classmethod
    def finished(cls, path: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the summary of a run that is over, or ``None``, without writing or locking anything."""
        folder = cls.view(path, config)
        if not folder.summary_file.exists():
            return None
        folder._check_config()
        return folder.summary()

    def summary(self) -> dict[str, Any] | None:
        """Return the outcome, or ``None`` while the run is not over.

        Raises:
            RunError: if it cannot be read, or was changed after the run had ended.
        """
        if not self.summary_file.exists():
            return None
        with explained(self.summary_file, "remove that file to finish the run again", kind=RunError):
            summary = json.loads(self.summary_file.read_text(encoding="utf-8"))
        if not isinstance(summary, dict):
            raise RunError(f"{self.summary_file} does not hold a summary: remove that file to finish the run again")
        if summary.get("digest", (digest := digest_of(summary, self._metrics()))) != digest:
            raise RunError(
                f"{self.summary_file} or metrics.jsonl was changed after the run had ended (its digest differs): give "
                "back the old file, or remove summary.json to carry out the run again"
            )
        return summary

    def _metrics(self) -> bytes:
        with self._metrics_read():
            return self.metrics_file.read_bytes() if self.metrics_file.exists() else b""

    def _metrics_read(self) -> AbstractContextManager[None]:
        return explained(self.metrics_file, f"make it readable, and {GOES_ON}", kind=RunError)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to the metrics."""
        line = json.dumps(row, allow_nan=False) + "\n"
        with self._written("metrics.jsonl"), self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(line)

    def metrics_state(self) -> tuple[int, str]:
        """Return how many bytes of metrics there are, on the disk, and their SHA-256: a checkpoint keeps both."""
        metrics = self._metrics()
        if metrics:
            with self._metrics_read(), self.metrics_file.open("rb") as file:
                os.fsync(file.fileno())
        return len(metrics), hashlib.sha256(metrics).hexdigest()

    def truncate_metrics(self, size: int, sha256: str | None = None) -> None:
        """Drop the rows that were logged after the checkpoint which kept ``size``: they will be logged again.

        Raises:
            RunError: if rows are missing, or not those of the checkpoint, where it kept their ``sha256``.
        """
        metrics = self._metrics()
        if len(metrics) < size:
            raise RunError(
                f"{self.metrics_file} has {len(metrics)} bytes, but the checkpoint was made with {size}: rows are "
                f"missing; remove the folder {self.path} to start the run again"
            )
        if sha256 is not None and hashlib.sha256(metrics[:size]).hexdigest() != sha256:
            raise RunError(
                f"{self.metrics_file} was changed after the checkpoint had been made (its first {size} bytes differ): "
                f"give back the old file, or remove the folder {self.path} to start the run again"
            )
        if len(metrics) > size:
            with self._written("metrics.jsonl"):
                os.truncate(self.metrics_file, size)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary and the record's digest, and with them end the run."""
        whole = {**summary, "digest": digest_of(summary, self._metrics())}
        self.keep("summary.json", (json.dumps(whole, indent=2, allow_nan=False) + "\n").encode())

    def keep(self, name: str, data: bytes) -> None:
        """Write a file of this folder, whole or not at all."""
        if (self.path / name).is_dir():
            raise RunError(f"{self.path / name} is a folder, where a file belongs: remove it, and {GOES_ON}")
        with self._written(name):
            atomic_write(self.path / name, data)

    def _written(self, name: str) -> AbstractContextManager[None]:
        return explained(self.path / name, f"make room, and {GOES_ON}", problem="cannot be written", kind=RunError)

    def _check_config(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunError(f"{self.path} is a file, but a run needs a folder: remove it, or choose another run_dir")
        if not self.config_file.exists():
            if any(file.name not in FIRST_FILES for file in self.path.iterdir()):
                raise RunError(
                    f"{self.path} holds files but no config.yaml, so it is no run folder: choose another run_dir"
                )
            return
        with explained(self.config_file, "choose another run_dir", kind=RunError, also=(yaml.YAMLError,)):
            old = parse_config(self.config_file.read_text(encoding="utf-8"))
        changes = differences(old if isinstance(old, dict) else {}, self.config)
        if changes:
            shown = "; ".join([*changes[:6], *(["..."] if len(changes) > 6 else [])])
            raise RunError(
                f"{self.path} holds a run with another config ({shown}): "
                "give back the old values, or choose another run_dir"
            )

    def _make(self) -> None:
        way_out = f"choose another place with {self.place}=FOLDER"
        with explained(self.path, way_out, problem="cannot be written", kind=RunError):
            self.path.mkdir(parents=True, exist_ok=True)
            # a full disk shows only when bytes are written
            atomic_write(self.path / ".writable", b"x" * 4096)
            (self.path / ".writable").unlink()

    def _lock(self) -> None:
        self._held = FileLock(self.path / ".lock")
        with self._written(".lock"):
            try:
                self._held.acquire(blocking=False)
            except Timeout as error:
                way_out = "wait for it, or change the config"
                raise InUseError(f"another process is at work in {self.path}: {way_out}") from error

    def close(self) -> None:
        """Let other processes in."""
        self._held.release()  # the empty file stays: removing it would race with the next holder
