"""Data sets, and the order in which training sees them."""

from fogzo.data.augment import DECODING_RATES
from fogzo.data.base import FACTS, Batch, Data, DataError, Facts, Selection, Split
from fogzo.data.feed import Feed
from fogzo.data.imagefolder import imagenet1k, imagenet100
from fogzo.data.images import ImageData, TensorSplit
from fogzo.data.mnist5k import mnist5k
from fogzo.data.order import DataOrder
from fogzo.data.pydocs import pydocs
from fogzo.data.text import TextData, TokenSplit, c4
from fogzo.data.torchvision_sets import fashion_mnist, mnist

__all__ = [
    "DECODING_RATES",
    "FACTS",
    "Batch",
    "Data",
    "DataError",
    "DataOrder",
    "Facts",
    "Feed",
    "ImageData",
    "Selection",
    "Split",
    "TensorSplit",
    "TextData",
    "TokenSplit",
    "c4",
    "fashion_mnist",
    "imagenet1k",
    "imagenet100",
    "mnist",
    "mnist5k",
    "pydocs",
]
