"""Build the 100-class subset of ImageNet out of the full one:

    python scripts/prepare_imagenet100.py --imagenet FOLDER [--out data/imagenet100]

FOLDER holds train/ and val/, each with a folder of images a class (named by WordNet id).  Makes absolute links to the
class folders, or copies with --copy.  All images are decoded once, in parallel (some minutes), and the folder gets a
mark of that, so that training need not look at them again.  A second run changes nothing.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from fogzo.data.base import DataError
from fogzo.data.imagenet import tree
from fogzo.data.imagenet.augment import own_cores
from fogzo.errors import UserError, explained

PARTS = ("train", "val")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0].rstrip(":"))
    parser.add_argument("--imagenet", type=Path, required=True, metavar="FOLDER", help="holds train/ and val/")
    parser.add_argument("--out", type=Path, default=Path("data/imagenet100"), help="default: %(default)s")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="WordNet ids, one a line; default: CMC's list")
    parser.add_argument("--copy", action="store_true", help="copy the images, instead of linking to their folders")
    parser.add_argument("--workers", type=int, default=own_cores(), help="processes that decode (default: all)")
    options = parser.parse_args()
    try:
        names = read_classes(options.classes) if options.classes else tree.class_list()
        counts = prepare(options.imagenet, options.out, names, copy=options.copy, workers=options.workers)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    for part in PARTS:
        print(f"{options.out / part}: {len(names)} classes, {counts[part]} images, all of them decoded")
    print(f"class list: {options.classes or 'imagenet100_cmc'}, SHA-256 {tree.class_list_sha256(names)}")


def read_classes(file: Path) -> tuple[str, ...]:
    """Return the ids in ``file``, separated by white space; refuse none, one twice, and what names no folder."""
    with explained(file, "give a text with an id a line", kind=DataError):
        names = tuple(file.read_text(encoding="utf-8").split())
    wrong = [f"{name} more than once" for name in names if names.count(name) > 1]
    wrong += [f"{name}, which is no name of a folder" for name in names if Path(name).name != name]
    if wrong or not names:
        raise DataError(f"{file} holds {(wrong or ['no classes'])[0]}: give a text with an id a line, each once")
    return names


def prepare(imagenet: Path, out: Path, names: Sequence[str], *, copy: bool = False, workers: int = 0) -> dict[str, int]:
    """Make ``out``/train and ``out``/val with the folders ``names`` of ``imagenet``; counts of their images.

    All is checked before anything is written, in ``workers`` processes.

    Raises:
        DataError: if ``imagenet`` lacks a class or holds damaged images, or ``out`` holds something else or cannot be
            written.
    """
    for part in PARTS:
        check_source(imagenet / part, names)
    todo = [(part, name) for part in PARTS for name in to_make(imagenet / part, out / part, names)]
    listed = {part: tree.tree_files(imagenet / part, sorted(names)) for part in PARTS}
    sha256 = tree.tree_sha256({part: (files, sizes) for part, (files, _, sizes) in listed.items()})
    if not tree.is_marked(out, sha256):
        everything = [imagenet / part / file for part, (files, _, _) in listed.items() for file in files]
        tree.check_images(everything, decode=True, workers=workers)
    with explained(out, "choose another folder with --out", problem="cannot be written", kind=DataError):
        for part, name in todo:
            make((imagenet / part / name).resolve(), out / part / name, copy=copy)
        if not tree.is_marked(out, sha256):
            tree.mark(out, sha256)
    return {part: len(files) for part, (files, _, _) in listed.items()}


def check_source(folder: Path, names: Sequence[str]) -> None:
    """Refuse a ``folder`` that lacks one of the class folders ``names``."""
    if missing := sorted(set(names) - set(tree.class_folders(folder))):
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{folder} lacks {len(missing)} of the {len(names)} classes ({shown}): give the folder of the full "
            "ImageNet with --imagenet"
        )


def to_make(source: Path, target: Path, names: Sequence[str]) -> list[str]:
    """Return those of ``names`` that ``target`` lacks; refuse a ``target`` that holds anything but these folders."""
    if not target.exists():
        return list(names)
    way_out = "remove it, or choose another folder with --out"
    with explained(target, way_out, kind=DataError):
        entries = sorted(target.iterdir())
    for entry in (one for one in entries if not one.name.startswith(".")):  # a copy that was cut short is hidden
        if entry.name not in names:
            raise DataError(f"{entry} is none of the {len(names)} classes: {way_out}")
        wanted = source / entry.name
        alike = entry.exists() and (entry.samefile(wanted) or tree.image_files(entry) == tree.image_files(wanted))
        if not alike:
            raise DataError(f"{entry} is neither a link to {wanted.resolve()} nor a copy of it: {way_out}")
    return [name for name in names if not (target / name).exists()]


def make(source: Path, target: Path, *, copy: bool) -> None:
    """Make a link from ``target`` to ``source``, or a copy that is there only when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        target.symlink_to(source, target_is_directory=True)
        return
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    partial.rename(target)


if __name__ == "__main__":
    main()
