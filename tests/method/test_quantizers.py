"""Each quantizer against its formula: codes, scales, gradients, and what is refused."""

import copy
import math

import numpy as np
import pytest
import torch
from helpers.checks import readable
from scipy.linalg import block_diag, hadamard
from scipy.optimize import minimize_scalar

from fogzo import LSQ, FixedScale, QuEST, Sign
from fogzo.quantizers import quest

PROTOTYPES = [FixedScale(2), FixedScale(3, per_channel=True), Sign("tanh"), LSQ(2), LSQ(3, True), QuEST(2)]
each_quantizer = pytest.mark.parametrize("prototype", PROTOTYPES, ids=readable)


def fitted(prototype, latent):
    quantizer = copy.deepcopy(prototype)
    quantizer.fit(latent.detach())
    return quantizer


def gradient(quantizer, latent, upstream):
    latent = latent.detach().requires_grad_()
    return torch.autograd.grad((quantizer(latent) * upstream).sum(), latent)[0]


@each_quantizer
@pytest.mark.parametrize("shape", [(16, 64), (4, 16, 3, 3), (24,)], ids=readable)
def test_neither_no_grad_nor_autocast_changes_a_bit_of_the_quantized_weights(prototype, shape):
    latent = torch.randn(shape).requires_grad_()
    quantizer = fitted(prototype, latent)
    quantized = quantizer(latent)
    assert (quantized.shape, quantized.dtype) == (shape, latent.dtype)
    with torch.no_grad():
        assert torch.equal(quantizer(latent), quantized)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(quantizer(latent), quantized)
        scale, codes = quantizer.scale(latent), quantizer.codes(latent)
    assert (scale > 0).all()
    assert torch.broadcast_shapes(scale.shape, shape) == shape
    assert torch.equal(quantizer.unrotate(codes * scale), quantized)


@each_quantizer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_latent_weights_in_16_bits_are_refused(prototype, dtype):
    quantizer = fitted(prototype, torch.randn(4, 8))
    with pytest.raises(ValueError, match="16-bit"):
        quantizer(torch.randn(4, 8, dtype=dtype))


@each_quantizer
def test_a_nan_in_the_latent_weights_is_not_hidden(prototype):
    latent = torch.randn(4, 8)
    quantizer = fitted(prototype, latent)
    latent[1, 2] = math.nan
    assert quantizer(latent)[1, 2].isnan()


@pytest.mark.parametrize(
    ("make", "arguments", "named"),
    [(make, {"bits": bits}, "bits") for make in (FixedScale, LSQ, QuEST) for bits in (0, 9, 2.0, True, "2")]
    + [(LSQ, {"bits": 1}, "Sign")]
    + [(FixedScale, {"bits": 2, "scale": scale}, "scale") for scale in (0, -0.1, math.nan, math.inf)]
    + [(FixedScale, {"bits": 2, "scale_in_std": scale}, "scale_in_std") for scale in (0, -1.0, math.nan, math.inf)]
    + [(FixedScale, {"bits": 2, "grid": "ternary"}, "ternary")]
    + [(FixedScale, {"bits": 2, "per_channel": no}, f"per_channel={no!r}.*true or false") for no in ("no", "off", 1)]
    + [(FixedScale, {"bits": 2, "clip_surrogate": "nein"}, "clip_surrogate='nein'.*true or false")]
    + [(LSQ, {"bits": 2, "per_channel": 1}, "per_channel=1.*true or false")]
    + [(LSQ, {"bits": 2, "signed": "off"}, "signed='off'.*true or false")]
    + [(Sign, {"per_channel": None}, "per_channel=None.*true or false")]
    + [(Sign, {"surrogate": "swish"}, "swish"), (Sign, {"scale": 0.0}, "scale"), (Sign, {"scale_in_std": -1}, "std")],
)
def test_impossible_arguments_are_refused(make, arguments, named):
    with pytest.raises(ValueError, match=named):
        make(**arguments)


