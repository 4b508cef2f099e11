"""Which layers can be quantized, and which of them a pattern means."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from fogzo.errors import ArgumentError, UserError

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Multiply too, and stay in full precision
LEFT_OUT = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear, _ConvTransposeNd)


def is_layer(module: nn.Module) -> bool:
    """Return whether ``quantize_model`` knows how to quantize ``module``'s weights."""
    return isinstance(module, LAYERS) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Return whether it is GPT-2's linear layer, transformers' ``Conv1D``, whose weight has the shape (in, out)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


class Transposed(nn.Module):
    """Behind the quantizer of a weight (in, out): the latent is (out, in), as all quantizers have it."""

    def forward(self, w: Tensor) -> Tensor:
        return w.t().contiguous()

    right_inverse = forward


def left_out(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that multiply, but are not quantized."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LEFT_OUT)]


def checked_patterns(skip: Any) -> list[str]:
    """Return the patterns of ``skip=`` as a list, or raise ``ArgumentError``."""
    patterns = [skip] if isinstance(skip, str) else list(skip) if isinstance(skip, Iterable) else [skip]
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise ArgumentError("skip", skip, 'is not possible: give a list of names or patterns, such as ["head"]')
    return patterns


def matching(model: nn.Module, patterns: list[str], what: str, without: Collection[str] = ()) -> dict[str, set[str]]:
    """Return the layers that each pattern matches, or that are inside a module that it matches."""
    layers = [name for name, layer in model.named_modules() if is_layer(layer)]
    layers = [name for name in (*layers, *(name for name, _ in left_out(model))) if name not in without]
    matches: dict[str, set[str]] = {}
    for pattern in patterns:
        outer = [name for name, _ in model.named_modules() if name and fnmatchcase(name, pattern)]
        matches[pattern] = {
            layer for layer in layers for name in outer if layer == name or layer.startswith(name + ".")
        }
        if not matches[pattern]:
            shown = ", ".join(layers[:6]) + (", ..." if len(layers) > 6 else "")
            raise UserError(f"{what} {pattern!r} matches no layer: the layers are {shown} (* stands for anything)")
    return matches
