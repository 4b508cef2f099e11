"""From a config to objects: the only module that knows Hydra."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate as hydra_instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fogzo.data import Data, DataOrder, TextData
from fogzo.estimators import Estimator
from fogzo.estimators.base import check_whole
from fogzo.estimators.replay import frozen_statistics, tracking_norms
from fogzo.quantize import QuantizedWeight, quantize_model, quantized_weights
from fogzo.quantizers import fit_activations
from fogzo.ranks import world
from fogzo.runs.identity import differences
from fogzo.seeding import derive_seed
from fogzo.training.compilation import compiled
from fogzo.training.config import Settings
from fogzo.training.devices import choose_device, settle, use_threads
from fogzo.training.distributed import synchronise_norms
from fogzo.training.ledger import ComputeLedger, autocast, measure_flops
from fogzo.training.reporters import Progress, Reporter
from fogzo.training.shapes import DataShape, check_shape
from fogzo.training.steering import GridPull
from fogzo.training.tasks import Task, task_of
from fogzo.training.trainer import Trainer

# What a recipe sets; the rest (estimator, quantizer, seed, device) is nobody's setting in particular
OF_RECIPE = (
    *("data.", "model.", "optimizer.", "schedule.", "quantize.", "steps", "epochs", "batch_size", "micro_batches"),
    *("clip_norm", "precision", "estimator.beta_min"),
)
BARS = {"auto": None, "bar": True, "lines": False}


def build(cfg: DictConfig) -> Trainer:
    """All parts of a run, on their device, checked, with the ledger's unit costs measured.

    Raises:
        ValueError: for any value that will not do, as far as possible before the data are read.
    """
    check_values(cfg)
    use_threads(cfg.threads)
    device = choose_device(cfg.device)
    settle(device, deterministic=cfg.deterministic)
    settings_of = {name: cfg[name] for name in Settings.__dataclass_fields__ if name != "steps"}
    Settings(steps=1, **settings_of).check_ranks(world()[1])
    model = place(build_model(cfg), device).train()
    weights = quantized_weights(model) if cfg.quantizer.name != "none" else []
    build_estimator(cfg, weights, steps=1)
    data: Data = instantiate(cfg.data).to(device)
    check_fit(model, data)
    settings = Settings(steps=total_steps(cfg, len(data.train)), **settings_of)
    parts = settings.micro_batches * (world()[1] if settings.parallel == "data" else 1)  # that a batch comes in
    if parts > settings.micro_batches and cfg.estimator.get("probe_batch") and tracking_norms(model):
        raise ValueError(
            f"estimator.probe_batch={cfg.estimator.probe_batch} needs batch norm within one process: set it to 0, or "
            "parallel=probes"
        )
    if (mixing := getattr(data.train, "mixing", None)) is not None:
        mixing.check_batch(settings.batch_size // (world()[1] if settings.parallel == "data" else 1))
    task = task_of(data, cfg.evaluation_tokens, cfg.evaluation_examples)
    fit_activations(model, partial(first_passes, model, task, settings))  # before the optimizer takes the parameters
    optimizer = build_optimizer(cfg, model)
    return Trainer(
        model=model,
        task=task,
        estimator=build_estimator(cfg, weights, settings.steps),
        optimizer=optimizer,
        schedule=instantiate(cfg.schedule, steps=settings.steps),
        ledger=measure_ledger(model, task, settings.batch_size // parts),
        settings=settings,
        weights=weights,
        pull=GridPull(weights, steps=settings.steps, **cfg.pull) if cfg.pull.strength else None,
        compiled=compiled(model) if cfg.compile else None,
        reduced=average_gradients(model, cfg) if world()[1] > 1 and settings.parallel == "data" else None,
        repeats=getattr(data, "repeats", 1),
    )


def build_model(cfg: DictConfig) -> nn.Module:
    """The network with its initial weights and quantizers, on the CPU."""
    torch.manual_seed(derive_seed("init", cfg.seed))
    model: nn.Module = instantiate(cfg.model)
    if world()[1] > 1 and cfg.parallel == "data":
        model = synchronise_norms(model, choose_device(cfg.device))
    activations = instantiate(cfg.activations) if cfg.activations.name != "none" else None
    if cfg.quantizer.name != "none":
        skip = cfg.quantize.skip if isinstance(cfg.quantize.skip, str) else list(cfg.quantize.skip)
        quantizer = instantiate(cfg.quantizer)
        quantize_model(model, quantizer, skip=skip, biases=cfg.quantize.biases, activations=activations)
    elif activations is not None:
        raise ValueError(
            f"activations={cfg.activations.name} goes with quantized weights: choose a quantizer, or activations=none"
        )
    return model


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """Return ``model`` on ``device``, its convolutions in the layout that is fastest there."""
    model = model.to(device)
    if device.type == "cuda" and any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model = model.to(memory_format=torch.channels_last)
    return model


def build_estimator(cfg: DictConfig, weights: list[QuantizedWeight], steps: int) -> Estimator:
    """The estimator of ``estimator=...``; its probes are spread over ranks if ``parallel=probes``."""
    spread = {"spread": True} if cfg.parallel == "probes" and world()[1] > 1 else {}
    check_samples(cfg, world()[1])
    estimator: Estimator = instantiate(
        cfg.estimator, weights=weights, steps=steps, seed=cfg.seed, log_every=cfg.log_every, **spread
    )
    return estimator


def check_samples(cfg: DictConfig, ranks: int) -> None:
    """Refuse ranks that have no samples to share, or too few."""
    if cfg.parallel != "probes" or ranks == 1:
        return
    if "samples" not in cfg.estimator:
        raise ValueError(f"parallel=probes: estimator={cfg.estimator.name} has no samples to share: use parallel=data")
    if cfg.estimator.samples < ranks:
        raise ValueError(
            f"estimator.samples={cfg.estimator.samples} cannot be spread over {ranks} ranks: raise samples, start "
            "fewer processes, or let them share the batch (parallel=data)"
        )


def build_optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer, with its fused kernels on CUDA."""
    fused = {"fused": True} if next(model.parameters()).is_cuda else {}
    groups = parameter_groups(model, cfg.optimizer.weight_decay)
    optimizer: torch.optim.Optimizer = instantiate(
        cfg.optimizer, groups, weight_decay=cfg.optimizer.weight_decay, **fused
    )
    return optimizer


