"""Trained networks as files: our own small one, and those that other people's tools open (docs/export.md)."""

from fogzo.interchange.canonical import Exported, export
from fogzo.interchange.reading import load

__all__ = ["Exported", "export", "load"]
