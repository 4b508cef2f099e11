"""Models.  Library models stay library models; only what no library has is built here.

The libraries load when a model is built, not when this package is imported.
"""

from fogzo.models.deit import deit_mini, deit_small, deit_tiny
from fogzo.models.libraries import hf_causal_lm, timm_model
from fogzo.models.llama import llama
from fogzo.models.mlp import mlp
from fogzo.models.resnet import resnet18, resnet50, resnet_mini

__all__ = ["deit_mini", "deit_small", "deit_tiny", "hf_causal_lm", "llama", "mlp", "resnet18", "resnet50"]
__all__ += ["resnet_mini", "timm_model"]
