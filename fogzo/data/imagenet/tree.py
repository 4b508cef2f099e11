"""A tree of images: lists of classes that come with the package, its folders and files, and whether these are whole.

That is found out before training, from the files' ends or by decoding all of them.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fogzo.data.base import DataError
from fogzo.data.imagenet.loader import reading_processes
from fogzo.errors import explained
from fogzo.runs.files import atomic_write

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")  # of images, in any case; ImageNet's own is .JPEG
MARK = ".verified"  # in a tree's folder: the tree_sha256 (paths and sizes) of the images that were all decoded
ALL_UP_TO = 10_000  # files whose ends are all looked at, some 50 µs each; of larger trees it is a sample
SAMPLE = 2_000
CHUNK = 200  # files that a process decodes at a time
ENDS = ((b"\xff\xd8", b"\xff\xd9"), (b"\x89PNG", b"IEND\xaeB\x60\x82"))  # of whole files: JPEG, PNG


def class_list(name: str = "imagenet100_cmc") -> tuple[str, ...]:
    """Return the WordNet ids of a list that comes with this package.

    ``imagenet100_cmc`` is the file imagenet100.txt of Tian, Krishnan and Isola's "Contrastive Multiview Coding"
    (arXiv:1906.05849, github.com/HobbitLong/CMC), byte for byte: the most common of several lists called ImageNet-100.

    >>> len(class_list()), class_list()[0]
    (100, 'n02869837')
    """
    return tuple(resources.files(__package__).joinpath(f"{name}.txt").read_text(encoding="utf-8").split())


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


def check_tree(
    folder: Path, parts: Mapping[str, Sequence[str]], sha256: str, *, verify: bool | None, workers: int
) -> None:
    """Refuse a tree with images that are cut short, as far as a look at the start of a run can tell.

    Args:
        folder: the tree's, where ``scripts/prepare_imagenet100.py`` leaves its mark: what it decoded is not read again.
        parts: the files of train and val, relative to these.
        sha256: of their paths and sizes; with other files or sizes the mark does not count.
        verify: ``True`` decodes every image, ``False`` looks at none; ``None``: at both ends of all, or of a sample of
            2,000 where there are more than 10,000.

    Raises:
        DataError: naming a file that cannot be read as an image.
    """
    if verify is False or (verify is None and is_marked(folder, sha256)):
        return
    chosen: Sequence[int] = range(sum(map(len, parts.values())))
    if verify is None and len(chosen) > ALL_UP_TO:
        chosen = random.Random(sha256).sample(chosen, SAMPLE)
    everything = [(part, file) for part, files in parts.items() for file in files]
    check_images([folder.joinpath(*everything[i]) for i in chosen], decode=bool(verify), workers=workers)


def check_images(files: Sequence[Path], *, decode: bool, workers: int) -> None:
    """Look at the ends of ``files``, or decode them in ``workers`` processes (0: here).

    Raises:
        DataError: naming the first damaged one and the number of others; a decoding pass finds them all.
    """
    if not decode:
        damaged = damages(file for file in files if not looks_whole(file))
    elif workers and len(files) > CHUNK:
        with reading_processes(workers) as processes:
            parts = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
            damaged = [reason for part in processes.map(damages, parts) for reason in part]
    else:
        damaged = damages(files)
    if damaged:
        others = len(damaged) - 1
        raise DataError(damaged[0] + (f" ({others} more cannot be read either)" if others else ""))


def looks_whole(file: Path) -> bool:
    """Whether the file begins and ends as a whole JPEG or PNG does, with nothing behind it."""
    with suppress(OSError), file.open("rb") as opened:
        head = opened.read(8)
        opened.seek(-min(8, opened.seek(0, 2)), 2)
        tail = opened.read()
        return any(head.startswith(begin) and tail.endswith(end) for begin, end in ENDS)
    return False


def damages(files: Iterable[Path]) -> list[str]:
    """Return what is wrong with those of ``files`` that are damaged, found by decoding them."""
    damaged = []
    for file in files:
        try:
            with opened_image(file) as image:
                image.draft(None, (1, 1))  # a JPEG is decoded to an eighth of its size: all bytes, less arithmetic
                image.load()
        except DataError as error:
            damaged.append(str(error))
    return damaged


@contextmanager
def opened_image(path: Path | str) -> Iterator[ImageFile]:
    """Within: the image file in ``path``.

    Raises:
        DataError: if it is missing, cut short, or no image; also from what is done with it within.
    """
    from PIL import Image

    also = (SyntaxError, Image.DecompressionBombError)  # of all that Pillow lets out
    problem = "cannot be read as an image"
    with (
        explained(path, "fetch that file again", problem=problem, kind=DataError, also=also),
        Image.open(path) as image,
    ):
        yield image


def is_marked(folder: Path, sha256: str) -> bool:
    """Whether just these images, by path and size, were all decoded once."""
    with suppress(OSError):
        return (folder / MARK).read_bytes().strip() == sha256.encode()
    return False


def mark(folder: Path, sha256: str) -> None:
    """Note that all images of the tree were decoded."""
    atomic_write(folder / MARK, f"{sha256}\n".encode())
