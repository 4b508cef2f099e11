"""The formula of paper.md, section 2, on problems with known answers."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.checks import readable
from torch import nn

import fogzo
from fogzo.estimators.perturb import Noise
from fogzo.quantizers import Quantizer
from fogzo.smoothing import Logistic, Triangular, Uniform


class Identity(Quantizer):
    """Rounds nothing, so that the loss of the "quantized" network is the loss at the latents; α is given."""

    bits = 8

    def __init__(self, alpha, smoothing):
        super().__init__()
        self.alpha, self.smoothing = torch.tensor(alpha), smoothing

    def fit(self, latent):
        self.alpha = self.alpha.to(latent.dtype)

    def scale(self, latent):
        return self.alpha

    def encode(self, x):
        return x

    def surrogate_derivative(self, x):
        return None


class Problem:
    """A closure for ``loss(model)``; ``guide`` (a flat tensor) is what its backward pass returns, right or wrong."""

    def __init__(self, model, loss, guide=None):
        self.model, self.loss, self.guide = model, loss, guide

    def __call__(self, *, backward):
        loss = self.loss(self.model)
        if backward and self.guide is None:
            loss.backward()
        elif backward:
            parameters = list(self.model.parameters())
            for p, part in zip(parameters, self.guide.split([p.numel() for p in parameters]), strict=True):
                p.grad = part.view_as(p).clone()
        return loss.detach()


def latents(alphas=(0.5, 0.5), smoothing=None, dtype=torch.float64):
    """A module that holds nothing but latents, 2x2 and 1x3, without any rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(3, 1, bias=False)).to(dtype)
    for layer, alpha in zip(model, alphas, strict=True):
        fogzo.quantize_model(layer, Identity(alpha, smoothing or Uniform(0.5)))
    return model


def fogzo_on(closure, step=0, *, kind=fogzo.FOGZO, **options):
    """Estimate once; return (estimate, G as one vector)."""
    closure.model.zero_grad()
    estimate = kind(fogzo.quantized_weights(closure.model), **options).estimate(closure, step=step)
    return estimate, torch.cat([p.grad.flatten() for p in closure.model.parameters()])


def flat(model):
    return torch.cat([layer.weight.flatten() for layer in model])


def linear(c):
    return lambda model: flat(model) @ c


def quadratic(model):
    w = flat(model)
    return (torch.arange(1, 8) * w**2).sum() + w[0] * w[-1]


def true_gradient(model, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss(model), list(model.parameters()))])


def vector(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


C = vector(1, -2, 3, 0.5, -1, 2, 1)
WRONG = vector(1, 1, 1, -1, 0, 2, 0)
UNIT = WRONG / WRONG.norm()


@pytest.mark.parametrize("guide", [None, WRONG], ids=["true guide", "wrong guide"])
@pytest.mark.parametrize("loss", [linear(C), quadratic], ids=["linear", "quadratic"])
def test_beta_one_is_the_projection_of_the_gradient_on_the_guide(loss, guide):
    model = latents()
    gradient = true_gradient(model, loss)
    unit = UNIT if guide is not None else gradient / gradient.norm()
    _, g = fogzo_on(Problem(model, loss, guide), beta=1.0)
    torch.testing.assert_close(g, unit * (unit @ gradient))


@pytest.mark.parametrize("smoothing", [Uniform(0.5), Uniform(1.0), Logistic(), Triangular()], ids=readable)
@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_expectation_is_beta_of_the_projection_and_one_minus_beta_of_the_gradient(beta, smoothing):
    closure = Problem(latents(smoothing=smoothing), linear(C), WRONG)
    g = torch.stack([fogzo_on(closure, step, beta=beta, samples=20)[1] for step in range(40)])
    error = g.mean(0) - (beta * UNIT * (UNIT @ C) + (1 - beta) * C)
    assert (error.abs() / (g.std(0) / math.sqrt(len(g)))).max() < 4


def test_the_random_sign_of_the_paper_changes_nothing_in_distribution():
    beta, steps = 0.7, 1000
    closure = Problem(latents(), linear(C), WRONG)
    ours = torch.stack([fogzo_on(closure, step, beta=beta)[1] for step in range(steps)])
    z = math.sqrt(3) * (2 * torch.rand(20 * steps, len(C), dtype=torch.float64) - 1)
    s = torch.randint(0, 2, (len(z), 1)) * 2 - 1
    v = math.sqrt(beta) * s * UNIT + math.sqrt(1 - beta) * z
    paper = (v @ C).unsqueeze(1) * v
    for moment in (lambda g: g, lambda g: torch.einsum("ni,nj->nij", g, g).flatten(1)):
        a, b = moment(ours), moment(paper)
        spread = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() / spread).max() < 4.5


