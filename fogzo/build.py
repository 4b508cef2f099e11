"""From a config to objects, and from objects to a finished run: the only module that knows Hydra's configs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fogzo.compute import ComputeLedger, measure_flops, peak_memory_bytes
from fogzo.data import ImageData
from fogzo.provenance import provenance
from fogzo.quantize import quantize_model, quantized_weights
from fogzo.replay import frozen_statistics
from fogzo.reporters import Progress, Reporter
from fogzo.runs import RunFolder, identity
from fogzo.seeding import derive_seed
from fogzo.tasks import Classification
from fogzo.trainer import Diverged, Settings, Trainer

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
        Diverged: when the loss is not finite.
    """
    record = plain_record(cfg)
    path = run_path(cfg, record)
    if (path / "summary.json").exists():
        folder = RunFolder(path, record)
        try:
            return _finished(folder)
        finally:
            folder.close()
    trainer, data = build(cfg)
    trainer.folder = folder = RunFolder(path, record)
    try:
        resumed = trainer.resume()
        _announce(record, trainer, data, path, resumed)
        trainer.reporters = _reporters(cfg, folder, record)
        try:
            metrics = trainer.fit()
        except Diverged as error:
            folder.finish(_summary(record, trainer, data, {}) | {"status": "diverged", "message": str(error)})
            raise Diverged(f"{error}: lower optimizer.lr or change the config; {_last_good(folder)}") from None
        summary = _summary(record, trainer, data, metrics)
        folder.finish(summary)
        folder.checkpoint_file.unlink(missing_ok=True)
        torch.save(trainer.model.state_dict(), path / "model.pt")
        print(f"finished: {_headline(summary)}\nresult:   {path}", flush=True)
        return summary
    finally:
        folder.close()


def build(cfg: DictConfig) -> tuple[Trainer, ImageData]:
    """All parts of a run, on their device, checked, with the ledger's unit costs measured."""
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = choose_device(cfg.device)
    settings_of = {name: cfg[name] for name in Settings.__dataclass_fields__ if name != "steps"}
    Settings(steps=1, **settings_of)  # refuse bad values before the data are read
    torch.manual_seed(derive_seed("init", cfg.seed))
    model: nn.Module = instantiate(_arguments(cfg.model, "name"))
    quantizer = instantiate(_arguments(cfg.quantizer, "name")) if cfg.quantizer.name != "none" else None
    if quantizer is not None:
        quantize_model(model, quantizer, skip=list(cfg.quantize.skip), biases=cfg.quantize.biases)
    model.to(device).train()
    weights = quantized_weights(model) if quantizer is not None else []
    make_estimator = instantiate(_arguments(cfg.estimator, "name"), _partial_=True)
    make_estimator(weights=weights, steps=1, seed=cfg.seed)  # as above: refuse bad values early
    data: ImageData = instantiate(_arguments(cfg.data, "name")).to(device)
    settings = Settings(steps=total_steps(cfg, len(data.train)), **settings_of)
    task = Classification(data)
    trainer = Trainer(
        model=model,
        task=task,
        estimator=make_estimator(weights=weights, steps=settings.steps, seed=cfg.seed),
        optimizer=instantiate(_arguments(cfg.optimizer, "name"), _partial_=True)(
            parameter_groups(model, cfg.optimizer.weight_decay)
        ),
        schedule=instantiate(_arguments(cfg.schedule, "name"), steps=settings.steps),
        ledger=measure_ledger(model, task),
        settings=settings,
        compiled=torch.compile(model) if cfg.compile else None,
    )
    return trainer, data


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and filters; none for vectors (biases, norms) and quantization steps."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def total_steps(cfg: DictConfig, examples: int) -> int:
    """Training steps, from ``steps`` or ``epochs``, times ``steps_factor``."""
    if cfg.steps is None and cfg.epochs is None:
        raise ValueError("steps and epochs are both null: give one of them")
    steps: int = cfg.steps if cfg.steps is not None else cfg.epochs * math.ceil(examples / cfg.batch_size)
    return round(steps * float(cfg.steps_factor))


