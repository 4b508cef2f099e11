"""Run folders: addressed by their config, append-only metrics, a summary when finished.

    results_dir/runs/<experiment>/<name>-<hash>/
        config.yaml      what was asked for
        metrics.jsonl    one row a logged step
        summary.json     the outcome; its presence means that the run is over; its digest tells later edits
        model.pt         the trained weights, a state_dict
        checkpoint.pt    while it goes on (the last good one stays if it diverges)

No torch here: tables are made from these files alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from fogzo.errors import UserError
from fogzo.runs.files import atomic_write
from fogzo.runs.identity import differences, digest_of

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one reads 500 configs in a second, not in ten

# What a process may leave behind that is killed before there is a config.yaml
FIRST_FILES = (".lock", ".writable", ".writable.tmp", "config.yaml.tmp")


class RunError(UserError):
    """A run folder can't be used; the message names it, says why, and what to do."""


def parse_config(text: str) -> Any:
    """What a ``config.yaml`` says.

    Raises:
        RunError: for a key that is no word, or a value that no run writes there, such as a date.
        yaml.YAMLError: for what is no YAML.
    """
    config = yaml.load(text, Loader)
    _check_plain(config, "")
    return config


def _check_plain(value: Any, where: str) -> None:
    """Refuse what has no identity: an editor's slip makes numbers of keys, and dates of values."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise RunError(f"{where}{key} is a key that is no word")
            _check_plain(inner, f"{where}{key}.")
    elif isinstance(value, list):
        for inner in value:
            _check_plain(inner, where)
    elif value is not None and not isinstance(value, str | int | float):
        raise RunError(f"{where.removesuffix('.')} is {value}, no number, word, list or group")


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
        """The folder to read from only: nothing is made or locked."""
        folder = cls.__new__(cls)
        folder.path, folder.config = path, config
        return folder

    @classmethod
    def finished(cls, path: Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """The summary of a run that is over, without writing or locking anything; ``None`` if there is none."""
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
        try:
            summary = json.loads(self.summary_file.read_text())
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.summary_file} cannot be read ({error}): remove that file to finish the run again"
            ) from error
        if not isinstance(summary, dict):
            raise RunError(f"{self.summary_file} does not hold a summary: remove that file to finish the run again")
        if summary.get("digest", (digest := digest_of(summary, self._metrics()))) != digest:
            raise RunError(
                f"{self.summary_file} or metrics.jsonl was changed after the run had ended (its digest differs): give "
                "back the old file, or remove summary.json to carry out the run again"
            )
        return summary

    def _metrics(self) -> bytes:
        return self.metrics_file.read_bytes() if self.metrics_file.exists() else b""

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one row to the metrics."""
        line = json.dumps(row, allow_nan=False) + "\n"
        try:
            with self.metrics_file.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise self._unwritable(self.metrics_file, error) from error

    def metrics_size(self) -> int:
        """Bytes of metrics so far, on the disk: a checkpoint keeps it."""
        if not self.metrics_file.exists():
            return 0
        with self.metrics_file.open("rb") as file:
            os.fsync(file.fileno())
        return self.metrics_file.stat().st_size

    def truncate_metrics(self, size: int) -> None:
        """Drop the rows that were logged after the checkpoint which kept ``size``: they will be logged again."""
        have = self.metrics_file.stat().st_size if self.metrics_file.exists() else 0
        if have < size:
            raise RunError(
                f"{self.metrics_file} has {have} bytes, but the checkpoint was made with {size}: rows are missing; "
                f"remove the folder {self.path} to start the run again"
            )
        if have > size:
            os.truncate(self.metrics_file, size)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the summary and the record's digest, and with them end the run."""
        try:
            digest = digest_of(summary, self._metrics())
        except OSError as error:
            raise RunError(
                f"{self.metrics_file} cannot be read ({error.strerror or error}): make it readable, and the same "
                "command goes on from the last checkpoint"
            ) from error
        whole = {**summary, "digest": digest}
        self.keep("summary.json", (json.dumps(whole, indent=2, allow_nan=False) + "\n").encode())

    def keep(self, name: str, data: bytes) -> None:
        """Write a file of this folder, whole or not at all."""
        try:
            atomic_write(self.path / name, data)
        except OSError as error:
            raise self._unwritable(self.path / name, error) from error

    def _unwritable(self, path: Path, error: OSError) -> RunError:
        reason = error.strerror or error
        return RunError(
            f"{path} cannot be written ({reason}): make room, and the same command goes on from the last checkpoint"
        )

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
        try:
            old = parse_config(self.config_file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise RunError(f"{self.config_file} cannot be read ({one_line(error)}): choose another run_dir") from error
        changes = differences(old if isinstance(old, dict) else {}, self.config)
        if changes:
            shown = "; ".join([*changes[:6], *(["..."] if len(changes) > 6 else [])])
            raise RunError(
                f"{self.path} holds a run with another config ({shown}): "
                "give back the old values, or choose another run_dir"
            )

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # a full disk shows only when bytes are written
            atomic_write(self.path / ".writable", b"x" * 4096)
            (self.path / ".writable").unlink()
        except OSError as error:
            raise RunError(
                f"the run folder {self.path} cannot be written ({error.strerror or error}): choose another place with "
                f"{self.place}=FOLDER"
            ) from error

    def _lock(self) -> None:
        self._held = FileLock(self.path / ".lock")
        try:
            self._held.acquire(blocking=False)
        except Timeout as error:
            raise InUseError(f"another process is at work in {self.path}: wait for it, or change the config") from error
        except OSError as error:
            raise self._unwritable(self.path / ".lock", error) from error

    def close(self) -> None:
        """Let other processes in."""
        self._held.release()  # the empty file stays: removing it would race with the next holder


def one_line(error: Exception) -> str:
    """An exception's message on one line, for a sentence."""
    return " ".join(str(error).split()) or type(error).__name__
