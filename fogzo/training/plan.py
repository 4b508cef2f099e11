"""What a run would be, before it is: sizes, layers, noise, cost and memory, without touching data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf
from torch import nn

from fogzo.data import DECODING_RATES, FACTS
from fogzo.data.imagenet.augment import own_cores
from fogzo.errors import UserError
from fogzo.estimators import Estimator
from fogzo.estimators.beta import noise_share
from fogzo.quantize import QuantizedWeight
from fogzo.ranks import announced
from fogzo.training.config import Settings
from fogzo.training.costs import (
    guide_norm_of,
    measure,
    memory_bytes,
    noise_to_guide,
    pattern_of,
    probes_bytes,
    warnings_of,
)
from fogzo.training.draft import build_estimator, draft
from fogzo.training.overrides import cautions, departures
from fogzo.training.shapes import known_examples, known_shape

LARGE = 2.0**30  # bytes that probes may take together without a warning


class Plan(NamedTuple):
    """The numbers of a run before it is."""

    parameters: int
    perturbed: int  # quantized coordinates
    forwards: int  # passes over whole batches
    backwards: int
    flops: float
    seconds: float  # at cfg.sustained_flops
    memory: float  # bytes, of each process
    text: str  # all of it for people


def plan(cfg: DictConfig) -> Plan:
    """Return the plan of the run that ``cfg`` describes, by as many processes as torchrun has started.

    Raises:
        UserError: as the run would, for what can be known without data.
    """
    ranks = announced()[2]
    model, weights, settings, steps, estimator, _ = draft(cfg, ranks)
    if known_shape(cfg) is None:
        raise UserError(
            f"data={cfg.data.name} is unknown to the plan: run without plan=true, or choose one of the data sets here"
        )
    if steps is None or estimator is None:
        raise UserError(
            f"epochs={cfg.epochs} counts examples, and how many data={cfg.data.name} holds is unknown until it is "
            "read: give the plan steps=N instead (N = epochs · examples / batch_size)"
        )
    head = [
        f"scale:       {cfg.scale}" + (f", but for {', '.join(other)}" if (other := departures(cfg)) else ""),
        f"model:       {cfg.model.name}: {_parameters(model)}",
        *_layers(weights, cfg),
        *_noise(weights, cfg),
        f"training:    {_amount(cfg, settings)}",
    ]
    warnings = [*warnings_of(cfg, model, weights, estimator), *cautions(cfg)]
    parameters, d = sum(p.numel() for p in model.parameters()), sum(weight.latent.numel() for weight in weights)
    forwards, backwards = estimator.passes(steps)
    examples = settings.batch_size // settings.micro_batches // (ranks if settings.parallel == "data" else 1)
    cost = measure(model, cfg, examples)  # last: it leaves a model without values
    whole = settings.batch_size // examples
    flops = whole * (forwards * cost.forward + backwards * cost.backward)
    repeated = 0.0  # by ranks that share probes: what comes before these
    if settings.parallel == "probes":
        repeated = (ranks - 1) * whole * backwards * (cost.forward + cost.backward)
        estimator = _share_of(estimator, cfg, weights, ranks)
    seconds = (flops + repeated) / cfg.sustained_flops
    memory = memory_bytes(model, estimator, d, cost, cfg, settings, ranks)
    each = f" in each of {ranks} processes" if ranks > 1 else ""
    lines = [
        *head,
        f"compute:     {flops:.3g} FLOPs in {forwards:,} forward and {backwards:,} backward passes (no evaluation)",
        f"time:        {duration(seconds)} at {cfg.sustained_flops:.3g} FLOP/s (sustained_flops=... sets it), "
        f"{steps * settings.batch_size / seconds:,.0f} examples/s",
        *_decoding(cfg, settings, seconds, ranks),
        f"memory:      about {memory / 2**30:.2f} GiB{each}: weights, gradients, optimizer, probes, and a "
        f"micro-batch of {examples}",
        *(f"warning:     {text}" for text in warnings),
        *_batching(cfg, probes_bytes(estimator, d, cost, settings) if estimator.together > 1 else 0),
        *_notes(cfg, settings),
    ]
    return Plan(parameters, d, forwards, backwards, flops, seconds, memory, "\n".join(lines))


def _share_of(estimator: Estimator, cfg: DictConfig, weights: list[QuantizedWeight], ranks: int) -> Estimator:
    """Return the estimator of one of the ranks that share its probes: it evaluates fewer of them together."""
    if ranks == 1:
        return estimator
    of_rank = OmegaConf.merge(cfg, {"estimator": {"samples": -(-cfg.estimator.samples // ranks)}})
    return build_estimator(of_rank, weights, cfg.steps or 1)  # type: ignore[arg-type]


def duration(seconds: float) -> str:
    """Return a time in the largest unit of which it is at least one.

    >>> duration(7200), duration(90), duration(1.3e-4)
    ('2 hours', '1.5 minutes', '0.00013 seconds')
    """
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} seconds"


def _decoding(cfg: DictConfig, settings: Settings, seconds: float, ranks: int) -> Iterator[str]:
    """Say, of folders of images, which cores decode them as fast as the devices would take them."""
    if "workers" not in cfg.data:
        return
    workers = own_cores() if cfg.data.workers is None else cfg.data.workers
    workers = ranks * max(workers, 1)  # 0: the main process does it
    each = DECODING_RATES[cfg.data.augmentation]
    # ranks that share probes decode the whole batch each
    images = settings.steps * settings.batch_size * (ranks if settings.parallel == "probes" else 1)
    cores = images / seconds / each
    yield f"data:        about {math.ceil(cores):,} cores decode and augment as many images/s, {each} each"
    if cores > workers:
        yield (
            f"warning:     {workers} workers, as here, decode about {workers * each:,} images/s: training would take "
            f"{duration(images / (workers * each))} and not {duration(seconds)}; raise data.workers if there are cores"
        )


def _batching(cfg: DictConfig, together: float) -> Iterator[str]:
    if together > LARGE:
        yield (
            f"warning:     estimator.probe_batch={cfg.estimator.probe_batch}: the copies of the network that are "
            f"evaluated together take about {together / 2**30:.3g} GiB; a smaller one takes less, 0 next to nothing"
        )


def _parameters(model: nn.Module) -> str:
    total = sum(p.numel() for p in model.parameters())
    config = getattr(model, "config", None)
    if config is None:
        return f"{total:,} parameters"
    embedding = sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" in n or n.startswith("lm_head"))
    return f"{total:,} parameters, {total - embedding:,} without embedding and head"


def _layers(weights: list[QuantizedWeight], cfg: DictConfig) -> Iterator[str]:
    if not weights:
        yield "layers:      none quantized"
        return
    d = sum(weight.latent.numel() for weight in weights)
    yield f"layers:      {len(weights)} tensors quantized, d = {d:,} perturbed coordinates"
    inputs = "" if cfg.activations.name == "none" else f", inputs {cfg.activations.name} {cfg.activations.bits} bits"
    for names, shape, bits in alike(weights):
        count = f"{len(names)} x " if len(names) > 1 else ""
        row = f"{count:>6s}{pattern_of(names):44s} {'x'.join(map(str, shape)):>16s}"
        yield f"       {row}  {cfg.quantizer.name} {bits} bits{inputs}"


def alike(weights: list[QuantizedWeight]) -> list[tuple[list[str], tuple[int, ...], int]]:
    """Return names, shape and bits of tensors whose names differ in numbers alone, in the model's order."""
    groups: dict[tuple[str, tuple[int, ...], int], list[str]] = {}
    for weight in weights:
        shape, bits = tuple(weight.latent.shape), weight.quantizer.bits
        groups.setdefault((re.sub(r"\d+", "#", weight.name), shape, bits), []).append(weight.name)
    return [(names, shape, bits) for (_, shape, bits), names in groups.items()]


