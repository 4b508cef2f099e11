"""Small folders of images."""

import random
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fogzo.data.base import Selection
from fogzo.data.imagenet.folder import folder_data
from fogzo.runs.files import atomic_write

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("n001", "n002", "n003")


def picture(seed, size):
    """A smooth picture of random colours: (height, width) = ``size``."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


def write_tree(root, classes, per_class, size):
    for part, part_count in (("train", per_class), ("val", 2)):
        for number, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for image in range(part_count):
                picture(1000 * number + image, size).save(root / part / name / f"{name}_{image}.JPEG")
    return root


def data(root, **options):
    return folder_data("small", root, **{"image_size": 24, "augmentation": "deit", "workers": 0, **options})


def selections(first=0, last=6, batch_size=4, examples=18):
    for step in range(first, last):
        positions = step * batch_size + torch.arange(batch_size)
        yield Selection(positions * 7 % examples, positions)


def equal(left, right):
    return len(left) == len(right) and all(map(torch.equal, chain(*left), chain(*right)))


@contextmanager
def global_generators_untouched():
    random.seed(1), np.random.seed(2), torch.manual_seed(3)  # noqa: NPY002 - timm's
    state = (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state())  # noqa: NPY002
    yield
    assert random.getstate() == state[0]
    assert np.random.get_state()[1].tobytes() == state[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state[2])


def cut(file, size=200):
    atomic_write(file, file.read_bytes()[:-size])  # others may be reading it
    return file
