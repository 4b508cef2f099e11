"""One run, from its config to its summary: fresh, resumed, or found finished."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from fogzo.build import build, reporters
from fogzo.compute import peak_memory_bytes
from fogzo.provenance import provenance
from fogzo.quantize import quantized_weights
from fogzo.runs import RunFolder, identity
from fogzo.trainer import Diverged, Trainer

SCALES = {
    "mini": "embedded data and a short run, not the paper's setting",
    "paper": "the paper's setting as far as it is known",
}


def train(cfg: DictConfig) -> dict[str, Any]:
    """Carry out the run that ``cfg`` describes, from the start, from its checkpoint, or not at all if it is finished.

    Returns the summary.

    Raises:
        ValueError: for anything in the config, the data or the run folder that will not do, before training starts.
        Interrupted: after a stop signal, with a checkpoint saved.
        Diverged: when a loss is not finite.
    """
    record = plain_record(cfg)
    path = run_path(cfg, record)
    if (summary := RunFolder.finished(path, record)) is not None:
        return _finished(path, summary)
    trainer = build(cfg)
    code = provenance()  # before training: the files may change while it goes on
    folder = RunFolder(path, record)
    try:
        if (summary := folder.summary()) is not None:  # another process was faster
            return _finished(path, summary)
        trainer.folder = folder
        resumed = trainer.resume()
        trainer.reporters = reporters(cfg, path, record)
        _announce(record, trainer, path, resumed)
        try:
            metrics = trainer.fit()
        except Diverged as error:
            folder.finish(_summary(record, trainer, {}) | code | {"status": "diverged", "message": str(error)})
            raise Diverged(f"{error}: lower optimizer.lr or change the config; {_last_good(path)}") from None
        weights = io.BytesIO()
        torch.save(trainer.model.state_dict(), weights)
        folder.keep("model.pt", weights.getvalue())
        summary = _summary(record, trainer, metrics) | code
        folder.finish(summary)  # last: from here on the run is over
        folder.checkpoint_file.unlink(missing_ok=True)
        print(f"finished: {_headline(summary)}\nresult:   {path}", flush=True)
        return summary
    finally:
        folder.close()


def plain_record(cfg: DictConfig) -> dict[str, Any]:
    """The config as ``config.yaml`` keeps it: plain values, no code or folder names, and of an experiment its name."""
    record: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    record["experiment"] = (record.get("experiment") or {}).get("name")
    dropped = ("results_dir", "run_dir")
    for group in record.values():
        if isinstance(group, dict):
            group.pop("_target_", None)
    return {key: value for key, value in record.items() if key not in dropped}


def run_path(cfg: DictConfig, record: Mapping[str, Any]) -> Path:
    """The run folder of a config: readable first, then the hash of all that changes the result."""
    if cfg.run_dir:
        return Path(cfg.run_dir)
    parts = (
        [record["cell"]] if record["cell"] else [record[group]["name"] for group in ("model", "quantizer", "estimator")]
    )
    name = "-".join([*parts, f"seed{record['seed']}", identity(record)])
    folder = Path(cfg.results_dir) / "runs"
    if record["experiment"]:
        folder /= record["experiment"] + ("_tuning" if record["phase"] == "tune" else "")
    return folder / name


def _announce(record: Mapping[str, Any], trainer: Trainer, path: Path, resumed: bool) -> None:
    latent = (
        sum(w.latent.numel() for w in quantized_weights(trainer.model)) if record["quantizer"]["name"] != "none" else 0
    )
    total = sum(p.numel() for p in trainer.model.parameters())
    state = f"going on from step {trainer.step}" if resumed else "from the beginning"
    data = trainer.task.data.name
    names = {group: record[group]["name"] for group in ("model", "quantizer", "estimator")}
    settings = trainer.settings
    lines = (
        f"scale:    {record['scale']} ({SCALES[record['scale']]})",
        f"model:    {names['model']}, {total:,} parameters, {latent:,} of them quantized ({names['quantizer']})",
        f"training: {names['estimator']}, {settings.steps} steps of {settings.batch_size} examples of {data}, "
        f"seed {record['seed']}, on {trainer.device}",
        f"folder:   {path} ({state})",
    )
    print("\n".join(lines), flush=True)


def _finished(path: Path, summary: dict[str, Any]) -> dict[str, Any]:
    if summary.get("status") == "diverged":
        reason = summary.get("message")
        raise Diverged(f"this run has diverged ({reason}): lower optimizer.lr or change the config; {_last_good(path)}")
    print(f"finished already: {_headline(summary)}\nresult:   {path}", flush=True)
    return summary


def _last_good(path: Path) -> str:
    kept = path / "checkpoint.pt"
    return f"the last good checkpoint is {kept}" if kept.exists() else "it had saved no checkpoint yet"


def _headline(summary: Mapping[str, Any]) -> str:
    return (
        f"test accuracy {summary['accuracy']:.2f} %, training loss {summary['train_loss']:.4f}, "
        f"{summary['forward_equivalents']:,} forward equivalents, {summary['seconds']:.1f} s"
    )


def _summary(record: Mapping[str, Any], trainer: Trainer, metrics: dict[str, float]) -> dict[str, Any]:
    means = {f"mean_{name}": value for name, value in trainer.whole_run.row().items() if name != "beta"}
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
        "forward_flops_per_example": trainer.ledger.forward_flops,
        "backward_flops_per_example": trainer.ledger.backward_flops,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "data": trainer.task.data.describe(),
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        "peak_memory_bytes": peak_memory_bytes(trainer.device),
    }
