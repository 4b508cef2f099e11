"""Members of the family beside FOGZO, phases and controls: each against an oracle, and what all estimators promise."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fogzo
from fogzo.estimators import (
    EWGS,
    ControlVariate,
    DisplacedStraightThrough,
    Estimator,
    ExactDirectional,
    GuideOrNoise,
    IntermittentFOGZO,
    NoisyStraightThrough,
    OneSidedFOGZO,
    Phased,
    RescaledStraightThrough,
    Slices,
    SplitFOGZO,
)
from fogzo.estimators.perturb import Noise
from fogzo.seeding import derive_seed

BETA = 0.7
SLICES = 4


def network():
    """Two quantized layers with scales of their own; the biases stay float."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).double()
    for i, alpha in zip((0, 2), (0.25, 2.0), strict=True):
        fogzo.quantize_model(model[i], fogzo.FixedScale(2, scale=alpha))
    return model


def batch():
    return torch.randn(32, 8, generator=torch.Generator().manual_seed(1)).double(), torch.arange(32) % 4


def closure_of(model):
    """The loss in equal slices: of the whole batch, and of each."""
    slices = [part.chunk(SLICES) for part in batch()]
    return Slices([partial(lambda x, y: F.cross_entropy(model(x), y), x, y) for x, y in zip(*slices, strict=True)])


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


class Oracle:
    """The loss as a function of the quantized weights in grid units, as one vector; and the STE's gradient there."""

    def __init__(self):
        self.model = network()
        self.weights = fogzo.quantized_weights(self.model)
        self.units = flat([w.grid_unit().expand_as(w.latent) for w in self.weights])
        self.start = flat([w.latent.detach() for w in self.weights])
        self.g = self.gradient(torch.zeros_like(self.start))

    def put(self, shift):
        moved = self.start + self.units * shift
        for w, part in zip(self.weights, moved.split([w.latent.numel() for w in self.weights]), strict=True):
            w.latent.data.copy_(part.view_as(w.latent))

    def loss(self, shift, part=slice(None)):
        self.put(shift)
        x, y = batch()
        with torch.no_grad():
            found = F.cross_entropy(self.model(x[part]), y[part])
        self.put(torch.zeros_like(shift))
        return float(found)

    def gradient(self, shift):
        """In grid units, at the displaced weights."""
        self.put(shift)
        self.model.zero_grad()
        x, y = batch()
        F.cross_entropy(self.model(x), y).backward()
        found = flat([w.latent.grad for w in self.weights]) * self.units
        self.put(torch.zeros_like(shift))
        return found

    def noise(self, step, i, seed=3):
        return flat([z.squeeze(0) for z in Noise(self.weights, seed, step).draw(range(i, i + 1))])

    def guide(self):
        return self.g / self.g.norm()


def found_by(make, step=0, before=()):
    """The estimate and its G in grid units, after estimates for the steps ``before``."""
    model = network()
    weights = fogzo.quantized_weights(model)
    estimator = make(weights)
    for other in before:
        model.zero_grad()
        estimator.estimate(closure_of(model), step=other)
    model.zero_grad()
    estimate = estimator.estimate(closure_of(model), step=step)
    return estimate, flat([w.latent.grad * w.grid_unit() for w in weights])


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.0, 0.5, lambda step: step / 4])
def test_the_displaced_ste_is_the_gradient_at_displaced_weights(sigma):
    oracle = Oracle()
    width = sigma(2) if callable(sigma) else sigma
    _, found = found_by(lambda w: DisplacedStraightThrough(w, sigma=sigma, seed=3), step=2)
    same(found, oracle.gradient(width * oracle.noise(2, 0)))


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("sides", ["two", "one"])
def test_the_control_variate_adds_what_probes_say_against_the_gradient(samples, sides):
    oracle, trust = Oracle(), 0.25
    _, found = found_by(lambda w: ControlVariate(w, samples=samples, trust=trust, sides=sides, seed=3), step=5)
    expected = oracle.g.clone()
    for i in range(samples):
        z = oracle.noise(5, i)
        ahead, behind = oracle.loss(z), oracle.loss(-z) if sides == "two" else None
        slope = (ahead - behind) / 2 if sides == "two" else ahead - oracle.loss(0 * z)
        expected += trust / samples * (slope - oracle.g @ z) * z
    same(found, expected)


