"""Phases ("r % STE + (100-r) % FOGZO"), and the controls that keep one part of FOGZO and drop the rest."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fogzo
from fogzo.estimators import Estimator, NoisyStraightThrough, Phased, RescaledStraightThrough

ALPHAS = (0.25, 2.0)  # of the two layers


def two_scales():
    """Two quantized layers with scales of their own; the biases stay float."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).double()
    for i, alpha in zip((0, 2), ALPHAS, strict=True):
        fogzo.quantize_model(model[i], fogzo.FixedScale(2, scale=alpha))
    return model


def closure_for(model, scale=1.0):
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(1)).double()

    def closure(*, backward):
        closure.calls.append(backward)
        loss = scale * F.cross_entropy(model(x), torch.arange(32) % 4)
        if backward:
            loss.backward()
        return loss.detach()

    closure.calls = []
    return closure


def estimate(kind, step=0, scale=1.0, **options):
    """One estimate on a fresh model: (estimate, gradients of the weights in grid units, all gradients by name)."""
    model = two_scales()
    weights = fogzo.quantized_weights(model)
    estimator = kind() if kind is fogzo.StraightThrough else kind(weights, **options)
    result = estimator.estimate(closure_for(model, scale), step=step)
    in_grid_units = torch.cat([(w.latent.grad * w.grid_unit()).flatten() for w in weights])
    return result, in_grid_units, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("switch_step", [0, 1, 3])
def test_phased_is_the_first_estimator_before_the_switch_and_the_second_from_it_on(switch_step):
    model = two_scales()
    ste, guided = fogzo.StraightThrough(), fogzo.FOGZO(fogzo.quantized_weights(model), beta=0.7)
    phased = Phased(ste, guided, switch_step=switch_step)
    for step in range(5):
        found = []
        for estimator in (phased, ste if step < switch_step else guided):
            model.zero_grad()
            closure = closure_for(model)
            estimator.estimate(closure, step=step)
            found.append((closure.calls, [p.grad.clone() for p in model.parameters()]))
        assert found[0][0] == found[1][0] == [True] + [False] * (2 * (step >= switch_step))
        assert all(torch.equal(p, q) for p, q in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.parametrize("switch_step", [-1, 1.5, True, None])
def test_phased_refuses_a_switch_step_that_is_no_step(switch_step):
    with pytest.raises(ValueError, match=f"switch_step={switch_step}"):
        Phased(fogzo.StraightThrough(), fogzo.StraightThrough(), switch_step=switch_step)


def test_phases_can_be_nested():
    class Recorder(Estimator):
        def __init__(self, name):
            self.name = name

        def estimate(self, closure, *, step=0):
            seen.append((self.name, step))

        def passes(self, steps, *, first=0):
            return steps, steps

    seen = []
    schedule = Phased(Recorder("a"), Phased(Recorder("b"), Recorder("c"), switch_step=2), switch_step=1)
    for step in range(4):
        schedule.estimate(None, step=step)
    assert seen == [("a", 0), ("b", 1), ("c", 2), ("c", 3)]


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.999])
def test_noisy_straight_through_adds_isotropic_noise_of_the_stated_norm(beta):
    _, g, _ = estimate(fogzo.StraightThrough)
    added = torch.stack([estimate(NoisyStraightThrough, step, beta=beta)[1] - g for step in range(200)])
    d, sigma = len(g), math.sqrt((1 - beta) / beta) * g.norm()
    torch.testing.assert_close(added.norm(dim=1).mean(), sigma * math.sqrt(d), rtol=0.01, atol=0)
    z = added / sigma
    assert z.mean(0).abs().max() < 4.5 / math.sqrt(len(z))  # no direction is preferred,
    assert (z.square().mean(0) - 1).abs().max() < 4.5 * math.sqrt(0.8 / len(z))  # nor any coordinate: Var[u²] = 4/5,
    assert (z @ g / g.norm()).square().mean() == pytest.approx(1, abs=0.5)  # nor the gradient's own
    assert z[:, : 8 * 16].square().mean() == pytest.approx(1, abs=0.03)  # nor the tensor with the smaller scale
    assert z[:, 8 * 16 :].square().mean() == pytest.approx(1, abs=0.05)


def test_noisy_straight_through_is_fogzo_where_only_the_guide_has_a_slope():
    beta, model = 0.8, two_scales()
    weights, first_order = fogzo.quantized_weights(model), closure_for(model)
    slope = math.sqrt(beta) * estimate(fogzo.StraightThrough)[1].norm()  # ‖g‖ along ĝ, of which u has √β
    probes = iter((slope, -slope))
    fogzo.FOGZO(weights, beta=beta, seed=2).estimate(
        lambda *, backward: first_order(backward=True) if backward else next(probes), step=5
    )
    guided = torch.cat([(w.latent.grad * w.grid_unit()).flatten() for w in weights])
    result, noisy, _ = estimate(NoisyStraightThrough, step=5, beta=beta, seed=2)
    torch.testing.assert_close(beta * noisy, guided)
    assert result.beta == beta
    torch.testing.assert_close(result.guide_norm, estimate(fogzo.FOGZO)[0].guide_norm)


@pytest.mark.parametrize(("beta", "samples"), [(0.999, 1), (0.5, 3), (1.0, 1), (lambda step: 0.3, 2)])
def test_rescaled_straight_through_has_the_direction_of_one_and_the_length_of_the_other(beta, samples):
    guided, g_fogzo, _ = estimate(fogzo.FOGZO, step=4, beta=beta, samples=samples)
    result, g, _ = estimate(RescaledStraightThrough, step=4, beta=beta, samples=samples)
    _, g_ste, _ = estimate(fogzo.StraightThrough)
    torch.testing.assert_close(g / g.norm(), g_ste / g_ste.norm())
    torch.testing.assert_close(g.norm(), g_fogzo.norm())
    for field in ("loss", "beta", "agreement", "zero_probes", "guide_norm"):
        assert getattr(result, field) == getattr(guided, field)


@pytest.mark.parametrize("kind", [NoisyStraightThrough, RescaledStraightThrough])
def test_controls_give_float_parameters_their_first_order_gradient(kind):
    _, _, expected = estimate(fogzo.StraightThrough)
    _, _, found = estimate(kind, beta=0.5)
    same = {name for name in expected if torch.equal(expected[name], found[name])}
    assert same == {"0.bias", "2.bias"}


@pytest.mark.parametrize("kind", [NoisyStraightThrough, RescaledStraightThrough])
def test_controls_follow_seed_and_step_and_survive_a_zero_gradient(kind):
    gradients = [estimate(kind, step, beta=0.5, seed=seed)[1] for seed, step in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    assert torch.equal(gradients[0], gradients[1])
    assert not any(torch.equal(gradients[0], other) for other in gradients[2:])
    _, g, _ = estimate(kind, scale=0.0)
    assert not g.any()


@pytest.mark.parametrize("kind", [NoisyStraightThrough, RescaledStraightThrough])
@pytest.mark.parametrize("beta", [0.0, lambda step: 0.0], ids=["constant", "callable"])
def test_controls_refuse_beta_zero_which_has_no_guide(kind, beta):
    with pytest.raises(ValueError, match="beta=0"):
        estimate(kind, beta=beta)
