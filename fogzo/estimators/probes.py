"""Evaluate the losses of probes: one at a time in place, or many together with stacked weights.

Both see the same world: the same batch, random numbers and batch-norm statistics (``replay.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fogzo.estimators.base import Closure
from fogzo.perturb import Displacement
from fogzo.quantize import QuantizedWeight
from fogzo.replay import RandomState, same_world

# u of the samples in a range, weight by weight, as displacements in weight units: shape (len(range), *weight.shape)
Displacements = Callable[[range], Iterator[Tensor]]

_evaluations_per_call: ContextVar[int] = ContextVar("evaluations_per_call", default=1)


def evaluations_per_call() -> int:
    """How many losses the running call of the closure evaluates: more than 1 inside batched probes.

    A closure that counts its forward passes asks this.
    """
    return _evaluations_per_call.get()


def losses_one_by_one(
    closure: Closure,
    weights: Sequence[QuantizedWeight],
    displacements: Displacements,
    samples: int,
    random_state: RandomState,
) -> Tensor:
    """L(w + u_i) and L(w - u_i), shape (samples, 2); the weights are moved in place and put back."""
    losses = []
    with (
        same_world(weights[0].model, random_state),
        Displacement([weight.latent for weight in weights]) as displacement,
    ):
        for i in range(samples):
            displacement.move(delta.squeeze(0) for delta in displacements(range(i, i + 1)))
            random_state.restore()
            losses.append(closure(backward=False).detach())
            displacement.reflect()
            random_state.restore()
            losses.append(closure(backward=False).detach())
    return torch.stack(losses).view(samples, 2)


def losses_together(
    closure: Closure,
    weights: Sequence[QuantizedWeight],
    displacements: Displacements,
    samples: int,
    random_state: RandomState,
    chunk: int,
) -> Tensor:
    """The same losses, ``chunk`` pairs at a time: the closure runs once under ``vmap`` over stacked weights."""
    model = weights[0].model
    holder = _Holder(model, closure)
    names = [f"model.{weight.parameter_name}" for weight in weights]

    def loss_at(*latents: Tensor) -> Tensor:
        with _FasterUnderVmap():
            return torch.func.functional_call(holder, dict(zip(names, latents, strict=True)))  # type: ignore[no-any-return]

    losses = []
    with same_world(model, random_state):
        for start in range(0, samples, chunk):
            part = range(start, min(start + chunk, samples))
            stacked = [
                _pairs(weight.latent.detach(), delta)
                for weight, delta in zip(weights, displacements(part), strict=True)
            ]
            random_state.restore()
            token = _evaluations_per_call.set(2 * len(part))
            try:
                losses.append(torch.func.vmap(loss_at, randomness="same")(*stacked))
            finally:
                _evaluations_per_call.reset(token)
    return torch.cat(losses).view(samples, 2)


def _pairs(latent: Tensor, delta: Tensor) -> Tensor:
    """w + delta and w - delta alternating: (K, *shape) → (2K, *shape), with the roundings of ``Displacement``."""
    pairs = latent.new_empty(len(delta), 2, *latent.shape)
    torch.add(latent, delta, out=pairs[:, 0])
    torch.sub(2 * latent, pairs[:, 0], out=pairs[:, 1])
    return pairs.flatten(0, 1)


class _Holder(nn.Module):
    """Lets ``functional_call`` swap the model's weights around a closure that calls the model by itself."""

    def __init__(self, model: nn.Module, closure: Closure) -> None:
        super().__init__()
        self.model, self.closure = model, closure

    def forward(self) -> Tensor:
        return self.closure(backward=False).detach()


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` as (W xᵀ)ᵀ: stacked weights on a shared input become one large product.

    vmap's own rule copies x for each of them, and narrow layers then take 3 to 4 times as long.
    """
    rows = input.reshape(-1, input.shape[-1])
    output = (weight @ rows.mT).mT
    if bias is not None:
        output = output + bias
    return output if input.dim() == 2 else output.reshape(*input.shape[:-1], -1)


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """``F.cross_entropy``; its commonest form by logsumexp, as log_softmax over few classes takes 5 times as long."""
    plain = weight is None and size_average is None and reduce is None and reduction == "mean" and label_smoothing == 0
    if not plain or input.dim() != 2 or target.is_floating_point():
        return F.cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
    counted = target != ignore_index
    chosen = input.gather(1, torch.where(counted, target, 0).unsqueeze(1)).squeeze(1)
    return ((input.logsumexp(1) - chosen) * counted).sum() / counted.sum()


class _FasterUnderVmap(TorchFunctionMode):
    """Within: the two functions that vmap makes slow go their own ways."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        if func is F.cross_entropy:
            return _cross_entropy(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
