"""Whether a tree's images can be read, found out before training: from their ends, or by decoding all of them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fogzo.data.base import DataError
from fogzo.data.imagenet.loader import reading_processes
from fogzo.errors import explained
from fogzo.runs.files import atomic_write

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

MARK = ".verified"  # in a tree's folder: the tree_sha256 (paths and sizes) of the images that were all decoded
ALL_UP_TO = 10_000  # files whose ends are all looked at, some 50 µs each; of larger trees it is a sample
SAMPLE = 2_000
CHUNK = 200  # files that a process decodes at a time
ENDS = ((b"\xff\xd8", b"\xff\xd9"), (b"\x89PNG", b"IEND\xaeB\x60\x82"))  # of whole files: JPEG, PNG


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