def test_one_sided_fogzo_measures_from_the_weights_themselves_with_a_random_sign():
    oracle, samples = Oracle(), 3
    estimate, found = found_by(lambda w: OneSidedFOGZO(w, samples=samples, beta=BETA, seed=3), step=1)
    signs = [1 if derive_seed("sign", 3, 1, i) % 2 == 0 else -1 for i in range(samples)]
    directions = [
        sign * math.sqrt(BETA) * oracle.guide() + math.sqrt(1 - BETA) * oracle.noise(1, i)
        for i, sign in enumerate(signs)
    ]
    differences = [oracle.loss(u) - oracle.loss(0 * u) for u in directions]
    same(found, sum(d * u for d, u in zip(differences, directions, strict=True)) / samples)
    along = sum(d * sign for d, sign in zip(differences, signs, strict=True)) / samples
    assert float(estimate.agreement) == pytest.approx(along / (math.sqrt(BETA) * float(oracle.g.norm())))


def test_one_sided_fogzo_subtracts_the_mean_of_the_steps_before():
    oracle = Oracle()

    def difference(step):
        sign = 1 - 2 * (derive_seed("sign", 3, step, 0) % 2)
        u = sign * math.sqrt(BETA) * oracle.guide() + math.sqrt(1 - BETA) * oracle.noise(step, 0)
        return oracle.loss(u) - oracle.loss(0 * u), u

    _, found = found_by(lambda w: OneSidedFOGZO(w, beta=BETA, seed=3), step=2, before=(0, 1))
    first, second = difference(0)[0], difference(1)[0]
    mean = (0.95 * 0.05 * first + 0.05 * second) / (1 - 0.95**2)
    value, u = difference(2)
    same(found, (value - mean) * u)


def test_without_the_running_mean_rounding_would_be_noise_in_every_step():
    """At ε̄ a probe costs in nearly every step, whichever way it goes: less of G is noise when that is known."""
    model = network()
    weights, closure, losses = fogzo.quantized_weights(model), closure_of(model), []

    def seen(*, backward):
        losses.append(closure(backward=backward))
        return losses[-1]

    def estimates(estimator_of):
        for step in range(200):
            model.zero_grad()
            estimator_of(step).estimate(seen, step=step)
            yield flat([w.latent.grad * w.grid_unit() for w in weights])

    known = OneSidedFOGZO(weights, beta=BETA, seed=3)
    # in its first step an estimator knows no mean, and subtracts nothing
    without = torch.stack(list(estimates(lambda step: OneSidedFOGZO(weights, beta=BETA, seed=3))))
    differences = torch.stack(losses[1::2]) - torch.stack(losses[::2])
    subtracted = torch.stack(list(estimates(lambda step: known)))
    assert float((differences > 0).double().mean()) > 0.65
    assert float(subtracted.var(0).sum()) < 0.85 * float(without.var(0).sum())


def test_split_batches_give_each_slice_a_direction_of_its_own():
    oracle = Oracle()
    estimate, found = found_by(lambda w: SplitFOGZO(w, beta=BETA, seed=3), step=4)
    expected, slopes = torch.zeros_like(oracle.g), []
    for k in range(SLICES):
        part = slice(8 * k, 8 * k + 8)
        u = math.sqrt(BETA) * oracle.guide() + math.sqrt(1 - BETA) * oracle.noise(4, k)
        slopes.append((oracle.loss(u, part) - oracle.loss(-u, part)) / 2)
        expected += slopes[-1] * u / SLICES
    same(found, expected)
    believed = math.sqrt(BETA) * float(oracle.g.norm())
    assert float(estimate.agreement) == pytest.approx(sum(slopes) / SLICES / believed)


def test_where_slices_agree_each_direction_takes_its_part_of_the_noise_away():
    model = network()
    weights = fogzo.quantized_weights(model)
    x, y = (part[:8] for part in batch())
    closure = Slices([lambda: F.cross_entropy(model(x), y)] * SLICES)

    def spread(estimator):
        found = []
        for step in range(100):
            model.zero_grad()
            estimator.estimate(closure, step=step)
            found.append(flat([w.latent.grad * w.grid_unit() for w in weights]))
        return float(torch.stack(found).var(0).sum())

    one, many = spread(fogzo.FOGZO(weights, beta=BETA)), spread(SplitFOGZO(weights, beta=BETA))
    assert many == pytest.approx(one / SLICES, rel=0.25)


def test_where_slices_differ_little_is_gained():
    def spread(make):
        return float(torch.stack([found_by(make, step=step)[1] for step in range(60)]).var(0).sum())

    one, many = spread(lambda w: fogzo.FOGZO(w, beta=BETA)), spread(lambda w: SplitFOGZO(w, beta=BETA))
    assert 0.8 * one < many < one


def test_split_batches_refuse_what_has_no_slices_and_batch_norm_in_training():
    model = network()
    with pytest.raises(ValueError, match=r"without slices.*Slices"):
        SplitFOGZO(fogzo.quantized_weights(model)).estimate(lambda *, backward: torch.zeros(()), step=0)
    normed = fogzo.quantize_model(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)), fogzo.FixedScale(2))
    with pytest.raises(ValueError, match="batch norm in training mode"):
        SplitFOGZO(fogzo.quantized_weights(normed)).estimate(closure_of(normed), step=0)


