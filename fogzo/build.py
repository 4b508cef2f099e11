"""From a config to objects: the only module that knows Hydra."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig
from torch import nn

from fogzo.compute import ComputeLedger, measure_flops
from fogzo.data import ImageData
from fogzo.estimators.base import check_whole
from fogzo.quantize import quantize_model, quantized_weights
from fogzo.replay import frozen_statistics
from fogzo.reporters import Progress, Reporter
from fogzo.seeding import derive_seed
from fogzo.tasks import Classification
from fogzo.trainer import Settings, Trainer

BARS = {"auto": None, "bar": True, "lines": False}


def build(cfg: DictConfig) -> Trainer:
    """All parts of a run, on their device, checked, with the ledger's unit costs measured.

    Raises:
        ValueError: for any value that will not do, as far as possible before the data are read.
    """
    check_values(cfg)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = choose_device(cfg.device)
    settings_of = {name: cfg[name] for name in Settings.__dataclass_fields__ if name != "steps"}
    Settings(steps=1, **settings_of)
    torch.manual_seed(derive_seed("init", cfg.seed))
    model: nn.Module = instantiate(cfg.model)
    quantizer = instantiate(cfg.quantizer) if cfg.quantizer.name != "none" else None
    if quantizer is not None:
        skip = cfg.quantize.skip if isinstance(cfg.quantize.skip, str) else list(cfg.quantize.skip)
        quantize_model(model, quantizer, skip=skip, biases=cfg.quantize.biases)
    model.to(device).train()
    weights = quantized_weights(model) if quantizer is not None else []
    groups = parameter_groups(model, cfg.optimizer.weight_decay)
    optimizer = instantiate(cfg.optimizer, groups, weight_decay=cfg.optimizer.weight_decay)
    instantiate(cfg.estimator, weights=weights, steps=1, seed=cfg.seed)
    data: ImageData = instantiate(cfg.data).to(device)
    settings = Settings(steps=total_steps(cfg, len(data.train)), **settings_of)
    task = Classification(data)
    return Trainer(
        model=model,
        task=task,
        estimator=instantiate(cfg.estimator, weights=weights, steps=settings.steps, seed=cfg.seed),
        optimizer=optimizer,
        schedule=instantiate(cfg.schedule, steps=settings.steps),
        ledger=measure_ledger(model, task, settings.batch_size // settings.micro_batches),
        settings=settings,
        compiled=torch.compile(model) if cfg.compile else None,
    )


def reporters(cfg: DictConfig, folder: Path, record: Mapping[str, Any]) -> list[Reporter]:
    """The progress bar, and the W&B mirror if asked for."""
    chosen: list[Reporter] = [Progress(bar=BARS[cfg.progress])]
    if cfg.logger.name != "none":
        chosen.append(instantiate(cfg.logger, folder, record))
    return chosen


def check_values(cfg: DictConfig) -> None:
    """Refuse values of the wrong kind or range that no constructor would name clearly, or only too late."""
    if cfg.progress not in BARS:
        raise ValueError(f"progress={cfg.progress} is not known: choose one of {', '.join(BARS)}")
    if cfg.logger.get("mode", "offline") not in ("offline", "online"):
        raise ValueError(
            f"logger.mode={cfg.logger.mode!r} is not known: choose offline or online (online needs an account)"
        )
    for name in ("seed", "threads"):
        check_whole(cfg[name], name=name, lowest=0)
    for name in ("steps", "epochs"):
        if cfg[name] is not None:
            check_whole(cfg[name], name=name)
    for name, value in (("optimizer.lr", cfg.optimizer.lr), ("steps_factor", cfg.steps_factor)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r} is not possible: give a positive number")


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


def measure_ledger(model: nn.Module, task: Classification, examples: int) -> ComputeLedger:
    """A ledger whose unit costs were observed on one (micro-)batch; the model is left as it was."""
    batch = task.data.train.batch(torch.arange(min(examples, len(task.data.train))))
    with frozen_statistics(model):
        forward, backward = measure_flops(lambda: task.loss(model, batch))
    model.zero_grad(set_to_none=True)
    count = len(batch[1])
    return ComputeLedger(forward_flops=forward / count, backward_flops=backward / count)


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


def instantiate(node: Mapping[Any, Any], *positional: Any, **arguments: Any) -> Any:
    """Build what a config group describes; ``name`` is for people and folders, no constructor takes it.

    Raises:
        ValueError: as the constructor raised it, and for arguments that it doesn't have.
    """
    described = {str(key): value for key, value in node.items() if key != "name"}
    # partial, then called: handed to Hydra, objects such as weights would be turned into configs
    make = hydra_instantiate(described, _partial_=True, _convert_="all")
    try:
        return make(*positional, **arguments)
    except (ValueError, TypeError) as error:
        raise ValueError(str(error)) from error
