"""Paired differences of a few seeds, against values known in closed form, and the words for them."""

import itertools
import math

import numpy as np
import pytest

from fogzo.evidence.compare import bootstrap_interval, one_more_run, paired_difference, sign_flip_p, t_test
from fogzo.evidence.words import Word

BASE = {seed: 10.0 + seed for seed in range(8)}


def difference(values, higher_is_better=True):
    other = {seed: BASE[seed] + value for seed, value in enumerate(values)}
    return paired_difference(other, BASE, higher_is_better=higher_is_better)


def test_seeds_pair_runs_and_only_common_seeds_count():
    found = paired_difference({1: 5.0, 2: 7.0, 9: 100.0}, {1: 4.0, 2: 4.0, 8: 0.0}, higher_is_better=True)
    assert (found.pairs, found.mean) == (2, 2.0)
    assert paired_difference({1: 5.0}, {2: 4.0}, higher_is_better=True) is None


def test_positive_is_better_whichever_way_the_metric_goes():
    assert difference([1, 1.1, 0.9]).mean == pytest.approx(1)
    assert difference([1, 1.1, 0.9], higher_is_better=False).mean == pytest.approx(-1)
    assert difference([1, 1.1, 0.9]).outcome == Word.BETTER
    assert difference([1, 1.1, 0.9], higher_is_better=False).outcome == Word.WORSE


def test_the_sign_flip_p_value_is_exact():
    values = [0.5, -0.2, 0.9, 0.4, 0.1]
    flips = [abs(np.mean(np.multiply(values, signs))) for signs in itertools.product((-1, 1), repeat=5)]
    assert sign_flip_p(values) == pytest.approx(np.mean(np.array(flips) >= abs(np.mean(values)) - 1e-12))
    assert difference([1, 2, 3, 4, 5]).p == difference([1, 2, 3, 4, 5]).least_p == 1 / 16
    assert difference([1, 2, 3]).least_p == 1 / 4


def test_the_bootstrap_interval_is_the_exact_one_for_few_pairs_and_the_same_each_time_for_many():
    means = sorted(np.mean(chosen) for chosen in itertools.product([1.0, 2.0, 4.0, 8.0], repeat=4))
    assert bootstrap_interval([4.0, 1.0, 8.0, 2.0]) == (means[6], means[249])  # of 256: 2.5 % is 6.4 of them
    many = list(np.random.default_rng(1).normal(size=20))
    low, high = bootstrap_interval(many)
    assert bootstrap_interval(many) == (low, high)
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(many) / math.sqrt(20), rel=0.05)


def test_the_t_test_is_scipys_and_its_interval_excludes_0_where_it_says_so():
    from scipy.stats import ttest_1samp

    exact = ttest_1samp([0.5, -0.2, 0.9], 0)
    assert t_test([0.5, -0.2, 0.9]) == pytest.approx((exact.pvalue, *exact.confidence_interval(0.95)))
    assert t_test([1.0, 1.0, 1.0]) == (0, 1, 1)
    assert t_test([0.0, 0.0]) == (1, 0, 0)
    assert t_test([1.0]) == (1, -math.inf, math.inf)
    for row in np.random.default_rng(0).normal(0.7, 1, size=(200, 4)):
        p, low, high = t_test(row)
        assert (low > 0 or high < 0) == (p < 0.05)


def test_the_interval_shown_is_the_bootstraps_from_6_pairs_on_and_covers_the_mean_with_3():
    few, many = difference([1, 1.1, 0.9, 1.2, 1]), difference([1, 1.1, 0.9, 1.2, 1, 1])
    assert few.interval == (few.t_low, few.t_high) != (few.low, few.high)
    assert many.interval == (many.low, many.high)
    draws = np.random.default_rng(0).normal(size=(1000, 3))
    shown, bootstrap = zip(*((d.interval, (d.low, d.high)) for d in map(difference, draws)), strict=True)
    covered = [np.mean([low <= 0 <= high for low, high in ends]) for ends in (shown, bootstrap)]
    assert covered == pytest.approx([0.95, 0.75], abs=0.03)


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ([1, 1.1], Word.TOO_FEW),
        ([1, 1.1, -0.1], Word.UNDECIDED),  # the interval holds 0
        ([0.1, 0.1, 2], Word.UNDECIDED),  # all positive, as happens by chance once in 8: the t interval holds 0
        ([1, 1.1, 0.9, 1, -0.01], Word.UNDECIDED),  # p = 1/8 is not its least value
        ([0, 0, 0], Word.UNDECIDED),
        ([1, 1.1, 0.9, 1, 1.2], Word.BETTER),
        ([-1, -1.1, -0.9], Word.WORSE),
        ([-0.1, -0.1, -0.1, -0.1, -0.1, -0.1, -0.1, -1.8], Word.WORSE),  # all eight agree, one of them by far the most
    ],
)
def test_words_follow_the_rule(values, outcome):
    assert difference(values).outcome == outcome


def test_equal_runs_are_not_told_apart_more_often_than_by_chance():
    noise = np.random.default_rng(0).normal(size=(400, 3))
    apart = sum(difference(list(row)).outcome in (Word.BETTER, Word.WORSE) for row in noise)
    assert apart / 400 < 0.07


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not all finite"):
        difference([1, math.nan])


def test_one_more_run_falls_into_the_interval_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(2000, 4))
    inside = [low <= row[3] <= high for row in draws for low, high in [one_more_run(list(row[:3]))]]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)
    assert one_more_run([1.0]) is None