def test_now_and_then_believes_the_last_agreement():
    oracle = Oracle()

    def make(weights):
        return IntermittentFOGZO(fogzo.FOGZO(weights, beta=BETA, seed=3), every=3)

    probed, at_three = found_by(make, step=3)
    _, plain = found_by(lambda w: fogzo.FOGZO(w, beta=BETA, seed=3), step=3)
    same(at_three, plain)
    _, between = found_by(make, step=4, before=(3,))
    same(between, BETA * float(probed.agreement) * oracle.g)
    _, before_any = found_by(make, step=4)
    same(before_any, BETA * oracle.g)


@pytest.mark.parametrize("samples", [1, 3])
def test_the_exact_control_has_the_slope_that_the_ste_believes(samples):
    oracle = Oracle()
    _, found = found_by(lambda w: ExactDirectional(w, samples=samples, beta=BETA, seed=3), step=2)
    expected = torch.zeros_like(oracle.g)
    for i in range(samples):
        u = math.sqrt(BETA) * oracle.guide() + math.sqrt(1 - BETA) * oracle.noise(2, i)
        expected += (oracle.g @ u) * u / samples
    same(found, expected)


def test_guide_or_noise_takes_the_guide_where_its_slope_explains_more():
    oracle, model = Oracle(), network()
    guide, d = oracle.guide(), len(oracle.g)
    estimator, choices, squares = GuideOrNoise(fogzo.quantized_weights(model), seed=3), set(), []
    for step in range(4):
        if step == 2:  # a gradient so long that the guide explains less of it than noise does
            estimator.squared_norm.add(torch.tensor(1e9))
            squares.append(1e9)
        z = oracle.noise(step, 0)
        along, across = ((oracle.loss(u) - oracle.loss(-u)) / 2 for u in (guide, z))
        weights = [0.95**age for age in reversed(range(len(squares)))]
        mean = sum(w * square for w, square in zip(weights, squares, strict=True)) / max(sum(weights), 1e-30)
        squares.append(float(across**2))
        model.zero_grad()
        estimate = estimator.estimate(closure_of(model), step=step)
        guided = bool(along**2 * d > mean)  # of the steps before: not of this one's own noise
        assert bool(estimate.beta) == guided
        found = flat([w.latent.grad * w.grid_unit() for w in estimator.weights])
        unit = z / math.sqrt(d)  # both directions have length 1
        same(found, along * guide if guided else across / math.sqrt(d) * unit)
        choices.add(guided)
    assert choices == {True, False}


EWGS_QUANTIZERS = {
    "fixed": fogzo.FixedScale(2, scale=0.2),
    "lsq": fogzo.LSQ(3),
    "quest": fogzo.QuEST(2),
    "sign": fogzo.Sign(scale=0.3),
}


@pytest.mark.parametrize("delta", [0.0, 0.4, lambda step: step / 10], ids=["0", "0.4", "falling"])
@pytest.mark.parametrize("quantizer", EWGS_QUANTIZERS)
def test_ewgs_scales_each_entry_by_its_rounding_error(quantizer, delta):
    torch.manual_seed(0)
    model = fogzo.quantize_model(nn.Sequential(nn.Linear(8, 16), nn.ReLU()).double(), EWGS_QUANTIZERS[quantizer])
    (weight,) = fogzo.quantized_weights(model)
    x, y = batch()

    def closure(*, backward):
        loss = F.cross_entropy(model(x), y)
        if backward:
            loss.backward()
        return loss.detach()

    closure(backward=True)
    g = weight.latent.grad.clone()
    rest = {name: p.grad.clone() for name, p in model.named_parameters() if p is not weight.latent}
    model.zero_grad()
    EWGS([weight], delta=delta).estimate(closure, step=2)
    with torch.no_grad():  # by definition: the rotation as a matrix, codes by search among all that there are
        rotation = weight.quantizer.rotate(torch.eye(8, dtype=torch.float64)) if quantizer == "quest" else torch.eye(8)
        turn, scale = rotation.double(), weight.quantizer.scale(weight.latent)
        inside, rotated_g = weight.latent @ turn / scale, g @ turn
        codes = weight.quantizer.encode(torch.linspace(-50, 50, 401, dtype=torch.float64)[:, None]).unique()
        inside = inside.clamp(codes.min(), codes.max())
        error = inside - codes[(inside[..., None] - codes).abs().argmin(-1)]
        width = delta(2) if callable(delta) else delta
        expected = (rotated_g * (1 + width * rotated_g.sign() * error)) @ turn.T
    torch.testing.assert_close(weight.latent.grad, expected, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(p.grad, rest[name]) for name, p in model.named_parameters() if name in rest)
    assert torch.equal(weight.latent.grad, g) == (delta == 0)