def quantized_mlp(quantizer, dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    return fogzo.quantize_model(model, quantizer, biases=True)


def mlp_loss(model):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 6, generator=generator).to(model[0].weight.dtype)
    return F.cross_entropy(model(x), torch.arange(16) % 3)


def textbook(model, loss, beta, guide_norm, samples, seed, step):
    """Section 2 of the paper as a plain loop, in code units x = w/α, from the same noise."""
    weights = fogzo.quantized_weights(model)
    start = [w.latent.detach().clone() for w in weights]
    alpha = [w.quantizer.scale(w.latent).detach() for w in weights]
    epsilon = weights[0].quantizer.smoothing.std
    loss(model).backward()
    guide = [a * w.latent.grad for a, w in zip(alpha, weights, strict=True)]
    whole = torch.cat([g.flatten() for g in guide])
    length = {"global": 1, "rms": math.sqrt(len(whole)), "per_tensor": 1}[guide_norm]
    guide = [length * g / (g.norm() if guide_norm == "per_tensor" else whole.norm()) for g in guide]
    total = [torch.zeros_like(w) for w in start]
    for i in range(samples):
        z = [part.squeeze(0) for part in Noise(weights, seed, step).draw(range(i, i + 1))]
        v = [math.sqrt(beta) * g + math.sqrt(1 - beta) * u for g, u in zip(guide, z, strict=True)]
        losses = []
        for side in (1, -1):
            for w, w0, a, u in zip(weights, start, alpha, v, strict=True):
                w.latent.data.copy_(w0 + side * epsilon * a * u)
            losses.append(loss(model).item())
        for t, u in zip(total, v, strict=True):
            t += (losses[0] - losses[1]) / (2 * epsilon) * u / samples
    for w, w0 in zip(weights, start, strict=True):
        w.latent.data.copy_(w0)
    return torch.cat([(t / a).flatten() for t, a in zip(total, alpha, strict=True)])


@pytest.mark.parametrize(
    ("beta", "guide_norm"), [(0.0, "global"), (0.6, "global"), (0.6, "rms"), (0.6, "per_tensor"), (1.0, "global")]
)
@pytest.mark.parametrize(
    "quantizer",
    [fogzo.FixedScale(2), fogzo.FixedScale(3, per_channel=True), fogzo.QuEST(2), fogzo.Sign()],
    ids=readable,
)
def test_equals_the_textbook_loop_with_the_same_noise(quantizer, beta, guide_norm):
    model = quantized_mlp(quantizer)
    expected = textbook(model, mlp_loss, beta, guide_norm, samples=3, seed=5, step=7)
    options = {"beta": beta, "guide_norm": guide_norm} if beta else {"kind": fogzo.NSPSA}
    _, g = fogzo_on(Problem(model, mlp_loss), step=7, samples=3, seed=5, **options)
    torch.testing.assert_close(g, expected)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_tensors_with_different_scales_behave_like_one_network_rescaled_to_a_shared_scale(beta):
    unequal, shared = latents([0.25, 8.0]), latents([1.0, 1.0])
    alpha = torch.tensor([0.25] * 4 + [8.0] * 3)
    for rescaled, layer, a in zip(shared, unequal, [0.25, 8.0], strict=True):
        rescaled.parametrizations.weight.original.data = layer.weight.detach() / a

    def cubic(model, alpha):
        return ((flat(model) * alpha - C) ** 3).sum()

    _, g = fogzo_on(Problem(unequal, lambda model: cubic(model, 1)), beta=beta, samples=2)
    _, rescaled = fogzo_on(Problem(shared, lambda model: cubic(model, alpha)), beta=beta, samples=2)
    torch.testing.assert_close(g * alpha, rescaled)


@pytest.mark.parametrize(
    ("guide_norm", "direction"),
    [
        ("global", UNIT),
        ("rms", UNIT * math.sqrt(7)),
        ("per_tensor", torch.cat([part / part.norm() for part in WRONG.split([4, 3])])),
    ],
)
def test_guide_norm_sets_the_length_of_the_guide(guide_norm, direction):
    estimate, g = fogzo_on(Problem(latents(), linear(C), WRONG), beta=1.0, guide_norm=guide_norm)
    torch.testing.assert_close(g, direction * (direction @ C))
    torch.testing.assert_close(estimate.guide_norm, WRONG.norm() * 0.5 / math.sqrt(12))  # in units of ε·α
    torch.testing.assert_close(estimate.agreement, (C @ direction) / (WRONG @ direction))


