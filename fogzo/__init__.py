"""FOGZO: first-order-guided zeroth-order gradients for quantization-aware training.

Everything below is imported on first use, so that ``import fogzo`` (and ``fogzo.runs.records``) needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fogzo.estimators import FOGZO, NSPSA, StraightThrough
    from fogzo.quantize import bake, quantize_model, quantized_weights
    from fogzo.quantizers import LSQ, FixedScale, QuEST, Sign, fit_activations

__version__ = "0.1.0"

_HOMES = {
    "quantize_model": "fogzo.quantize",
    "quantized_weights": "fogzo.quantize",
    "bake": "fogzo.quantize",
    "fit_activations": "fogzo.quantizers",
    "FixedScale": "fogzo.quantizers",
    "LSQ": "fogzo.quantizers",
    "QuEST": "fogzo.quantizers",
    "Sign": "fogzo.quantizers",
    "StraightThrough": "fogzo.estimators",
    "NSPSA": "fogzo.estimators",
    "FOGZO": "fogzo.estimators",
}

__all__ = [
    "FOGZO",
    "LSQ",
    "NSPSA",
    "FixedScale",
    "QuEST",
    "Sign",
    "StraightThrough",
    "bake",
    "fit_activations",
    "quantize_model",
    "quantized_weights",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fogzo' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
