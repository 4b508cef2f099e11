"""Models.  Library models stay library models; only what no library has is built here."""

from fogzo.models.mlp import mlp

__all__ = ["mlp"]
