"""Quantized activations: their codes, steps and gradients, what a state dict keeps, and estimates over them."""

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from helpers.configs import composed
from torch import nn

import fogzo
from fogzo.quantizers.grid import Grid
from fogzo.quantizers.inputs import InputQuantizer
from fogzo.training.build import build
from fogzo.training.tasks import Classification

ACTIVATIONS = {
    "lsq": lambda: fogzo.LSQ(2),
    "lsq, unsigned": lambda: fogzo.LSQ(3, signed=False),
    "quest": lambda: fogzo.QuEST(2),
}
each_kind = pytest.mark.parametrize("kind", ACTIVATIONS)

# a layer, its input's shape, and how many features one example of it has
LAYERS = {
    "linear": (lambda: nn.Linear(16, 3), (5, 16), 16),
    "linear on tokens": (lambda: nn.Linear(16, 3), (5, 7, 16), 7 * 16),
    "conv1d": (lambda: nn.Conv1d(16, 3, 3), (5, 16, 7), 7 * 16),
    "conv2d": (lambda: nn.Conv2d(16, 3, 3), (5, 16, 4, 6), 24 * 16),
}


def perceptron():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def conv_net():
    convolutions = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)]
    return nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), nn.Upsample(scale_factor=2), *convolutions, nn.Flatten(), nn.Linear(16, 4)
    )


class Tokens(nn.Module):
    """Eight numbers as four tokens of two, widened, mixed and read out."""

    def __init__(self):
        super().__init__()
        self.widen, self.mix, self.read = nn.Linear(2, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        tokens = self.widen(x.unflatten(-1, (4, 2)))  # (B, T, C)
        return self.read(tokens + self.mix(tokens.relu())).mean(1)


NETWORKS = {"perceptron": perceptron, "conv net": conv_net, "tokens": Tokens}


def quantized(kind, network=perceptron, dtype=torch.float32, fit=True, **options):
    """A network with quantized weights and inputs, and what it was fitted to."""
    torch.manual_seed(0)
    model = fogzo.quantize_model(network(), fogzo.FixedScale(2), activations=ACTIVATIONS[kind](), **options).to(dtype)
    x = torch.randn(12, 8, dtype=dtype)
    return (fogzo.fit_activations(model, lambda: model(x)) if fit else model), x


def of_one_layer(make, quantizer, dtype=torch.float32):
    """The quantizer of one layer's input."""
    layer = fogzo.quantize_model(make(), fogzo.FixedScale(2), activations=quantizer).to(dtype)
    return layer, layer.input_quantizer


def input_quantizers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, InputQuantizer)}


def closure_for(model, x):
    targets = torch.arange(len(x)) % 4

    def closure(*, backward):
        loss = F.cross_entropy(model(x), targets)
        if backward:
            loss.backward()
        return loss.detach()

    return closure


# ---- LSQ


@pytest.mark.parametrize(("bits", "signed"), [(2, True), (4, True), (8, True), (2, False), (3, False)])
@pytest.mark.parametrize("name", LAYERS)
def test_lsq_starts_from_the_mean_size_of_its_inputs_and_rounds_to_the_nearest_code(name, bits, signed):
    make, shape, _ = LAYERS[name]
    layer, inputs = of_one_layer(make, fogzo.LSQ(bits, signed=signed), torch.float64)
    passes = [(k + 1) * torch.randn(shape, dtype=torch.float64) for k in range(3)]
    fogzo.fit_activations(layer, lambda: [layer(x) for x in passes])
    lo, hi = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    step = 2 * sum(x.abs().mean().item() for x in passes) / 3 / math.sqrt(hi)
    assert inputs.quantizer.step.item() == pytest.approx(step, rel=1e-6)  # means are taken in fp32

    step = inputs.quantizer.step.detach()
    x = passes[2] * hi
    expected = step * (x / step).round().clamp(lo, hi)
    torch.testing.assert_close(inputs(x).detach(), expected, rtol=0, atol=0)
    assert {float((expected / step).min().round()), float((expected / step).max().round())} == {lo, hi}
    plain = copy.deepcopy(layer)
    plain._forward_pre_hooks.clear()
    assert torch.equal(layer(x), plain(expected))  # what the layer sees is the rounded input


