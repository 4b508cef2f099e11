"""ImageNet and its subsets, or any other tree of images.

Nothing is cached on disk; the folders are listed once, at the start, where files that were cut short are looked for,
and images are decoded when they are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fogzo.checks import check_arguments, choice, whole
from fogzo.data.base import FACTS, Batch, Data, DataError, Selection, Split
from fogzo.data.imagenet.augment import (
    AUGMENTATIONS,
    Mixing,
    evaluation_transform,
    own_cores,
    read_augmented,
    read_image,
    training_transform,
)
from fogzo.data.imagenet.loader import Job, read_ahead
from fogzo.data.imagenet.tree import (
    check_classes,
    check_tree,
    class_folders,
    class_list,
    class_list_sha256,
    tree_files,
    tree_sha256,
)
from fogzo.seeding import derive_seed

PREPARE = "python scripts/prepare_imagenet100.py --imagenet FOLDER"
MINI = "or take data that need no preparation (scale=mini, data=fashion_mnist or data=mnist5k)"


@dataclass(frozen=True)
class FolderSplit(Split):
    """``files`` (N), relative to ``folder``, and their ``targets``, int64, (N,), on the CPU whatever the device.

    ``workers`` processes decode and augment training batches ahead (0: the main process does it when asked), and as
    many threads decode evaluation batches.  What lies ready takes up to 36 · batch size · image_size² bytes, and the
    same in /dev/shm.
    """

    folder: Path
    files: Sequence[str]
    targets: Tensor
    image_size: int
    augmentation: str
    mixing: Mixing | None = None
    workers: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Tensor) -> Batch:
        """Return inputs float32, (B, 3, S, S), targets int64, (B,); ``DataError`` for an image that cannot be read."""
        indices = indices.cpu()
        read = partial(read_image, transform=evaluation_transform(self.augmentation, self.image_size))
        with ThreadPoolExecutor(max(1, self.workers)) as pool:  # Pillow and torch release the interpreter's lock
            images = list(pool.map(read, self._paths(indices)))
        return torch.stack(images).to(self.device), self.targets[indices].to(self.device)

    def to(self, device: torch.device) -> FolderSplit:
        return replace(self, device=device)

    def load(self, selections: Iterable[Selection], *, seed: int) -> Iterator[Batch]:
        """Yield augmented batches; with mixing, targets are float32, (B, classes).  Meant to be called once a run.

        Each image's augmentation is a function of (seed, its position), mixing one of (seed, the first position).

        Raises:
            DataError: for an image that cannot be read.
            UserError: for an odd batch where images are mixed in pairs.
        """
        read = partial(read_augmented, transform=training_transform(self.augmentation, self.image_size))
        pin = self.device.type == "cuda"
        for job, inputs in read_ahead(read, self._jobs(selections, seed), self.workers, pin=pin):
            batch = inputs.to(self.device, non_blocking=True), job.targets.to(self.device, non_blocking=True)
            yield self.mixing(*batch, job.mixing_seed) if self.mixing is not None else batch

    def _jobs(self, selections: Iterable[Selection], seed: int) -> Iterator[Job]:
        for indices, positions in selections:
            if self.mixing is not None:
                self.mixing.check_batch(len(indices))
            seeds = [derive_seed("augment", seed, position) for position in positions.tolist()]
            yield Job(
                self._paths(indices), seeds, self.targets[indices], derive_seed("mixing", seed, int(positions[0]))
            )

    def _paths(self, indices: Tensor) -> list[str]:
        return [f"{self.folder}/{self.files[index]}" for index in indices.tolist()]


@dataclass(frozen=True)
class FolderData(Data):
    """Training and test split of a tree of images, with what goes into the record.

    Labels number the class folders in sorted order, as torchvision's ImageFolder does.
    """

    train: FolderSplit
    test: FolderSplit
    classes: int
    sha256: str  # of the sorted (relative path, size) of all images
    class_list: str  # which classes: the name of a shipped list, or "all"
    class_list_sha256: str
    repeats: int = 1  # times that an image is shown in a row, augmented anew each time

    def describe(self) -> dict[str, Any]:
        """Return what a run's record keeps of its data."""
        keys = ("name", "classes", "sha256", "class_list", "class_list_sha256")
        return {key: getattr(self, key) for key in keys} | {"train": len(self.train), "test": len(self.test)}


def imagenet100(root: str | Path = "data", **options: Any) -> FolderData:
    """Return the 100 classes of CMC's list, from ``root/imagenet100``; options as :func:`folder_data`'s."""
    folder = Path(root) / "imagenet100"
    way_out = f"make it with `{PREPARE} --out {folder}`, {MINI}"
    return folder_data("imagenet100", folder, way_out, wanted="imagenet100_cmc", **options)