@pytest.mark.parametrize(
    ("prototype", "value"),
    [(LSQ(2), 0.0), (FixedScale(2, per_channel=True), 0.5)]
    + [(prototype, value) for prototype in (FixedScale(2), Sign()) for value in (0.0, 0.5, 0.1, -2.7)],
    ids=readable,
)
def test_no_scale_is_fitted_to_weights_without_spread(prototype, value):
    with pytest.raises(ValueError, match=r"constant|all zero"):
        prototype.fit(torch.full((64, 3, 3, 3), value))  # torch's std of 0.1, 0.1, ... is 1e-8, not 0


@pytest.mark.parametrize("grid", ["symmetric", "twos_complement"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_fixed_scale_rounds_to_the_nearest_of_the_b_bit_codes(grid, bits):
    codes = torch.arange(2.0**bits) - ((2**bits - 1) / 2 if grid == "symmetric" else 2 ** (bits - 1))
    quantizer = fitted(FixedScale(bits, scale=0.5, grid=grid), torch.zeros(1))
    x = torch.linspace(codes[0] - 2.03, codes[-1] + 2.01, 1501)  # no ties
    nearest = codes[(x[:, None] - codes).abs().argmin(1)]
    assert torch.equal(quantizer.codes(0.5 * x), nearest)
    assert torch.equal(quantizer(0.5 * x), 0.5 * nearest)
    assert torch.equal(nearest.unique(), codes)


@pytest.mark.parametrize("make", [lambda **options: FixedScale(2, **options), Sign], ids=["fixed", "sign"])
@pytest.mark.parametrize("scale", [None, 0.25])
@pytest.mark.parametrize(
    ("shape", "per_channel", "expected"),
    [
        ((4, 3), False, ()),
        ((4, 3), True, (4, 1)),
        ((4, 3, 2, 2), False, ()),
        ((4, 3, 2, 2), True, (4, 1, 1, 1)),
        ((4,), True, ()),  # a bias is fitted whole
    ],
)
def test_a_fixed_scale_is_given_or_a_multiple_of_the_standard_deviation(make, scale, shape, per_channel, expected):
    latent = torch.randn(shape, dtype=torch.float64)
    alpha = fitted(make(scale=scale, per_channel=per_channel, scale_in_std=0.7), latent).scale(latent)
    rows = latent.numpy().reshape(shape[0] if expected else 1, -1)
    std = torch.from_numpy(rows.std(axis=1)).reshape(expected)
    torch.testing.assert_close(alpha, 0.7 * std if scale is None else torch.full_like(std, scale))


@pytest.mark.parametrize(
    ("prototype", "slope"),
    [
        (FixedScale(2, scale=0.5), lambda x: -1.5 <= x <= 1.5),
        (FixedScale(2, scale=0.5, grid="twos_complement"), lambda x: -2 <= x <= 1),
        (FixedScale(2, scale=0.5, clip_surrogate=False), lambda x: 1),
        (Sign("tanh", scale=0.5), lambda x: 1 - math.tanh(x) ** 2),
        (Sign("hardtanh", scale=0.5), lambda x: abs(x) <= 1),
        (Sign("approxsign", scale=0.5), lambda x: max(2 - 2 * abs(x), 0)),
    ],
    ids=readable,
)
def test_the_gradient_is_multiplied_by_the_surrogate_s_slope(prototype, slope):
    x = torch.tensor([-2.5, -1.75, -1.5, -0.75, -0.25, 0.0, 0.125, 0.5, 1.5, 1.75, 3.0])
    upstream = torch.randn(len(x))
    expected = upstream * torch.tensor([float(slope(v)) for v in x.tolist()])
    torch.testing.assert_close(gradient(fitted(prototype, x), 0.5 * x, upstream), expected)


def test_sign_gives_plus_or_minus_alpha_and_plus_alpha_at_0():
    x = torch.tensor([-2.0, -1e-30, -0.0, 0.0, 1e-30, 2.0])
    assert fitted(Sign(scale=0.5), x)(x).tolist() == [-0.5, -0.5, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("bits", range(2, 9))
def test_lsq_starts_at_its_formula_and_has_the_published_gradients(bits):
    qn, qp = 2 ** (bits - 1), 2 ** (bits - 1) - 1
    latent = torch.randn(6, 50, dtype=torch.float64)
    quantizer = fitted(LSQ(bits), latent)
    s = quantizer.step.item()
    assert s == pytest.approx(2 * latent.abs().mean().item() / math.sqrt(qp))

    x, upstream = qn * torch.randn_like(latent), torch.randn_like(latent)  # one entry in six on either outer branch
    grad = gradient(quantizer, s * x, upstream)
    quantized = quantizer(s * x)
    (quantized * upstream).sum().backward()
    below, above, code = x < -qn, x > qp, x.round().clamp(-qn, qp)
    branches = torch.where(below, -qn, torch.where(above, qp, x.round() - x))
    torch.testing.assert_close(quantized.detach(), s * code)
    torch.testing.assert_close(quantizer.step.grad, (upstream * branches).sum() / math.sqrt(x.numel() * qp))
    torch.testing.assert_close(grad, upstream.masked_fill(below | above, 0))
    assert min(below.sum(), above.sum(), (~below & ~above).sum()) > 10


@pytest.mark.parametrize("shape", [(6, 50), (6, 5, 3, 3)], ids=readable)
def test_lsq_per_channel_is_lsq_of_each_channel(shape):
    latent, upstream = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    quantizer = fitted(LSQ(2, per_channel=True), latent)
    assert quantizer.step.shape == (6,)  # a vector: weight decay leaves it alone
    grad = gradient(quantizer, 3 * latent, upstream)
    (quantizer(3 * latent) * upstream).sum().backward()
    for i, row in enumerate(latent):
        alone = fitted(LSQ(2), row)
        torch.testing.assert_close(quantizer.step[i], alone.step)
        torch.testing.assert_close(grad[i], gradient(alone, 3 * row, upstream[i]))
        (alone(3 * row) * upstream[i]).sum().backward()
        torch.testing.assert_close(quantizer.step.grad[i], alone.step.grad)
    assert fitted(LSQ(2, per_channel=True), latent[:, 0].flatten()[:6]).step.dim() == 0  # a bias keeps one step


@pytest.mark.parametrize("step", [-3.0, 0.0, 1e-30])
def test_an_lsq_step_that_left_the_positive_numbers_still_works_and_can_return(step):
    latent = torch.randn(6, 50)
    quantizer = fitted(LSQ(2), latent)
    floor = 1e-3 * quantizer.step.detach()
    torch.nn.init.constant_(quantizer.step, step)
    torch.testing.assert_close(quantizer.scale(latent).detach(), floor)
    quantized = quantizer(latent)
    assert quantized.isfinite().all()
    with torch.no_grad():
        assert torch.equal(quantizer(latent), quantized)
    (quantized - latent).square().sum().backward()
    assert quantizer.step.grad < 0  # too small a step: descent enlarges it


def rotation(width):
    """Block-diagonal Hadamard, written out (blocks: the largest power of two up to 128 that divides the width)."""
    size = max(2**k for k in range(8) if width % 2**k == 0)
    return torch.from_numpy(block_diag(*[hadamard(size) / math.sqrt(size)] * (width // size)))


@pytest.mark.parametrize(("width", "size"), [(192, 64), (576, 64), (784, 16), (128, 128), (7, 1), (1024, 128)])
def test_quest_s_rotation_is_orthogonal_with_the_largest_block_that_divides_the_width(width, size):
    latent = torch.randn(3, width, dtype=torch.float64)
    quantizer = fitted(QuEST(2), latent)
    block = quantizer.block
    assert quest.hadamard_block(width) == size == len(block)
    torch.testing.assert_close(block @ block.T, torch.eye(size, dtype=torch.float64))
    torch.testing.assert_close(quantizer.rotate(latent), latent @ rotation(width))
    torch.testing.assert_close(quantizer.unrotate(quantizer.rotate(latent)), latent)


def gaussian_mse(constant, bits):
    """E (x - α code(x/α))² for x ~ N(0, 1), cell by cell, with the normal's partial moments in closed form."""
    codes = np.arange(2**bits) - (2**bits - 1) / 2
    alpha = constant / codes[-1]
    edges = np.concatenate([[-40.0], alpha * (codes[:-1] + 0.5), [40.0]])
    density = np.exp(-(edges**2) / 2) / math.sqrt(2 * math.pi)
    mass = np.diff([math.erf(e / math.sqrt(2)) / 2 for e in edges])
    first, second = -np.diff(density), mass - np.diff(edges * density)
    return float((second - 2 * alpha * codes * first + (alpha * codes) ** 2 * mass).sum())


@pytest.mark.parametrize("bits", range(1, 9))
def test_quest_s_constants_minimise_the_error_on_a_normal_distribution(bits):
    best = minimize_scalar(gaussian_mse, bounds=(0.5, 6), args=(bits,), method="bounded", options={"xatol": 1e-8}).x
    # the published 8-bit constant is 1 % off
    assert quest.GAUSSIAN_OPTIMAL[bits] == pytest.approx(best, rel=0.02 if bits == 8 else 1e-3)


def test_quest_s_2_bit_error_on_gaussian_weights_is_the_known_optimum(monkeypatch):
    latent = torch.randn(64, 512)
    best = (fitted(QuEST(2), latent)(latent) - latent).square().mean()
    assert best == pytest.approx(0.1188, rel=0.02)  # Max, 1960: four equidistant levels
    for factor in (0.8, 1.2):
        monkeypatch.setitem(quest.GAUSSIAN_OPTIMAL, 2, 1.49353 * factor)
        assert (fitted(QuEST(2), latent)(latent) - latent).square().mean() > 1.05 * best


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("shape", [(5, 24), (4, 16, 3, 3), (64,)], ids=readable)
def test_quest_quantizes_and_back_propagates_in_the_rotated_basis(bits, shape):
    rotated, upstream = torch.randn(2, shape[0] if len(shape) > 1 else 1, math.prod(shape[1:] or shape)).double()
    turn = rotation(rotated.shape[1])
    rotated = rotated**3  # heavy tails: entries on either side of the trust region
    latent = (rotated @ turn).reshape(shape)
    alpha = 2 * quest.GAUSSIAN_OPTIMAL[bits] / (2**bits - 1) * rotated.square().mean(1, keepdim=True).sqrt()
    codes = (rotated / alpha + 0.5).round().sub(0.5).clamp(-(2**bits - 1) / 2, (2**bits - 1) / 2)
    trust = ((alpha * codes - rotated).abs() <= alpha / 2).double()

    quantizer = fitted(QuEST(bits), latent)
    torch.testing.assert_close(quantizer.scale(latent).reshape(-1, 1), alpha)
    torch.testing.assert_close(quantizer(latent), (alpha * codes @ turn).reshape(shape))
    expected = (trust * (upstream @ turn)) @ turn  # H (mask * H grad)
    torch.testing.assert_close(gradient(quantizer, latent, upstream.reshape(shape)), expected.reshape(shape))
    assert 0 < trust.mean() < 1


@pytest.mark.parametrize("size", [1.0, 1e-6])
def test_quest_treats_an_all_zero_row_like_any_other(size):
    latent, upstream = torch.randn(3, 16), size * torch.randn(3, 16)
    latent[1] = 0
    quantizer = fitted(QuEST(2), latent)
    assert quantizer(latent).isfinite().all()
    # zero lies in the trust region, so everything passes; errors are relative to the size of the gradient
    torch.testing.assert_close(gradient(quantizer, latent, upstream)[1] / size, upstream[1] / size)
