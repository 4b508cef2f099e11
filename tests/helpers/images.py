"""Small folders of images."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fogzo.data.base import DataError
from fogzo.data.imagenet.folder import folder_data

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


@contextmanager
def refused_with(*parts, kind=DataError):
    """Within: an error whose message is one line and holds ``parts``."""
    with pytest.raises(kind) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in parts if str(part) not in message] == [], message


def data(root, **options):
    return folder_data("small", root, **{"image_size": 24, "augmentation": "deit", "workers": 0, **options})
