"""What of a run needs no data: made and checked once, for the run and for its plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from fogzo.checks import number, positive
from fogzo.data.imagenet.folder import check_options
from fogzo.data.tokenize import check_vocabulary
from fogzo.errors import ArgumentError, UserError, keys_of
from fogzo.estimators import FOGZO, Estimator
from fogzo.estimators.replay import tracking_norms
from fogzo.models.libraries import outer_layers
from fogzo.quantize import QuantizedWeight, quantize_model, quantized_weights
from fogzo.quantizers import Quantizer
from fogzo.ranks import world
from fogzo.seeding import derive_seed
from fogzo.training.compilation import check_compile
from fogzo.training.config import Settings, arguments, asked, check_keys, instantiate
from fogzo.training.devices import choose_device
from fogzo.training.distributed import synchronise_norms
from fogzo.training.overrides import check_length
from fogzo.training.pretrained import initialise
from fogzo.training.schedules import GridPull
from fogzo.training.shapes import check_shape, follow_data, known_examples, known_shape

MOST_STEPS = 10_000_000  # the plan goes through all of them, as β may change with each


class Draft(NamedTuple):
    """What of a run needs no data, made and checked: the run goes on from it, and the plan counts it."""

    model: nn.Module
    weights: list[QuantizedWeight]
    settings: Settings  # with one step where only the data tell how many there are
    steps: int | None
    estimator: Estimator | None  # None as the steps
    notes: list[str]  # what was taken over from init_from, and what not


def draft(cfg: DictConfig, ranks: int) -> Draft:
    """Return what of the run that ``cfg`` describes needs no data, checked for so many processes.

    Raises:
        UserError: for any value that will not do, as far as it can be known before the data are read.
    """
    check_keys(cfg)
    follow_data(cfg)
    check_length(cfg)
    device = choose_device(cfg.device)
    check_compile(cfg.compile, device)
    arguments(cfg.data, "data")  # before anything looks into data.root
    examples = known_examples(cfg)
    steps = total_steps(cfg, examples) if cfg.steps is not None or examples else None
    settings = settings_of(cfg, steps or 1)
    settings.check_ranks(ranks)
    check_samples(cfg, ranks)
    check_data(cfg, ranks, examples)
    notes: list[str] = []
    model = place(build_model(cfg, notes), device).train()
    if (shape := known_shape(cfg)) is not None:
        check_shape(model, shape)
    weights = quantized_weights(model) if cfg.quantizer.name != "none" else []
    if cfg.logger.name != "none":
        arguments(cfg.logger, "logger")
    instantiate(cfg.schedule, "schedule", steps=1)  # these to be refused here, if at all
    GridPull(weights, steps=1, strength=cfg.pull.strength or 1.0, start=cfg.pull.start)
    build_optimizer(cfg, model)
    estimator = build_estimator(cfg, weights, steps) if steps else None
    batched = cfg.estimator.get("probe_batch") not in (None, 0, "auto")
    if ranks > 1 and cfg.parallel == "data" and batched and tracking_norms(model):
        raise UserError(
            f"estimator.probe_batch={cfg.estimator.probe_batch} needs batch norm within one process: set it to 0, or "
            "parallel=probes"
        )
    return Draft(model, weights, settings, steps, estimator, notes)


def settings_of(cfg: DictConfig, steps: int) -> Settings:
    """Return the numbers of the run that ``cfg`` describes, with so many steps."""
    return Settings(steps=steps, **{name: cfg[name] for name in Settings.__dataclass_fields__ if name != "steps"})


def check_data(cfg: DictConfig, ranks: int, examples: int | None) -> None:
    """Refuse values of the data set's keys, and batches that it does not have, without reading it."""
    arguments(cfg.data, "data")
    if examples and cfg.batch_size > examples:
        raise UserError(
            f"batch_size={cfg.batch_size} is more than the {examples} training examples of data={cfg.data.name}: give "
            f"a number from 1 to {examples}"
        )
    if cfg.data.name == "pydocs":  # trains its tokenizer
        with keys_of("data"):
            check_vocabulary(cfg.data.vocabulary)
    if "workers" in cfg.data:  # a folder of images
        options = {key: value for key, value in arguments(cfg.data, "data")[1].items() if key != "root"}
        with keys_of("data"):
            mixing = check_options(**options)
        if mixing is not None:
            mixing.check_batch(cfg.batch_size // (ranks if cfg.parallel == "data" else 1))


def build_model(cfg: DictConfig, notes: list[str] | None = None) -> nn.Module:
    """Return the network with its initial weights and quantizers, on the CPU; ``notes`` gets what init_from gave."""
    torch.manual_seed(derive_seed("init", cfg.seed))
    model: nn.Module = instantiate(cfg.model, "model")
    if cfg.init_from is not None:
        if cfg.begin_from is not None:
            raise UserError(f"begin_from={cfg.begin_from} replaces all that init_from={cfg.init_from} gives: name one")
        (notes if notes is not None else []).extend(initialise(model, cfg.init_from))
    if world()[1] > 1 and cfg.parallel == "data":
        model = synchronise_norms(model, choose_device(cfg.device))
    if cfg.quantize.bits is not None and "bits" not in cfg.quantizer:
        raise UserError(
            f"quantize.bits goes with a quantizer that has bits, which quantizer={cfg.quantizer.name} has not"
        )
    activations = instantiate(cfg.activations, "activations") if cfg.activations.name != "none" else None
    if cfg.quantizer.name != "none":
        given = outer_layers(model) if cfg.quantize.skip == "auto" else cfg.quantize.skip
        skip = list(given) if isinstance(given, ListConfig) else given
        quantizer = quantizers(cfg)
        with keys_of("quantize"):
            quantize_model(model, quantizer, skip=skip, biases=cfg.quantize.biases, activations=activations)
    elif activations is not None:
        raise UserError(
            f"activations={cfg.activations.name} goes with quantized weights: choose a quantizer, or activations=none"
        )
    return model


def quantizers(cfg: DictConfig) -> Quantizer | dict[str, Quantizer]:
    """Return the quantizer of ``quantizer=...``, or one for each pattern of ``quantize.bits`` and for the rest."""
    quantizer: Quantizer = instantiate(cfg.quantizer, "quantizer")
    bits = cfg.quantize.bits
    if bits is None:
        return quantizer
    if not isinstance(bits, Mapping) or not bits:
        raise UserError(
            f"quantize.bits={bits} is not possible: give patterns of layers and their bits, {{blocks.0.*: 4}}"
        )
    others = ((pattern, OmegaConf.create({**cfg.quantizer, "bits": width})) for pattern, width in bits.items())
    return {pattern: instantiate(values, "quantize") for pattern, values in others} | {"*": quantizer}


def place(model: nn.Module, device: torch.device) -> nn.Module:
    """Return ``model`` on ``device``, its convolutions in the layout that is fastest there."""
    model = model.to(device)
    if device.type == "cuda" and any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model = model.to(memory_format=torch.channels_last)
    return model


def build_estimator(cfg: DictConfig, weights: list[QuantizedWeight], steps: int) -> Estimator:
    """Return the estimator of ``estimator=...``, handed what its constructor asks for of the run by these names.

    Its probes are spread over ranks if ``parallel=probes``, and count what they cross in steps that are logged.
    """
    wanted = asked(get_object(cfg.estimator._target_)).get("weights")
    if not weights and wanted is not None and wanted.default is not None:
        raise UserError(
            "quantizer=none leaves no quantized weights to perturb: choose estimator=ste, or another quantizer"
        )
    estimator: Estimator = instantiate(
        cfg.estimator,
        "estimator",
        weights=weights or None,
        seed=cfg.seed,
        steps=steps,
        spread=cfg.parallel == "probes" and world()[1] > 1,
        crossings_every=cfg.log_every,
    )
    if cfg.estimator.get("probe_batch") == "auto" and not isinstance(estimator, FOGZO):
        raise UserError(f"estimator.probe_batch=auto: estimator={cfg.estimator.name} cannot choose; give a number")
    return estimator


def check_samples(cfg: DictConfig, ranks: int) -> None:
    """Refuse ranks that have no samples to share, or too few."""
    if cfg.parallel != "probes" or ranks == 1:
        return
    if "spread" not in asked(get_object(cfg.estimator._target_)):
        raise UserError(f"parallel=probes: estimator={cfg.estimator.name} has no samples to share: use parallel=data")
    if cfg.estimator.samples < ranks:
        raise UserError(
            f"estimator.samples={cfg.estimator.samples} cannot be spread over {ranks} ranks: raise samples, start "
            "fewer processes, or let them share the batch (parallel=data)"
        )


def build_optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer, with its fused kernels on CUDA."""
    positive(cfg.optimizer.lr, "optimizer.lr")
    for key in ("momentum", "weight_decay"):  # torch's own words have no way out
        number(cfg.optimizer.get(key, 0), f"optimizer.{key}", lowest=0)
    betas = cfg.optimizer.get("betas")
    if isinstance(betas, ListConfig) and any(isinstance(one, int | float) and not 0 <= one < 1 for one in betas):
        raise ArgumentError("optimizer.betas", list(betas), "is not possible: give two numbers of at least 0, below 1")
    fused = {"fused": True} if next(model.parameters()).is_cuda else {}
    groups = parameter_groups(model, cfg.optimizer.weight_decay)
    optimizer: torch.optim.Optimizer = instantiate(cfg.optimizer, "optimizer", groups, **fused)
    return optimizer


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups: weight decay for matrices and filters, none for vectors and quantization steps."""
    exempt: set[str] = getattr(model, "no_weight_decay", set)()  # timm's models name what their recipes leave out
    parameters = [(name in exempt, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for left_out, p in parameters if p.dim() > 1 and not left_out], "weight_decay": weight_decay},
        {"params": [p for left_out, p in parameters if p.dim() <= 1 or left_out], "weight_decay": 0.0},
    ]


def total_steps(cfg: DictConfig, examples: int | None) -> int:
    """Return the training steps, from ``steps`` or from ``epochs`` over so many examples, times ``steps_factor``.

    Nothing is dropped at the end of an epoch, so that the last batch alone may reach beyond the last epoch.
    """
    steps: int = cfg.steps if cfg.steps is not None else math.ceil(cfg.epochs * examples / cfg.batch_size)
    if (total := steps * float(cfg.steps_factor)) > MOST_STEPS:
        raise UserError(
            f"a run of {total:g} steps is longer than {MOST_STEPS:,}: lower steps, or epochs, or steps_factor"
        )
    return round(total)
