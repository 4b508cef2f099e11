"""Which code made a result: versions and the git commit."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

# what computes, makes the models, and reads the data
PACKAGES = (
    *("torch", "torchvision", "numpy", "hydra-core", "mlxtend"),
    *("timm", "transformers", "tokenizers", "datasets", "pillow"),
)


def provenance() -> dict[str, Any]:
    """Return what code is at work.

    ``versions`` of Python and of those packages that matter and are installed; ``git_commit``; ``git_dirty``: whether
    the code is not what that commit holds.
    """
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    commit = _git("rev-parse", "HEAD")
    # results change while a sweep runs; what counts is the code
    changed = _git("status", "--porcelain", "--", "fogzo", "configs", "hydra_plugins", "train.py")
    return {"versions": versions, "git_commit": commit, "git_dirty": bool(changed) if commit else None}


def _git(*arguments: str) -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed: another repository around it says nothing about this code
        return None
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
