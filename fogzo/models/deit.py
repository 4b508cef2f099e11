"""DeiT (Touvron et al., ICML 2021) as timm's VisionTransformer: Tiny and Small of the paper, and a mini twin.

timm is imported inside the functions: it takes seconds to load, and most commands need no vision transformer.
"""

from __future__ import annotations

from torch import nn

from fogzo.checks import check_sizes, number
from fogzo.errors import UserError


def deit_tiny(
    *, image_size: int = 224, patch_size: int = 16, channels: int = 3, classes: int = 1000, drop_path: float = 0.0
) -> nn.Module:
    """Return a DeiT-Tiny, 192 wide, 12 blocks, 3 heads: (B, channels, image_size, image_size) → (B, classes).

    At the defaults 5,717,416 parameters, those of timm's ``deit_tiny_patch16_224``.

    Args:
        image_size: height and width of the images, in pixels.
        patch_size: height and width of a patch, in pixels; must divide ``image_size``.
        channels: colour channels of the images.
        classes: outputs of the classifier.
        drop_path: probability that the last block's two branches are left out for an image while training; it rises
            linearly over the blocks from 0 at the first.  The masks come from torch's global generator.

    Raises:
        UserError: for sizes that are not possible or do not fit each other.
    """
    return _deit(192, 12, 3, image_size, patch_size, channels, classes, drop_path)


def deit_small(
    *, image_size: int = 224, patch_size: int = 16, channels: int = 3, classes: int = 1000, drop_path: float = 0.0
) -> nn.Module:
    """Return a DeiT-Small, 384 wide, 12 blocks, 6 heads; arguments and errors as in :func:`deit_tiny`.

    At the defaults 22,050,664 parameters, those of timm's ``deit_small_patch16_224``.
    """
    return _deit(384, 12, 6, image_size, patch_size, channels, classes, drop_path)


def deit_mini(
    *,
    image_size: int = 28,
    patch_size: int = 7,
    channels: int = 1,
    classes: int = 10,
    drop_path: float = 0.0,
    embedding: int = 128,
    blocks: int = 4,
) -> nn.Module:
    """Return a DeiT for a laptop, ``embedding`` wide, of so many ``blocks``; the rest as in :func:`deit_tiny`.

    Sizes are ours; the heads are 64 wide, as in every DeiT.  At the defaults 803,338 parameters.
    """
    check_sizes(embedding=embedding, blocks=blocks)
    if embedding % 64:
        raise UserError(f"embedding={embedding} is not possible: give a multiple of 64, the width of a head")
    return _deit(embedding, blocks, embedding // 64, image_size, patch_size, channels, classes, drop_path)


def _deit(
    width: int,
    depth: int,
    heads: int,
    image_size: int,
    patch_size: int,
    channels: int,
    classes: int,
    drop_path: float,
) -> nn.Module:
    check_sizes(image_size=image_size, patch_size=patch_size, channels=channels, classes=classes)
    if image_size % patch_size:
        divisors = [str(size) for size in range(2, image_size) if image_size % size == 0]
        raise UserError(
            f"image_size={image_size} is not a multiple of patch_size={patch_size}, so patches cannot tile the image: "
            f"choose a patch_size that divides {image_size} ({', '.join(divisors) or '1'}), or resize the images"
        )
    if number(drop_path, "drop_path", lowest=0) >= 1:
        raise UserError(f"drop_path={drop_path} is not possible: give a probability from 0 to below 1")
    from timm.models.vision_transformer import VisionTransformer

    model: nn.Module = VisionTransformer(
        img_size=image_size,
        patch_size=patch_size,
        in_chans=channels,
        num_classes=classes,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        drop_path_rate=drop_path,
    )
    return model
