"""The record of a run: what its config computes, where it lies, what came of it, and what its summary says."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf

from fogzo.data import known
from fogzo.data.shards import sha256_of
from fogzo.models.libraries import weight_files
from fogzo.runs.folder import RunError, RunFolder
from fogzo.runs.identity import run_name
from fogzo.runs.packed import Run
from fogzo.runs.records import drop_command, find
from fogzo.training import compilation
from fogzo.training.console import advice_on_divergence, headline, say
from fogzo.training.pretrained import weights_file
from fogzo.training.watch import Diverged

if TYPE_CHECKING:
    from fogzo.training.trainer import Trainer

OWN_DATA = ("imagefolder", "text")  # names that say nothing of what is in them


class Asked(NamedTuple):
    """A run that a config asks for: its record, its folder, and what came of it if it is over."""

    record: dict[str, Any]
    path: Path
    summary: dict[str, Any] | None = None
    packed: Run | None = None  # where its record is, if not in the folder


def look_up(cfg: DictConfig) -> Asked:
    """Return the run that ``cfg`` asks for; it may be over, in its folder or in the packed records."""
    record = plain_record(cfg)
    path = run_path(cfg, record)
    if (summary := RunFolder.finished(path, record)) is not None:
        return Asked(record, path, summary)
    packed = None if cfg.run_dir or record["phase"] == "tune" else find(record, Path(cfg.results_dir) / "records")
    return Asked(record, path, dict(packed.summary) if packed else None, packed)


def plain_record(cfg: DictConfig) -> dict[str, Any]:
    """Return the config as ``config.yaml`` keeps it: plain values, no code or places, and of an experiment its name."""
    record: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    record["experiment"] = (record.get("experiment") or {}).get("name")
    if content := outside(cfg):
        record["content"] = content
    dropped = ("results_dir", "run_dir", "plan", "sustained_flops", "setting")
    for group in record.values():
        if isinstance(group, dict):
            group.pop("_target_", None)
    return {key: value for key, value in record.items() if key not in dropped}


def outside(cfg: DictConfig) -> dict[str, str]:
    """Return the SHA-256 of what the run computes with that stands in no config: part of its identity."""
    content = {} if cfg.init_from is None else {"init_from": sha256_of(weights_file(cfg.init_from))}
    if cfg.data.name in OWN_DATA and (sha256 := known(cfg.data).sha256):
        content["data"] = sha256
    if cfg.model.get("path") and (folder := Path(cfg.model.path)).is_dir():
        files = [file for file in (folder / "config.json", *weight_files(folder)) if file.is_file()]
        content["model"] = hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()
    return content


def run_path(cfg: DictConfig, record: Mapping[str, Any]) -> Path:
    """Return the run folder of a config: readable first, then the hash of all that changes the result."""
    if cfg.run_dir:
        return Path(cfg.run_dir)
    folder = Path(cfg.results_dir) / "runs"
    if record["experiment"]:
        folder /= record["experiment"] + ("_tuning" if record["phase"] == "tune" else "")
    return folder / run_name(record)


def finished_before(asked: Asked, *, notes: bool = True) -> dict[str, Any]:
    """Say what a run that is over ended with, and with ``notes`` what it lacks, and return its summary.

    Raises:
        RunError: if the run was of other data than those that are there now.
        Diverged: if it had diverged.
    """
    summary, named = asked.summary or {}, asked.record["data"]
    where = asked.packed.where if asked.packed else asked.path
    data, here = summary.get("data") or {}, known(named).sha256
    if here and data.get("sha256") and here != data["sha256"]:
        raise RunError(
            f"the finished run in {where} was of other data called {named['name']} (sha256: {data['sha256'][:12]} → "
            f"{here[:12]}): give back the old data, or choose another results_dir or run_dir"
        )
    if summary.get("status") == "diverged":
        raise Diverged(f"this run has diverged ({summary.get('message')}): {advice_on_divergence(asked.path)}")
    say(
        f"finished already: {headline(summary)}",
        f"data:     {data.get('name', named['name'])} (sha256 {str(data.get('sha256', 'unknown'))[:12]})",
        f"result:   {where}",
        *(f"note:     {note}" for note in (missing_weights(asked) if notes else ())),
    )
    return summary


def missing_weights(asked: Asked) -> list[str]:
    """Say how to get weights that are asked for and not there."""
    wanted = ["model.pt", *(["best.pt"] if asked.record.get("keep_best") else [])]
    missing = [name for name in wanted if not (asked.path / name).exists()]
    if not missing:
        return []
    again = f"after `{drop_command(asked.packed)}`" if asked.packed else f"with {asked.path}/summary.json removed"
    return [f"{' and '.join(missing)} not kept here: {again}, the same command trains again"]


def summary_of(record: Mapping[str, Any], trainer: Trainer, metrics: dict[str, float]) -> dict[str, Any]:
    """Return what ``summary.json`` holds of a run that is over, but for the versions of the code."""
    means = {f"mean_{name}": value for name, value in trainer.diary.whole_run.row().items() if name != "beta"}
    return {
        "status": "finished",
        "scale": record["scale"],
        "experiment": record["experiment"],
        "cell": record["cell"],
        "phase": record["phase"],
        "seed": record["seed"],
        "train_loss": None,
        **metrics,
        **means,
        "steps": trainer.step,
        **trainer.ledger.row(),
        **trainer.diary.watch.row(),
        **({"begun_from": trainer.begun_from} if trainer.begun_from else {}),
        "ranks": trainer.ranks,
        "forward_flops_per_example": trainer.ledger.forward_flops,
        "backward_flops_per_example": trainer.ledger.backward_flops,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "data": trainer.task.data.describe(),
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        **{key: chosen for key, chosen in trainer.estimator.state_dict().items() if key == "probe_batch"},  # by auto
        **(compilation.outcome() if record["compile"] else {}),
    }