def test_the_unsigned_grid_has_its_codes_from_zero():
    grid = Grid.unsigned(2)
    assert (grid.lo, grid.hi, grid.offset) == (0, 3, 0)
    assert grid.round(torch.tensor([-5.0, -0.4, 0.4, 0.6, 1.5, 2.5, 9.0])).tolist() == [0, 0, 0, 1, 2, 2, 3]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_lsq_has_the_published_gradients_scaled_by_the_features_of_one_example(name, signed):
    def explicit(x, s):  # the formula of the LSQ paper, by autograd
        scale = 1 / math.sqrt(features * hi)
        s = s * scale + (s - s * scale).detach()
        inside = (x / s).clamp(lo, hi)
        return s * (inside + (inside.round() - inside).detach())

    make, shape, features = LAYERS[name]
    layer, inputs = of_one_layer(make, fogzo.LSQ(3, signed=signed), torch.float64)
    lo, hi = inputs.quantizer.grid.lo, inputs.quantizer.grid.hi
    x, upstream = torch.randn(2, *shape, dtype=torch.float64)
    fogzo.fit_activations(layer, lambda: layer(x))
    s = inputs.quantizer.step.detach().clone().requires_grad_()
    x = (x * hi).requires_grad_()
    got = torch.autograd.grad((inputs(x) * upstream).sum(), [x, inputs.quantizer.step])
    expected = torch.autograd.grad((explicit(x, s) * upstream).sum(), [x, s])
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)

    v = (x / s).detach()
    below, above = v < lo, v > hi
    assert min(below.sum(), above.sum(), (~below & ~above).sum()) > 5
    assert not got[0][below | above].any()
    torch.testing.assert_close(got[0], upstream.masked_fill(below | above, 0))
    branches = torch.where(below, lo, torch.where(above, hi, v.round() - v))
    torch.testing.assert_close(got[1], (branches * upstream).sum() / math.sqrt(features * hi))

    # the same examples four times over: four times the sum, and the same factor
    fourfold = (inputs(x.repeat(4, *[1] * (x.dim() - 1))) * upstream.repeat(4, *[1] * (x.dim() - 1))).sum()
    torch.testing.assert_close(torch.autograd.grad(fourfold, inputs.quantizer.step)[0], 4 * got[1])


def test_rounding_what_lsq_has_rounded_changes_nothing():
    layer, inputs = of_one_layer(lambda: nn.Linear(16, 3), fogzo.LSQ(3))
    x = torch.randn(50, 16)
    fogzo.fit_activations(layer, lambda: layer(x))
    once = inputs(4 * x)
    assert torch.equal(inputs(once), once)
    assert len(once.unique()) == 8


# ---- QuEST

QUEST_LAYERS = {  # a layer with C input channels, and its input's shape but for C
    "linear": (lambda width: nn.Linear(width, 3), lambda width: (5, width), -1),
    "linear on tokens": (lambda width: nn.Linear(width, 3), lambda width: (2, 5, width), -1),
    "conv1d": (lambda width: nn.Conv1d(width, 3, 1), lambda width: (2, width, 5), 1),
    "conv2d": (lambda width: nn.Conv2d(width, 3, 3), lambda width: (2, width, 3, 4), 1),
}


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("width", [192, 576, 7])
@pytest.mark.parametrize("name", QUEST_LAYERS)
def test_quest_does_to_each_token_what_it_does_to_a_row_of_weights(name, width, bits):
    make, shape, channel_dim = QUEST_LAYERS[name]
    _, inputs = of_one_layer(lambda: make(width), fogzo.QuEST(bits))
    x = torch.randn(shape(width)).pow(3).requires_grad_()  # heavy tails: some lie outside the trust region
    upstream = torch.randn_like(x)
    rows = x.detach().movedim(channel_dim, -1).reshape(-1, width).requires_grad_()
    of_weights = fogzo.QuEST(bits)
    of_weights.fit(rows.detach())

    def as_rows(tensor):
        return tensor.movedim(channel_dim, -1).reshape(-1, width)

    got, expected = inputs(x), of_weights(rows)
    assert got.shape == x.shape
    assert torch.equal(as_rows(got), expected)
    (gradient,) = torch.autograd.grad((got * upstream).sum(), x)
    (of_rows,) = torch.autograd.grad((expected * as_rows(upstream)).sum(), rows)
    assert torch.equal(as_rows(gradient), of_rows)
    with torch.no_grad():
        assert torch.equal(inputs(x), got)


