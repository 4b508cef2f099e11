"""Whether a tree's images can be read, found out before training: from their ends, or by decoding all of them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from fogzo.data.base import DataError
from fogzo.data.imagenet.augment import start_reader
from fogzo.runs.files import atomic_write

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
    damaged: list[str] = []
    if not decode:
        damaged = [reason for file in files if not looks_whole(file) and (reason := damage(file))]
    elif workers and len(files) > CHUNK:
        parts = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
        context = get_context("spawn")
        theirs, lifeline = context.Pipe(duplex=False)
        with (
            lifeline,
            ProcessPoolExecutor(workers, context, initializer=start_reader, initargs=(theirs,)) as processes,
        ):
            damaged = [reason for found in processes.map(damages, parts) for reason in found]
    else:
        damaged = damages(files)
    if damaged:
        others = f", nor can {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise DataError(f"{damaged[0]}{others}: fetch {'them' if others else 'that file'} again")


def looks_whole(file: Path) -> bool:
    """Whether the file begins and ends as a whole JPEG or PNG does, with nothing behind it."""
    try:
        with file.open("rb") as opened:
            head = opened.read(8)
            opened.seek(-min(8, opened.seek(0, 2)), 2)
            tail = opened.read()
    except OSError:
        return False
    return any(head.startswith(begin) and tail.endswith(end) for begin, end in ENDS)


def damage(file: Path) -> str | None:
    """What is wrong with an image file, found by decoding it; ``None`` if nothing is."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.draft(None, (1, 1))  # a JPEG is decoded to an eighth of its size: all of its bytes, less arithmetic
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # all that Pillow lets out
        return f"{file} cannot be read as an image ({' '.join(str(error).split())})"
    return None


def damages(files: Iterable[Path]) -> list[str]:
    """What is wrong with those of ``files`` that are damaged."""
    return [reason for file in files if (reason := damage(file))]


def is_marked(folder: Path, sha256: str) -> bool:
    """Whether just these images, by path and size, were all decoded once."""
    try:
        return (folder / MARK).read_text(encoding="utf-8").strip() == sha256
    except (OSError, UnicodeDecodeError):
        return False


def mark(folder: Path, sha256: str) -> None:
    """Note that all images of the tree were decoded."""
    atomic_write(folder / MARK, f"{sha256}\n".encode())
