"""What every model asks of its sizes."""

from __future__ import annotations

from typing import Any


def check_sizes(**sizes: Any) -> None:
    """Refuse sizes that are not positive whole numbers, by name and value.

    Raises:
        ValueError: for the first such size.

    >>> check_sizes(width=128, heads=4)
    >>> check_sizes(width=128, heads=0)
    Traceback (most recent call last):
        ...
    ValueError: heads=0 is not possible: give a positive whole number
    """
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} is not possible: give a positive whole number")
