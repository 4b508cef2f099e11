"""Data sets, and the order in which training sees them."""

from fogzo.data.base import Batch, Data, DataError, Selection, Split
from fogzo.data.feed import Feed
from fogzo.data.images import ImageData, TensorSplit
from fogzo.data.mnist5k import mnist5k
from fogzo.data.order import DataOrder
from fogzo.data.text import TextData, TokenSplit
from fogzo.data.torchvision_sets import fashion_mnist, mnist

__all__ = [
    "Batch",
    "Data",
    "DataError",
    "DataOrder",
    "Feed",
    "ImageData",
    "Selection",
    "Split",
    "TensorSplit",
    "TextData",
    "TokenSplit",
    "fashion_mnist",
    "mnist",
    "mnist5k",
]