MEMBERS = {
    "ewgs": lambda w: EWGS(w),
    "displaced": lambda w: DisplacedStraightThrough(w, seed=3),
    "control variate": lambda w: ControlVariate(w, trust=0.3, seed=3),
    "control variate, one-sided": lambda w: ControlVariate(w, trust=0.3, sides="one", seed=3),
    "one-sided": lambda w: OneSidedFOGZO(w, beta=BETA, seed=3),
    "split": lambda w: SplitFOGZO(w, beta=BETA, seed=3),
    "now and then": lambda w: IntermittentFOGZO(fogzo.FOGZO(w, beta=BETA, seed=3), every=2),
    "exact": lambda w: ExactDirectional(w, beta=BETA, seed=3),
    "guide or noise": lambda w: GuideOrNoise(w, seed=3),
    "phases with a state": lambda w: Phased(
        OneSidedFOGZO(w, beta=BETA, seed=3),
        IntermittentFOGZO(fogzo.FOGZO(w, beta=BETA, seed=3), every=2),
        switch_step=1,
    ),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_weights_come_back_to_the_bit_also_when_the_closure_raises(name):
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    estimator = MEMBERS[name](fogzo.quantized_weights(model))
    estimator.estimate(closure_of(model), step=0)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    model.zero_grad()
    closure = closure_of(model)
    losses = list(closure.losses)

    def fail():
        raise RuntimeError("out of memory")

    closure.losses = [losses[0], fail, *losses[2:]]
    with pytest.raises(RuntimeError, match="out of memory"):
        estimator.estimate(closure, step=0)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


CONTROLS = {
    "noisy": lambda w: NoisyStraightThrough(w, beta=BETA),
    "rescaled": lambda w: RescaledStraightThrough(w, beta=BETA),
}


@pytest.mark.parametrize("name", [*MEMBERS, *CONTROLS])
def test_the_share_of_noise_is_logged_beside_beta_in_every_step(name):
    model = network()
    weights = fogzo.quantized_weights(model)
    estimator, d = (MEMBERS | CONTROLS)[name](weights), sum(w.latent.numel() for w in weights)
    for step in range(4):
        model.zero_grad()
        seen = estimator.estimate(closure_of(model), step=step)
        assert (seen.beta is None) == (seen.noise_share is None)
        if seen.beta is not None:
            beta = float(seen.beta)
            assert float(seen.noise_share) == pytest.approx(d * (1 - beta) / (beta + d * (1 - beta)))


def test_the_share_of_noise_knows_what_the_guide_is_scaled_to():
    seen, _ = found_by(lambda w: fogzo.FOGZO(w, beta=BETA, guide_norm="rms"))
    assert seen.noise_share == pytest.approx(1 - BETA)


@pytest.mark.parametrize("name", MEMBERS)
def test_an_estimate_is_a_function_of_the_step_and_of_the_state_that_is_saved(name):
    model = network()
    weights = fogzo.quantized_weights(model)

    def estimated(estimator, step):
        model.zero_grad()
        estimator.estimate(closure_of(model), step=step)
        return flat([p.grad for p in model.parameters()])

    whole, resumed = MEMBERS[name](weights), MEMBERS[name](weights)
    for step in range(3):
        estimated(whole, step)
    resumed.load_state_dict(whole.state_dict())
    assert torch.equal(estimated(whole, 3), estimated(resumed, 3))
    assert torch.equal(estimated(whole, 4), estimated(resumed, 4))


@pytest.mark.parametrize("name", MEMBERS)
def test_float_parameters_keep_the_first_order_gradient_and_a_full_grad_is_refused(name):
    model, plain = network(), network()
    estimator = MEMBERS[name](fogzo.quantized_weights(model))
    estimator.estimate(closure_of(model), step=0)
    closure_of(plain)(backward=True)
    if name != "displaced":  # whose float parameters see the displaced network
        assert torch.equal(model[0].bias.grad, plain[0].bias.grad)
    with pytest.raises(ValueError, match="zero_grad"):
        estimator.estimate(closure_of(model), step=1)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda w: DisplacedStraightThrough(w, sigma=-1), "sigma=-1"),
        (lambda w: ControlVariate(w, trust=2), "trust=2"),
        (lambda w: ControlVariate(w, sides="three"), "sides='three'"),
        (lambda w: OneSidedFOGZO(w, beta=0.0), "beta=0"),
        (lambda w: IntermittentFOGZO(fogzo.FOGZO(w), every=0), "every=0"),
        (lambda w: SplitFOGZO(w, epsilon=0), "epsilon=0"),
        (lambda w: EWGS(w, delta=1.5), "delta=1.5"),
    ],
)
def test_values_out_of_range_are_named(make, named):
    with pytest.raises(ValueError, match=named):
        make(fogzo.quantized_weights(network()))


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
