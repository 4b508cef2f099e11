"""Data sets, and the order in which training sees them."""

from fogzo.data.base import FACTS, Batch, Data, DataError, Facts, Selection, Split, Subset
from fogzo.data.imagenet.augment import DECODING_RATES
from fogzo.data.imagenet.folder import imagefolder, imagenet1k, imagenet100
from fogzo.data.known import Known, known
from fogzo.data.order import DataOrder, Feed
from fogzo.data.pydocs import pydocs
from fogzo.data.synthetic import synthetic
from fogzo.data.text import TextData, TokenSplit, c4, own_text
from fogzo.data.vision import ImageData, TensorSplit, fashion_mnist, mnist, mnist5k

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
    "Known",
    "Selection",
    "Split",
    "Subset",
    "TensorSplit",
    "TextData",
    "TokenSplit",
    "c4",
    "fashion_mnist",
    "imagefolder",
    "imagenet1k",
    "imagenet100",
    "known",
    "mnist",
    "mnist5k",
    "own_text",
    "pydocs",
    "synthetic",
]
