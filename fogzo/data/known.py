"""What is known of a data set before it is read: from the code, from a manifest, or from a list of its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fogzo.data.base import FACTS
from fogzo.data.imagenet.tree import class_folders, tree_files, tree_sha256
from fogzo.data.shards import MANIFEST, read_manifest
from fogzo.data.text import text_folder


class Known(NamedTuple):
    """Each ``None`` where only reading the data tells."""

    examples: int | None = None  # of training: images
    tokens: int | None = None  # of training: of text
    image: tuple[int, int, int] | None = None  # channels, height, width
    classes: int | None = None
    vocabulary: int | None = None
    sha256: str | None = None  # that ``describe()`` gives


def known(data: Mapping[str, Any]) -> Known:
    """Return what is known of the data set with these values of its config; a set that is not there has nothing.

    Raises:
        DataError: for a folder or a manifest that is damaged.
    """
    name, root = data["name"], Path(data.get("root") or "data")
    if name in FACTS:
        facts = FACTS[name]
        return Known(facts.train, image=facts.image, classes=facts.classes, sha256=facts.sha256)
    if name == "imagefolder":
        return known_tree(root) if (root / "train").is_dir() else Known()
    folder = text_folder(name, root)
    if not (folder / MANIFEST).is_file():
        return Known()
    manifest, sha256 = read_manifest(folder, f"remove {folder} and make it again")
    return Known(tokens=manifest.splits["train"].tokens, vocabulary=manifest.vocabulary, sha256=sha256)


def known_tree(root: Path) -> Known:
    """Return what a list of the files tells of ``root/train/CLASS/`` and ``root/val/CLASS/``."""
    classes = class_folders(root / "train")
    names, _, sizes = tree_files(root / "train", classes)
    sha256 = None
    if (root / "val").is_dir() and class_folders(root / "val") == classes:  # else reading refuses it
        test_names, _, test_sizes = tree_files(root / "val", classes)
        sha256 = tree_sha256({"train": (names, sizes), "val": (test_names, test_sizes)})
    return Known(len(names), image=(3, 224, 224), classes=len(classes), sha256=sha256)
