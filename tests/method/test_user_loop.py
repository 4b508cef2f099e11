"""The library in anybody's own loop: the README's snippet, what an estimator calls, and mistakes that it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.checks import readable
from helpers.configs import composed
from helpers.small_loop import ESTIMATORS, closure_for, network
from helpers.small_loop import batch as small_batch
from helpers.small_loop import estimate as small_estimate
from torch import nn
from torch.nn.utils import parametrize

import fogzo
from fogzo.errors import UserError
from fogzo.estimators import NoisyStraightThrough, RescaledStraightThrough, evaluations_per_call


class Net(nn.Module):
    def __init__(self, dropout=0.0, float_head=True, norm=None):
        super().__init__()
        self.body = nn.Linear(8, 16, bias=False)
        self.norm = norm or nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(16, 4, bias=float_head)

    def forward(self, x):
        return self.head(self.dropout(self.norm(self.body(x)).relu()))


def quantized(quantizer=None, skip=(), **options):
    torch.manual_seed(0)
    return fogzo.quantize_model(Net(**options), quantizer or fogzo.FixedScale(2), skip=skip)


def batch(size=64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 8, generator=generator)
    return x, x[:, :4].argmax(1)


class Closure:
    """Cross-entropy on one batch; counts calls, evaluations and backward passes, and does not detach its loss."""

    def __init__(self, model, autocast=False):
        self.model, self.autocast, (self.x, self.y) = model, autocast, batch()
        self.calls, self.evaluations, self.backwards, self.modes = 0, 0, 0, []

    def __call__(self, *, backward):
        self.calls += 1
        self.evaluations += evaluations_per_call()
        self.backwards += backward
        self.modes.append(torch.is_grad_enabled())
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast or torch.is_autocast_enabled("cpu")):
            loss = F.cross_entropy(self.model(self.x), self.y)
        if backward:
            loss.backward()
        return loss


def estimate(model, kind=fogzo.FOGZO, step=0, autocast=False, **options):
    """One estimate from empty gradients; returns (estimate, closure, {name: gradient})."""
    model.zero_grad()
    closure = Closure(model, autocast)
    estimator = kind() if kind is fogzo.StraightThrough else kind(fogzo.quantized_weights(model), **options)
    result = estimator.estimate(closure, step=step)
    return result, closure, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(("optimizer", "lr"), [(torch.optim.SGD, 0.5), (torch.optim.AdamW, 0.01)])
@pytest.mark.parametrize("quantizer", [fogzo.LSQ(bits=2), fogzo.QuEST(bits=2), fogzo.Sign()], ids=readable)
@pytest.mark.parametrize("kind", ["ste", "nspsa", "fogzo", "fogzo, batched"])
def test_loss_falls_in_a_plain_loop(kind, quantizer, optimizer, lr):
    torch.manual_seed(0)
    model = fogzo.quantize_model(Net(), quantizer, skip=["head"])  # in place; returns it
    weights = fogzo.quantized_weights(model)
    estimator = {
        "ste": lambda: fogzo.StraightThrough(),
        "nspsa": lambda: fogzo.NSPSA(weights, samples=16, seed=0),
        "fogzo": lambda: fogzo.FOGZO(weights, samples=1, beta=0.999, seed=0),
        "fogzo, batched": lambda: fogzo.FOGZO(weights, samples=4, beta=0.99, probe_batch=4),
    }[kind]()
    x, y = batch()
    optimizer = optimizer(model.parameters(), lr=lr)

    def closure(*, backward: bool):
        loss = F.cross_entropy(model(x), y)
        if backward:
            loss.backward()
        return loss.detach()

    losses = []
    for step in range(40):
        optimizer.zero_grad()
        losses.append(estimator.estimate(closure, step=step).loss.item())
        optimizer.step()
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


BATCH_NORM = nn.BatchNorm1d(16, affine=False)


@pytest.mark.parametrize(
    ("options", "model", "calls", "evaluations", "backwards"),
    [
        ({"kind": fogzo.StraightThrough}, {}, 1, 1, 1),
        ({"samples": 1, "beta": 0.9}, {}, 3, 3, 1),
        ({"samples": 5, "beta": 0.9}, {}, 11, 11, 1),
        ({"samples": 5, "beta": 1.0}, {}, 3, 3, 1),  # samples beyond the first would be identical
        ({"samples": 5, "beta": 0.9, "probe_batch": 3}, {}, 3, 11, 1),
        ({"samples": 5, "beta": 1.0, "probe_batch": 3}, {}, 2, 3, 1),
        ({"kind": fogzo.NSPSA, "samples": 4}, {}, 9, 9, 1),  # the head's float bias wants its gradient
        ({"kind": fogzo.NSPSA, "samples": 4}, {"float_head": False}, 8, 8, 0),
        ({"kind": fogzo.NSPSA, "samples": 4}, {"float_head": False, "quantizer": fogzo.LSQ(2)}, 9, 9, 1),
        ({"kind": fogzo.NSPSA, "samples": 4}, {"float_head": False, "norm": BATCH_NORM}, 9, 9, 0),
        ({"kind": fogzo.NSPSA, "samples": 4}, {"float_head": False, "norm": nn.BatchNorm1d(16)}, 9, 9, 1),
        ({"kind": fogzo.NSPSA, "samples": 4, "probe_batch": 8}, {"float_head": False}, 1, 8, 0),
        ({"kind": NoisyStraightThrough}, {}, 1, 1, 1),
        ({"kind": RescaledStraightThrough, "samples": 2}, {}, 5, 5, 1),
    ],
)
def test_an_estimate_calls_the_closure_as_often_as_it_says(options, model, calls, evaluations, backwards):
    _, closure, gradients = estimate(quantized(**model), **options)
    assert (closure.calls, closure.evaluations, closure.backwards) == (calls, evaluations, backwards)
    assert closure.modes == [True] * backwards + [False] * (calls - backwards)
    assert all(gradient is not None for gradient in gradients.values())


@pytest.mark.parametrize("probe_batch", [0, 2])
@pytest.mark.parametrize("kind", [fogzo.FOGZO, fogzo.NSPSA])
@pytest.mark.parametrize("float_head", [True, False])
def test_nothing_that_an_estimate_leaves_behind_keeps_a_graph(float_head, kind, probe_batch):
    result, _, gradients = estimate(quantized(float_head=float_head), kind, probe_batch=probe_batch)
    seen = [result.loss, result.agreement, result.zero_probes, result.guide_norm, *gradients.values()]
    assert not any(tensor.requires_grad for tensor in seen if tensor is not None)
    assert result.loss.shape == ()


@pytest.mark.parametrize("kind", [fogzo.StraightThrough, fogzo.FOGZO, fogzo.NSPSA, NoisyStraightThrough])
def test_an_outer_no_grad_changes_nothing(kind):
    _, _, expected = estimate(quantized(), kind)
    with torch.no_grad():
        _, _, inside = estimate(quantized(), kind)
        assert not torch.is_grad_enabled()
    assert all(torch.equal(expected[name], inside[name]) for name in expected)


@pytest.mark.parametrize("quantizer", [fogzo.LSQ(2), fogzo.QuEST(2)], ids=readable)
@pytest.mark.parametrize(
    "options", [{"kind": fogzo.NSPSA}, {"beta": 0.5}, {"beta": 0.5, "probe_batch": 2}], ids=readable
)
def test_autocast_around_the_estimate_is_autocast_inside_the_closure(options, quantizer):
    _, _, expected = estimate(quantized(quantizer), samples=3, autocast=True, **options)
    with torch.autocast("cpu", torch.bfloat16):
        _, _, around = estimate(quantized(quantizer), samples=3, **options)
    assert all(torch.equal(expected[name], around[name]) for name in expected)


@pytest.mark.parametrize("probe_batch", [0, 2])
def test_an_estimate_is_a_function_of_seed_and_step_and_not_of_the_global_generator(probe_batch):
    def gradient(seed, step):
        torch.manual_seed(seed + 10 * step)
        _, _, gradients = estimate(quantized(), step=step, seed=seed, beta=0.5, probe_batch=probe_batch)
        return gradients["body.parametrizations.weight.original"]

    assert torch.equal(gradient(0, 3), gradient(0, 3))
    assert not torch.equal(gradient(0, 3), gradient(0, 4))
    assert not torch.equal(gradient(0, 3), gradient(1, 3))


@pytest.mark.parametrize(
    "options", [{"kind": fogzo.NSPSA}, {"beta": 0.5}, {"beta": 1.0}, {"probe_batch": 2}], ids=readable
)
@pytest.mark.parametrize("float_head", [True, False])
def test_the_global_generator_goes_on_as_after_one_forward_pass(float_head, options):
    model = quantized(dropout=0.5, float_head=float_head)
    torch.manual_seed(3)
    estimate(model, fogzo.StraightThrough)
    expected = torch.rand(3)
    torch.manual_seed(3)
    estimate(model, **{"samples": 3} | options)
    assert torch.equal(torch.rand(3), expected)  # else every step of n-SPSA would drop the same units


def test_beta_may_follow_the_step():
    model = quantized()
    for step, beta in enumerate([1.0, 0.75, 0.5]):
        result, _, gradients = estimate(model, step=step, beta=lambda step: 1 - step / 4)
        _, _, expected = estimate(model, step=step, beta=beta)
        assert result.beta == beta
        assert all(torch.equal(gradients[name], expected[name]) for name in expected)


def test_gradients_on_entry_are_refused_by_name_and_zeros_are_not():
    model = quantized()
    model.body.parametrizations.weight.original.grad = torch.zeros(16, 8)
    estimator = fogzo.FOGZO(fogzo.quantized_weights(model))
    estimator.estimate(Closure(model), step=0)
    weights = estimator.weights
    given_weights = (fogzo.StraightThrough, NoisyStraightThrough, RescaledStraightThrough)
    for again in (estimator, *(kind(weights) for kind in given_weights)):
        with pytest.raises(ValueError, match=r"body\.weight .*zero_grad"):
            again.estimate(Closure(model), step=0)
    model.zero_grad(set_to_none=False)
    estimator.estimate(Closure(model), step=0)


def test_the_ste_that_does_not_know_the_model_adds_to_gradients_as_backward_does():
    _, _, once = estimate(model := quantized(), fogzo.StraightThrough)
    once = {name: gradient.clone() for name, gradient in once.items()}
    fogzo.StraightThrough().estimate(Closure(model), step=0)
    assert all(torch.equal(p.grad, 2 * once[name]) for name, p in model.named_parameters())
    with pytest.raises(ValueError, match=r"Net.*quantized_weights"):
        fogzo.StraightThrough(model)


@pytest.mark.parametrize("chosen", ["ste", "phased"])
def test_a_run_with_the_ste_checks_that_its_gradients_are_empty(chosen):
    from fogzo.training.draft import build_estimator

    model = quantized()
    cfg = composed(f"estimator={chosen}", *["estimator.ste_share=1"] * (chosen == "phased"))
    estimator = build_estimator(cfg, fogzo.quantized_weights(model), steps=10)
    estimator.estimate(Closure(model), step=0)
    with pytest.raises(ValueError, match="zero_grad"):
        estimator.estimate(Closure(model), step=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -0.1}, "-0.1"),
        ({"beta": 1.1}, "1.1"),
        ({"beta": math.nan}, "nan"),
        ({"beta": lambda step: 2.5 + step}, "2.5"),
        ({"samples": 0}, "samples=0"),
        ({"samples": 1.5}, "samples=1.5"),
        ({"samples": True}, "samples=True"),
        ({"guide_norm": "l2"}, "l2.*global, rms, per_tensor"),
        ({"epsilon": 0}, "epsilon=0"),
        ({"epsilon": -1.0}, "epsilon=-1.0"),
        ({"epsilon": math.inf}, "epsilon=inf"),
        ({"probe_batch": -1}, "probe_batch=-1"),
        ({"crossings_every": -1}, "crossings_every=-1"),
        ({"spread": "no"}, "spread='no' .*true or false"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"kind": lambda _, **o: fogzo.FOGZO([], **o)}, "quantized_weights"),
        ({"kind": lambda _, **o: fogzo.FOGZO([nn.Parameter(torch.ones(2))], **o)}, "Parameter.*quantized_weights"),
        ({"kind": lambda weights, **o: fogzo.FOGZO(weights[0].model, **o)}, "Net.*quantized_weights"),
        ({"kind": lambda _, **o: fogzo.FOGZO(None, **o)}, "NoneType.*quantized_weights"),
        ({"kind": lambda weights, **o: fogzo.NSPSA(weights, samples=0, **o)}, "samples=0"),
    ],
)
def test_bad_arguments_are_refused_with_their_value(options, message):
    with pytest.raises(ValueError, match=message):
        estimate(quantized(float_head=False), **options)


@pytest.mark.parametrize("kind", [fogzo.FOGZO, fogzo.NSPSA, NoisyStraightThrough])
def test_latents_in_16_bits_are_refused_at_once_and_when_cast_later(kind):
    model = quantized()
    estimator = kind(fogzo.quantized_weights(model))
    model.bfloat16()
    with pytest.raises(ValueError, match="bfloat16"):
        kind(fogzo.quantized_weights(model))
    with pytest.raises(ValueError, match="bfloat16"):
        estimator.estimate(Closure(model), step=0)


def test_weights_without_requires_grad_are_left_where_they_are():
    model = quantized()
    frozen = model.body.parametrizations.weight.original.requires_grad_(False)
    _, _, gradients = estimate(model)
    assert frozen.grad is None
    assert gradients["head.parametrizations.weight.original"].any()


every_estimator = pytest.mark.parametrize("name", ESTIMATORS)


@every_estimator
def test_a_step_is_asked_for_and_must_be_a_step(name):
    estimator = ESTIMATORS[name](fogzo.quantized_weights(model := network()))
    with pytest.raises(TypeError, match="step"):
        estimator.estimate(closure_for(model))
    for step in (-1, 1.5, "a", None, True):
        with pytest.raises(UserError, match=rf"step={step!r} is not possible"):
            estimator.estimate(closure_for(model), step=step)
    assert all(p.grad is None for p in model.parameters())  # nothing was computed


@every_estimator
@pytest.mark.parametrize("returned", [lambda loss: loss.item(), lambda loss: None, lambda loss: loss.expand(3)])
def test_a_loss_that_is_not_one_number_is_refused(name, returned):
    plain = closure_for(model := network())
    with pytest.raises(UserError, match=r"the closure returned a .*: return a tensor of one number"):
        small_estimate(name, model, lambda *, backward: returned(plain(backward=backward)))


@every_estimator
def test_a_loss_of_shape_1_counts_as_one_number(name):
    model, twin = network(), network()
    plain, boxed = closure_for(model), closure_for(twin)
    expected = small_estimate(name, model, plain)
    found = small_estimate(name, twin, lambda *, backward: boxed(backward=backward).reshape(1))
    assert torch.equal(found.loss, expected.loss)
    assert found.loss.shape == ()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@every_estimator
@pytest.mark.parametrize("what", ["no backward", "another model"])
def test_a_closure_that_leaves_no_gradient_is_refused(name, what):
    model, other = network(), network()
    plain, of_other = closure_for(model), closure_for(other)
    closure = {"no backward": lambda *, backward: plain(backward=False), "another model": of_other}[what]
    with pytest.raises(UserError, match=r"left no gradient on any quantized weight: it must call loss\.backward\(\)"):
        small_estimate(name, model, closure)


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name not in ("ste", "noisy")])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_inside_the_closure_is_refused_where_it_would_wipe_the_guide(name, set_to_none):
    plain = closure_for(model := network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure(*, backward):
        optimizer.zero_grad(set_to_none=set_to_none)
        return plain(backward=backward)

    message = r"changed \.grad .*: call optimizer\.zero_grad\(\) before estimate|requires_grad_.*: set probe_batch=0"
    with pytest.raises(UserError, match=message):
        small_estimate(name, model, closure)


@pytest.mark.parametrize("name", ["fogzo", "fogzo, 3 samples", "fogzo, batched", "nspsa", "rescaled"])
def test_cached_parametrizations_around_an_estimate_are_refused_and_inside_the_closure_they_are_not(name):
    model, twin = network(), network()
    with parametrize.cached(), pytest.raises(UserError, match=r"cached\(\) .* inside the closure"):
        small_estimate(name, model, closure_for(model))
    model.zero_grad()
    expected = small_estimate(name, model, closure_for(model))
    plain = closure_for(twin)

    def closure(*, backward):
        with parametrize.cached():
            return plain(backward=backward)

    assert torch.equal(small_estimate(name, twin, closure).zero_probes, expected.zero_probes)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "nspsa"])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_layer_that_this_steps_loss_does_not_reach_gets_no_noise(name, set_to_none):
    model, twin = network(), network()
    model.add_module("unused", fogzo.quantize_model(nn.Linear(3, 5, bias=False), fogzo.FixedScale(2)))
    body = model[:3]
    x, y = small_batch()

    def closure(*, backward):
        loss = F.cross_entropy(body(x), y)
        if backward:
            loss.backward()
        return loss.detach()

    for p in model.parameters():
        p.grad = None if set_to_none else torch.zeros_like(p)
    found = small_estimate(name, model, closure)
    expected = small_estimate(name, twin, closure_for(twin))
    unused = model.unused.parametrizations.weight.original.grad
    assert unused is None or not unused.any()
    assert torch.equal(found.loss, expected.loss)
    if found.agreement is not None:
        assert torch.equal(found.agreement, expected.agreement)  # nor does it take part in the probes
    for mine, its in zip(list(model.parameters())[:4], twin.parameters(), strict=True):
        assert torch.equal(mine.grad, its.grad)


def test_gradients_scaled_for_fp16_go_with_a_loss_that_is_scaled_alike():
    def step(scaler):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x, y = small_batch()

        def closure(*, backward):  # as docs/library.md has it
            loss = scaler.scale(F.cross_entropy(model(x), y))
            if backward:
                loss.backward()
            return loss.detach()

        fogzo.FOGZO(fogzo.quantized_weights(model), beta=0.9).estimate(closure, step=0)
        scaler.step(optimizer)
        scaler.update()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    scaled, plain = (step(torch.amp.GradScaler("cpu", enabled=on)) for on in (True, False))
    torch.testing.assert_close(scaled, plain)


def test_a_loss_that_is_not_scaled_where_its_gradients_are_shows_as_an_agreement_of_nearly_nothing():
    """Nothing can refuse it: what ``backward()`` was called on does not reach an estimator (docs/library.md)."""
    scale = 2.0**16

    def agreement(*, returns_scaled):
        model = network()
        x, y = small_batch()

        def closure(*, backward):
            loss = F.cross_entropy(model(x), y)
            if backward:
                (scale * loss).backward()
            return (scale * loss if returns_scaled else loss).detach()

        return small_estimate("fogzo", model, closure).agreement

    torch.testing.assert_close(agreement(returns_scaled=False) * scale, agreement(returns_scaled=True))


def test_an_optimizer_from_before_quantization_is_told_apart():
    model = nn.Sequential(nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fogzo.quantize_model(model, fogzo.LSQ(2))
    estimator = fogzo.FOGZO(fogzo.quantized_weights(model))
    estimator.estimate(closure_for(model), step=0)
    optimizer.zero_grad()
    with pytest.raises(UserError, match=r"0\.weight.*built after fogzo\.quantize_model"):
        estimator.estimate(closure_for(model), step=1)
