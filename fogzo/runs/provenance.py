"""Which code made a result: versions and the git commit."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

# what computes, makes the models, and reads the data
PACKAGES = (
    *("torch", "torchvision", "numpy", "hydra-core", "mlxtend"),
    *("timm", "transformers", "tokenizers", "datasets", "pillow"),
)


def provenance(device: torch.device) -> dict[str, Any]:
    """``versions`` of Python and the packages that matter, of those that are installed; ``git_commit`` and whether the
    tree was ``git_dirty``; on CUDA also ``gpu``: its name and the versions of CUDA and cuDNN that torch uses."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    commit = _git("rev-parse", "HEAD")
    # results change while a sweep runs; what counts is whether the code is what the commit holds
    changed = _git("status", "--porcelain", "--", "fogzo", "configs", "hydra_plugins", "train.py")
    code = {"versions": versions, "git_commit": commit, "git_dirty": bool(changed) if commit else None}
    if device.type != "cuda":
        return code
    cuda = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
    return code | {"gpu": {"name": torch.cuda.get_device_name(device), **cuda}}


def _git(*arguments: str) -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (
        root / ".git"
    ).exists():  # installed, not a checkout: another repository around it says nothing about this code
        return None
    try:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
