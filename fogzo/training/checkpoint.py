"""Files of checkpoints: written whole or not at all, kept, and read with ``weights_only=True``."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from fogzo.errors import one_line
from fogzo.runs.files import atomic_write
from fogzo.runs.folder import RunError

FORMAT = 1
AWAY = "move it away, and any checkpoint-STEP.pt beside it, to start this run from the beginning"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings and containers of them).

    Raises:
        RunError: if it cannot be written (a full disk, say); the checkpoint before it is then still there.
    """
    try:
        atomic_write(path, saved({"format": FORMAT, **state}))
    except OSError as error:
        before = existing(path)
        earlier = f"the checkpoint before it is still in {before[0]}" if before else "there is no earlier one"
        raise RunError(
            f"the checkpoint {path} cannot be written ({error.strerror or error}); {earlier}: make room and run again"
        ) from error


def keep_last(path: Path, step: int, count: int) -> None:
    """Keep the last ``count`` checkpoints beside ``path``, which always holds the newest, as ``checkpoint-STEP.pt``."""
    if count == 1:
        return
    older = path.with_name(f"{path.stem}-{step:09d}{path.suffix}")
    older.unlink(missing_ok=True)
    try:
        older.hardlink_to(path)
    except OSError:  # a file system without hard links
        try:
            atomic_write(older, path.read_bytes())
        except OSError as error:
            raise RunError(
                f"{older} cannot be written ({error.strerror or error}); the newest checkpoint is whole in {path}: "
                "make room, and run again"
            ) from error
    for extra in _older(path)[:-count]:
        extra.unlink()


def newest(path: Path) -> tuple[Path, dict[str, Any], list[Path]] | None:
    """Return what to go on from: ``path`` if it can be read, else the newest that :func:`keep_last` kept and that can.

    It is a path, its state and the files that had to be passed over, or ``None`` where there is no checkpoint.

    Raises:
        RunError: if there are checkpoints, and none of them can be read.
    """
    damaged: dict[Path, RunError] = {}
    for file in existing(path):
        try:
            return file, load(file), list(damaged)
        except RunError as error:
            damaged[file] = error
    if damaged:  # of several, the first names the newest; none is older and whole
        raise next(iter(damaged.values()))
    return None


def set_aside(files: Iterable[Path]) -> None:
    """Rename damaged files to ``NAME.damaged``, so that none takes the place of a whole one among the kept."""
    for file in files:
        file.replace(file.with_name(f"{file.name}.damaged"))


def existing(path: Path) -> list[Path]:
    """Return ``path`` and what :func:`keep_last` kept beside it, the newest first, as far as they are there."""
    return [file for file in (path, *reversed(_older(path))) if file.exists()]


def _older(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}-*{path.suffix}"))


def saved(state: Mapping[str, Any]) -> bytes:
    """Return the bytes of the file that ``torch.save`` makes of ``state``."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def load(path: Path, way_out: str = AWAY) -> dict[str, Any]:
    """Read what :func:`save` wrote.

    Raises:
        RunError: if the file is damaged, or no checkpoint of this program.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load doesn't look at the checksums
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} fails its checksum")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch each raise their own
        raise RunError(f"the checkpoint {path} cannot be read ({one_line(error)[:120]}): {way_out}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RunError(f"{path} is not a checkpoint of this program (format {FORMAT}): {way_out}")
    return state
