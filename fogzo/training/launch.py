"""One run, from its config to its summary: fresh, resumed, or found finished."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from fogzo.data import TextData
from fogzo.data.text import known_sha256
from fogzo.quantize import quantized_weights
from fogzo.ranks import announced, barrier, check_same, gather
from fogzo.runs.folder import RunError, RunFolder
from fogzo.runs.identity import identity
from fogzo.runs.provenance import provenance
from fogzo.training import checkpoint
from fogzo.training.build import build, departures, reporters
from fogzo.training.devices import choose_device, own_gpu
from fogzo.training.distributed import process_group
from fogzo.training.memory import PEAK
from fogzo.training.plan import plan
from fogzo.training.trainer import Trainer
from fogzo.training.warm_start import begin
from fogzo.training.watch import Diverged

SCALES = {
    "mini": "embedded data and a short run, not the paper's setting",
    "paper": "the paper's setting as far as it is known",
}


def train(cfg: DictConfig, *, sweeping: bool = False) -> dict[str, Any]:
    """Carry out the run that ``cfg`` describes, from the start, from its checkpoint, or not at all if it is finished.

    With ``sweeping`` there may be other runs at the same time: ``device=auto`` is then a GPU for this run alone.
    Returns the summary.

    Raises:
        ValueError: for anything in the config, the data or the run folder that will not do, before training starts.
        Interrupted: after a stop signal, with a checkpoint saved.
        Diverged: when a loss is not finite.
    """
    if cfg.plan:
        print(plan(cfg), flush=True)
        return {}
    record = plain_record(cfg)
    path = run_path(cfg, record)
    if (summary := RunFolder.finished(path, record)) is not None:
        return _finished(path, record, summary)
    alone = own_gpu() if sweeping and cfg.device == "auto" and announced()[2] == 1 else nullcontext()
    with alone, process_group(choose_device(cfg.device)):
        return _train(cfg, record, path)


def _train(cfg: DictConfig, record: dict[str, Any], path: Path) -> dict[str, Any]:
    PEAK.begin(choose_device(cfg.device))
    trainer = build(cfg)
    if trainer.rank > 0:  # rank 0 alone writes; the others read its checkpoint, once it has checked the folder
        barrier()
        if not trainer.resume(RunFolder.view(path, record)):
            begin(trainer, record)
        same_start(trainer)
        try:
            return _summary(record, trainer, trainer.fit())
        except Diverged:
            barrier()  # until rank 0 has written so: torchrun ends the others when one leaves
            raise
    code = provenance(trainer.device)  # before training: the files may change while it goes on
    folder = RunFolder(path, record)
    try:
        if (summary := folder.summary()) is not None:  # another process was faster
            return _finished(path, record, summary)
        barrier()
        trainer.folder = folder
        if not (resumed := trainer.resume()):
            begin(trainer, record)
        same_start(trainer)
        trainer.reporters = reporters(cfg, path, record)
        _announce(cfg, record, trainer, path, resumed)
        try:
            metrics = trainer.fit()
        except Diverged as error:
            folder.finish(_summary(record, trainer, {}) | code | {"status": "diverged", "message": str(error)})
            barrier()
            raise Diverged(f"{error}: lower optimizer.lr or change the config; {_last_good(path)}") from None
        folder.keep("model.pt", checkpoint.weights(trainer.model))
        summary = _summary(record, trainer, metrics) | code
        folder.finish(summary)  # last: from here on the run is over
        folder.checkpoint_file.unlink(missing_ok=True)
        print(f"finished: {_headline(summary)}\nresult:   {path}", flush=True)
        return summary
    finally:
        folder.close()


def same_start(trainer: Trainer) -> None:
    """Make sure that all ranks begin at the same step with the same weights."""
    if trainer.ranks == 1:
        return
    total = sum(float(parameter.detach().double().sum()) for parameter in trainer.model.parameters())
    start = torch.tensor([trainer.step, total], dtype=torch.float64, device=trainer.device)
    rows = gather(start)
    check_same(rows[:, 0], "the step at which it begins")
    check_same(rows[:, 1], "the weights with which it begins")


def plain_record(cfg: DictConfig) -> dict[str, Any]:
    """The config as ``config.yaml`` keeps it: plain values, no code or folder names, and of an experiment its name."""
    record: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    record["experiment"] = (record.get("experiment") or {}).get("name")
    dropped = ("results_dir", "run_dir", "plan", "sustained_flops", "setting", "beta_min")  # estimator.beta_min counts
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


def _announce(cfg: DictConfig, record: Mapping[str, Any], trainer: Trainer, path: Path, resumed: bool) -> None:
    quantized = quantized_weights(trainer.model) if record["quantizer"]["name"] != "none" else []
    latent = sum(weight.latent.numel() for weight in quantized)
    total = sum(p.numel() for p in trainer.model.parameters())
    state = f"going on from step {trainer.step}" if resumed else "from the beginning"
    names = {group: record[group]["name"] for group in ("model", "quantizer", "estimator", "activations")}
    how = names["quantizer"] + ("" if names["activations"] == "none" else f", activations {names['activations']}")
    settings = trainer.settings
    ranks = f", {trainer.ranks} processes that share the {settings.parallel}" if trainer.ranks > 1 else ""
    other = departures(cfg) if record["scale"] == "paper" else []
    but = f", but for {', '.join(other)}" if other else ""
    skip = record["quantize"]["skip"]
    left_out = f"all linear and convolution layers but {', '.join([skip] if isinstance(skip, str) else skip)}"
    lines = (
        f"scale:    {record['scale']} ({SCALES[record['scale']]}{but})",
        f"model:    {names['model']}, {total:,} parameters, {latent:,} of them quantized ({how})",
        f"layers:   {len({w.layer_name for w in quantized})} quantized: " + (left_out if skip else "all"),
        f"training: {names['estimator']}, {settings.steps} steps of {settings.batch_size} examples of "
        f"{trainer.task.data.name}, seed {record['seed']}, on {trainer.device}{ranks}",
        *_epochs(trainer),
        f"folder:   {path} ({state})",
        *(f"note:     {note}" for note in trainer.notes),
    )
    print("\n".join(lines), flush=True)


def _epochs(trainer: Trainer) -> list[str]:
    """Of text, which may be shorter than the run that a recipe asks for: how often training goes through it."""
    data, settings = trainer.task.data, trainer.settings
    if not isinstance(data, TextData):
        return []
    asked, there = settings.steps * settings.batch_size * data.sequence, len(data.train) * data.sequence
    return [f"tokens:   {asked:,} = {asked / there:.4g} epochs of the {there:,} of {data.name}"]


def _finished(path: Path, record: Mapping[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """What the run of ``record`` ended with, if it was of the data that are there now (as far as that is known)."""
    data, asked = summary.get("data") or {}, record["data"]
    present = known_sha256(asked["name"], asked.get("root", "data"))
    if present and data.get("sha256") and present != data["sha256"]:
        raise RunError(
            f"the finished run in {path} was of other data called {asked['name']} (sha256: {data['sha256'][:12]} → "
            f"{present[:12]}): give back the old data, or choose another results_dir or run_dir"
        )
    if summary.get("status") == "diverged":
        reason = summary.get("message")
        raise Diverged(f"this run has diverged ({reason}): lower optimizer.lr or change the config; {_last_good(path)}")
    of = f"{data.get('name', asked['name'])} (sha256 {str(data.get('sha256', 'unknown'))[:12]})"
    print(f"finished already: {_headline(summary)}\ndata:     {of}\nresult:   {path}", flush=True)
    return summary


def _last_good(path: Path) -> str:
    kept = checkpoint.existing(path / "checkpoint.pt")
    if not kept:
        return "it had saved no checkpoint yet"
    return f"the last good checkpoint is {kept[0]}, from which another config goes on with begin_from={kept[0]}"


def _headline(summary: Mapping[str, Any]) -> str:
    metric = (
        f"test accuracy {summary['accuracy']:.2f} %"
        if "accuracy" in summary
        else f"test perplexity {summary['perplexity']:.2f}"
    )
    return (
        f"{metric}, training loss {summary['train_loss']:.4f}, "
        f"{summary['forward_equivalents']:,} forward equivalents, {summary['seconds']:.1f} s"
    )


def _summary(record: Mapping[str, Any], trainer: Trainer, metrics: dict[str, float]) -> dict[str, Any]:
    trainer.ledger.note_memory(trainer.device)
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
        **trainer.watch.row(),
        **({"begun_from": trainer.begun_from} if trainer.begun_from else {}),
        "ranks": trainer.ranks,
        "forward_flops_per_example": trainer.ledger.forward_flops,
        "backward_flops_per_example": trainer.ledger.backward_flops,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "data": trainer.task.data.describe(),
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
    }
