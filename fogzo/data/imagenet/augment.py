"""What training does to images of a folder: DeiT's and ResNet's augmentation, mixup and cutmix, all through timm.

timm and torchvision draw from the global generators of Python, NumPy and torch.  :func:`generators_restored` and
:func:`seed_generators` make of that a function of a seed: set before each image or batch, and put back afterwards.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fogzo.checks import number, share
from fogzo.data.base import Batch
from fogzo.data.imagenet.tree import opened_image
from fogzo.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    Transform = Callable[[Image], Tensor]

CROP = 0.875  # of the resized image's shorter side: 224 out of 256 pixels

# What each augmentation adds to a random crop (8 to 100 % of the area, resized) and a flip in half of the cases.
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    # DeiT's main.py.  Its colour jitter of 0.3 does nothing there and here: timm drops it where RandAugment is on.
    "deit": {
        "interpolation": "bicubic",
        "color_jitter": 0.3,
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "re_prob": 0.25,
        "re_mode": "pixel",
        "re_count": 1,
    },
    # torchvision's references/classification without its options
    "resnet": {"interpolation": "bilinear", "color_jitter": None},
    "none": {"interpolation": "bicubic"},
}
# Images/s that a core decodes and augments, JPEGs of 500x375 to 224 pixels: scripts/bench.py --only data, an AMD EPYC
DECODING_RATES = {"deit": 250, "resnet": 400, "none": 250}


def training_transform(augmentation: str, size: int) -> Transform:
    """Return what makes of a PIL image float32, (3, size, size), augmented, normalised; ``none`` is evaluation's."""
    from timm.data.transforms_factory import create_transform

    if augmentation == "none":
        return evaluation_transform(augmentation, size)
    transform: Transform = create_transform(size, is_training=True, **AUGMENTATIONS[augmentation])
    for step in getattr(transform, "transforms", ()):
        for operation in getattr(step, "ops", ()):
            if "Posterize" in operation.name:
                operation.aug_fn = posterize
    return transform


def posterize(image: Image, bits: int, **others: Any) -> Image:
    """Return the ``bits`` highest bits of each channel; in place of timm's, which stops with Pillow 13 at ``bits`` = 0.

    RandAugment asks for that at its highest level, about once in 700 images; with the Pillow of its time, and here,
    the image is black then.
    """
    from PIL import ImageOps

    return ImageOps.posterize(image, bits) if bits else image.point([0] * 256 * len(image.getbands()))


def evaluation_transform(augmentation: str, size: int) -> Transform:
    """Return the same for evaluation: resize to size/0.875 (bicubic for DeiT, bilinear for ResNet), crop the centre."""
    from timm.data.transforms_factory import create_transform

    transform: Transform = create_transform(
        size, is_training=False, interpolation=AUGMENTATIONS[augmentation]["interpolation"], crop_pct=CROP
    )
    return transform


@contextmanager
def generators_restored() -> Iterator[None]:
    """Within: the global generators (CPU) may be seeded and used; afterwards they are as before."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - timm's
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch; torch's on the CPU alone, as dropout may use a GPU's."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - timm draws from it
    torch.default_generator.manual_seed(seed)


@dataclass(frozen=True)
class Mixing:
    """Mixup or cutmix of a batch with itself in reverse, one draw a batch, with label smoothing; DeiT's values.

    ``mixup`` and ``cutmix`` are the α of Beta(α, α), from which the mixing weight comes (0: never); ``switch`` is the
    probability of cutmix where both are possible.  Drawn when the batch is loaded: all forward passes of a step see
    the same mixed images.
    """

    classes: int
    mixup: float = 0.8
    cutmix: float = 1.0
    switch: float = 0.5
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        number(self.mixup, "mixing.mixup", lowest=0)
        number(self.cutmix, "mixing.cutmix", lowest=0)
        share(self.switch, "mixing.switch")
        share(self.smoothing, "mixing.smoothing")
        if not self.mixup and not self.cutmix:
            raise UserError(
                "data.mixing.mixup and data.mixing.cutmix are both 0: give one of them, or data.mixing=false"
            )

    @classmethod
    def of(cls, mixing: bool | Mapping[str, float], classes: int) -> Mixing | None:
        """Return the mixing of a config's value: ``False``, ``True`` for DeiT's values, or some values by name."""
        if isinstance(mixing, bool):
            return cls(classes) if mixing else None
        known = [field.name for field in fields(cls) if field.name != "classes"]
        if not isinstance(mixing, Mapping) or (unknown := sorted(set(mixing) - set(known))):
            shown = unknown[0] if isinstance(mixing, Mapping) else mixing
            raise UserError(f"data.mixing={shown!r} is not known: give true, false, or values for {', '.join(known)}")
        return cls(classes, **mixing)

    def check_batch(self, size: int) -> None:
        """Refuse a batch that does not split into pairs."""
        if size % 2:
            raise UserError(
                f"mixup and cutmix mix images in pairs, which a batch of {size} does not split into: give an even "
                "batch_size (on each device), or data.mixing=false"
            )

    def __call__(self, inputs: Tensor, targets: Tensor, seed: int) -> Batch:
        """``inputs`` (B, 3, H, W), overwritten; ``targets`` int64, (B,), become float32, (B, classes), of sum 1."""
        from timm.data.mixup import Mixup

        self.check_batch(len(targets))
        mixup = Mixup(  # type: ignore[no-untyped-call]
            mixup_alpha=self.mixup,
            cutmix_alpha=self.cutmix,
            switch_prob=self.switch,
            label_smoothing=self.smoothing,
            num_classes=self.classes,
        )
        with generators_restored():
            seed_generators(seed)
            mixed: Batch = mixup(inputs, targets)
        return mixed


def read_image(path: str, transform: Transform) -> Tensor:
    """Return ``transform`` of the RGB image in ``path``; raises ``DataError`` as :func:`opened_image`."""
    with opened_image(path) as file:
        image = file.convert("RGB")
    return transform(image)


def read_augmented(paths: Sequence[str], seeds: Sequence[int], transform: Transform) -> Tensor:
    """Return ``transform`` of each image with the generators at its seed: float32, (B, 3, S, S)."""
    images = []
    with generators_restored():
        for path, seed in zip(paths, seeds, strict=True):
            seed_generators(seed)
            images.append(read_image(path, transform))
    return torch.stack(images)


def own_cores() -> int:
    """Return how many cores this process may use; several processes that torchrun started on a machine share them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