def measure_ledger(model: nn.Module, task: Classification) -> ComputeLedger:
    """A ledger whose unit costs were observed on a few examples; the model is left as it was."""
    examples = min(8, len(task.data.train))
    batch = task.data.train.batch(torch.arange(examples))
    with frozen_statistics(model):
        forward, backward = measure_flops(lambda: task.loss(model, batch))
    model.zero_grad(set_to_none=True)
    return ComputeLedger(forward_flops=forward / examples, backward_flops=backward / examples)


def choose_device(name: str) -> torch.device:
    """``auto`` is the first accelerator, else the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device={name} cannot be used here ({str(error).splitlines()[0]}): choose auto or cpu"
        ) from error
    return device


def plain_record(cfg: DictConfig) -> dict[str, Any]:
    """The config as ``config.yaml`` keeps it: plain values, no code or folder names, and of an experiment its name."""
    record: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    record["experiment"] = (record.get("experiment") or {}).get("name")
    dropped = ("results_dir", "run_dir")
    groups = {key: _arguments(value, "_target_") if isinstance(value, dict) else value for key, value in record.items()}
    return {key: value for key, value in groups.items() if key not in dropped}


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


def instantiate(node: Mapping[str, Any], **arguments: Any) -> Any:
    """Hydra's, but a constructor's own ``ValueError`` comes out as it is, and a wrong argument as one too."""
    try:
        return hydra_instantiate(node, **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError | TypeError):
            raise ValueError(str(error.__cause__)) from error  # noqa: TRY004
        raise


def _arguments(node: Mapping[Any, Any], *dropped: str) -> dict[str, Any]:
    return {str(key): value for key, value in node.items() if key not in dropped}


def _reporters(cfg: DictConfig, folder: RunFolder, record: dict[str, Any]) -> list[Reporter]:
    bars = {"auto": None, "bar": True, "lines": False}
    if cfg.progress not in bars:
        raise ValueError(f"progress={cfg.progress} is not known: choose one of {', '.join(bars)}")
    reporters: list[Reporter] = [Progress(bar=bars[cfg.progress])]
    if cfg.logger.name != "none":
        reporters.append(instantiate(_arguments(cfg.logger, "name"), _partial_=True)(folder.path, record))
    return reporters


def _announce(record: dict[str, Any], trainer: Trainer, data: ImageData, path: Path, resumed: bool) -> None:
    latent = (
        sum(w.latent.numel() for w in quantized_weights(trainer.model)) if record["quantizer"]["name"] != "none" else 0
    )
    total = sum(p.numel() for p in trainer.model.parameters())
    state = f"going on from step {trainer.step}" if resumed else "from the beginning"
    names = {group: record[group]["name"] for group in ("model", "quantizer", "estimator")}
    settings = trainer.settings
    lines = (
        f"scale:    {record['scale']} ({SCALES[record['scale']]})",
        f"model:    {names['model']}, {total:,} parameters, {latent:,} of them quantized ({names['quantizer']})",
        f"training: {names['estimator']}, {settings.steps} steps of {settings.batch_size} examples of {data.name}, "
        f"seed {record['seed']}, on {trainer.device}",
        f"folder:   {path} ({state})",
    )
    print("\n".join(lines), flush=True)


def _finished(folder: RunFolder) -> dict[str, Any]:
    summary = folder.summary()
    assert summary is not None
    if summary.get("status") == "diverged":
        reason = summary.get("message")
        raise Diverged(
            f"this run has diverged ({reason}): lower optimizer.lr or change the config; {_last_good(folder)}"
        )
    print(f"finished already: {_headline(summary)}\nresult:   {folder.path}", flush=True)
    return summary


def _last_good(folder: RunFolder) -> str:
    kept = folder.checkpoint_file
    return f"the last good checkpoint is {kept}" if kept.exists() else "it had saved no checkpoint yet"


def _headline(summary: Mapping[str, Any]) -> str:
    return (
        f"test accuracy {summary['accuracy']:.2f} %, training loss {summary['train_loss']:.4f}, "
        f"{summary['forward_equivalents']:,} forward equivalents, {summary['seconds']:.1f} s"
    )


def _summary(record: dict[str, Any], trainer: Trainer, data: ImageData, metrics: dict[str, float]) -> dict[str, Any]:
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
        "data": data.describe(),
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        "peak_memory_bytes": peak_memory_bytes(trainer.device),
        **provenance(),
    }
