"""Layers that share an input round it once, with the bits that they would have had each by itself."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fogzo
from fogzo.quantizers import shared
from fogzo.quantizers.shared import each_by_itself


class Attention(nn.Module):
    """q, k and v of one input; ``in_place`` writes to it in between."""

    def __init__(self, in_place=False):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.in_place = in_place

    def forward(self, x):
        q = self.q(x)
        if self.in_place:
            x = x.add_(0.3)
        weights = torch.softmax(q @ self.k(x).mT, -1)
        return self.out(weights @ self.v(x))


def network(bits=2, **more):
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(32), Attention(**more), nn.GELU(), Attention(**more))
    return fogzo.quantize_model(model, fogzo.QuEST(bits), activations=fogzo.QuEST(bits))


@pytest.fixture
def count(monkeypatch):
    """How often inputs are rounded."""
    seen = []
    plain = shared._round
    monkeypatch.setattr(shared, "_round", lambda *args: seen.append(0) or plain(*args))
    return seen


def gradients(model, x, forward=None):
    model.zero_grad()
    x = x.clone().requires_grad_()
    loss = (forward or model)(x).square().mean()
    loss.backward()
    return [loss.detach(), x.grad, *(p.grad.clone() for p in model.parameters())]


def assert_same_bits(some, others):
    assert len(some) == len(others)
    assert all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


X = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(1))


def test_an_input_is_rounded_once_and_all_bits_stay(count):
    model = network()
    found = gradients(model, X)
    assert len(count) == 4  # of eight layers: q, k, v of one input and out, twice
    with torch.no_grad():
        without = model(X)
    assert len(count) == 8
    with each_by_itself():
        assert_same_bits(found, gradients(model, X))
        with torch.no_grad():
            assert torch.equal(without, model(X))
    assert len(count) == 8


def test_an_input_that_was_written_to_is_rounded_again(count):
    model = network(in_place=True)
    with torch.no_grad():
        found = model(X)
    assert len(count) == 6  # q alone, k and v, out
    with each_by_itself(), torch.no_grad():
        assert torch.equal(found, model(X))


def test_quantizers_that_round_otherwise_share_nothing():
    model = network()
    first = model[1]
    first.k.input_quantizer.quantizer.floor.fill_(10.0)  # above every row's RMS
    first.v.input_quantizer.quantizer.bits = 4
    with torch.no_grad():
        found = model(X)
        with each_by_itself():
            assert torch.equal(found, model(X))


@pytest.mark.parametrize("probe_batch", [0, 2])
def test_estimates_are_the_same_to_the_bit(probe_batch):
    model, grads = network(), []
    for by_itself in (False, True):
        weights = fogzo.quantized_weights(model)
        estimator = fogzo.FOGZO(weights, samples=2, beta=0.9, probe_batch=probe_batch)

        def closure(*, backward):
            loss = model(X).square().mean()
            if backward:
                loss.backward()
            return loss.detach()

        model.zero_grad()
        with shared.each_by_itself() if by_itself else torch.enable_grad():
            estimator.estimate(closure, step=3)
        grads.append([p.grad.clone() for p in model.parameters()])
    assert_same_bits(*grads)


def test_under_checkpointing_and_autocast_and_in_fp64():
    model = network()
    expected = gradients(model, X)
    assert_same_bits(gradients(model, X, lambda x: checkpoint(model, x, use_reentrant=False)), expected)
    assert_same_bits(gradients(model, X, lambda x: checkpoint(model, x, use_reentrant=True)), expected)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, X)
        with each_by_itself():
            assert_same_bits(found, gradients(model, X))
    model.double()
    found = gradients(model, X.double())
    with each_by_itself():
        assert_same_bits(found, gradients(model, X.double()))


def test_a_compiled_network_is_traced_whole():
    model = network()
    through = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(through(X), model(X))
    torch.compiler.reset()


def test_nothing_is_held_once_the_input_is_gone_and_copies_begin_empty(count):
    model = network()
    seen = model[1].q.input_quantizer.seen
    x = X.clone()
    with torch.no_grad():
        model[1].q(x)
    assert seen.entry
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(seen))):
        copied = other[1].q.input_quantizer.seen if isinstance(other, nn.Module) else other
        assert not copied.entry
        assert not isinstance(other, nn.Module) or copied is other[3].out.input_quantizer.seen
    with torch.inference_mode():
        model(x)
    del x
    assert not seen.entry
