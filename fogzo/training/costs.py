"""What a run costs and what its noise does, from a config and a model's shapes, without touching data."""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fogzo.estimators import NSPSA, Estimator
from fogzo.estimators.beta import squared_norm
from fogzo.quantize import QuantizedWeight
from fogzo.quantizers import QuEST
from fogzo.quantizers.inputs import InputQuantizer
from fogzo.training.config import Settings
from fogzo.training.draft import build_optimizer
from fogzo.training.ledger import measure_flops
from fogzo.training.shapes import known_shape

ACTIVATIONS = {"fp32": 1.0, "bf16": 0.6}  # bytes of a forward pass's tensors, as a share of those in fp32: some stay


class Cost(NamedTuple):
    """Of a micro-batch: what quantizers do to weights is done once for all of its examples."""

    forward: float  # FLOPs
    backward: float
    saved: int  # bytes that the forward pass keeps for the backward pass
    peak: int  # bytes that a forward pass takes at most where there is no backward pass, as in a probe


def memory_bytes(
    model: nn.Module, estimator: Estimator, perturbed: int, cost: Cost, cfg: DictConfig, settings: Settings, ranks: int
) -> float:
    """Return what training takes: fp32 weights, gradients, optimizer states, and what is largest of a step: activations
    that are saved for the backward pass, or the probes with what they keep of the ``perturbed`` coordinates.

    Of one of ``ranks`` processes: DistributedDataParallel keeps the gradients a second time, in its buckets.
    """
    parameters = sum(p.numel() for p in model.parameters())
    copies = 2 + optimizer_states(cfg) + (ranks > 1 and settings.parallel == "data")
    saved = cost.saved * ACTIVATIONS[settings.precision]
    return 4.0 * parameters * copies + max(saved, probes_bytes(estimator, perturbed, cost, settings))


def probes_bytes(estimator: Estimator, perturbed: int, cost: Cost, settings: Settings) -> float:
    """Return what the buffers of ``estimator`` take, and the forward passes that it evaluates together."""
    buffers = 4.0 * perturbed * estimator.buffers
    return buffers + estimator.together * cost.peak * ACTIVATIONS[settings.precision]


def optimizer_states(cfg: DictConfig) -> int:
    """Return how many tensors of its shape the optimizer keeps of a parameter, seen in a step of a small layer."""
    layer = nn.Linear(3, 5, bias=False)
    optimizer = build_optimizer(cfg, layer)
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step()
    return sum(t.shape == layer.weight.shape for t in optimizer.state[layer.weight].values() if isinstance(t, Tensor))


def measure(model: nn.Module, cfg: DictConfig, examples: int) -> Cost:
    """Return a micro-batch's costs, from shapes alone: the model moves to the meta device, of no use afterwards."""
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
        graph = loss()
    del graph
    with torch.no_grad(), PeakTensorMemory([*model.parameters(), *model.buffers()]) as peak:
        loss()
    return Cost(forward, backward, sum(saved.values()), peak.most - peak.existing)


def example_loss(model: nn.Module, cfg: DictConfig, examples: int) -> Callable[[], Tensor]:
    """Return the loss of so many made-up examples of the data set's shape, as a function."""
    shape = known_shape(cfg)
    assert shape is not None
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


def noise_to_guide(beta: float, sizes: Sequence[int], guide_norm: str = "global") -> float:
    """Return how much longer the noise of a probe is than its guide: √((1-β) d/β) for ‖ĝ‖ = 1 (paper.md, section 2).

    ``sizes``: coordinates of each tensor; ``guide_norm``: see :class:`fogzo.FOGZO`.
    """
    return math.sqrt((1 - beta) * sum(sizes) / (beta * squared_norm(sizes, guide_norm))) if beta > 0 else math.inf


def guide_squares(sizes: Sequence[int], guide_norm: str) -> list[float]:
    """Return ĝ's mean square per coordinate in each tensor, were it spread evenly; the noise's is 1."""
    if guide_norm == "rms":
        return [1.0 for _ in sizes]
    return [1 / (size if guide_norm == "per_tensor" else sum(sizes)) for size in sizes]


