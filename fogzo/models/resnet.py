"""ResNet-18 and ResNet-50 (He et al., CVPR 2016) as torchvision builds them, and a mini twin from timm.

torchvision's class fixes the widths of its stages; timm's takes them as an argument, so the narrow twin comes from
there.  Both call their first convolution ``conv1`` and their classifier ``fc``.

The libraries are imported inside the functions: they take seconds to load.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fogzo.checks import check_sizes


def resnet18(*, channels: int = 3, classes: int = 1000, small_stem: bool = False) -> nn.Module:
    """Return a ResNet-18, basic blocks, 2-2-2-2, 64 to 512 wide: (B, channels, H, W) → (B, classes).

    At the defaults torchvision's own model: 11,689,512 parameters.

    Args:
        channels: colour channels of the images.
        classes: outputs of the classifier.
        small_stem: for images of about 32 pixels: a 3x3 first convolution with stride 1 and no max-pool, so that the
            blocks see the image at its full size and not at a quarter of it.

    Raises:
        UserError: for sizes that are not possible.
    """
    check_sizes(channels=channels, classes=classes)
    from torchvision import models

    return _with_stem(models.resnet18(weights=None, num_classes=classes), channels, 64, small_stem)


def resnet50(*, channels: int = 3, classes: int = 1000, small_stem: bool = False) -> nn.Module:
    """Return a ResNet-50, bottleneck blocks, 3-4-6-3, 256 to 2048 wide; arguments and errors as in :func:`resnet18`.

    At the defaults torchvision's own model: 25,557,032 parameters.  The last batch norm of each block begins at 0
    (Goyal et al., arXiv 1706.02677): else the first gradients are 30 times as long, and SGD diverges, quantized or not.
    """
    check_sizes(channels=channels, classes=classes)
    from torchvision import models

    return _with_stem(
        models.resnet50(weights=None, num_classes=classes, zero_init_residual=True), channels, 64, small_stem
    )


def resnet_mini(*, channels: int = 1, classes: int = 10, small_stem: bool = True, first_width: int = 16) -> nn.Module:
    """Return a ResNet for a laptop, basic blocks, 1-1-1-1, ``first_width`` to 8 times that wide; see :func:`resnet18`.

    A quarter of ResNet-18's width and half of its blocks; sizes are ours.  At the defaults 308,538 parameters.
    """
    check_sizes(channels=channels, classes=classes, first_width=first_width)
    from timm.models.resnet import BasicBlock, ResNet

    width = first_width
    block: Any = BasicBlock  # timm annotates an instance where it takes the class
    model = ResNet(
        block,
        layers=(1, 1, 1, 1),
        num_classes=classes,
        channels=(width, 2 * width, 4 * width, 8 * width),
        # a stem narrower than 64 is to be had from timm as a deep one only, whose convolutions _with_stem replaces
        stem_type="deep",
        stem_width=width // 2,
        zero_init_last=False,  # as torchvision: the branches' filters have a gradient from the first step on
    )
    return _with_stem(model, channels, width, small_stem)


def _with_stem(model: nn.Module, channels: int, width: int, small: bool) -> nn.Module:
    """``model`` with a first convolution for these images; the library's own stays where it fits."""
    if small:
        first = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif isinstance(model.conv1, nn.Conv2d) and model.conv1.in_channels == channels:
        return model
    else:
        first = nn.Conv2d(channels, width, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")  # as both libraries do
    model.conv1 = first
    return model