def imagenet1k(root: str | Path = "data", **options: Any) -> FolderData:
    """Return ImageNet-1K (ILSVRC 2012), from ``root/imagenet``; options as :func:`folder_data`'s."""
    folder = Path(root) / "imagenet"
    way_out = (
        f"link {folder} to a folder with train/ and val/, each with a folder of images for each of the 1000 classes "
        f"(www.image-net.org gives it to registered users), {MINI}"
    )
    return folder_data("imagenet1k", folder, way_out, wanted=FACTS["imagenet1k"].classes, **options)


def imagefolder(root: str | Path = "data/imagefolder", **options: Any) -> FolderData:
    """Return any tree ``root/train/CLASS/`` and ``root/val/CLASS/`` of images; options as :func:`folder_data`'s."""
    way_out = "name a folder with train/ and val/, each with a folder of images for each class, by data.root=FOLDER"
    return folder_data("imagefolder", Path(root), way_out, **options)


def check_options(
    *, augmentation: str = "none", mixing: bool | Mapping[str, float] = False, **options: Any
) -> Mixing | None:
    """Refuse options that :func:`folder_data` cannot take, without a look at the folder; return how images are mixed.

    Raises:
        UserError: naming the option.
    """
    check_arguments(folder_data, {"augmentation": augmentation, "mixing": mixing, **options})
    for key, lowest in (("image_size", 8), ("workers", 0), ("repeats", 1)):
        if options.get(key) is not None:
            whole(options[key], key, lowest=lowest)
    choice(augmentation, "augmentation", AUGMENTATIONS)
    return Mixing.of(mixing, classes=2)


def folder_data(
    name: str,
    folder: Path,
    way_out: str = MINI,
    *,
    wanted: str | int | None = None,
    image_size: int = 224,
    augmentation: str = "none",
    mixing: bool | Mapping[str, float] = False,
    repeats: int = 1,
    workers: int | None = None,
    verify: bool | None = None,
) -> FolderData:
    """Return the tree of images in ``folder``, checked.

    Args:
        wanted: the name of a shipped list of classes, or a number of classes; ``None``: whatever is there.
        image_size: height and width in pixels, of training and evaluation.
        augmentation: ``deit``, ``resnet`` or ``none``, of training images; also chooses the interpolation.
        repeats: times that training shows an image in a row (DeiT's repeated augmentation: 3).
        mixing: whether training mixes images; a mapping overrides some of :class:`Mixing`'s values.
        workers: processes that read ahead; ``None``: one for each core that this process may use.
        verify: decode all images first, or none; ``None``: look at their ends (:func:`check_tree`).

    Raises:
        DataError: if the folder is missing or not as it must be, or an image was cut short; what a look at its
            ends does not show, an image says when it is read.
        UserError: for options that are not possible.
    """
    others = {"image_size": image_size, "repeats": repeats, "workers": workers, "verify": verify}
    check_options(augmentation=augmentation, mixing=mixing, **others)
    workers = own_cores() if workers is None else workers
    if not folder.is_dir():
        raise DataError(f"{name} is not in {folder}: {way_out}")
    classes = class_folders(folder / "train")
    if isinstance(wanted, str):
        check_classes(classes, class_list(wanted), folder / "train", way_out)
    elif wanted is not None and len(classes) != wanted:
        raise DataError(f"{folder / 'train'} has {len(classes)} class folders where {name} has {wanted}: {way_out}")
    check_classes(class_folders(folder / "val"), classes, folder / "val", way_out)
    train_files, train_targets, train_sizes = tree_files(folder / "train", classes)
    test_files, test_targets, test_sizes = tree_files(folder / "val", classes)
    mixer = Mixing.of(mixing, len(classes))
    sha256 = tree_sha256({"train": (train_files, train_sizes), "val": (test_files, test_sizes)})
    check_tree(folder, {"train": train_files, "val": test_files}, sha256, verify=verify, workers=workers)
    return FolderData(
        name=name,
        train=FolderSplit(folder / "train", train_files, train_targets, image_size, augmentation, mixer, workers),
        test=FolderSplit(folder / "val", test_files, test_targets, image_size, augmentation, None, workers),
        classes=len(classes),
        sha256=sha256,
        class_list=wanted if isinstance(wanted, str) else "all",
        class_list_sha256=class_list_sha256(class_list(wanted) if isinstance(wanted, str) else classes),
        repeats=repeats,
    )
