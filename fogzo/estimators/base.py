"""What a gradient estimator is: it fills ``.grad`` from a closure, as a pure function of (parameters, batch, step)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fogzo.errors import UserError
from fogzo.quantize import QuantizedWeight
from fogzo.quantizers.base import check_latent


class Closure(Protocol):
    """This step's loss at the current parameters, a tensor of one number.

    With ``backward=True`` it also calls ``backward()``, so that ``.grad`` holds the straight-through gradient of the
    whole batch (micro-batches live inside), scaled as the loss that is returned.  Otherwise it is called under
    ``torch.no_grad()``.

    One that knows a faster way to evaluate batched probes than ``torch.func.vmap`` around itself has an attribute
    ``stacked_losses(weights, stacks)``: stacks of shape (K, *weight.shape) give losses of shape (K,).
    """

    def __call__(self, *, backward: bool) -> Tensor: ...


@dataclass(frozen=True)
class Estimate:
    """What one estimate saw; all tensors are detached scalars, left on their device.

    Attributes:
        loss: the loss at the undisplaced weights; for an estimate without a first-order pass the mean over its
            probes, which differs by O(ε²).
        beta: β of this step; ``None`` for estimators without one.
        noise_share: the part of a probe's squared length that is noise, d(1-β)/(β + d(1-β)) for ‖ĝ‖ = 1, d the number
            of quantized weights: it means the same for networks of every size (docs/theory.md).  Of a step that
            believes an earlier slope: of the probe that it stands for.  ``None``: no β.
        agreement: measured slope along ĝ over ‖g‖.  1: the STE gradient predicts the loss of the quantized network;
            0: it is orthogonal to the truth; nan: it is zero; ``None``: nothing was measured.
        zero_probes: share of the pairs whose two losses were equal to the last bit: probes that crossed no rounding
            boundary, or none that matters.  ``None``: no pairs.
        guide_norm: ‖g‖ of the STE gradient over the quantized weights, in units of the noise (ε·α).
        crossings: codes in which the two probes of the step's first pair differ.  Near 0 the pair measures nothing, or
            chance; ``None``: not counted in this step.
    """

    loss: Tensor
    beta: float | Tensor | None = None
    agreement: Tensor | None = None
    zero_probes: Tensor | None = None
    guide_norm: Tensor | None = None
    crossings: Tensor | None = None
    noise_share: float | Tensor | None = None


class Estimator(ABC):
    """Contract: no optimizer, no loop, no hidden state; parameters and buffers are afterwards what they were.

    Where what was measured in earlier steps is used, it is in :meth:`state_dict`, which a checkpoint keeps.
    """

    buffers: int = 0  # weight-sized buffers that an estimate holds at most, beside the weights and their .grad
    together: int = 1  # losses that one call of the closure evaluates at most; more where probes are batched

    @abstractmethod
    def estimate(self, closure: Closure, *, step: int) -> Estimate:
        """Fill ``.grad`` of every trainable parameter for training step ``step``, and say what was seen.

        The noise is a function of ``step``: one that stood still would try the same directions for ever.

        ``.grad`` must be empty on entry (``optimizer.zero_grad()``): estimators refuse anything but zeros, the STE if
        it was given the weights.  Weights are restored bit for bit also when the closure raises; ``.grad`` is then
        undefined.
        """

    @abstractmethod
    def passes(self, steps: int, *, first: int = 0) -> tuple[int, int]:
        """Return the forward and the backward passes over whole batches of ``steps`` steps from step ``first`` on."""

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured in earlier steps and is used in later ones: numbers and tensors; mostly nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        assert not state, f"{type(self).__name__} has no state"


def check_weights(weights: Sequence[QuantizedWeight]) -> list[QuantizedWeight]:
    """Return the trainable ones of ``weights``, which must be of one model, each once, and not in 16 bits.

    Raises:
        UserError: if they are not, or if none is trainable.
    """
    way_out = "pass the list that fogzo.quantized_weights(model) returns"
    listed: list[Any] = list(weights) if isinstance(weights, list | tuple) else [weights]
    wrong = [type(weight).__name__ for weight in listed if not isinstance(weight, QuantizedWeight)]
    if wrong or not isinstance(weights, list | tuple):
        raise UserError(f"weights is or holds a {(wrong or [type(weights).__name__])[0]}: {way_out}")
    for weight in listed:
        check_latent(weight.latent)
    if len({weight.model for weight in listed}) > 1 or len({id(weight.latent) for weight in listed}) < len(listed):
        raise UserError(f"weights holds tensors of several models, or one of them twice: {way_out}, of the whole model")
    trainable = [weight for weight in listed if weight.latent.requires_grad]
    if not trainable:
        raise UserError(f"weights holds nothing to train: {way_out}, with requires_grad left on")
    return trainable


def check_gradients_empty(model: nn.Module) -> None:
    """Raise ``UserError`` if the ``.grad`` of a parameter holds anything but zeros."""
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    if not grads:  # as zero_grad() leaves it; zeros have to be looked at, for which a GPU is waited for, once
        return
    device = next(iter(grads.values())).device
    left = torch.stack([grad.any().to(device) for grad in grads.values()]).tolist()
    for name, not_empty in zip(grads, left, strict=True):
        if not_empty:
            plain_name = name.replace("parametrizations.", "").removesuffix(".original")
            raise UserError(
                f"{plain_name} has a .grad on entry, but an estimate starts from none: call optimizer.zero_grad() "
                "first, of an optimizer that was built after fogzo.quantize_model (accumulate micro-batches inside the "
                "closure)"
            )


def loss_of(closure: Closure, *, backward: bool) -> Tensor:
    """Call ``closure`` and return its loss, detached, of shape ().

    Raises:
        UserError: if it returns anything but a tensor of one number.
    """
    loss: Any = closure(backward=backward)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a loss of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise UserError(f"the closure returned {what}: return a tensor of one number, such as loss.mean().detach()")
    return loss.detach().reshape(())


def first_order(closure: Closure, weights: Sequence[QuantizedWeight]) -> tuple[Tensor, list[QuantizedWeight]]:
    """Call ``closure`` with its backward pass; return the loss, and those of ``weights`` that it gave a gradient.

    A weight that this step's loss does not reach has no gradient, and gets none of the noise either.

    Raises:
        UserError: when ``.grad`` is not empty on entry, or if the loss reached none of the weights.
    """
    check_gradients_empty(weights[0].model)
    for weight in weights:
        weight.latent.grad = None  # zeros that zero_grad(set_to_none=False) left would look like gradients
    with torch.enable_grad():
        loss = loss_of(closure, backward=True)
    if not (reached := [weight for weight in weights if weight.latent.grad is not None]):
        raise UserError(
            "closure(backward=True) left no gradient on any quantized weight: it must call loss.backward(), and its "
            "loss must come from the model that was quantized"
        )
    return loss, reached


def trains_others(weights: Sequence[QuantizedWeight]) -> bool:
    """Return whether the model of ``weights`` trains parameters beside them, which keep their first-order gradient."""
    latents = {id(weight.latent) for weight in weights}
    return any(p.requires_grad and id(p) not in latents for p in weights[0].model.parameters())
