"""Lists of classes that come with the package, and the class folders of a tree of images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from fogzo.data.base import DataError
from fogzo.errors import explained

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")  # of images, in any case; ImageNet's own is .JPEG


def class_list(name: str = "imagenet100_cmc") -> tuple[str, ...]:
    """Return the WordNet ids of a list that comes with this package.

    ``imagenet100_cmc`` is the file imagenet100.txt of Tian, Krishnan and Isola's "Contrastive Multiview Coding"
    (arXiv:1906.05849, github.com/HobbitLong/CMC), byte for byte: the most common of several lists called ImageNet-100.

    >>> len(class_list()), class_list()[0]
    (100, 'n02869837')
    """
    return tuple(files(__package__).joinpath(f"{name}.txt").read_text(encoding="utf-8").split())


def class_list_sha256(names: Sequence[str]) -> str:
    """Return the SHA-256 of the list as a file with a name a line: what ``sha256sum`` prints of a shipped list."""
    return hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of the folders, or links to folders, in ``folder``; hidden ones do not count.

    Raises:
        DataError: if ``folder`` cannot be read, holds no folder, or a link in it leads nowhere.
    """
    way_out = "it must be a folder that holds a folder of images for each class"
    with explained(folder, way_out, kind=DataError), os.scandir(folder) as scanned:
        entries = sorted((e for e in scanned if not e.name.startswith(".")), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_symlink() and not Path(entry).exists():
            raise DataError(
                f"{entry.path} links to {Path(entry).readlink()}, which is not there: remove the link and make it anew"
            )
    names = [entry.name for entry in entries if entry.is_dir()]
    if not names:
        raise DataError(
            f"{folder} has no class folders ({len(entries)} other entries): move its images to {folder}/CLASS/, where "
            "CLASS names their class (ImageNet's by its WordNet id, such as n02869837)"
        )
    return names


def check_classes(found: Sequence[str], wanted: Sequence[str], folder: Path, way_out: str) -> None:
    """Refuse two different sets of classes, showing one missing and one extra class."""
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or extra:
        shown = [f"{names[0]} is {word}" for names, word in ((missing, "missing"), (extra, "not one of them")) if names]
        raise DataError(
            f"{folder} has {len(found)} class folders, {len(found) - len(extra)} of the {len(wanted)} that it must "
            f"have ({', '.join(shown)}): {way_out}"
        )


def image_files(folder: Path) -> list[tuple[str, int]]:
    """Return the sorted (name, size in bytes) of the images that lie in ``folder`` itself.

    Raises:
        DataError: if it cannot be read, or holds no image or an empty one.
    """
    with explained(folder, "fetch it again", kind=DataError), os.scandir(folder) as scanned:
        entries = [e for e in scanned if e.name.lower().endswith(SUFFIXES) and not e.name.startswith(".")]
        images = sorted((entry.name, entry.stat().st_size) for entry in entries)
    if not images:
        raise DataError(f"{folder} holds no images ({', '.join(SUFFIXES)}): fetch that class again")
    if empty := [name for name, size in images if size == 0]:
        raise DataError(f"{folder / empty[0]} is empty: fetch that file again")
    return images


def tree_files(folder: Path, classes: Sequence[str]) -> tuple[list[str], Tensor, list[int]]:
    """Return paths relative to ``folder``, class after class, with labels (int64) and sizes in bytes."""
    names, sizes, counts = [], [], []
    for class_name in classes:
        images = image_files(folder / class_name)
        names += [f"{class_name}/{name}" for name, _ in images]
        sizes += [size for _, size in images]
        counts.append(len(images))
    return names, torch.arange(len(classes)).repeat_interleave(torch.tensor(counts)), sizes


def tree_sha256(parts: Mapping[str, tuple[Sequence[str], Sequence[int]]]) -> str:
    """Return the SHA-256 over paths and sizes in bytes of the images of each part: train, val."""
    sha = hashlib.sha256()
    for part, listed in parts.items():
        for name, size in zip(*listed, strict=True):
            sha.update(f"{part}/{name} {size}\n".encode())
    return sha.hexdigest()
