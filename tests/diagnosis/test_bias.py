"""Cosines with the smoothed gradient: against brute force, and intervals that hold the truth as often as they say."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fogzo
from fogzo.diagnosis.bias import Sampled, measured
from fogzo.diagnosis.probing import kernel, measure
from fogzo.diagnosis.summary import rows_of
from fogzo.estimators.vmap import losses_at
from fogzo.smoothing import Uniform

QUANTIZERS = {
    "round": lambda: fogzo.FixedScale(2),
    "round, not clipped": lambda: fogzo.FixedScale(2, clip_surrogate=False),
    "tanh": lambda: fogzo.Sign("tanh", scale_in_std=2.5),
    "hardtanh": lambda: fogzo.Sign("hardtanh", scale_in_std=2.5),
    "approxsign": lambda: fogzo.Sign("approxsign", scale_in_std=2.5),
    "lsq": lambda: fogzo.LSQ(2),
}


def tiny(quantizer, *, layers=((3, 2), (2, 2))):
    torch.manual_seed(3)
    first, second = (nn.Linear(*size, bias=False) for size in layers)
    model = nn.Sequential(first, nn.Tanh(), second).double()
    return fogzo.quantize_model(model, quantizer, skip=["2"] if layers[0] == (2, 2) else [])


def closures(model):
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(16, model[0].in_features, generator=generator, dtype=torch.float64) for _ in range(2)]

    def closure_of(b):
        def closure(*, backward):
            loss = F.cross_entropy(3 * model(batches[b]), (batches[b][:, 0] * batches[b][:, 1] > 0).long())
            if backward:
                loss.backward()
            return loss.detach()

        return closure

    return closure_of


def noise_grid(quantizer, cells):
    return quantizer.smoothing.from_uniform((torch.arange(cells, dtype=torch.float64) + 0.5) / cells)


def cells_of(weight, i):
    """The codes that noise takes coordinate i to: its probability, E[z; cell], and a z within."""
    x = weight.latent.detach().flatten()[i] / weight.quantizer.scale(weight.latent)
    z = noise_grid(weight.quantizer, 20_000)
    codes = weight.quantizer.encode(x + weight.quantizer.smoothing.std * z)
    for code in codes.unique():
        inside = codes == code
        yield float(inside.double().mean()), float((z * inside).mean()), float(z[inside].median())


def losses_of(model, closure_of, zs):
    """The mean loss of both batches at many displacements z, of shape (K, d)."""
    weights = fogzo.quantized_weights(model)
    parts = torch.split(zs, [w.latent.numel() for w in weights], dim=1)
    stacks = [
        w.latent.detach() + w.grid_unit() * part.view(-1, *w.latent.shape)
        for w, part in zip(weights, parts, strict=True)
    ]
    with torch.no_grad():
        return sum(losses_at(lambda b=b: closure_of(b)(backward=False), weights, stacks) for b in range(2)) / 2


def all_corners(model, closure_of):
    """E[L z] by enumeration of every combination of codes: the reference, exactly."""
    cells = [list(cells_of(w, i)) for w in fogzo.quantized_weights(model) for i in range(w.latent.numel())]
    assert len(cells) <= 12
    corners = list(itertools.product(*cells))
    losses = losses_of(model, closure_of, torch.tensor([[z for _, _, z in c] for c in corners], dtype=torch.float64))
    chances = [math.prod(p for p, _, _ in corner) for corner in corners]
    weighted = torch.tensor(
        [[chance / p * m for p, m, _ in corner] for chance, corner in zip(chances, corners, strict=True)],
        dtype=torch.float64,
    )
    return losses @ weighted


def ste(model, closure_of):
    model.zero_grad()
    for b in range(2):
        closure_of(b)(backward=True)
    weights = fogzo.quantized_weights(model)
    return torch.cat([(w.latent.grad * w.grid_unit()).flatten() for w in weights]) / 2


def check(model, closure_of, exact, probes):
    guide = ste(model, closure_of)
    model.zero_grad()
    found = measure(fogzo.quantized_weights(model), closure_of, batches=2, probes=probes, beta=0.9, seed=0)
    torch.testing.assert_close(torch.cat([g.flatten() for g in found.guide]), guide)
    network = rows_of(found)[-1]
    truth = float(F.cosine_similarity(guide, exact, dim=0))
    assert network.ste.resolved, network.ste
    slack = 0.2 * (network.ste.high - network.ste.low)  # of one interval in twenty
    assert network.ste.low - slack <= truth <= network.ste.high + slack
    assert network.ratio.low * 0.9 <= float(guide.norm() / exact.norm()) <= network.ratio.high * 1.1


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_cosine_is_that_of_the_gradient_by_all_corners(name):
    model = tiny(QUANTIZERS[name]())
    closure_of = closures(model)
    check(model, closure_of, all_corners(model, closure_of), probes=240)


def quest():
    """A network whose scale moves with the noise, so that there are no corners, and E[L z] by quadrature."""
    model = tiny(fogzo.QuEST(2), layers=((2, 2), (2, 2)))
    closure_of = closures(model)
    (weight,) = fogzo.quantized_weights(model)
    z = torch.cartesian_prod(*[noise_grid(weight.quantizer, 20)] * 4)
    z = weight.quantizer.unrotate(z.view(-1, 2, 2)).flatten(1)  # drawn where codes are decided
    return model, closure_of, losses_of(model, closure_of, z) @ z / len(z)


def test_the_cosine_of_quest_is_that_of_the_gradient_by_quadrature():
    check(*quest(), probes=240)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*QUANTIZERS, "quest"])
def test_the_interval_of_real_losses_holds_the_truth_in_90_to_99_of_100_measurements(name):
    if name == "quest":
        model, closure_of, exact = quest()
    else:
        model = tiny(QUANTIZERS[name]())
        closure_of = closures(model)
        exact = all_corners(model, closure_of)
    truth = float(F.cosine_similarity(ste(model, closure_of), exact, dim=0))
    model.zero_grad()
    weights, held = fogzo.quantized_weights(model), 0
    for seed in range(7000, 7100):
        found = rows_of(measure(weights, closure_of, batches=2, probes=30, beta=0.9, seed=seed))[-1].ste
        held += found.low <= truth <= found.high
    assert 90 <= held <= 99, held


def test_the_kernel_is_that_of_the_theory():
    y = torch.tensor([0.0, 0.2, 0.45, 0.6], dtype=torch.float64)
    expected = (1.5 - 6 * y**2).clamp_min(0)
    torch.testing.assert_close(kernel(Uniform(0.5), y), expected, atol=1e-3, rtol=0)


NOISE = Uniform(0.5)


def sampled(slope, count, seed, d, sigma):
    """Pairs whose slopes are those of a linear loss, with errors."""
    generator = torch.Generator().manual_seed(seed)
    noise = NOISE.from_uniform(torch.rand(count, d, generator=generator, dtype=torch.float64))
    errors = torch.randn(count, generator=generator, dtype=torch.float64)
    return Sampled((noise @ slope + sigma * errors).tolist(), lambda k: noise[k])


@pytest.mark.parametrize(("cosine", "sigma", "count"), [(0.6, 1.0, 150), (0.95, 0.3, 60), (0.0, 0.3, 100)])
def test_the_interval_holds_the_truth_in_90_to_99_of_100_measurements(cosine, sigma, count):
    d = 20
    slope = torch.zeros(d, dtype=torch.float64)
    slope[0] = 1.0
    guide = torch.zeros(d, dtype=torch.float64)
    guide[0], guide[1] = cosine, math.sqrt(1 - cosine**2)
    draws = sampled(slope, 2, 10_000, d, 0.0)
    held = []
    for seed in range(100):
        found = measured(sampled(slope, count, seed, d, sigma), guide, lambda: guide, draws).moments()[0].cosine()
        held.append(found.low <= cosine <= found.high)
    assert 90 <= sum(held) <= 99, sum(held)


@pytest.mark.parametrize("d", [12, 2000])
def test_pure_noise_is_not_resolved(d):
    nothing, guide = torch.zeros(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64)
    for seed in range(20):
        draws = sampled(nothing, 40, 500 + seed, d, 1.0)
        moments = measured(sampled(nothing, 60, seed, d, 1.0), guide, lambda: guide, draws).moments()
        assert [m.cosine().resolved for m in moments] == [False] * 4, seed
        assert str(moments[0].cosine()).startswith("not resolved")


def test_as_many_probes_as_are_said_to_do_resolve_the_cosine():
    d, cosine = 400, 0.6
    slope, guide = torch.zeros(2, d, dtype=torch.float64)
    slope[0], guide[0], guide[1] = 1.0, cosine, math.sqrt(1 - cosine**2)
    draws = sampled(slope, 2, 10_000, d, 0.0)

    def found(count, seed):
        return measured(sampled(slope, count, seed, d, 1.0), guide, lambda: guide, draws).moments()[1]

    few = [found(16, seed) for seed in range(20)]
    assert not any(one.cosine().resolved for one in few)
    factors = sorted(one.factor() or math.inf for one in few)
    assert factors[0] >= 2  # as many as there were have not been enough
    median = factors[10]
    assert 16 <= median <= 64
    enough = found(round(16 * median), 99)
    assert enough.cosine().resolved
    assert enough.factor() is None
    assert found(round(16 * median / 16), 99).cosine().resolved is False


def test_of_a_linear_loss_fogzos_mean_and_one_draw_are_as_the_theory_says():
    d, beta, cosine = 12, 0.7, 0.6
    slope, guide = torch.zeros(2, d, dtype=torch.float64)
    slope[0], guide[0], guide[1] = 1.0, cosine, math.sqrt(1 - cosine**2)
    noise = sampled(slope, 4000, 77, d, 0.0).direction

    def direction(k):
        return math.sqrt(beta) * guide + math.sqrt(1 - beta) * noise(k)

    draws = Sampled([float(direction(k) @ slope) for k in range(1500)], direction)
    moments = measured(sampled(slope, 400, 5, d, 0.0), guide, lambda: guide, draws).moments()
    mean, one = (m.cosine() for m in moments[2:])
    expected = beta * cosine * guide + (1 - beta) * slope
    assert mean.low <= float(F.cosine_similarity(expected, slope, dim=0)) <= mean.high
    t = 1 - beta
    along = beta * cosine**2 + t
    square = beta**2 * cosine**2 + beta * t * (1 + 4 * cosine**2 + d * cosine**2) + t**2 * (d + 9 / 5 - 1)
    assert one.value == pytest.approx(along / math.sqrt(square), abs=0.06)  # docs/theory.md, q(β)