def expected_crossings(cfg: DictConfig, weights: list[QuantizedWeight]) -> float | None:
    """Return about how many codes differ between a pair's probes at β_min, for weights spread evenly over cells.

    A coordinate moved from x - δ to x + δ (code units) crosses a boundary with probability 2δ.
    """
    beta = cfg.estimator.get("beta_min")
    if beta is None or not weights:
        return None
    sizes = [weight.latent.numel() for weight in weights]
    epsilon = float(cfg.estimator.get("epsilon", 1.0))
    # E|u| per coordinate is √(2/π) of its deviation for a sum of guide and noise
    moved = (0.8 * math.sqrt((1 - beta) + beta * square) for square in guide_squares(sizes, guide_norm_of(cfg)))
    parts = zip(weights, sizes, moved, strict=True)
    return sum(2 * epsilon * weight.smoothing.std * move * size for weight, size, move in parts)


def guide_norm_of(cfg: DictConfig) -> str:
    """Return what ĝ is scaled to; controls that have no choice are FOGZO's likeness with its default."""
    return str(cfg.estimator.get("guide_norm", "global"))


def warnings_of(
    cfg: DictConfig, model: nn.Module, weights: list[QuantizedWeight], estimator: Estimator
) -> Iterator[str]:
    """Say what will not work, or not as hoped."""
    crossings = expected_crossings(cfg, weights)
    if crossings is not None and crossings < 10:
        yield (
            f"about {crossings:.1g} codes differ between the probes of a pair: most differences will be zero or "
            "chance; raise estimator.epsilon, or lower estimator.beta_min"
        )
    yield from small_blocks(model, weights)
    if isinstance(estimator, NSPSA):
        d = sum(weight.latent.numel() for weight in weights)
        if estimator.samples < d / 100:
            yield f"n-SPSA with {estimator.samples} samples for {d:,} coordinates: its estimate is nearly all noise"


def small_blocks(model: nn.Module, weights: list[QuantizedWeight], least: int = 16) -> Iterator[str]:
    """Name weights and inputs whose widths allow Hadamard blocks below ``least`` only, a sentence for each size."""
    rotated = [(weight.name, weight.quantizer) for weight in weights]
    for name, module in model.named_modules():
        if isinstance(module, InputQuantizer):
            rotated.append((f"inputs of {name.rpartition('.')[0]}", module.quantizer))
    groups: dict[int, dict[str, list[str]]] = {}
    for name, quantizer in rotated:
        if isinstance(quantizer, QuEST) and (block := quantizer.block.shape[0]) < least:
            groups.setdefault(block, {}).setdefault(re.sub(r"\d+", "#", name), []).append(name)
    for block, alike_names in groups.items():
        counts = ((f"{len(names)} x " if len(names) > 1 else "") + pattern_of(names) for names in alike_names.values())
        yield f"Hadamard blocks of {block} only: choose widths that {least} divides for {', '.join(counts)}"


def pattern_of(names: list[str]) -> str:
    """Return what the names have in common, with ``*`` for the numbers in which they differ.

    >>> pattern_of(["layer2.0.conv2", "layer2.1.conv1", "layer2.1.conv2"])
    'layer2.*.conv*'
    """
    columns = zip(*(re.split(r"(\d+)", name) for name in names), strict=True)
    return "".join(column[0] if len(set(column)) == 1 else "*" for column in columns)


class PeakTensorMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within: follows the storages that operations return, and keeps the most bytes alive at one time in ``most``.

    Tensors ``existing`` count from the start, as an in-place operation returns tensors that were there before; the
    attribute keeps their bytes.
    """

    def __init__(self, existing: Iterable[Any] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive, self.most = 0, 0
        self.seen: dict[int, int] = {}
        for tensor in existing:
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        self.existing = self.alive

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.seen:
            self.seen[key] = storage.nbytes()
            self.alive += self.seen[key]
            self.most = max(self.most, self.alive)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.alive -= self.seen.pop(key, 0)
