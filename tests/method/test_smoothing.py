"""The table "h → surrogate" of paper.md, section 2, by quadrature, and what the code makes of it."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.checks import readable
from scipy.integrate import quad

from fogzo import FixedScale, Sign
from fogzo.smoothing import Logistic, Triangular, Uniform

SQRT3, SQRT6 = math.sqrt(3), math.sqrt(6)
EPS_TANH = math.pi / math.sqrt(12)


def sign(x):
    return 1.0 if x >= 0 else -1.0


def hardtanh(x):
    return min(max(x, -1.0), 1.0)


def approx_sign(x):
    return sign(x) * (2 * abs(x) - x * x) if abs(x) < 1 else sign(x)


def clip_round(codes):
    return lambda x: min(codes, key=lambda code: abs(code - x))


def uniform_density(u):
    return 1 / (2 * SQRT3) if abs(u) <= SQRT3 else 0.0


def logistic_density(u):
    return EPS_TANH * (1 - math.tanh(EPS_TANH * u) ** 2) / 2


def triangular_density(u):
    return max(1 - abs(u) / SQRT6, 0.0) / SQRT6


# ε̄, p̄(u) and where p̄ ends: the paper's columns, typed independently of fogzo/smoothing.py
ROWS = {
    "round": (Uniform(0.5), 1 / (2 * SQRT3), uniform_density, SQRT3),
    "hardtanh": (Uniform(1.0), 1 / SQRT3, uniform_density, SQRT3),
    "tanh": (Logistic(), EPS_TANH, logistic_density, 20.0),
    "approxsign": (Triangular(), 1 / SQRT6, triangular_density, SQRT6),
}
SYMMETRIC, TWOS = [-1.5, -0.5, 0.5, 1.5], [-2.0, -1.0, 0.0, 1.0]
HALF_INTEGERS = [k / 2 for k in range(-40, 41)]
# h, its jumps, its surrogate
STEPS = {
    "round → identity": ("round", round, HALF_INTEGERS, lambda x: x),
    "sign → hardtanh": ("hardtanh", sign, [0.0], hardtanh),
    "sign → tanh": ("tanh", sign, [0.0], math.tanh),
    "sign → ApproxSign": ("approxsign", sign, [0.0], approx_sign),
    "symmetric 2-bit → clip": ("round", clip_round(SYMMETRIC), HALF_INTEGERS, lambda x: min(max(x, -1.5), 1.5)),
    "two's complement 2-bit → clip": ("round", clip_round(TWOS), HALF_INTEGERS, lambda x: min(max(x, -2.0), 1.0)),
}
each_row = pytest.mark.parametrize("row", ROWS)


def scalar(x):
    return torch.tensor(float(x), dtype=torch.float64)


def pieces(end, points):
    """Neighbouring points between -end and end: a quadrature over one piece meets no jump and no kink."""
    inside = sorted({-end, 0.0, end, *(p for p in points if -end < p < end)})
    return list(pairwise(inside))


@pytest.mark.parametrize("step", STEPS)
def test_the_expectation_over_the_noise_is_the_surrogate(step):
    row, h, jumps, surrogate = STEPS[step]
    _, eps, density, end = ROWS[row]
    for x in np.linspace(-3.1, 3.1, 32):
        expectation = sum(
            h(x + eps * (a + b) / 2) * quad(density, a, b)[0]  # h is constant on a piece
            for a, b in pieces(end, [(jump - x) / eps for jump in jumps])
        )
        assert expectation == pytest.approx(surrogate(x), abs=1e-12)


@each_row
def test_gaussian_noise_gives_none_of_the_surrogates(row):
    """The table says something: unit-variance noise of another shape misses every surrogate by several percent."""
    eps = ROWS[row][1]
    _, h, jumps, surrogate = next(step for step in STEPS.values() if step[0] == row)
    worst = 0.0
    for x in np.linspace(-1.5, 1.5, 61):
        edges = [-12.0, *(u for jump in jumps if -12 < (u := (jump - x) / eps) < 12), 12.0]
        mass = np.diff([0.5 * (1 + math.erf(u / math.sqrt(2))) for u in edges])
        mean = sum(h(x + eps * (a + b) / 2) * m for (a, b), m in zip(pairwise(edges), mass, strict=True))
        worst = max(worst, abs(mean - surrogate(x)))
    assert worst > 0.03


@each_row
def test_the_table_s_densities_have_mean_0_and_variance_1(row):
    _, _, density, end = ROWS[row]
    for power, moment in [(0, 1.0), (1, 0.0), (2, 1.0)]:
        total = sum(quad(lambda u, p=power: u**p * density(u), a, b)[0] for a, b in pieces(end, []))
        assert total == pytest.approx(moment, abs=1e-9)


@each_row
def test_std_is_the_table_s_epsilon_and_derivative_its_density_in_code_units(row):
    smoothing, eps, density, _ = ROWS[row]
    assert smoothing.std == pytest.approx(eps, rel=1e-15)
    x = torch.linspace(-2.3, 2.3, 47, dtype=torch.float64)
    expected = torch.tensor([density(v / eps) / eps for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(smoothing.derivative(x), expected, rtol=1e-12, atol=1e-15)


@each_row
def test_from_uniform_is_the_inverse_distribution_function_of_derivative(row):
    smoothing, eps, _, end = ROWS[row]
    for c in [1e-6, 0.01, 0.2, 0.49, 0.5, 0.51, 0.77, 0.999, 1 - 1e-6]:
        x = smoothing.std * smoothing.from_uniform(scalar(c)).item()
        below = [piece for piece in [(-eps * end, min(x, 0.0)), (0.0, x)] if piece[0] < piece[1]]
        cdf = sum(quad(lambda t: smoothing.derivative(scalar(t)).item(), a, b)[0] for a, b in below)
        assert cdf == pytest.approx(c, abs=1e-10)


@each_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_have_mean_0_and_variance_1(row, dtype):
    u = ROWS[row][0].from_uniform(torch.rand(200_000, dtype=dtype))
    assert u.dtype == dtype
    assert u.mean().item() == pytest.approx(0, abs=5 / math.sqrt(len(u)))
    # the fourth moments are 1.8, 2.4 and 4.2: five standard errors of the variance are at most 0.02
    assert u.var().item() == pytest.approx(1, abs=0.02)


@each_row
def test_the_noise_is_symmetric_so_a_random_sign_on_the_guide_changes_nothing(row):
    smoothing = ROWS[row][0]
    c = torch.linspace(0.001, 0.499, 100, dtype=torch.float64)
    torch.testing.assert_close(smoothing.from_uniform(1 - c), -smoothing.from_uniform(c.clone()))


@each_row
def test_uniform_draws_of_0_and_1_give_finite_noise(row):
    u = ROWS[row][0].from_uniform(torch.tensor([0.0, 2.0**-25, 1 - 2.0**-24, 1.0]))
    assert u.isfinite().all()
    assert (u.diff() >= 0).all()


@each_row
def test_from_uniform_keeps_the_shape(row):
    assert ROWS[row][0].from_uniform(torch.rand(2, 3, 4)).shape == (2, 3, 4)


@pytest.mark.parametrize("half_width", [0, -1.0, math.nan])
def test_a_half_width_that_is_not_positive_is_refused(half_width):
    with pytest.raises(ValueError, match="half_width"):
        Uniform(half_width)


@pytest.mark.parametrize(
    ("quantizer", "step"),
    [
        (FixedScale(2), "symmetric 2-bit → clip"),
        (FixedScale(2, grid="twos_complement"), "two's complement 2-bit → clip"),
        (FixedScale(2, clip_surrogate=False), "round → identity"),
        (Sign("hardtanh"), "sign → hardtanh"),
        (Sign("tanh"), "sign → tanh"),
        (Sign("approxsign"), "sign → ApproxSign"),
    ],
    ids=readable,
)
def test_a_quantizer_back_propagates_the_derivative_of_its_surrogate(quantizer, step):
    row, _, _, surrogate = STEPS[step]
    x = torch.linspace(-2.93, 2.97, 60, dtype=torch.float64)  # meets none of the kinks at multiples of 1/2
    width = 1e-6
    numeric = torch.tensor([(surrogate(v + width) - surrogate(v - width)) / (2 * width) for v in x.tolist()])
    derivative = quantizer.surrogate_derivative(x)
    derivative = torch.ones_like(x) if derivative is None else derivative
    torch.testing.assert_close(derivative, numeric.double(), rtol=0, atol=1e-6)
    assert quantizer.smoothing.std == pytest.approx(ROWS[row][1])
