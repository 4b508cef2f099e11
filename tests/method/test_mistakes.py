"""What people do with the library, and what it says: loops as PyTorch shows them, networks that it cannot read."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune

import fogzo
from fogzo.errors import UserError
from fogzo.estimators import NoisyStraightThrough, RescaledStraightThrough

ESTIMATORS = {
    "ste": lambda weights: fogzo.StraightThrough(weights),
    "fogzo": lambda weights: fogzo.FOGZO(weights, beta=0.9),
    "fogzo, 3 samples": lambda weights: fogzo.FOGZO(weights, beta=0.9, samples=3),
    "fogzo, batched": lambda weights: fogzo.FOGZO(weights, beta=0.9, samples=3, probe_batch=2),
    "nspsa": lambda weights: fogzo.NSPSA(weights, samples=2),
    "noisy": lambda weights: NoisyStraightThrough(weights, beta=0.9),
    "rescaled": lambda weights: RescaledStraightThrough(weights, beta=0.9),
}
every_estimator = pytest.mark.parametrize("name", ESTIMATORS)


def network(*more, biases=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12, bias=biases), *more, nn.Tanh(), nn.Linear(12, 4, bias=biases))
    return fogzo.quantize_model(model, fogzo.FixedScale(2))


def batch():
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(16) % 4


def closure_for(model, reduction="mean"):
    x, y = batch()

    def closure(*, backward):
        loss = F.cross_entropy(model(x), y, reduction=reduction)
        if backward:
            loss.mean().backward()
        return loss.detach()

    return closure


def estimate(name, model, closure, step=0):
    return ESTIMATORS[name](fogzo.quantized_weights(model)).estimate(closure, step=step)


@every_estimator
def test_a_step_is_asked_for_and_must_be_a_step(name):
    estimator = ESTIMATORS[name](fogzo.quantized_weights(model := network()))
    with pytest.raises(TypeError, match="step"):
        estimator.estimate(closure_for(model))
    for step in (-1, 1.5, "a", None, True):
        model.zero_grad()
        if name != "ste":
            with pytest.raises(UserError, match=rf"step={step!r} is not possible"):
                estimator.estimate(closure_for(model), step=step)


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


class Moving(nn.Module):
    """Writes a buffer in every forward pass, in place or by a new tensor, and computes with it."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("seen", torch.ones(()))

    def forward(self, x):
        moved = self.seen + 0.25 + x.detach().mean()
        x = x * self.seen.clone()
        if self.in_place:
            self.seen.copy_(moved)
        else:
            self.seen = moved
        return x


WRITERS = {
    "in place": lambda: Moving(True),
    "by a new tensor": lambda: Moving(False),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 4)), nn.InstanceNorm1d(3, track_running_stats=True), nn.Flatten()
    ),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(12, 12)),
}


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", ["fogzo", "fogzo, 3 samples", "nspsa", "rescaled"])
def test_a_buffer_that_forward_passes_write_is_the_same_for_the_pair_and_written_once_a_step(name, writer, biases):
    def made():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(8, 12, bias=biases), WRITERS[writer](), nn.Tanh(), nn.Linear(12, 4, bias=biases)
        )
        return fogzo.quantize_model(model, fogzo.FixedScale(2), skip=["1"] if writer == "spectral norm" else [])

    model, twin = made(), made()
    places = {name: id(buffer) for name, buffer in model.named_buffers()}
    estimate(name, model, closure_for(model))
    closure_for(twin)(backward=False)
    for (buffer, mine), its in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(mine, its), buffer
        assert id(mine) == places[buffer] or writer == "by a new tensor"
    still = fogzo.FOGZO(fogzo.quantized_weights(model), beta=0.9, samples=3, epsilon=1e-12)  # w ± 1e-12 u = w
    model.zero_grad()
    assert still.estimate(closure_for(model), step=1).zero_probes == 1


def test_batched_probes_say_what_they_cannot_run():
    model = network(Moving(True))
    with pytest.raises(UserError, match=r"cannot run with many weights at once .*: set probe_batch=0"):
        estimate("fogzo, batched", model, closure_for(model))
    seen = model[1].seen.clone()
    twin = network(Moving(True))
    closure_for(twin)(backward=False)
    assert torch.equal(seen, twin[1].seen)


