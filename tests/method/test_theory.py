"""The statements of docs/theory.md, by quadrature or Monte Carlo."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fogzo
from fogzo.estimators import DisplacedStraightThrough
from fogzo.estimators.beta import noise_share
from fogzo.estimators.guide import normalise
from fogzo.smoothing import Logistic, Triangular, Uniform

KAPPA = 9 / 5  # fourth moment of the uniform noise
HALF, ONE = Uniform(0.5), Uniform(1.0)


def draws(smoothing, *shape):
    generator = torch.Generator().manual_seed(1)
    return smoothing.from_uniform(torch.rand(*shape, generator=generator, dtype=torch.float64))


def explained(beta, cosine, d, pairs=1.0):
    """q(β): the part of ‖∇‖² that the best multiple of G explains."""
    t = 1 - beta
    along = beta * cosine**2 + t
    one = beta**2 * cosine**2 + beta * t * (1 + 4 * cosine**2 + d * cosine**2) + t**2 * (d + KAPPA - 1)
    mean = beta**2 * cosine**2 + 2 * beta * t * cosine**2 + t**2  # ‖A∇‖²
    return along**2 / (one / pairs + (1 - 1 / pairs) * mean)


def guide_at(cosine, d):
    """∇ and a unit guide at that cosine."""
    true, guide = torch.zeros(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    true[0], guide[0], guide[1] = 1.0, cosine, math.sqrt(1 - cosine**2)
    return true, guide


def estimates(beta, cosine, d, count):
    true, guide = guide_at(cosine, d)
    u = math.sqrt(beta) * guide + math.sqrt(1 - beta) * draws(HALF, count, d)
    return true, (u @ true)[:, None] * u


@pytest.mark.parametrize("pairs", [1, 5])
@pytest.mark.parametrize(("beta", "cosine"), [(0.0, 0.3), (0.7, 0.3), (0.95, 0.6), (0.95, 0.0)])
def test_the_quality_of_one_pair_and_of_several_is_as_the_formula_says(beta, cosine, pairs):
    true, found = estimates(beta, cosine, 12, 200_000)
    found = found.view(-1, pairs, 12).mean(1)
    quality = float((found @ true).mean() ** 2 / found.square().sum(1).mean())
    assert quality == pytest.approx(explained(beta, cosine, 12, pairs), rel=0.02)


def test_the_mean_leans_toward_the_guide():
    true, found = estimates(0.8, 0.5, 6, 200_000)
    _, guide = guide_at(0.5, 6)
    torch.testing.assert_close(found.mean(0), 0.8 * 0.5 * guide + 0.2 * true, atol=6e-3, rtol=0)


def weights_of(*sizes):
    """What of quantized weights counts for the share of noise: their sizes."""
    return [SimpleNamespace(latent=torch.empty(size, device="meta")) for size in sizes]


@pytest.mark.parametrize(
    ("sizes", "beta", "rounded"),
    [((7840, 10, 100, 10), 0.999, "0.89"), ((5_308_416,), 1 - 1e-9, "0.005"), ((30_474_240,), 1 - 1e-9, "0.03")],
    ids=["mlp", "deit_tiny", "llama_30m"],
)
def test_the_noise_share_of_the_papers_networks_is_as_the_page_says(sizes, beta, rounded):
    digits = len(rounded) - len("0.")
    assert f"{noise_share(beta, weights_of(*sizes)):.{digits}f}" == rounded


def test_the_noise_share_is_that_of_guided_es():
    beta, d = 0.999, 7960
    _, guide = guide_at(0.5, d)
    u = math.sqrt(beta) * guide + math.sqrt(1 - beta) * draws(HALF, 200, d)
    noise = (u - (u @ guide)[:, None] * guide).square().sum(1) / u.square().sum(1)
    assert float(noise.mean()) == pytest.approx(noise_share(beta, weights_of(d)), abs=0.005)


@pytest.mark.parametrize("guide_norm", ["global", "rms", "per_tensor"])
def test_the_noise_share_is_that_of_the_probes_whatever_the_guide_is_scaled_to(guide_norm):
    sizes, beta = [300, 500], 0.6
    grads = list(torch.randn(sum(sizes), generator=torch.Generator().manual_seed(0), dtype=torch.float64).split(sizes))
    normalise(grads, [torch.ones(()).double()] * 2, guide_norm)  # in place: ĝ
    u = math.sqrt(beta) * torch.cat(grads) + math.sqrt(1 - beta) * draws(HALF, 1000, sum(sizes))
    noise = (u - math.sqrt(beta) * torch.cat(grads)).square().sum(1).mean() / u.square().sum(1).mean()
    share = noise_share(beta, weights_of(*sizes), guide_norm)
    assert float(noise) == pytest.approx(share, abs=0.002)
    assert guide_norm != "rms" or share == pytest.approx(1 - beta)  # there P-RGF's λ is β


@pytest.mark.parametrize("d", [10, 1000, 7960])
@pytest.mark.parametrize("cosine", [0.001, 0.003, 0.0112, 0.05, 0.3, 0.9])
def test_with_one_pair_no_beta_in_between_is_best(cosine, d):
    ends = max(explained(0.0, cosine, d), explained(1.0, cosine, d))
    assert ends == pytest.approx(max(cosine**2, 1 / (d + KAPPA - 1)))
    between = [explained(1 - 10**-exponent, cosine, d) for exponent in torch.linspace(0.01, 12, 500).tolist()]
    assert max(between) <= ends * (1 + 1e-12)


def test_only_much_noise_gains_by_averaging_over_many_steps():
    def left(beta, steps):  # of the error, after averaging the estimates of so many steps
        return 1 - explained(beta, 0.5, 7960, pairs=steps)

    assert left(1.0, 1) == left(1.0, 1e5) == 0.75
    assert left(0.999, 1e5) == pytest.approx(0.75, abs=0.01)
    assert left(0.0, 1e5) == pytest.approx(0.07, abs=0.005)
    assert left(0.0, 1e3) > 0.75  # and not before there are more steps than weights


def test_with_more_pairs_the_best_beta_in_between_is_little_better_than_the_ends():
    gains = []
    for cosine in (0.05, 0.2, 0.5, 0.9):
        for pairs in (1e1, 1e2, 1e3, 3e3, 1e4, 3e4, 3.5e4, 1e5, 1e6):
            best = max(explained(1 - 10 ** -(exponent / 20), cosine, 7960, pairs) for exponent in range(1, 160))
            ends = max(explained(0.0, cosine, 7960, pairs), explained(1.0, cosine, 7960, pairs))
            gains.append((1 - ends) / (1 - best))
    assert 0.15 < 1 - 1 / max(gains) < 0.21  # of the error of the better end


def test_a_control_variate_has_the_noise_of_the_bias():
    d, weight = 12, 0.3
    true, guide = guide_at(0.8, d)
    z = draws(HALF, 200_000, d)
    found = guide + weight * (z @ (true - guide))[:, None] * z
    torch.testing.assert_close(found.mean(0), guide + weight * (true - guide), atol=5e-3, rtol=0)
    variance = float((found - found.mean(0)).square().sum(1).mean())
    bias = float((true - guide).square().sum())
    assert variance == pytest.approx(weight**2 * (d + KAPPA - 2) * bias, rel=0.02)

    def error(weight):
        estimate = guide + weight * (z @ (true - guide))[:, None] * z
        return float((estimate - true).square().sum(1).mean()) / bias

    best = 1 / (d + KAPPA - 1)
    assert error(best) == pytest.approx(1 - best, rel=2e-3)
    assert error(best) < min(error(0.7 * best), error(1.3 * best))


def test_a_one_sided_probe_needs_the_random_sign():
    beta, d = 0.9, 5
    true, guide = guide_at(0.5, d)
    hessian = torch.diag(torch.arange(1.0, d + 1, dtype=torch.float64))
    z = draws(HALF, 200_000, d)
    signs = torch.where(draws(HALF, 200_000, 1) > 0, 1.0, -1.0)

    def mean(u):
        slope = u @ true + 0.5 * ((u @ hessian) * u).sum(1)
        return (slope[:, None] * u).mean(0)

    even = 0.5 * (beta * guide @ hessian @ guide + (1 - beta) * hessian.trace()) * guide + (1 - beta) * hessian @ guide
    symmetric = beta * (guide @ true) * guide + (1 - beta) * true
    noise = math.sqrt(1 - beta) * z
    torch.testing.assert_close(mean(math.sqrt(beta) * signs * guide + noise), symmetric, atol=0.02, rtol=0)
    torch.testing.assert_close(
        mean(math.sqrt(beta) * guide + noise), symmetric + math.sqrt(beta) * even, atol=0.02, rtol=0
    )


KERNELS = {  # smoothing, jump of h, K(y)
    "round, uniform": (HALF, 1, lambda y: 1.5 - 6 * y**2),
    "hardtanh": (ONE, 2, lambda y: 1.5 * (1 - y**2)),
    "ApproxSign": (Triangular(), 2, lambda y: 2 * (1 - 3 * y**2 + 2 * y**3)),
    "tanh": (
        Logistic(),
        2,
        lambda y: 12 / math.pi**2 * (math.log(2) + math.log(math.cosh(y)) - y * math.tanh(y)),
    ),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("y", [0.0, 0.2, 0.45])
def test_without_a_guide_the_mean_is_the_gradient_of_another_smoothing(name, y):
    smoothing, jump, kernel = KERNELS[name]
    cells = 200_000
    z = smoothing.from_uniform((torch.arange(cells, dtype=torch.float64) + 0.5) / cells)
    heaviside = torch.where(smoothing.std * z > y, 1.0, 0.0) - torch.where(-smoothing.std * z > y, 1.0, 0.0)
    found = jump * (heaviside * z / (2 * smoothing.std)).mean()
    assert float(found) == pytest.approx(kernel(y), abs=2e-3)


def test_coin_flips_of_half_a_step_give_the_identity_back():
    for y in (0.1, 0.3, 0.49):
        pair = [((1.0 if 0.5 * z > y else 0.0) - (1.0 if -0.5 * z > y else 0.0)) * z / (2 * 0.5) for z in (-1, 1)]
        assert sum(pair) / 2 == 1.0


def test_noise_inflates_quests_scale():
    from fogzo import QuEST

    w = draws(Uniform(1.0), 8, 4096)
    for bits, percent in ((1, 10), (2, 4)):
        quantizer = QuEST(bits)
        quantizer.fit(w)
        scale = quantizer.scale(w)
        moved = quantizer.scale(w + quantizer.smoothing.std * scale * draws(HALF, 8, 4096).flip(1))
        assert float(100 * (moved / scale - 1).mean()) == pytest.approx(percent, abs=0.7)


def test_the_displaced_ste_has_the_gradient_of_the_network_that_the_surrogate_stands_for():
    hessian = torch.tensor([[1.0, 0.7], [0.7, 2.0]], dtype=torch.float64)
    slope, x = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([0.8, -1.3], dtype=torch.float64)
    cells = torch.arange(1000, dtype=torch.float64)
    z = HALF.from_uniform((cells + 0.5) / 1000)  # the same grid for both coordinates
    codes = [(one + HALF.std * z).round() for one in x]
    mean_gradient = hessian @ torch.stack([code.mean() for code in codes]) + slope
    torch.testing.assert_close(mean_gradient, hessian @ x + slope, atol=2e-3, rtol=0)  # h_smooth(x) = x, h_smooth' = 1
    plain = hessian @ x.round() + slope
    assert float((plain - mean_gradient).abs().max()) > 0.1  # the STE at the undisplaced codes is biased
    after_lower_code = x - x.floor()
    variances = torch.stack([code.var(correction=0) for code in codes])
    torch.testing.assert_close(variances, after_lower_code * (1 - after_lower_code), atol=2e-3, rtol=0)


def test_displaced_steps_average_to_the_gradient_of_that_network_where_the_plain_ste_is_biased():
    layer = nn.Linear(6, 1, bias=False).double()
    generator = torch.Generator().manual_seed(0)
    x, root, slope = (torch.rand(*shape, generator=generator, dtype=torch.float64) for shape in ((6,), (6, 6), (6,)))
    hessian = root @ root.T
    with torch.no_grad():
        layer.weight.copy_(0.1 * (6 * x - 3))  # within 3 codes of 0, of -8 to 7: nothing is clipped
    model = fogzo.quantize_model(nn.Sequential(layer), fogzo.FixedScale(4, scale=0.1))
    weights = fogzo.quantized_weights(model)

    def closure(*, backward):
        codes = model[0].weight.flatten() / 0.1
        loss = 0.5 * codes @ hessian @ codes + slope @ codes
        if backward:
            loss.backward()
        return loss.detach()

    def mean_gradient(sigma, steps):
        estimator, total = DisplacedStraightThrough(weights, sigma=sigma, seed=2), torch.zeros(6, dtype=torch.float64)
        for step in range(steps):
            model.zero_grad()
            estimator.estimate(closure, step=step)
            total += weights[0].latent.grad.flatten() * 0.1 / steps
        return total

    exact = hessian @ (6 * x - 3) + slope  # of L(h_smooth(x)), h_smooth(x) = x
    torch.testing.assert_close(mean_gradient(1.0, 4000), exact, atol=0.05, rtol=0)
    assert float((mean_gradient(0.0, 1) - exact).abs().max()) > 0.5


CUTS = {  # quantizer, h, its surrogate's derivative, the noise ε̄z at quantile c
    "clipped round": (
        fogzo.FixedScale(2, scale=0.1, grid="twos_complement"),
        lambda y: y.round().clamp(-2, 1),
        lambda y: ((y >= -2) & (y <= 1)).double(),
        lambda c: c - 0.5,
    ),
    "sign, tanh": (
        fogzo.Sign(scale=0.1),
        lambda y: 2 * (y >= 0).double() - 1,
        lambda y: 1 - y.tanh().square(),
        lambda c: (2 * c - 1).atanh(),
    ),
}


@pytest.mark.parametrize("name", CUTS)
def test_displaced_steps_take_the_derivative_where_noise_has_moved_the_weights(name):
    quantizer, h, derivative, noise = CUTS[name]
    x = torch.tensor([-2.3, -1.8, -0.4, 0.9, 1.2, 1.7], dtype=torch.float64)
    generator, rows = torch.Generator().manual_seed(0), 2000  # each row of the layer is a draw of its own
    root, slope = (2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1 for shape in ((6, 6), (6,)))
    hessian = root @ root.T
    layer = nn.Linear(6, rows, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(0.1 * x.expand(rows, 6))
    model = fogzo.quantize_model(nn.Sequential(layer), quantizer)
    weights = fogzo.quantized_weights(model)

    def closure(*, backward):
        codes = model[0].weight / 0.1
        loss = (0.5 * (codes @ hessian * codes).sum(1) + codes @ slope).sum()
        if backward:
            loss.backward()
        return loss.detach()

    estimator, drawn = DisplacedStraightThrough(weights, seed=2), []
    for step in range(20):
        model.zero_grad()
        estimator.estimate(closure, step=step)
        drawn.append(weights[0].latent.grad * 0.1)
    found = torch.cat(drawn)
    error = 4.5 * found.std(0) / math.sqrt(len(found))

    moved = x[:, None] + noise((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
    codes, derivatives = h(moved), derivative(moved)
    covariance = (codes * derivatives).mean(1) - codes.mean(1) * derivatives.mean(1)
    at_mean = hessian @ codes.mean(1) + slope
    exact = at_mean * derivatives.mean(1) + hessian.diagonal() * covariance
    assert ((found.mean(0) - exact).abs() <= error + 1e-4).all()
    of_the_smooth_network = at_mean * derivative(x)  # h_smooth' is the surrogate's derivative
    assert ((found.mean(0) - of_the_smooth_network).abs() > 2 * error).any()
    if name == "clipped round":  # what lies outside is carried back inside so often
        assert (found != 0).double().mean(0)[[0, 4, 5]].tolist() == pytest.approx([0.2, 0.3, 0.0], abs=0.01)


@pytest.mark.parametrize("linear", [True, False])
def test_rademacher_noise_gives_the_gradient_that_identity_smoothing_leaves_of_a_separable_loss(linear):
    torch.manual_seed(0)
    layer = nn.Linear(6, 1, bias=False).double()
    slope, target = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)

    def loss_of(codes):  # Σ l_i(q_i)
        return codes @ slope + (0 if linear else (codes - target).pow(4).sum(-1))

    model = fogzo.quantize_model(nn.Sequential(layer), fogzo.FixedScale(4, scale=0.1))
    weights = fogzo.quantized_weights(model)
    x = weights[0].latent.detach().flatten() / 0.1

    def closure(*, backward):
        loss = loss_of(model[0].weight.flatten() / 0.1)
        if backward:
            loss.backward()
        return loss.detach()

    def estimated(estimator, steps):
        total = torch.zeros(6, dtype=torch.float64)
        for step in range(steps):
            model.zero_grad()
            estimator.estimate(closure, step=step)
            total += weights[0].latent.grad.flatten() * 0.1 / steps
        return total

    found = estimated(fogzo.NSPSA(weights, samples=64, seed=1, noise="rademacher"), 50)
    codes = [weights[0].quantizer.encode(x + half) for half in (0.5, -0.5)]
    ends = [torch.stack([torch.where(torch.arange(6) == i, one, 0) for i in range(6)]) for one in codes]
    exact = loss_of(ends[0]) - loss_of(ends[1])  # the other codes' terms drop out
    torch.testing.assert_close(found, exact, atol=0.05 * float(exact.abs().max()), rtol=0.05)
    if linear:
        torch.testing.assert_close(exact, estimated(fogzo.StraightThrough(weights), 1))
    else:  # with the surrogate's own noise it is another gradient
        assert not torch.allclose(estimated(fogzo.NSPSA(weights, samples=64, seed=1), 50), exact, atol=0.1, rtol=0.1)
