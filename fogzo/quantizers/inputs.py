"""Quantized activations: a module in front of a layer, which rounds the layer's input."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fogzo.errors import UserError
from fogzo.quantizers.base import Quantizer
from fogzo.quantizers.shared import LastInput, may_share

NAME = "input_quantizer"  # of the submodule that a quantized layer gets


class InputQuantizer(nn.Module):
    """Rounds inputs of shape (..., channels), or (N, channels, ...) for convolutions; straight-through gradient.

    A quantizer with a fitted step (LSQ) has that step from construction on, but refuses to work until
    :func:`fit_activations` has seen real inputs; the state dict says whether it has, so a resumed run never fits again.
    """

    def __init__(self, prototype: Quantizer, channels: int, channel_dim: int, seen: LastInput | None = None) -> None:
        super().__init__()
        self.quantizer = prototype.for_inputs(channels)
        self.channel_dim = channel_dim
        self.fitted = self.quantizer.follows_inputs
        self.observed: list[Tensor] | None = None  # mean |x| of each input, while fitting
        self.seen = seen or LastInput()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` quantized; while scales are fitted, as it is."""
        if self.observed is not None:
            self.observed.append(x.detach().float().abs().mean())
            return x
        if not self.fitted:
            raise RuntimeError(
                "activation quantizers have no step yet: call fogzo.fit_activations(model, forward) first"
            )
        # codes are decided in fp32, whatever autocast says
        whole = x if x.dtype == torch.float64 else x.float()
        if not self.quantizer.follows_inputs:
            quantized: Tensor = self.quantizer(whole)
            return quantized
        rows = whole.movedim(self.channel_dim, -1)
        flat = rows.reshape(-1, rows.shape[-1])
        quantized = self.seen.quantized(x, flat, self.quantizer) if may_share(x) else self.quantizer(flat)
        return quantized.view(rows.shape).movedim(-1, self.channel_dim)

    def fit(self) -> None:
        """Take the step from the inputs observed: as LSQ fits weights, with their mean |x|."""
        if not self.observed:
            raise UserError(
                "a quantized layer was not reached by the passes that fit activations: run the whole model in forward()"
            )
        mean = torch.stack(self.observed).mean()
        if not bool(mean.isfinite() & (mean > 0)):
            raise UserError(
                f"a quantized layer sees inputs with mean |x| = {float(mean)}, to which no step can be fitted: leave "
                "it out (skip=), or fit to other batches"
            )
        twin = copy.deepcopy(self.quantizer)
        twin.fit(mean)
        self.quantizer.load_state_dict(twin.state_dict())  # in place: an optimizer may hold the step already

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.fitted)

    def set_extra_state(self, state: Tensor) -> None:
        self.fitted = bool(state)


def quantize_inputs(layer: nn.Module, prototype: Quantizer, seen: LastInput | None = None) -> None:
    """Put an :class:`InputQuantizer` in front of ``layer``, an ``nn.Linear`` or convolution."""
    put_in_front(layer, input_quantizer(layer, prototype, seen))


def input_quantizer(layer: nn.Module, prototype: Quantizer, seen: LastInput | None = None) -> InputQuantizer:
    """Return a quantizer that fits the inputs of ``layer``, on its device and in its dtype.

    ``seen``: what the quantizers of one model share, so that layers with one input round it once.
    """
    linear = getattr(layer, "in_features", getattr(layer, "nx", None))  # nx: of transformers' Conv1D
    channels, dim = (layer.in_channels, 1) if linear is None else (linear, -1)
    weight = next(layer.parameters())
    quantizer = InputQuantizer(prototype, int(channels), dim, seen)  # type: ignore[arg-type]
    return quantizer.to(device=weight.device, dtype=weight.dtype)


def put_in_front(layer: nn.Module, quantizer: InputQuantizer) -> None:
    """Let ``quantizer`` round the inputs of ``layer``, by a forward pre-hook."""
    layer.add_module(NAME, quantizer)
    layer.register_forward_pre_hook(_quantize_first, with_kwargs=True)


def check_inputs(layer: nn.Module, name: str) -> None:
    """Refuse a layer whose inputs a pre-hook cannot round, or that rounds them already.

    Raises:
        ValueError: naming the layer, and the way out.
    """
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        raise UserError(f"{name} is called by torch without its hooks, so its inputs cannot be quantized: skip it")
    if hasattr(layer, NAME):
        raise UserError(f"{name} quantizes its inputs already: start from a plain model, or skip this layer")


def _quantize_first(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    quantizer = layer.get_submodule(NAME)
    if args:
        return (quantizer(args[0]), *args[1:]), kwargs
    name = "input" if "input" in kwargs else "x"
    return args, kwargs | {name: quantizer(kwargs[name])}


@contextmanager
def unrounded(model: nn.Module) -> Iterator[list[InputQuantizer]]:
    """Within: activations that have no fitted step yet pass as they are, and are observed."""
    inputs = [module for module in model.modules() if isinstance(module, InputQuantizer) and not module.fitted]
    for module in inputs:
        module.observed = []
    try:
        yield inputs
    finally:
        for module in inputs:
            module.observed = None


@torch.no_grad()
def fit_activations(model: nn.Module, forward: Callable[[], object]) -> nn.Module:
    """Fit the steps of ``model``'s activation quantizers to the inputs that ``forward()`` sends through it.

    Call it once, before training, with a few batches, the same on all ranks:
    ``fit_activations(model, lambda: model(x))``.  Meanwhile activations pass unrounded.  What is loaded from a state
    dict later counts instead.  Returns ``model``.

    Raises:
        ValueError: if a quantized layer is not reached, or sees nothing but zeros.
    """
    with unrounded(model) as inputs:
        if inputs:
            forward()
        for module in inputs:
            module.fit()
        for module in inputs:
            module.fitted = True
    return model
