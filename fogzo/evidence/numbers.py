"""How numbers are written: costs, values over seeds, and differences, with a sign or in words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from fogzo.evidence.compare import Difference
from fogzo.runs.schema import Metric

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
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def from_to(counts: Iterable[int]) -> str:
    """Return the least and the greatest of some counts, once where they are the same.

    >>> from_to([10, 5, 8]), from_to([5, 5])
    ('5 to 10', '5')
    """
    known = sorted(counts)
    return " to ".join(dict.fromkeys(map(str, (known[0], known[-1]))))


def signed(value: float, digits: int) -> str:
    """Return a number with its sign, a true minus.

    >>> signed(-0.25, 1), signed(0.04, 1)
    ('−0.2', '0.0')
    """
    text = f"{value:+,.{digits}f}"
    return text[1:] if not any(digit in text for digit in "123456789") else text.replace("-", "−")


@dataclass(frozen=True)
class Effect:
    """Paired differences of two methods: one, or the smallest to the greatest of several; positive is better.

    Attributes:
        interval: of the mean, or how far all intervals reach.
    """

    means: Sequence[float]
    metric: Metric
    interval: tuple[float, float] | None = None

    def signed(self) -> str:
        """Return it with signs, as in "+0.50 [−0.20, +1.20]"."""
        ends = (signed(value, self.metric.digits) for value in (min(self.means), max(self.means)))
        interval = ", ".join(signed(end, self.metric.digits) for end in self.interval or ())
        return " to ".join(dict.fromkeys(ends)) + (f" [{interval}]" if interval else "")

    def directed(self) -> str:
        """Return it with the direction in words, once where all share it.

        >>> from fogzo.runs.schema import METRICS
        >>> Effect([-92.818], METRICS["perplexity"], (-107.5, -5.64)).directed()
        '92.82 ppl worse [5.64 to 107.50 worse]'
        >>> Effect([-0.2, 0.6], METRICS["accuracy"]).directed(), Effect([0.004], METRICS["accuracy"]).directed()
        ('0.20 points worse to 0.60 points better', '0.00 points apart')
        """
        text = self._range(min(self.means), max(self.means), f" {self.metric.unit}")
        return text + (f" [{self._range(*self.interval)}]" if self.interval else "")

    def _range(self, low: float, high: float, unit: str = "") -> str:
        if low != high and low * high <= 0:
            return f"{self._one(low, unit)} to {self._one(high, unit)}"
        nearer, further = sorted((low, high), key=abs)
        return (f"{abs(nearer):,.{self.metric.digits}f} to " if low != high else "") + self._one(further, unit)

    def _one(self, value: float, unit: str) -> str:
        size = f"{abs(value):,.{self.metric.digits}f}"
        same = not any(digit in size for digit in "123456789")
        return f"{size}{unit} {'apart' if same else 'better' if value > 0 else 'worse'}"


def p_text(difference: Difference) -> str:
    """Return the sign-flip p-value, and that it cannot be smaller where it is at its least value.

    In three decimals: in two, 0.0469 and 0.0547 were both 0.05, one of them told apart and one not.

    >>> p_text(Difference(5, 1.0, 0.5, 1.5, 0.4, 1.6, 0.0625, 0.01))
    'p = 0.062 (least of 5 pairs)'
    >>> p_text(Difference(8, 1.0, -0.5, 1.5, -0.6, 1.6, 0.0546875, 0.06))
    'p = 0.055'
    """
    least = f" (least of {difference.pairs} pairs)" if difference.p <= difference.least_p * (1 + 1e-9) else ""
    return f"p = {difference.p:.3f}{least}" if difference.p >= 0.001 else f"p = {difference.p:.2g}{least}"


def mean_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation, as far as there are values enough.

    >>> mean_std([1.0, 3.0]), mean_std([1.0]), mean_std([])
    ((2.0, 1.4142135623730951), (1.0, None), (None, None))
    """
    return statistics.fmean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None
