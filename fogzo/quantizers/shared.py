"""Inputs that several layers share (q, k and v; gate and up) are rotated and rounded once."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fogzo.quantizers.base import Quantizer

_sharing: ContextVar[bool] = ContextVar("sharing", default=True)


@contextmanager
def each_by_itself() -> Iterator[None]:
    """Within: every layer rounds its own inputs, so that what is counted is the network as it is written."""
    token = _sharing.set(False)
    try:
        yield
    finally:
        _sharing.reset(token)


def may_share(x: Tensor) -> bool:
    """Return whether ``x`` can be known again: not where torch traces, maps over it, or keeps no version or values."""
    if (
        torch.compiler.is_compiling()
        or torch.is_inference_mode_enabled()
        or torch._C._are_functorch_transforms_active()
    ):
        return False
    return _sharing.get() and not (x.is_inference() or x.is_meta)


class Rounded(NamedTuple):
    """Rows as a quantizer has rounded them, and what their gradient is multiplied by on its way back."""

    quantized: Tensor
    scale: Tensor
    derivative: Tensor | None  # None: not asked for, or 1 everywhere


class _Known(torch.autograd.Function):
    """Give out what is known, and take the gradient back as ``Quantizer.forward`` does, each layer's by itself.

    So gradients have the bits that they had when each layer rounded its inputs.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, quantizer: Quantizer, known: Rounded) -> Tensor:
        ctx.quantizer = quantizer
        ctx.save_for_backward(known.scale, *([] if known.derivative is None else [known.derivative]))
        return known.quantized.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        scale, *derivatives = ctx.saved_tensors
        grad = ctx.quantizer.rotate(grad_outputs[0]) * scale
        for derivative in derivatives:
            grad = grad * derivative
        return ctx.quantizer.unrotate(grad / scale), None, None


class LastInput:
    """The input that a model's quantizers rounded last, as long as it lives and is not written to; one for a model.

    Only for quantizers that follow their inputs: what they return depends on nothing that is displaced or trained.
    """

    def __init__(self) -> None:
        self.entry: tuple[Any, ...] = ()

    def __reduce__(self) -> tuple[type[LastInput], tuple[()]]:
        return LastInput, ()  # what copies and files of a model hold is empty

    def quantized(self, x: Tensor, rows: Tensor, quantizer: Quantizer) -> Tensor:
        """Return ``quantizer(rows)``, where ``rows`` are a layout of ``x``."""
        wants_gradient = torch.is_grad_enabled() and rows.requires_grad
        key = (x._version, quantizer.same_for_inputs(), rows.shape, wants_gradient)
        entry = self.entry  # read once: threads may share a model
        if entry and entry[0]() is x and entry[1] == key and entry[3] == entry[2].quantized._version:
            known: Rounded = entry[2]
        else:
            known = _round(rows.detach(), quantizer, wants_gradient)
            self.entry = (weakref.ref(x, self._forget), key, known, known.quantized._version)
        if not wants_gradient:
            return known.quantized
        result: Tensor = _Known.apply(rows, quantizer, known)
        return result

    def _forget(self, gone: Any) -> None:
        if self.entry and self.entry[0] is gone:
            self.entry = ()


@torch.no_grad()
def _round(rows: Tensor, quantizer: Quantizer, with_derivative: bool) -> Rounded:
    scale = quantizer.scale(rows)
    x = quantizer.rotate(rows) / scale
    derivative = quantizer.surrogate_derivative(x) if with_derivative else None
    return Rounded(quantizer.unrotate(quantizer.encode(x).mul_(scale)), scale, derivative)
