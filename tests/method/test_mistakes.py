"""Loops as PyTorch's users write them, and what an estimate says of those that it would get wrong."""

import pytest
import torch
import torch.nn.functional as F
from helpers.small_loop import ESTIMATORS, batch, closure_for, estimate, network
from torch import nn
from torch.nn.utils import parametrize

import fogzo
from fogzo.errors import UserError

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
        estimate(name, model, lambda *, backward: returned(plain(backward=backward)))


@every_estimator
def test_a_loss_of_shape_1_counts_as_one_number(name):
    model, twin = network(), network()
    plain, boxed = closure_for(model), closure_for(twin)
    expected = estimate(name, model, plain)
    found = estimate(name, twin, lambda *, backward: boxed(backward=backward).reshape(1))
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
        estimate(name, model, closure)


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
        estimate(name, model, closure)


@pytest.mark.parametrize("name", ["fogzo", "fogzo, 3 samples", "fogzo, batched", "nspsa", "rescaled"])
def test_cached_parametrizations_around_an_estimate_are_refused_and_inside_the_closure_they_are_not(name):
    model, twin = network(), network()
    with parametrize.cached(), pytest.raises(UserError, match=r"cached\(\) .* inside the closure"):
        estimate(name, model, closure_for(model))
    model.zero_grad()
    expected = estimate(name, model, closure_for(model))
    plain = closure_for(twin)

    def closure(*, backward):
        with parametrize.cached():
            return plain(backward=backward)

    assert torch.equal(estimate(name, twin, closure).zero_probes, expected.zero_probes)
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "nspsa"])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_layer_that_this_steps_loss_does_not_reach_gets_no_noise(name, set_to_none):
    model, twin = network(), network()
    model.add_module("unused", fogzo.quantize_model(nn.Linear(3, 5, bias=False), fogzo.FixedScale(2)))
    body = model[:3]
    x, y = batch()

    def closure(*, backward):
        loss = F.cross_entropy(body(x), y)
        if backward:
            loss.backward()
        return loss.detach()

    for p in model.parameters():
        p.grad = None if set_to_none else torch.zeros_like(p)
    found = estimate(name, model, closure)
    expected = estimate(name, twin, closure_for(twin))
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
        x, y = batch()

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
        x, y = batch()

        def closure(*, backward):
            loss = F.cross_entropy(model(x), y)
            if backward:
                (scale * loss).backward()
            return (scale * loss if returns_scaled else loss).detach()

        return estimate("fogzo", model, closure).agreement

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