def test_a_state_dict_of_other_codes_is_refused_by_name_and_an_old_one_is_not():
    def made(quantizer, activations=None):
        torch.manual_seed(0)
        return fogzo.quantize_model(nn.Sequential(nn.Linear(8, 4)), quantizer, activations=activations)

    kinds = [fogzo.FixedScale(2), fogzo.FixedScale(4), fogzo.FixedScale(2, grid="twos_complement"), fogzo.Sign()]
    for own in kinds:
        for other in kinds:
            state = dict(made(other).state_dict())  # a plain one, as from a file of another library
            if own is other:
                made(own).load_state_dict(state)
            else:
                with pytest.raises(
                    RuntimeError, match=r"0\.parametrizations\.weight\.0: its codes are .*: quantize it"
                ):
                    made(own).load_state_dict(state)
    rounding = made(fogzo.LSQ(2), fogzo.LSQ(4, signed=False))
    with pytest.raises(RuntimeError, match=r"LSQ, 8 bits.*LSQ, 4 bits"):
        rounding.load_state_dict(made(fogzo.LSQ(2), fogzo.LSQ(8, signed=False)).state_dict())
    old = {
        name: value
        for name, value in rounding.state_dict().items()
        if not name.endswith((".quantizer._extra_state", ".0._extra_state"))
    }
    made(fogzo.LSQ(2), fogzo.LSQ(4, signed=False)).load_state_dict(old)


class Conv1D(nn.Module):
    """transformers' linear layer of GPT-2, by its name."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return x @ self.weight


@pytest.mark.parametrize(
    "layer",
    [nn.LSTM(8, 8), nn.GRUCell(8, 8), nn.MultiheadAttention(8, 2), nn.ConvTranspose1d(8, 8, 3), Conv1D()],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_multiply_in_full_precision_are_named(layer):
    kind = type(layer).__name__
    model = nn.Sequential(nn.Linear(8, 8), layer)
    with pytest.warns(UserWarning, match=rf"1 \({kind}\) multiply, but stay in full precision: name them in skip="):
        fogzo.quantize_model(copy.deepcopy(model), fogzo.LSQ(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fogzo.quantize_model(model, fogzo.LSQ(2), skip=["1"])


def test_where_nothing_is_left_to_quantize_the_layers_that_were_passed_over_are_named():
    with pytest.raises(UserError, match=r"nothing to quantize: .*it has 0 \(LSTM\), which stay in full precision"):
        fogzo.quantize_model(nn.Sequential(nn.LSTM(8, 8)), fogzo.LSQ(2))


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer)


@pytest.mark.parametrize(
    ("arguments", "change", "message"),
    [
        (
            {"quantizer": fogzo.LSQ},
            None,
            r"quantizer=<class .*LSQ'> is no quantizer: give an object such as fogzo\.LSQ",
        ),
        ({"quantizer": "lsq"}, None, "quantizer='lsq' is no quantizer"),
        ({"activations": "lsq"}, None, "activations='lsq' is no quantizer"),
        ({"skip": None}, None, r"skip=None is not possible: give a list of names or patterns, such as \[\"head\"\]"),
        ({"skip": [0]}, None, r"skip=\[0\] is not possible"),
        ({}, lambda layer: layer.to("meta"), "0.weight: a tensor on the meta device holds no values"),
        ({}, lambda layer: layer.weight.data.fill_(math.nan), "0.weight: the initial weights are not finite"),
        ({}, lambda layer: layer.weight.data[0].fill_(math.inf), "0.weight: the initial weights are not finite"),
        ({}, lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "0.weight is computed by a hook .*skip 0"),
        ({}, old_weight_norm, "0.weight is computed by a hook"),
        ({}, lambda layer: nn.utils.spectral_norm(layer), "0.weight is computed by a hook"),
    ],
)
def test_what_cannot_be_quantized_is_refused_in_one_sentence(arguments, change, message):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    if change:
        change(model[0])
    names = list(model.state_dict())
    with pytest.raises(UserError, match=message):
        fogzo.quantize_model(model, **{"quantizer": fogzo.LSQ(2)} | arguments)
    assert list(model.state_dict()) == names


def test_the_way_out_of_a_tied_embedding_works():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed_tokens, self.body, self.lm_head = (
                nn.Embedding(9, 8),
                nn.Linear(8, 8),
                nn.Linear(8, 9, bias=False),
            )
            self.lm_head.weight = self.embed_tokens.weight

    with pytest.raises(
        UserError, match=r"lm_head\.weight is one tensor with embed_tokens\.weight: .*skip lm_head"
    ) as said:
        fogzo.quantize_model(Tied(), fogzo.LSQ(2))
    way_out = str(said.value).rpartition("skip ")[2].split()[0]
    assert [w.name for w in fogzo.quantized_weights(fogzo.quantize_model(Tied(), fogzo.LSQ(2), skip=[way_out]))] == [
        "body.weight"
    ]


def test_an_optimizer_from_before_quantization_is_told_apart():
    model = nn.Sequential(nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fogzo.quantize_model(model, fogzo.LSQ(2))
    estimator = fogzo.FOGZO(fogzo.quantized_weights(model))
    estimator.estimate(closure_for(model), step=0)
    optimizer.zero_grad()
    with pytest.raises(UserError, match=r"0\.weight.*built after fogzo\.quantize_model"):
        estimator.estimate(closure_for(model), step=1)
