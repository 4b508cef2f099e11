"""What a few seeds can say: paired differences, how sure they are, and the words for it: ``templates/rules.md``.

Seeds pair runs: the same seed gives two methods the same initial weights and the same order of the data, so that their
difference is less noisy than either.  With 3 to 5 pairs every number here is rough, and the words are chosen to say so.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from scipy.special import stdtr, stdtrit

from fogzo.evidence.words import Word

LEVEL = 0.05  # two-sided
FEWEST_PAIRS = 3
BOOTSTRAPPED = 6  # from so many pairs on flips can decide (2/2**6 < LEVEL), and the bootstrap's interval is shown
ENUMERATED = 6  # up to so many pairs all n**n resamples are taken (46,656), beyond them RESAMPLES random ones
RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """A method less its baseline over seeds that both finished; positive is better.

    Attributes:
        pairs: number of seeds.
        mean: of the differences, in the metric's unit.
        low, high: 95 % bootstrap interval of the mean (the mean itself with one pair).
        t_low, t_high: 95 % interval of the mean by the paired t-test (from -inf to inf with one pair).
        p: exact two-sided sign-flip p-value.
        p_t: two-sided p-value of the paired t-test; 1 with one pair.
        lost, spared: further seeds, on which the method, or the baseline, diverged and the other did not.
    """

    pairs: int
    mean: float
    low: float
    high: float
    t_low: float
    t_high: float
    p: float
    p_t: float
    lost: int = 0
    spared: int = 0

    @property
    def least_p(self) -> float:
        """The smallest value that ``p`` can have with so many pairs."""
        return min(1.0, 2.0 ** (1 - self.pairs))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval that is shown: the bootstrap's if there are pairs enough for it, else the t-test's."""
        return (self.low, self.high) if self.pairs >= BOOTSTRAPPED else (self.t_low, self.t_high)

    @property
    def p_decides(self) -> float:
        """The p-value that can be small enough: the exact one if there are pairs enough for it, else the t-test's."""
        return self.p if self.pairs >= BOOTSTRAPPED else self.p_t

    @property
    def outcome(self) -> Word:
        """Better, worse, not to be told apart, or too few pairs: the rule of ``templates/rules.md``."""
        if self.pairs < FEWEST_PAIRS:
            return Word.TOO_FEW
        # one seed that is far out inflates the t-test though all agree: it counts only where flips cannot decide
        sure = self.p < LEVEL if self.pairs >= BOOTSTRAPPED else self.p <= self.least_p
        apart = (self.interval[0] > 0 or self.interval[1] < 0) and sure
        word = Word.BETTER if self.mean > 0 else Word.WORSE
        return Word.UNDECIDED if not apart or (self.lost if word is Word.BETTER else self.spared) else word


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], *, higher_is_better: bool
) -> Difference | None:
    """Return the difference over the seeds that both have; ``None`` if there is none.

    Raises:
        ValueError: for values that are not finite, which have to be sorted out before.

    >>> d = paired_difference({1: 4.0, 2: 5.0, 3: 9.0}, {1: 1.0, 2: 3.0, 3: 5.0}, higher_is_better=True)
    >>> d.pairs, d.mean, d.low, d.high, d.p
    (3, 3.0, 2.0, 4.0, 0.25)
    >>> [round(end, 2) for end in d.interval]
    [0.52, 5.48]
    """
    seeds = sorted(values.keys() & baseline.keys())
    if not seeds:
        return None
    sign = 1.0 if higher_is_better else -1.0
    differences = [sign * (values[seed] - baseline[seed]) for seed in seeds]
    if not all(math.isfinite(difference) for difference in differences):
        raise ValueError(f"differences {differences} are not all finite: leave such runs out")
    return _of(tuple(differences))


@lru_cache(maxsize=4096)  # table, figure and verdict ask for the same
def _of(differences: tuple[float, ...]) -> Difference:
    (low, high), (p_t, t_low, t_high) = bootstrap_interval(differences), t_test(differences)
    mean, p = statistics.fmean(differences), sign_flip_p(differences)
    return Difference(len(differences), mean, low, high, t_low, t_high, p, p_t)


def bootstrap_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return the percentile-bootstrap interval of the mean; the same values give the same interval.

    >>> bootstrap_interval([1.0, 2.0, 6.0])
    (1.0, 6.0)
    """
    means = np.asarray(values)[_resamples(len(values))].mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)


@cache
def _resamples(count: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Return which of ``count`` values are drawn, shape (resamples, count)."""
    if count <= ENUMERATED:
        return np.array(list(itertools.product(range(count), repeat=count)))
    return np.random.default_rng(0).integers(count, size=(RESAMPLES, count))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the exact two-sided p-value of the mean, if every difference were as likely to have the other sign.

    >>> sign_flip_p([1.0, 2.0, 3.0, 4.0, 5.0])
    0.0625

    Ties count as equal, though the last bits of differences of percentages differ:

    >>> sign_flip_p([82.50 - 82.33, 82.16 - 82.33, 1.0])
    0.75
    """
    signs = np.array(list(itertools.product((1, -1), repeat=len(differences))))
    means = np.abs(np.mean(signs * np.asarray(differences), axis=1))
    rounding = 1e-9 * np.max(np.abs(differences))
    return float(np.mean(means >= means[0] - rounding))  # the first has the signs that were seen


def t_test(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Return Student's two-sided p-value that the mean is 0, and the ends of its interval of the mean.

    The interval excludes 0 where p is below 1 - ``level``.

    >>> [round(number, 2) for number in t_test([1.0, 2.0, 6.0])]
    [0.19, -3.57, 9.57]
    """
    count, mean = len(values), statistics.fmean(values)
    if count < 2:
        return 1.0, -math.inf, math.inf
    error = statistics.stdev(values) / math.sqrt(count)
    if error == 0:
        return float(mean == 0), mean, mean
    half = float(stdtrit(count - 1, 0.5 + level / 2)) * error
    return float(2 * stdtr(count - 1, -abs(mean) / error)), mean - half, mean + half


def one_more_run(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Return between which values one further run is expected (normal prediction interval); ``None`` below 2 values.

    A published number without a spread is such a run: the question is whether it could be one of ours.

    >>> one_more_run([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    count = len(values)
    if count < 2:
        return None
    mean = statistics.fmean(values)
    half = float(stdtrit(count - 1, 0.5 + level / 2)) * statistics.stdev(values) * math.sqrt(1 + 1 / count)
    return mean - half, mean + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected for being tested together (Holm, Scandinavian Journal of Statistics 1979).

    >>> holm([0.03, 0.001, 0.02])
    [0.04, 0.003, 0.04]
    """
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        least = max(least, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = least
    return corrected
