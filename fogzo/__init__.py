"""FOGZO: first-order-guided zeroth-order gradients for quantization-aware training.

The names below load on first use (PEP 562): torch takes seconds to import, and ``fogzo.runs``, ``fogzo.evidence`` and
``train.py --help`` do without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fogzo.estimators import FOGZO, NSPSA, StraightThrough
    from fogzo.interchange import export, load
    from fogzo.quantize import bake, quantize_model, quantized_weights
    from fogzo.quantizers import LSQ, FixedScale, QuEST, Sign, fit_activations
    from fogzo.summary import report
    from fogzo.training.reload import load_run

__version__ = "0.1.0"
__all__ = ["FOGZO", "LSQ", "NSPSA", "FixedScale", "QuEST", "Sign", "StraightThrough"]
__all__ += ["bake", "export", "fit_activations", "load", "load_run", "quantize_model", "quantized_weights", "report"]


def __getattr__(name: str) -> Any:
    for home in (
        ("quantizers", "quantize", "summary", "estimators", "interchange", "training.reload") if name in __all__ else ()
    ):
        if hasattr(module := import_module(f"fogzo.{home}"), name):
            return getattr(module, name)
    raise AttributeError(f"module 'fogzo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
