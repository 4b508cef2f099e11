"""What every model asks of its sizes."""

from __future__ import annotations

from typing import Any

from fogzo.checks import whole


def check_sizes(**sizes: Any) -> None:
    """Refuse sizes that are not positive whole numbers, by name and value.

    >>> check_sizes(width=128, heads=0)
    Traceback (most recent call last):
    fogzo.errors.ArgumentError: heads=0 is not possible: give a whole number from 1 to 2147483648
    """
    for name, value in sizes.items():
        whole(value, name, highest=2**31)
