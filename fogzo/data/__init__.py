"""Data sets, and the order in which training sees them."""

from fogzo.data.images import DataError, ImageData, Split
from fogzo.data.mnist5k import mnist5k
from fogzo.data.order import DataOrder
from fogzo.data.torchvision_sets import fashion_mnist, mnist

__all__ = ["DataError", "DataOrder", "ImageData", "Split", "fashion_mnist", "mnist", "mnist5k"]
