"""From a config to a trainer, with its data."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from fogzo.data import Data, DataOrder, Subset, TextData
from fogzo.estimators.replay import frozen_statistics
from fogzo.quantizers import fit_activations
from fogzo.ranks import world
from fogzo.training.compilation import Compiled
from fogzo.training.config import Settings, check_keys, instantiate
from fogzo.training.console import Progress, Reporter
from fogzo.training.devices import choose_device, settle, use_threads
from fogzo.training.draft import build_estimator, build_optimizer, draft, settings_of, total_steps
from fogzo.training.ledger import ComputeLedger, autocast, measure_flops
from fogzo.training.schedules import GridPull
from fogzo.training.shapes import DataShape, check_shape
from fogzo.training.tasks import Task, task_of
from fogzo.training.trainer import Trainer

BARS = {"auto": None, "bar": True, "lines": False}


def build(cfg: DictConfig) -> Trainer:
    """Return all parts of a run, on their device, checked, with the ledger's unit costs measured.

    Raises:
        UserError: for any value that will not do, as far as possible before the data are read.
    """
    check_keys(cfg)
    use_threads(cfg.threads)
    settle(choose_device(cfg.device), deterministic=cfg.deterministic)
    ranks = world()[1]
    model, weights, settings, steps, estimator, notes = draft(cfg, ranks)
    device = next(model.parameters()).device
    data = read_data(cfg, device)
    check_fit(model, data)
    if estimator is None or steps != total_steps(cfg, len(data.train)):  # a folder may hold other images than ours
        settings = settings_of(cfg, total_steps(cfg, len(data.train)))
        estimator = build_estimator(cfg, weights, settings.steps)
    task = task_of(data, cfg.evaluation_tokens, cfg.evaluation_examples)
    fit_activations(model, partial(first_passes, model, task, settings))  # before the optimizer takes the parameters
    optimizer = build_optimizer(cfg, model)
    parts = settings.micro_batches * (ranks if settings.parallel == "data" else 1)  # that a batch comes in
    compiled = Compiled(model, task.loss, cfg.compile) if cfg.compile else None
    trainer = Trainer(
        model=model,
        task=task,
        estimator=estimator,
        optimizer=optimizer,
        schedule=instantiate(cfg.schedule, "schedule", steps=settings.steps),
        ledger=measure_ledger(model, task, settings.batch_size // parts),
        settings=settings,
        weights=weights,
        pull=GridPull(weights, steps=settings.steps, **cfg.pull) if cfg.pull.strength else None,
        compiled=compiled,
        reduced=average_gradients(model, compiled) if ranks > 1 and settings.parallel == "data" else None,
        repeats=getattr(data, "repeats", 1),
    )
    trainer.notes += notes
    return trainer


def read_data(cfg: DictConfig, device: torch.device) -> Data:
    """Return the data on ``device``, of the training set as many examples as are asked for."""
    data: Data = instantiate(cfg.data, "data").to(device)
    if cfg.get("training_examples") is not None:
        whole: Any = data  # every set of ours is a dataclass
        data = replace(whole, train=Subset(data.train, cfg.training_examples))
    return data


def average_gradients(model: nn.Module, compiled: Compiled | None) -> nn.parallel.DistributedDataParallel:
    """Return ``model`` for backward passes of several ranks; batch-norm statistics are the same everywhere already."""
    device = next(model.parameters()).device
    ids = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():  # broadcast_buffers=False is deprecated in favour of what does not replace it yet
        warnings.simplefilter("ignore", FutureWarning)
        reduced = nn.parallel.DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
    # its kernels may lay a gradient out in another order than its bucket, at the cost of a copy
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    whole: nn.parallel.DistributedDataParallel = compiled.through(reduced) if compiled else reduced  # type: ignore[assignment]
    return whole


def first_passes(model: nn.Module, task: Task, settings: Settings, batches: int = 4) -> None:
    """Make forward passes over the first batches as in training, of whole batches: every rank sees the same."""
    device = next(model.parameters()).device
    order = DataOrder(len(task.data.train), settings.batch_size, settings.seed)
    with frozen_statistics(model), autocast(settings.precision, device):
        for step in range(batches):
            for indices in order.batch(step).chunk(settings.micro_batches):
                task.loss(model, task.data.train.batch(indices))


def check_fit(model: nn.Module, data: Data) -> None:
    """Refuse a model that cannot take what the data set holds, before anything is computed with them.

    Raises:
        UserError: naming the model's limit and the data's value.
    """
    if isinstance(data, TextData):
        shape = DataShape(data.name, vocabulary=data.vocabulary, sequence=data.sequence)
    else:
        images, _ = data.test.batch(torch.arange(1))
        shape = DataShape(data.name, image=tuple(images.shape[1:]), classes=getattr(data, "classes", None))
    check_shape(model, shape)


def reporters(cfg: DictConfig, folder: Path, record: Mapping[str, Any]) -> list[Reporter]:
    """Return the progress bar, and the W&B mirror if asked for."""
    chosen: list[Reporter] = [Progress(bar=BARS[cfg.progress])]
    if cfg.logger.name != "none":
        chosen.append(instantiate(cfg.logger, "logger", folder, record))
    return chosen


def measure_ledger(model: nn.Module, task: Task, examples: int) -> ComputeLedger:
    """Return a ledger whose unit costs were observed on one (micro-)batch; the model is left as it was."""
    batch = task.data.train.batch(torch.arange(min(examples, len(task.data.train))))
    with frozen_statistics(model):
        forward, backward = measure_flops(lambda: task.loss(model, batch))
    model.zero_grad(set_to_none=True)
    count = len(batch[0])
    return ComputeLedger(forward_flops=forward / count, backward_flops=backward / count)