def test_a_quest_token_does_not_depend_on_its_neighbours_and_a_token_of_zeros_stays_about_zero():
    _, inputs = of_one_layer(lambda: nn.Linear(64, 3), fogzo.QuEST(4))
    x = torch.randn(2, 5, 64)
    whole = inputs(x)
    torch.testing.assert_close(inputs(x[1:, 2:3]), whole[1:, 2:3])
    torch.testing.assert_close(inputs(1024 * x), 1024 * whole)  # α is each token's own
    nothing = torch.zeros(2, 64, requires_grad=True)
    rounded = inputs(nothing)
    assert rounded.abs().max() < 1e-6
    rounded.sum().backward()
    torch.testing.assert_close(nothing.grad, torch.ones(2, 64))


# ---- what belongs to the model


@each_kind
def test_calls_repeat_to_the_bit_and_leave_the_state_alone(kind):
    model, x = quantized(kind)
    before = copy.deepcopy(model.state_dict())
    first = model(x)
    assert torch.equal(model(x), first)
    with torch.no_grad():
        assert torch.equal(model(x), first)
        assert torch.equal(model.eval()(x), first)
    fogzo.fit_activations(model, lambda: 1 / 0)  # what is fitted is not fitted again
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["lsq", "lsq, unsigned"])
def test_a_step_that_was_never_fitted_is_refused(kind):
    model, x = quantized(kind, fit=False)
    for mode in (model.train(), model.eval()):
        with pytest.raises(RuntimeError, match=r"no step yet: call fogzo\.fit_activations\(model, forward\) first"):
            mode(x)


def test_quest_needs_no_fit():
    model, x = quantized("quest", fit=False)
    before = model(x)
    fogzo.fit_activations(model, lambda: 1 / 0)
    assert torch.equal(model(x), before)


def test_fitting_fills_the_step_that_an_optimizer_holds_already():
    model, x = quantized("lsq", fit=False)
    steps = [inputs.quantizer.step for inputs in input_quantizers(model).values()]
    names = {name for name, _ in model.named_parameters()}
    assert {"0.input_quantizer.quantizer.step", "2.input_quantizer.quantizer.step"} <= names
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert fogzo.fit_activations(model, lambda: model(x)) is model
    assert [inputs.quantizer.step for inputs in input_quantizers(model).values()] == steps
    values = [step.item() for step in steps]
    assert steps[0].item() == pytest.approx(2 * x.abs().mean().item())  # Qp = 1
    F.cross_entropy(model(x), torch.arange(12) % 4).backward()
    optimizer.step()
    assert all(step.item() != value for step, value in zip(steps, values, strict=True))


@each_kind
def test_a_loaded_state_counts_as_fitted_and_is_not_fitted_again(kind):
    model, x = quantized(kind)
    with torch.no_grad():
        for inputs in input_quantizers(model).values():
            if kind != "quest":
                inputs.quantizer.step.mul_(1.25)  # as training would
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    fresh, _ = quantized(kind, fit=False)
    assert fresh.state_dict().keys() == state.keys()  # steps are there from construction on
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), model(x))
    fogzo.fit_activations(fresh, lambda: 1 / 0)
    assert torch.equal(fresh(x), model(x))
    assert all(torch.equal(value, state[name]) for name, value in fresh.state_dict().items())


def test_the_state_of_a_model_that_was_not_fitted_says_so():
    unfitted, x = quantized("lsq", fit=False)
    model, _ = quantized("lsq")
    model.load_state_dict(unfitted.state_dict())
    with pytest.raises(RuntimeError, match="fit_activations"):
        model(x)
    fogzo.fit_activations(model, lambda: model(x))
    assert torch.equal(model(x), quantized("lsq")[0](x))