def _noise(weights: list[QuantizedWeight], cfg: DictConfig) -> Iterator[str]:
    beta = cfg.estimator.get("beta_min")
    if weights and beta is not None:
        ratio = noise_to_guide(beta, [weight.latent.numel() for weight in weights], guide_norm_of(cfg))
        share = f"{noise_share(beta, weights, guide_norm_of(cfg)):.3g} of a probe's squared length is noise"
        yield f"noise:       noise-to-guide ratio {ratio:.3g} at β_min = {beta} (1-β = {1 - beta:.3g}); {share}"


def _amount(cfg: DictConfig, settings: Settings) -> str:
    examples = settings.steps * settings.batch_size
    text = f"{cfg.estimator.name}, {settings.steps:,} steps of {settings.batch_size}: {examples:,} examples"
    text += f", {examples * cfg.data.sequence:,} tokens" if cfg.data.get("sequence") else ""
    return text + (f", {examples / epoch:.4g} epochs" if (epoch := known_examples(cfg)) else "")


def _notes(cfg: DictConfig, settings: Settings) -> Iterator[str]:
    examples = cfg.get("training_examples") or (FACTS[cfg.data.name].train if cfg.data.name in FACTS else 0)
    if examples and examples % settings.batch_size:
        yield (
            f"note:        batch_size={settings.batch_size} does not divide the {examples:,} training examples: "
            "batches run across the borders of epochs, and nothing is dropped"
        )
