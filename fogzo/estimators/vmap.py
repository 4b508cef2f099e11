"""Many losses in one call of the closure: ``torch.func.vmap`` over stacked weights, and what makes that fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fogzo.errors import UserError, one_line
from fogzo.quantize import QuantizedWeight


def losses_at(loss: Callable[[], Tensor], weights: Sequence[QuantizedWeight], stacks: Sequence[Tensor]) -> Tensor:
    """Return ``loss()`` at each of the stacked values of ``weights``: stacks of shape (K, *weight.shape) give (K,)."""
    # what torch.func.functional_call does, less its search through all modules, which outlasts a small model
    places = [weight.chain._parameters for weight in weights]
    parameters = [place["original"] for place in places]

    def at(*latents: Tensor) -> Tensor:
        try:
            for place, latent in zip(places, latents, strict=True):
                place["original"] = latent  # type: ignore[assignment]  # a stacked tensor where a parameter lives
            with _FasterUnderVmap():
                return loss()
        finally:
            for place, parameter in zip(places, parameters, strict=True):
                place["original"] = parameter

    try:
        losses: Tensor = torch.func.vmap(at, randomness="same")(*stacks)
    except RuntimeError as error:
        if "vmap" not in str(error) and "functorch" not in str(error):
            raise
        raise UserError(
            f"the closure cannot run with many weights at once ({one_line(error)}): set probe_batch=0"
        ) from error
    return losses


def pairs(latent: Tensor, u: Tensor, unit: Tensor) -> Tensor:
    """Return w + unit·u and w - unit·u alternating: (K, *shape) → (2K, *shape), rounded as in ``Displacement``."""
    both = latent.new_empty(len(u), 2, *latent.shape)
    torch.addcmul(latent, u, unit, out=both[:, 0])
    torch.sub(2 * latent, both[:, 0], out=both[:, 1])
    return both.flatten(0, 1)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``F.linear`` as (W xᵀ)ᵀ: stacked weights on a shared input become one large product.

    vmap's own rule copies x for each of them, and narrow layers then take 3 to 4 times as long.
    """
    rows = input.reshape(-1, input.shape[-1])
    output = (weight @ rows.mT).mT
    if bias is not None:
        output.add_(bias)  # in place, so in the product's precision under autocast, as F.linear does
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
    """Compute ``F.cross_entropy``; its commonest form by logsumexp: log_softmax over few classes takes 5 times that."""
    plain = weight is None and size_average is None and reduce is None and reduction == "mean" and label_smoothing == 0
    if not plain or input.dim() != 2 or target.is_floating_point():
        return F.cross_entropy(input, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing)
    logits = input.to(torch.promote_types(input.dtype, torch.float32))  # as F.cross_entropy does under autocast
    counted = target != ignore_index
    chosen = logits.gather(1, torch.where(counted, target.long(), 0).unsqueeze(1)).squeeze(1)
    return torch.where(counted, logits.logsumexp(1) - chosen, 0.0).sum() / counted.sum()


class _FasterUnderVmap(TorchFunctionMode):
    """Within: the two functions that vmap makes slow go their own ways."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        if func is F.cross_entropy:
            return _cross_entropy(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
