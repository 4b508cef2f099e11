"""Which code made a result: versions and the git commit."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "mlxtend")


def provenance() -> dict[str, Any]:
    """``versions`` of Python and the packages that matter, ``git_commit`` and whether the tree was ``git_dirty``."""
    versions = {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}
    commit = _git("rev-parse", "HEAD")
    # results change while a sweep runs; what counts is whether the code is what the commit holds
    changed = _git("status", "--porcelain", "--", "fogzo", "configs", "hydra_plugins", "train.py")
    return {"versions": versions, "git_commit": commit, "git_dirty": bool(changed) if commit else None}


def _git(*arguments: str) -> str | None:
    root = Path(__file__).resolve().parent.parent
    if not (
        root / ".git"
    ).exists():  # installed, not a checkout: another repository around it says nothing about this code
        return None
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
