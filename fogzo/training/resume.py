"""Go on from a run's own checkpoint, to the bits with which it would have ended uninterrupted, or from another's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fogzo.data.shards import sha256_of
from fogzo.errors import UserError
from fogzo.runs.folder import RunError, RunFolder
from fogzo.runs.identity import identity
from fogzo.training.checkpoint import AWAY, existing, keep_last, load, newest, set_aside

if TYPE_CHECKING:
    from fogzo.training.trainer import Trainer

# entries that the first checkpoints did not have
LATER = {"data", "device", "threads", "begun_from", "codes", "estimator", "schedule", "metrics_sha256"}
OTHER = "name another checkpoint, or begin_from=null to start from the beginning"


def surroundings(trainer: Trainer) -> dict[str, Any]:
    """Return what a checkpoint keeps of the run around it, for :func:`check_run` and :func:`resume`."""
    folder = trainer.folder
    size, sha256 = folder.metrics_state() if folder else (0, None)
    return {
        "run": identity(folder.config) if folder else "",
        "ranks": trainer.ranks,
        "device": trainer.device.type,
        "threads": torch.get_num_threads(),
        "data": identifying(trainer.task.data.describe()),
        "metrics_bytes": size,
        "metrics_sha256": sha256,
    }


def identifying(data: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Return the part of a data set's description by which a resumed run knows it again: name, hashes and sizes."""
    return {key: value for key, value in data.items() if key != "sources" and isinstance(value, str | int | float)}


def check_run(now: Mapping[str, Any], before: Mapping[str, Any], path: Path, way_out: str = AWAY) -> None:
    """Refuse to go on from the state ``before``, of ``path``, where it is not one of the run whose state ``now`` is.

    Raises:
        RunError: for another run, number of ranks, kind of device or other data, showing what differs.
    """
    if set(now) - LATER - set(before) or before["run"] != now["run"]:
        raise RunError(f"the checkpoint {path} is not this run's: {way_out}")
    if before["ranks"] != now["ranks"]:
        raise RunError(
            f"the checkpoint {path} was made by {before['ranks']} ranks, but there are {now['ranks']} now: start the "
            f"run with as many processes as before, or {way_out}"
        )
    if (device := before.get("device", now["device"])) != now["device"]:
        raise RunError(
            f"the checkpoint {path} was made on another kind of device ({device} → {now['device']}), which draws other "
            f"noise: choose device={device}, or {way_out}"
        )
    data = now["data"]
    differ = [f"{key}: {old} → {data.get(key)}" for key, old in before.get("data", {}).items() if data.get(key) != old]
    if differ:
        raise RunError(
            f"the checkpoint {path} was made with other data ({'; '.join(differ)}): give back the old data, or "
            f"{way_out}"
        )


def restore_model(model: nn.Module, state: dict[str, Any], path: Path, way_out: str = AWAY) -> None:
    """Load ``state`` into ``model``, with a message instead of a traceback where the tensors are another model's."""
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = lines[min(1, len(lines) - 1)][:160]
        raise RunError(f"the checkpoint {path} holds another model ({reason}): {way_out}") from error


def resume(trainer: Trainer, folder: RunFolder | None = None) -> bool:
    """Go on from the newest whole checkpoint in ``folder`` (default: the trainer's own); ``False`` if there is none.

    ``trainer.notes`` says what is not as usual about it.

    Raises:
        RunError: if all of them are damaged, or :func:`check_run` refuses it.
    """
    folder = folder or trainer.folder
    if folder is None:
        return False
    found = newest(folder.checkpoint_file)
    if found is None:
        if trainer.folder is not None:
            trainer.folder.truncate_metrics(0)
        return False
    path, state, damaged = found
    check_run(trainer.state_dict() | {"run": identity(folder.config)}, state, path)
    _use_threads(trainer, state.get("threads"))
    trainer.begun_from = state.get("begun_from")
    restore(trainer, state, path)
    if trainer.folder is not None:
        trainer.folder.truncate_metrics(state["metrics_bytes"], state.get("metrics_sha256"))
        set_aside(damaged)
        if path == folder.checkpoint_file:  # a kill may have come between this checkpoint and its copy
            keep_last(path, trainer.step, trainer.settings.keep_checkpoints)
    if path != folder.checkpoint_file:
        unread = ", ".join(file.name for file in damaged)
        reason = f"{unread} cannot be read, kept as NAME.damaged" if damaged else "there is no checkpoint.pt"
        trainer.notes.append(f"{reason}: going on from {path.name}, the newest that can be read")
    return True


def restore(trainer: Trainer, state: Mapping[str, Any], path: Path, way_out: str = AWAY) -> None:
    """Take over what the checkpoint in ``path`` holds; it was checked."""
    restore_model(trainer.model, state["model"], path, way_out)
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
    state = load(path, OTHER)
    check_run(trainer.state_dict() | {"run": state.get("run")}, state, path, OTHER)
    if state["step"] >= trainer.settings.steps:
        raise UserError(f"begin_from={path} stands at step {state['step']} of {trainer.settings.steps}: raise steps")
    groups = [{k: v for k, v in group.items() if k != "params"} for group in trainer.optimizer.param_groups]
    if [set(group) for group in state["optimizer"]["param_groups"]] != [{*group, "params"} for group in groups]:
        raise UserError(f"begin_from={path} was made with another optimizer: give back the old one, or {OTHER}")
    restore(trainer, state, path, OTHER)
    if state.get("schedule", {}).keys() != trainer.schedule.state_dict().keys():
        trainer.schedule.follow(trainer.codes.weights)  # it has counted the codes of weights that are no more
    for group, values in zip(trainer.optimizer.param_groups, groups, strict=True):
        group.update(values)  # of this config: load_state_dict has put the old ones there
    settings, watch = trainer.settings, trainer.diary.watch
    trainer.diary.watch = replace(watch, factor=settings.spike_factor, stop_on=settings.stop_on)
    trainer.best = None  # best.pt is in the other folder
    trainer.begun_from = {"file": str(path), "step": trainer.step, "sha256": sha256_of(path)}
    trainer.notes.append(f"begun at step {trainer.step} of {path}")


def named_checkpoint(given: str) -> Path:
    """Return the path that ``begin_from`` gives; UserError if no file is there."""
    path = Path(given)
    if path.is_dir():
        way_out = OTHER
        if files := existing(path / "checkpoint.pt"):
            way_out = f"name its begin_from={files[0]}"
        elif (path / "model.pt").exists():
            way_out = f"it keeps weights alone, from which init_from={path} begins"
        raise UserError(f"begin_from={path} is a folder: {way_out}")
    if path.name in ("model.pt", "best.pt") and path.is_file():
        raise UserError(f"begin_from={path} holds weights alone: init_from={path} begins from them")
    if not path.is_file():
        raise UserError(f"begin_from={path} is not there: {OTHER}")
    return path