def test_a_deep_copy_has_steps_of_its_own():
    model, x = quantized("lsq")
    before = model(x)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        for inputs in input_quantizers(twin).values():
            inputs.quantizer.step.mul_(1.5)
    assert not torch.equal(twin(x), before)
    assert torch.equal(model(x), before)

    unfitted, _ = quantized("lsq", fit=False)
    fogzo.fit_activations(twin := copy.deepcopy(unfitted), lambda: twin(x))
    with pytest.raises(RuntimeError, match="fit_activations"):
        unfitted(x)


@each_kind
def test_autocast_changes_no_code(kind):
    model, _ = quantized(kind)
    for inputs, width in zip(input_quantizers(model).values(), (8, 16), strict=True):
        for given in (torch.randn(200, width), torch.randn(200, width).bfloat16()):
            expected = inputs(given.float())
            with torch.autocast("cpu", torch.bfloat16):
                got = inputs(given)
                with torch.no_grad():
                    assert torch.equal(inputs(given), expected)
            assert got.dtype == torch.float32
            assert torch.equal(got, expected)


@each_kind
def test_only_layers_whose_weights_are_quantized_get_an_input_quantizer(kind):
    def network():
        return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4))

    model, _ = quantized(kind, network, skip=["3"], biases=True)
    assert set(input_quantizers(model)) == {"0.input_quantizer", "4.input_quantizer"}
    assert [len(layer._forward_pre_hooks) for layer in model] == [1, 0, 0, 0, 1]
    assert len(fogzo.quantized_weights(model)) == 4  # two weights and two biases


@pytest.mark.parametrize("wrong", [fogzo.FixedScale(2), fogzo.Sign()])
def test_quantizers_without_a_form_for_activations_are_refused_and_the_model_is_left_alone(wrong):
    model = perceptron()
    keys, x = model.state_dict().keys(), torch.randn(3, 8)
    before = model(x)
    with pytest.raises(ValueError, match=rf"{type(wrong).__name__} does not quantize activations: use fogzo\.LSQ or"):
        fogzo.quantize_model(model, fogzo.LSQ(2), activations=wrong)
    assert model.state_dict().keys() == keys
    assert not input_quantizers(model)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda model, x: model[0](x), "not reached by the passes"),
        (lambda model, x: None, "not reached by the passes"),
        (lambda model, x: model(0 * x), "to which no step can be fitted"),
        (lambda model, x: model(x / 0), "to which no step can be fitted"),  # the second layer sees NaN
    ],
)
def test_passes_that_no_step_can_be_fitted_to_are_refused_and_can_be_repeated(forward, message):
    model, x = quantized("lsq", fit=False)
    with pytest.raises(ValueError, match=message):
        fogzo.fit_activations(model, lambda: forward(model, x))
    assert all(inputs.observed is None for inputs in input_quantizers(model).values())
    with pytest.raises(RuntimeError, match="fit_activations"):
        model(x)
    fogzo.fit_activations(model, lambda: model(x))
    assert model(x).isfinite().all()


def test_passes_that_fail_leave_the_model_unfitted():
    model, x = quantized("lsq", fit=False)
    with pytest.raises(ZeroDivisionError):
        fogzo.fit_activations(model, lambda: [model(x), 1 / 0])
    with pytest.raises(RuntimeError, match="fit_activations"):
        model(x)


@each_kind
@pytest.mark.parametrize("network", NETWORKS)
def test_baking_keeps_the_input_quantizers_and_the_outputs(network, kind):
    model, x = quantized(kind, NETWORKS[network])
    before, names = model(x), set(input_quantizers(model))
    baked = fogzo.bake(copy.deepcopy(model))
    assert set(input_quantizers(baked)) == names
    assert torch.equal(baked(x), before)
    assert torch.equal(model(x), before)
    with pytest.raises(ValueError, match="no quantized weights"):
        fogzo.quantized_weights(baked)


# ---- estimates

