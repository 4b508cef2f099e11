"""Which data lie there now, where that is known without reading them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fogzo.data.mnist5k import SHA256 as MNIST5K
from fogzo.data.shards import MANIFEST, read_manifest


def present_sha256(name: str, root: str | Path) -> str | None:
    """The ``sha256`` that the data set ``name`` in ``root`` would describe itself with.

    ``None`` where only reading the data could tell (images, the embedded text), or where they are not there.
    """
    if name == "mnist5k":
        return MNIST5K
    manifest = Path(root) / name / MANIFEST
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else None


def present_tokens(name: str, root: str | Path) -> int | None:
    """Training tokens of the prepared text ``name`` in ``root``, by its manifest; ``None`` if there is none.

    Raises:
        DataError: for a manifest that is damaged.
    """
    folder = Path(root) / name
    if not (folder / MANIFEST).is_file():
        return None
    manifest, _ = read_manifest(folder, f"remove {folder} and make it again")
    return manifest.splits["train"].tokens