def average_gradients(model: nn.Module, cfg: DictConfig) -> nn.parallel.DistributedDataParallel:
    """``model`` for backward passes of several ranks; batch-norm statistics are the same everywhere already."""
    device = next(model.parameters()).device
    ids = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():  # broadcast_buffers=False is deprecated in favour of what does not replace it yet
        warnings.simplefilter("ignore", FutureWarning)
        reduced = nn.parallel.DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
    # its kernels may lay a gradient out in another order than its bucket, at the cost of a copy
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    whole: nn.parallel.DistributedDataParallel = torch.compile(reduced) if cfg.compile else reduced  # type: ignore[assignment]
    return whole


def first_passes(model: nn.Module, task: Task, settings: Settings, batches: int = 4) -> None:
    """Forward passes over the first training batches as in training, of whole batches: every rank sees the same."""
    device = next(model.parameters()).device
    order = DataOrder(len(task.data.train), settings.batch_size, settings.seed)
    with frozen_statistics(model), autocast(settings.precision, device):
        for step in range(batches):
            for indices in order.batch(step).chunk(settings.micro_batches):
                task.loss(model, task.data.train.batch(indices))


def check_fit(model: nn.Module, data: Data) -> None:
    """Refuse a model that cannot take what the data set holds, before anything is computed with them.

    Raises:
        ValueError: naming the model's limit and the data's value.
    """
    if isinstance(data, TextData):
        shape = DataShape(data.name, vocabulary=data.vocabulary, sequence=data.sequence)
    else:
        images, _ = data.test.batch(torch.arange(1))
        shape = DataShape(data.name, image=tuple(images.shape[1:]), classes=getattr(data, "classes", None))
    check_shape(model, shape)


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
    if cfg.deterministic not in (True, False):
        raise ValueError(f"deterministic={cfg.deterministic!r} is not possible: give true or false")
    check_whole(cfg.evaluation_tokens, name="evaluation_tokens")
    if cfg.evaluation_examples is not None:
        check_whole(cfg.evaluation_examples, name="evaluation_examples")
    for name in ("seed", "threads"):
        check_whole(cfg[name], name=name, lowest=0)
    for name in ("steps", "epochs"):
        if cfg[name] is not None:
            check_whole(cfg[name], name=name)
    positive = {"optimizer.lr": cfg.optimizer.lr} | {name: cfg[name] for name in ("steps_factor", "sustained_flops")}
    for name, value in positive.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{name}={value!r} is not possible: give a positive number")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and filters; none for vectors (biases, norms) and quantization steps."""
    exempt: set[str] = getattr(model, "no_weight_decay", set)()  # timm's models name what their recipes leave out
    parameters = [(name in exempt, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for left_out, p in parameters if p.dim() > 1 and not left_out], "weight_decay": weight_decay},
        {"params": [p for left_out, p in parameters if p.dim() <= 1 or left_out], "weight_decay": 0.0},
    ]


def departures(cfg: DictConfig) -> list[str]:
    """Keys of the recipe whose values ``cfg`` has otherwise; none where Hydra is not at hand to compose the recipe."""
    if not GlobalHydra.instance().is_initialized():
        return []
    choices = [f"scale={cfg.scale}", f"model={cfg.model.name}", f"estimator={cfg.estimator.name}"]
    recipe, own = (OmegaConf.to_container(one, resolve=True) for one in (compose("train", choices), cfg))
    keys = [line.partition(":")[0] for line in differences(recipe, own)]  # type: ignore[arg-type]
    other = {key.removesuffix(".name") for key in keys if key.endswith(".name")}  # choices of whole groups
    named = (group if (group := key.partition(".")[0]) in other else key for key in keys if key.startswith(OF_RECIPE))
    return list(dict.fromkeys(named))


def total_steps(cfg: DictConfig, examples: int) -> int:
    """Training steps, from ``steps`` or ``epochs``, times ``steps_factor``."""
    if cfg.steps is None and cfg.epochs is None:
        raise ValueError("steps and epochs are both null: give one of them")
    steps: int = cfg.steps if cfg.steps is not None else cfg.epochs * math.ceil(examples / cfg.batch_size)
    return round(steps * float(cfg.steps_factor))


def measure_ledger(model: nn.Module, task: Task, examples: int) -> ComputeLedger:
    """A ledger whose unit costs were observed on one (micro-)batch; the model is left as it was."""
    batch = task.data.train.batch(torch.arange(min(examples, len(task.data.train))))
    with frozen_statistics(model):
        forward, backward = measure_flops(lambda: task.loss(model, batch))
    model.zero_grad(set_to_none=True)
    count = len(batch[0])
    return ComputeLedger(forward_flops=forward / count, backward_flops=backward / count)


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
