"""Go on from a run's own checkpoint, to the bits with which it would have ended uninterrupted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fogzo.runs.folder import RunFolder
from fogzo.runs.identity import identity
from fogzo.training import checkpoint
from fogzo.training.trainer import Trainer


def resume(trainer: Trainer, folder: RunFolder | None = None) -> bool:
    """Go on from the newest whole checkpoint in ``folder`` (default: the trainer's own); ``False`` if there is none.

    ``trainer.notes`` says what is not as usual about it.

    Raises:
        RunError: if all of them are damaged, or :func:`fogzo.training.checkpoint.check_run` refuses it.
    """
    folder = folder or trainer.folder
    if folder is None:
        return False
    newest = checkpoint.newest(folder.checkpoint_file)
    if newest is None:
        if trainer.folder is not None:
            trainer.folder.truncate_metrics(0)
        return False
    path, state, damaged = newest
    checkpoint.check_run(trainer.state_dict() | {"run": identity(folder.config)}, state, path)
    _use_threads(trainer, state.get("threads"))
    trainer.begun_from = state.get("begun_from")
    restore(trainer, state, path)
    if trainer.folder is not None:
        trainer.folder.truncate_metrics(state["metrics_bytes"])
        checkpoint.set_aside(damaged)
    if path != folder.checkpoint_file:
        unread = ", ".join(file.name for file in damaged)
        reason = f"{unread} cannot be read, kept as NAME.damaged" if damaged else "there is no checkpoint.pt"
        trainer.notes.append(f"{reason}: going on from {path.name}, the newest that can be read")
    return True


def restore(trainer: Trainer, state: Mapping[str, Any], path: Path, way_out: str = checkpoint.AWAY) -> None:
    """Take over what the checkpoint in ``path`` holds; it was checked."""
    checkpoint.restore_model(trainer.model, state["model"], path, way_out)
    trainer.load_state_dict(state)


def _use_threads(trainer: Trainer, before: int | None) -> None:
    """On the CPU: compute with as many threads as before, since sums are split by their number."""
    now = torch.get_num_threads()
    if trainer.device.type == "cpu" and before and before != now:  # the first checkpoints did not name it
        torch.set_num_threads(before)
        trainer.notes.append(f"computing with {before} CPU threads, as before, not with {now}: the bits would differ")
