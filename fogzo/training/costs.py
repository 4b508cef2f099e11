"""What a run costs: passes, FLOPs and memory, from a config and a model's shapes, without touching data."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from fogzo.data.imagenet.augment import check_augmentation
from fogzo.estimators.base import check_whole
from fogzo.quantize import QuantizedWeight
from fogzo.quantizers.inputs import InputQuantizer
from fogzo.training.config import Settings
from fogzo.training.ledger import measure_flops
from fogzo.training.shapes import DataShape
from fogzo.training.tensor_memory import PeakTensorMemory

# Training examples of the sets that have a fixed number of them (imagenet100: of CMC's list)
EXAMPLES = {
    "mnist5k": 4_000,
    "mnist": 60_000,
    "fashion_mnist": 60_000,
    "imagenet100": 126_689,
    "imagenet1k": 1_281_167,
}
SIZES = {
    "mnist5k": (1, 28),
    "mnist": (1, 28),
    "fashion_mnist": (1, 28),
    "imagenet100": (3, 224),
    "imagenet1k": (3, 224),
}
CLASSES = {"mnist5k": 10, "mnist": 10, "fashion_mnist": 10, "imagenet100": 100, "imagenet1k": 1000}

# Images/s that a core decodes and augments, JPEGs of 500x375 to 224 pixels: scripts/bench.py --only data, an AMD EPYC
DECODED = {"deit": 250, "resnet": 400, "none": 250}
ACTIVATIONS = {"fp32": 1.0, "bf16": 0.6}  # bytes of a forward pass's tensors, as a share of those in fp32: some stay


class Cost(NamedTuple):
    """Of a micro-batch: what quantizers do to weights is done once for all of its examples."""

    forward: float  # FLOPs
    backward: float
    saved: int  # bytes that the forward pass keeps for the backward pass
    peak: int  # bytes that a forward pass takes at most where there is no backward pass, as in a probe


def passes(cfg: DictConfig, settings: Settings, floats: bool) -> tuple[int, int]:
    """Forward and backward passes over whole batches in the whole run.

    ``floats``: there are parameters that are not quantized, which keep their first-order gradient.
    """
    steps, name = settings.steps, cfg.estimator.name
    samples = cfg.estimator.get("samples", 1)
    if name in ("ste", "ste_longer", "noisy_ste"):
        return steps, steps
    if name == "nspsa":
        return steps * (2 * samples + floats), steps * floats
    probed = steps - round(cfg.estimator.get("ste_share", 0.0) * steps)
    pairs = 1 if cfg.estimator.get("beta_min") == 1 else samples
    return steps + 2 * pairs * probed, steps


def memory_bytes(
    model: nn.Module, probed: list[QuantizedWeight], cost: Cost, cfg: DictConfig, settings: Settings, ranks: int
) -> float:
    """fp32 weights, gradients, optimizer states, the kept copy of the probed weights, and what is larger: activations
    that are saved for the backward pass, or the probes that are evaluated together.

    Of one of ``ranks`` processes: DistributedDataParallel keeps the gradients a second time, in its buckets.
    """
    parameters = sum(p.numel() for p in model.parameters())
    optimizer_states = 2 if "Adam" in cfg.optimizer._target_ else int(cfg.optimizer.get("momentum", 0) > 0)
    copies = 2 + optimizer_states + (ranks > 1 and settings.parallel == "data")
    kept = sum(weight.latent.numel() for weight in probed)
    saved = cost.saved * ACTIVATIONS[settings.precision]
    return 4.0 * (parameters * copies + kept) + max(saved, probes_bytes(probed, cost, cfg, settings, ranks))


def probes_bytes(probed: list[QuantizedWeight], cost: Cost, cfg: DictConfig, settings: Settings, ranks: int) -> float:
    """What k pairs of probes take that are evaluated together: k directions, 2k copies of the weights, 2k passes."""
    d = sum(weight.latent.numel() for weight in probed)
    return pairs_together(cfg, ranks) * (12.0 * d + 2 * cost.peak * ACTIVATIONS[settings.precision])


def pairs_together(cfg: DictConfig, ranks: int) -> int:
    """How many pairs of probes one process evaluates at a time in stacked copies; 0: losses come one by one."""
    samples = cfg.estimator.get("samples", 1)
    if cfg.parallel == "probes":
        samples = -(-samples // ranks)
    return int(min(cfg.estimator.get("probe_batch", 0), samples))


def measure(model: nn.Module, cfg: DictConfig, examples: int) -> Cost:
    """Costs of a micro-batch, from shapes alone: the model is moved to the meta device, and is of no use afterwards."""
    model = model.to("meta").train()
    loss = example_loss(model, cfg, examples)
    for module in model.modules():
        if isinstance(module, InputQuantizer):
            module.fitted = True  # only shapes matter here
    forward, backward = measure_flops(loss)
    saved: dict[int, int] = {}
    owned = {p.untyped_storage()._cdata for p in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = loss()
    del kept
    with torch.no_grad(), PeakTensorMemory([*model.parameters(), *model.buffers()]) as peak:
        loss()
    return Cost(forward, backward, sum(saved.values()), peak.most - peak.existing)


def known_shape(cfg: DictConfig) -> DataShape:
    """What a model has to know of the data that ``cfg`` names, as far as the config tells.

    Raises:
        ValueError: for a data set that the plan knows nothing of, and a size or augmentation that is not possible.
    """
    name = cfg.data.name
    if name in SIZES:
        channels, size = SIZES[name]
        size = check_whole(cfg.data.get("image_size", size), name="data.image_size", lowest=8)
        if "augmentation" in cfg.data:
            check_augmentation(cfg.data.augmentation)
        return DataShape(name, image=(channels, size, size), classes=CLASSES[name])
    if "sequence" not in cfg.data:
        raise ValueError(
            f"data={name} is unknown to the plan: run without plan=true, or choose one of the data sets here"
        )
    vocabulary = cfg.data.get("vocabulary")
    if vocabulary is not None:
        check_whole(vocabulary, name="data.vocabulary")
    return DataShape(name, vocabulary=vocabulary, sequence=check_whole(cfg.data.sequence, name="data.sequence"))


def example_loss(model: nn.Module, cfg: DictConfig, examples: int) -> Callable[[], Tensor]:
    """The loss of so many made-up examples of the data set's shape."""
    shape = known_shape(cfg)
    if shape.image is not None:
        images = torch.empty(examples, *shape.image, device="meta")
        targets = torch.empty(examples, dtype=torch.int64, device="meta")
        return lambda: F.cross_entropy(model(images), targets)
    length = cfg.data.sequence
    tokens = torch.empty(examples, length, dtype=torch.int64, device="meta")
    # given whole, as transformers would look at values to make it
    mask = torch.empty(examples, 1, length, length, dtype=torch.bool, device="meta")

    def loss() -> Tensor:
        logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    return loss