@pytest.mark.parametrize("guide_norm", ["global", "rms", "per_tensor"])
@pytest.mark.parametrize(("guide", "answer"), [(None, 1.0), (vector(2, 1, 0, 0, 0, 0, 0), 0.0), (-C, -1.0)])
def test_agreement_is_one_where_the_guide_is_right_and_zero_where_it_is_orthogonal(guide, answer, guide_norm):
    estimate, _ = fogzo_on(Problem(latents(), linear(C), guide), beta=1.0, guide_norm=guide_norm)
    assert estimate.agreement.item() == pytest.approx(answer, abs=1e-9)


@pytest.mark.parametrize("beta", [0.3, 0.9])
def test_agreement_does_not_depend_on_beta_in_expectation(beta):
    problem = Problem(latents(), linear(C))
    agreement = torch.stack([fogzo_on(problem, step, beta=beta, samples=4)[0].agreement for step in range(150)])
    assert (agreement.mean() - 1).abs() < 4 * agreement.std() / math.sqrt(len(agreement))


@pytest.mark.parametrize("beta", [0.0, 0.9, 1.0])
@pytest.mark.parametrize(("loss", "share"), [(linear(0 * C), 1.0), (linear(C), 0.0)], ids=["constant", "linear"])
def test_zero_probes_is_the_share_of_pairs_without_a_difference(loss, share, beta):
    estimate, g = fogzo_on(Problem(latents(), loss, WRONG), beta=beta, samples=3)
    assert estimate.zero_probes == share
    assert bool(g.any()) == (share == 0)


@pytest.mark.parametrize("probe_batch", [0, 2])
def test_a_tiny_slope_is_no_zero_probe(probe_batch):
    estimate, _ = fogzo_on(Problem(latents(), linear(1e-12 * C)), beta=0.5, samples=3, probe_batch=probe_batch)
    assert estimate.zero_probes == 0


@pytest.mark.parametrize("beta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("samples", [1, 3])
def test_for_a_linear_loss_the_multiple_of_epsilon_does_not_matter(samples, beta):
    problem = Problem(latents(), linear(C), WRONG)
    expected, g = fogzo_on(problem, beta=beta, samples=samples)
    for epsilon in (0.25, 3.0):
        found, scaled = fogzo_on(problem, beta=beta, samples=samples, epsilon=epsilon)
        torch.testing.assert_close(scaled, g)
        if beta:
            torch.testing.assert_close(found.agreement, expected.agreement)


@pytest.mark.parametrize("probe_batch", [0, 2])
def test_without_a_first_order_pass_the_loss_is_the_mean_over_all_probes(probe_batch):
    seen = []
    problem = Problem(latents(), quadratic)
    inner = problem.loss
    problem.loss = lambda model: seen.append(loss := inner(model)) or loss
    fogzo_on(problem, kind=fogzo.NSPSA, samples=3)
    expected = torch.stack(seen).mean()
    assert len({float(loss) for loss in seen}) == len(seen) == 6
    estimate, _ = fogzo_on(problem, kind=fogzo.NSPSA, samples=3, probe_batch=probe_batch)
    torch.testing.assert_close(estimate.loss, expected)


@pytest.mark.parametrize("guide_norm", ["global", "rms", "per_tensor"])
@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_a_zero_guide_leaves_the_noise_term_alone(beta, guide_norm):
    problem = Problem(latents(), linear(C), 0 * C)
    estimate, g = fogzo_on(problem, beta=beta, guide_norm=guide_norm, samples=2)
    _, noise_alone = fogzo_on(problem, kind=fogzo.NSPSA, samples=2)
    assert estimate.guide_norm == 0
    torch.testing.assert_close(g, (1 - beta) * noise_alone)


def test_a_model_in_fp64_sees_the_noise_of_its_twin_in_fp32():
    twins = [Problem(latents(dtype=dtype), quadratic) for dtype in (torch.float32, torch.float64)]
    g32, g64 = (fogzo_on(twin, samples=4, beta=0.2)[1] for twin in twins)
    torch.testing.assert_close(g32.double(), g64, rtol=1e-4, atol=1e-5)
