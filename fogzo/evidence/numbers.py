"""How numbers are written: costs, values over seeds, and differences, with a sign or in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, TypeGuard

from fogzo.evidence.compare import Difference

DASH = "–"


def is_finite(value: Any) -> TypeGuard[float]:
    """Return whether a value of a record, or of a file, is a finite number.

    >>> is_finite(1), is_finite(float("nan")), is_finite("many"), is_finite(True)
    (True, False, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def short(value: float) -> str:
    """Return a cost in three digits.

    >>> short(123456.0), short(0.001234), short(6.39e9), short(12.0)
    ('123,456', '0.00123', '6.39e+09', '12')
    """
    if value >= 1e7:
        return f"{value:.2e}"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def signed(value: float, digits: int) -> str:
    """Return a number with its sign, a true minus.

    >>> signed(-0.25, 1), signed(0.04, 1)
    ('−0.2', '0.0')
    """
    text = f"{value:+,.{digits}f}"
    return text[1:] if not any(digit in text for digit in "123456789") else text.replace("-", "−")


def directed_text(value: float, digits: int, unit: str = "") -> str:
    """Return a difference in words that carry its direction.

    >>> directed_text(-92.818, 1, "ppl"), directed_text(0.5, 2, "points"), directed_text(0.004, 2, "points")
    ('92.8 ppl worse', '0.50 points better', '0.00 points apart')
    """
    size = " ".join(part for part in (f"{abs(value):,.{digits}f}", unit) if part)
    same = not any(digit in size for digit in "123456789")
    return f"{size} {'apart' if same else 'better' if value > 0 else 'worse'}"


def directed_range(low: float, high: float, digits: int, unit: str = "") -> str:
    """Return the ends of a range of differences in words, the direction once where they share it.

    >>> directed_range(-107.5, -5.64, 1), directed_range(-0.2, 0.6, 1, "points"), directed_range(2, 2, 1, "ppl")
    ('5.6 to 107.5 worse', '0.2 points worse to 0.6 points better', '2.0 ppl better')
    """
    if low == high:
        return directed_text(low, digits, unit)
    if low * high <= 0:
        return f"{directed_text(low, digits, unit)} to {directed_text(high, digits, unit)}"
    nearer, further = sorted((low, high), key=abs)
    return f"{abs(nearer):,.{digits}f} to {directed_text(further, digits, unit)}"


def p_text(difference: Difference) -> str:
    """Return the sign-flip p-value, and that it cannot be smaller where it is at its least value.

    In three decimals: in two, 0.0469 and 0.0547 were both 0.05, one of them told apart and one not.

    >>> p_text(Difference(5, 1.0, 0.5, 1.5, 0.4, 1.6, 0.0625, 0.0625, 0.01))
    'p = 0.062 (least of 5 pairs)'
    >>> p_text(Difference(8, 1.0, -0.5, 1.5, -0.6, 1.6, 0.0546875, 0.0078125, 0.06))
    'p = 0.055'
    """
    least = f" (least of {difference.pairs} pairs)" if difference.p <= difference.least_p * (1 + 1e-9) else ""
    return f"p = {difference.p:.3f}{least}" if difference.p >= 0.001 else f"p = {difference.p:.2g}{least}"


def interval_text(difference: Difference, digits: int) -> str:
    """Return ``mean [interval]``."""
    mean, low, high = (signed(value, digits) for value in (difference.mean, *difference.interval))
    return f"{mean} [{low}, {high}]"


def mean_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation, as far as there are values enough.

    >>> mean_std([1.0, 3.0]), mean_std([1.0]), mean_std([])
    ((2.0, 1.4142135623730951), (1.0, None), (None, None))
    """
    return statistics.fmean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None


def spread(values: Sequence[float], digits: int) -> str:
    """Return ``mean ± std`` of finite values, or a dash.

    >>> spread([0.5, 0.7], 2), spread([1.0], 2), spread([], 2)
    ('0.60 ± 0.14', '1.00', '–')
    """
    mean, std = mean_std(values)
    if mean is None:
        return DASH
    return f"{mean:,.{digits}f}" + (f" ± {std:,.{digits}f}" if std is not None else "")
