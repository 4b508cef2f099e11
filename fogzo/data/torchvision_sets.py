"""Full MNIST and Fashion-MNIST through torchvision: found on disk, unpacked from a system package, or downloaded."""

from __future__ import annotations

import gzip
import shutil
import zlib
from pathlib import Path
from typing import Any

from fogzo.data.base import DataError
from fogzo.data.images import ImageData, TensorSplit, digest, split

FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
# where Debian's package dataset-fashion-mnist puts its files
SYSTEM_FOLDERS = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}


def mnist(root: str | Path = "data") -> ImageData:
    """60,000 training and 10,000 test digits; ``root`` is torchvision's, files lie in ``root/MNIST/raw``."""
    from torchvision.datasets import MNIST

    return _load("mnist", MNIST, Path(root), mean=0.1307, std=0.3081)


def fashion_mnist(root: str | Path = "data") -> ImageData:
    """60,000 training and 10,000 test images of clothes; files lie in ``root/FashionMNIST/raw``."""
    from torchvision.datasets import FashionMNIST

    return _load("fashion_mnist", FashionMNIST, Path(root), mean=0.2860, std=0.3530)


def _load(name: str, dataset: Any, root: Path, mean: float, std: float) -> ImageData:
    folder = root / dataset.__name__ / "raw"
    _unpack_system_copy(name, folder)
    present = all((folder / file).is_file() for file in FILES)
    try:
        train, test = (dataset(root, train=part, download=not present) for part in (True, False))
    except Exception as error:  # torchvision lets out whatever urllib, gzip or struct raise
        raise DataError(_advice(name, folder, present, error)) from error
    parts: list[TensorSplit] = []
    arrays = []
    for part, count in ((train, 60_000), (test, 10_000)):
        images, labels = part.data.numpy(), part.targets.numpy()
        if images.shape != (count, 28, 28) or labels.shape != (count,):
            whole = images.shape == (count, 28, 28)
            kind, found = ("labels", labels) if whole else ("images", images)
            raise DataError(
                f"{folder} holds {len(found)} {kind} where {name} has {count} of each: remove that folder, and they "
                "are fetched again"
            )
        parts.append(split(images, labels, mean, std))
        arrays += [images, labels]
    return ImageData(name, parts[0], parts[1], classes=10, sha256=digest(*arrays))


def _unpack_system_copy(name: str, folder: Path) -> None:
    source = SYSTEM_FOLDERS.get(name)
    if source is None or not all((source / f"{file}.gz").is_file() for file in FILES):
        return
    for file in FILES:
        if not (folder / file).is_file():
            partial = folder / f"{file}.partial"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with gzip.open(source / f"{file}.gz", "rb") as packed, partial.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(
                    f"{name}: {source / file}.gz cannot be unpacked into {folder} ({error}): choose a writable folder "
                    "with data.root=FOLDER, or reinstall the package that the file came with"
                ) from error
            partial.replace(folder / file)


def _advice(name: str, folder: Path, present: bool, error: Exception) -> str:
    if present:
        return f"the {name} files in {folder} are damaged ({error}): remove that folder, and they are fetched again"
    reason = " ".join(str(error).split())[:100]
    return (
        f"{name} is not in {folder} and could not be downloaded ({reason}): put {', '.join(FILES)} there "
        "(data.root=FOLDER names another place), or use the embedded digits with data=mnist5k"
    )
