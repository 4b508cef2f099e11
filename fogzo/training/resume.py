"""Go on from a run's own checkpoint, to the bits with which it would have ended uninterrupted, or from another's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fogzo.data.shards import sha256_of
from fogzo.errors import UserError
from fogzo.runs.folder import RunFolder
from fogzo.runs.identity import identity
from fogzo.training import checkpoint
from fogzo.training.trainer import Trainer

OTHER = "name another checkpoint, or begin_from=null to start from the beginning"


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
        if path == folder.checkpoint_file:  # a kill may have come between this checkpoint and its copy
            checkpoint.keep_last(path, trainer.step, trainer.settings.keep_checkpoints)
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
    """Compute, on the CPU, with as many threads as before: sums are split by their number."""
    now = torch.get_num_threads()
    if trainer.device.type == "cpu" and before and before != now:  # the first checkpoints did not name it
        torch.set_num_threads(before)
        trainer.notes.append(f"computing with {before} CPU threads, as before, not with {now}: the bits would differ")


def warm_start(trainer: Trainer, config: Mapping[str, Any]) -> None:
    """Take over weights, optimizer state, costs and step of the checkpoint ``begin_from``, if ``config`` names one.

    A run is a function of its config, so one that diverged would do so again: this is how to go on from its last good
    checkpoint with, say, a lower rate or another seed.  What the config says holds from there on.

    Raises:
        UserError: if the checkpoint is missing, damaged, made with another optimizer, model, data, number of ranks or
            kind of device, or stands behind this run's end.
    """
    if config.get("begin_from") is None:
        return
    path = named_checkpoint(config["begin_from"])
    state = checkpoint.load(path, OTHER)
    checkpoint.check_run(trainer.state_dict() | {"run": state.get("run")}, state, path, OTHER)
    if state["step"] >= trainer.settings.steps:
        raise UserError(f"begin_from={path} stands at step {state['step']} of {trainer.settings.steps}: raise steps")
    groups = [{k: v for k, v in group.items() if k != "params"} for group in trainer.optimizer.param_groups]
    if [set(group) for group in state["optimizer"]["param_groups"]] != [{*group, "params"} for group in groups]:
        raise UserError(f"begin_from={path} was made with another optimizer: give back the old one, or {OTHER}")
    restore(trainer, state, path, OTHER)
    for group, values in zip(trainer.optimizer.param_groups, groups, strict=True):
        group.update(values)  # of this config: load_state_dict has put the old ones there
    trainer.watch = replace(trainer.watch, factor=trainer.settings.spike_factor, stop_on=trainer.settings.stop_on)
    trainer.best = None  # best.pt is in the other folder
    trainer.begun_from = {"file": str(path), "step": trainer.step, "sha256": sha256_of(path)}
    trainer.notes.append(f"begun at step {trainer.step} of {path}")


def named_checkpoint(given: str) -> Path:
    """Return the path that ``begin_from`` gives; UserError if no file is there."""
    path = Path(given)
    if path.is_dir():
        saved = checkpoint.existing(path / "checkpoint.pt")
        raise UserError(f"begin_from={path} is a folder: " + (f"name its begin_from={saved[0]}" if saved else OTHER))
    if not path.is_file():
        raise UserError(f"begin_from={path} is not there: {OTHER}")
    return path
