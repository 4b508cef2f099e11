"""The contract of a quantizer, on one screen.

A quantizer turns a full-precision *latent* tensor w into w_q = α · R⁻¹ code(R w / α): α is the scale (the step
between neighbouring codes, in weight units), R an orthogonal rotation (the identity for all but QuEST).  It is a
``torch.nn.utils.parametrize`` parametrization, so the layer that owns the tensor stays the library's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from fogzo.checks import flag, positive
from fogzo.errors import UserError
from fogzo.smoothing import Smoothing


class _Code(torch.autograd.Function):
    """Round on the way in, the surrogate's derivative on the way back (the straight-through estimator)."""

    # forward takes ctx itself: with a separate setup_context each call costs 40 µs more, several times the rounding
    @staticmethod
    def forward(ctx: Any, x: Tensor, quantizer: Quantizer) -> Tensor:
        derivative = quantizer.surrogate_derivative(x)
        ctx.save_for_backward(*([] if derivative is None else [derivative]))
        return quantizer.encode(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (grad,) = grad_outputs
        for derivative in ctx.saved_tensors:
            grad = grad * derivative
        return grad, None


class Quantizer(nn.Module, ABC):
    """A prototype until :meth:`fit` has seen a tensor; ``quantize_model`` copies and fits one for each tensor.

    What a subclass must keep: ``scale`` is positive and broadcasts against the latent; everything that is learned
    or fitted is a parameter or buffer from ``fit`` on, so that ``load_state_dict`` restores it and nothing is ever
    fitted again; codes are decided in fp32 (or fp64), whatever autocast says.
    """

    bits: int
    follows_inputs = False  # as a quantizer of inputs: True if α comes from each row, a constant to backward passes
    smoothing: Smoothing  # its std is ε̄ and its sampler the noise of the zeroth-order probes

    @abstractmethod
    def fit(self, latent: Tensor) -> None:
        """Create the scale from the initial ``latent``; called once, at construction of the quantized model."""

    @abstractmethod
    def scale(self, latent: Tensor) -> Tensor:
        """Return α, in weight units: positive, broadcastable against ``latent``."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Return the code of each entry of ``x`` (code units, rotated basis)."""

    @abstractmethod
    def surrogate_derivative(self, x: Tensor) -> Tensor | None:
        """Return the derivative of the STE's surrogate at ``x`` (code units); ``None`` means 1 everywhere."""

    @property
    def coding(self) -> str:
        """Say what the stored codes mean, beside α: ``LSQ, 2 bits``; a subclass with a choice of grid adds it."""
        return f"{type(self).__name__}, {self.bits} bits"

    def get_extra_state(self) -> Tensor:
        """Return ``coding`` as bytes: the state dict of another bit width fits in shape, and would load in silence."""
        return torch.frombuffer(bytearray(self.coding, "utf-8"), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over nothing: loading has compared it."""

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = self.get_extra_state()
        kept = state_dict.setdefault(f"{prefix}_extra_state", own)  # the first state dicts did not have it
        if not torch.equal(kept.cpu(), own):
            there = bytes(kept.tolist()).decode("utf-8", "replace")
            error_msgs.append(
                f"{prefix.rstrip('.')}: its codes are {there}, but this model has {self.coding}: quantize it alike"
            )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def for_inputs(self, channels: int) -> Quantizer:
        """Return a copy that quantizes the inputs of a layer instead of its weights (``fogzo/quantizers/inputs.py``).

        It is given rows of ``channels`` entries, shape (N, channels), if ``follows_inputs``, else whole inputs.
        """
        raise UserError(f"{type(self).__name__} does not quantize activations: use fogzo.LSQ or fogzo.QuEST")

    def same_for_inputs(self) -> tuple[Any, ...]:
        """Return what two quantizers that follow their inputs have in common if they round every input alike."""
        return (self,)

    def rotate(self, w: Tensor) -> Tensor:
        """Turn into the basis in which codes are decided: orthogonal, within each channel of α."""
        return w

    def unrotate(self, w: Tensor) -> Tensor:
        """Undo :meth:`rotate`."""
        return w

    def codes(self, latent: Tensor) -> Tensor:
        """Return the codes that ``latent`` is rounded to."""
        return self.encode(self.rotate(latent) / self.scale(latent))

    def forward(self, latent: Tensor) -> Tensor:
        """Return quantized weights, of ``latent``'s shape and dtype; gradients are the straight-through ones."""
        check_latent(latent)
        scale = self.scale(latent)
        if not torch.is_grad_enabled():
            return self.unrotate(self.codes(latent).mul_(scale))  # in place: a probe needs little memory
        codes: Tensor = _Code.apply(self.rotate(latent) / scale, self)
        return self.unrotate(codes * scale)


def check_latent(latent: Tensor) -> None:
    """Refuse latent weights in 16 bits: probes move them by less than those formats resolve (paper.md, section 2)."""
    if latent.dtype not in (torch.float32, torch.float64):
        raise UserError(
            f"latent weights are {latent.dtype}, but a probe moves them by about 1e-5 of a quantization step, which "
            "16-bit formats cannot hold: keep the model in torch.float32 and use torch.autocast for speed"
        )


def check_scale(scale: Tensor, *, why: str) -> Tensor:
    """Return ``scale`` if every entry is positive and finite, else raise ``ValueError`` with ``why``."""
    if not bool(((scale > 0) & scale.isfinite()).all()):
        raise UserError(f"the scale would be {scale.detach().flatten()[:4].tolist()}, but α must be positive: {why}")
    return scale


class FittedScale(Quantizer):
    """Shared by the quantizers whose α is fixed: given, or fitted once from the initial weights.

    ``scale_in_std`` is α as a multiple of the initial weights' standard deviation.  The paper does not say how it
    chose a fixed α; this field is our choice, and every run's record keeps it.
    """

    alpha: Tensor

    def __init__(self, scale: float | None, per_channel: bool, scale_in_std: float) -> None:
        super().__init__()
        hint = " (scale=None: fitted once from the weights)"
        self.given_scale = None if scale is None else positive(scale, "scale", hint=hint)
        self.per_channel = flag(per_channel, "per_channel")
        self.scale_in_std = positive(scale_in_std, "scale_in_std")

    def fit(self, latent: Tensor) -> None:
        """Set the scale: as it was given, or by the deviation of ``latent``."""
        # a bias has one entry a channel, hence no spread within one: it is always fitted as a whole
        by_channel = self.per_channel and latent.dim() > 1
        dims = list(range(1 if by_channel else 0, latent.dim()))
        if self.given_scale is None:
            # in fp64: the fp32 deviation of equal weights need not be 0
            std = latent.detach().double().std(dim=dims, correction=0, keepdim=by_channel)
            alpha = (self.scale_in_std * std).to(latent.dtype)
        else:
            shape = [latent.shape[0]] + [1] * (latent.dim() - 1) if by_channel else []
            alpha = torch.full(shape, self.given_scale, dtype=latent.dtype, device=latent.device)
        why = "the initial weights are constant; give scale=, or leave this tensor out (skip=, biases=False)"
        self.register_buffer("alpha", check_scale(alpha, why=why))

    def scale(self, latent: Tensor) -> Tensor:
        return self.alpha

    def extra_repr(self) -> str:
        alpha = f"{self.scale_in_std:g} std" if self.given_scale is None else f"{self.given_scale:g}"
        return f"bits={self.bits}, α={alpha}{' per channel' if self.per_channel else ''}"