ESTIMATORS = {
    "ste": lambda weights, **options: fogzo.StraightThrough(),
    "fogzo": lambda weights, **options: fogzo.FOGZO(weights, **{"beta": 0.9, "samples": 2} | options),
    "nspsa": lambda weights, **options: fogzo.NSPSA(weights, **{"samples": 2} | options),
}


@each_kind
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_estimate_gives_steps_their_first_order_gradient_and_rounds_the_inputs_of_all_probes(estimator, kind):
    model, x = quantized(kind, perceptron)
    closure = closure_for(model, x)
    closure(backward=True)
    weights = fogzo.quantized_weights(model)
    latents = {id(weight.latent) for weight in weights}
    first_order = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    before = copy.deepcopy(model.state_dict())

    rounded, seen = model[0].input_quantizer(x).detach(), []
    model[0].register_forward_hook(lambda layer, args, output: seen.append(torch.equal(args[0], rounded)))
    ESTIMATORS[estimator](weights).estimate(closure, step=3)
    assert not torch.equal(rounded, x)
    assert seen == [True] * (1 if estimator == "ste" else 1 + 4)  # float biases want n-SPSA's first-order pass too
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, parameter in model.named_parameters():
        if id(parameter) not in latents:
            assert torch.equal(parameter.grad, first_order[name]), name
        assert parameter.grad.isfinite().all()
    steps = [name for name, _ in model.named_parameters() if name.endswith("step")]
    assert len(steps) == (0 if kind == "quest" else 2)
    assert all(first_order[name] != 0 for name in steps)


@each_kind
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("estimator", ["fogzo", "nspsa"])
def test_probes_in_batches_are_the_probes_one_by_one(estimator, network, kind):
    def gradients(probe_batch):
        model, x = quantized(kind, NETWORKS[network], torch.float64)
        estimator_of = ESTIMATORS[estimator](fogzo.quantized_weights(model), samples=3, probe_batch=probe_batch)
        estimate = estimator_of.estimate(closure_for(model, x), step=1)
        return estimate, [p.grad for p in model.parameters()]

    (one, expected), (many, got) = gradients(0), gradients(2)
    torch.testing.assert_close(many.loss, one.loss, rtol=1e-9, atol=0)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9)
    assert many.zero_probes == one.zero_probes < 1


@pytest.mark.parametrize("estimator", ["ste", "fogzo"])
@pytest.mark.parametrize("kind", ["lsq", "quest"])
def test_a_small_network_of_2_bit_weights_and_activations_learns(kind, estimator):
    torch.manual_seed(1)
    centres = 2 * torch.randn(4, 8)
    targets = torch.arange(256) % 4
    x = centres[targets] + torch.randn(256, 8)
    network = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    model = fogzo.quantize_model(network, ACTIVATIONS[kind](), activations=ACTIVATIONS[kind]())
    fogzo.fit_activations(model, lambda: model(x))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    estimator_of = ESTIMATORS[estimator](fogzo.quantized_weights(model), beta=0.999, samples=1)

    def closure(*, backward):
        loss = F.cross_entropy(model(x), targets)
        if backward:
            loss.backward()
        return loss.detach()

    losses = []
    for step in range(120):
        optimizer.zero_grad()
        losses.append(estimator_of.estimate(closure, step=step).loss.item())
        optimizer.step()
    assert sum(losses[-10:]) / 10 < 0.4 * losses[0]
    assert all(inputs.quantizer.scale(x).min() > 0 for inputs in input_quantizers(model).values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_fits_its_steps_to_what_its_training_will_see(precision, monkeypatch):
    seen, loss = [], Classification.loss

    def note(task, model, batch):
        seen.append(torch.is_autocast_enabled("cpu"))
        return loss(task, model, batch)

    monkeypatch.setattr(Classification, "loss", note)
    trainer = build(composed("quantizer=lsq", "activations=lsq", "estimator=ste", f"precision={precision}"))
    assert seen[:4] == [precision == "bf16"] * 4  # the first four batches
    trainer.train_step(0)
    assert seen[-1] == (precision == "bf16")
