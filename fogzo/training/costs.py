"""What a run costs: FLOPs and memory, from a config and a model's shapes, without touching data."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fogzo.estimators import Estimator
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
