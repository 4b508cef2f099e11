"""The rules of paper.md, section 2, "Consequences": restoration, one world, batch norm, buffers, floats, fp32."""

import math
import signal
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers.checks import readable
from helpers.small_loop import closure_for, estimate, network
from torch import nn

import fogzo
from fogzo.errors import UserError
from fogzo.estimators import RescaledStraightThrough
from fogzo.estimators.perturb import Noise


def quantized(quantizer=None, affine=True, dropout=0.3):
    torch.manual_seed(0)
    convolution = [nn.Conv2d(3, 6, 3, bias=affine), nn.BatchNorm2d(6, affine=affine), nn.ReLU()]
    model = nn.Sequential(*convolution, nn.Dropout(dropout), nn.Flatten(), nn.Linear(96, 4, bias=affine))
    return fogzo.quantize_model(model, quantizer or fogzo.FixedScale(2))


LATENTS = {"0.parametrizations.weight.original", "5.parametrizations.weight.original"}


class Closure:
    """Cross-entropy of one batch; keeps the losses."""

    def __init__(self, model, autocast=False):
        self.model, self.autocast, self.losses = model, autocast, []
        generator = torch.Generator().manual_seed(1)
        self.x, self.y = torch.randn(8, 3, 6, 6, generator=generator), torch.arange(8) % 4

    def __call__(self, *, backward):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = F.cross_entropy(self.model(self.x), self.y)
        self.losses.append(loss.detach())
        if backward:
            loss.backward()
        return loss


def snapshot(model):
    """Parameters and buffers."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def differences(first, second):
    """Names of the tensors that differ in any bit."""
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def moved(model, before):
    """What an interrupted estimate left in another state: weights, or a norm layer that no longer tracks."""
    names = [name for name in LATENTS if not torch.equal(before[name], model.get_parameter(name))]
    return names + ["track_running_stats"] * (not model[1].track_running_stats)


ESTIMATORS = {
    "fogzo": lambda weights: fogzo.FOGZO(weights, samples=2, beta=0.9),
    "beta 1": lambda weights: fogzo.FOGZO(weights, beta=1.0),
    "nspsa": lambda weights: fogzo.NSPSA(weights, samples=2),
    "batched": lambda weights: fogzo.FOGZO(weights, samples=2, beta=0.9, probe_batch=2),
    "rescaled": lambda weights: RescaledStraightThrough(weights),
}
every_estimator = pytest.mark.parametrize("name", ESTIMATORS)


def estimator_for(name, model):
    return ESTIMATORS[name](fogzo.quantized_weights(model))


def after_one_estimate(name, model, **options):
    """The model's state and gradients after one estimate from a fixed state of the global generator."""
    torch.manual_seed(3)
    estimator = fogzo.StraightThrough() if name == "ste" else estimator_for(name, model)
    estimator.estimate(Closure(model, **options), step=0)
    return snapshot(model), gradients(model)


@every_estimator
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("quantizer", [fogzo.FixedScale(2), fogzo.QuEST(2), fogzo.Sign()], ids=readable)
def test_weights_are_afterwards_what_they_were_in_any_layout(quantizer, memory_format, name):
    model = quantized(quantizer, dropout=0.0).to(memory_format=memory_format)  # masks are drawn in memory order
    before, strides = snapshot(model), [p.stride() for p in model.parameters()]
    _, found = after_one_estimate(name, model)
    assert not moved(model, before)
    assert strides == [p.stride() for p in model.parameters()]
    _, expected = after_one_estimate(name, quantized(quantizer, dropout=0.0))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4)


def test_weights_with_odd_strides_are_restored_in_place():
    model = quantized()
    latent = model[5].parametrizations.weight.original
    latent.data = torch.randn(96, 8).t()[::2]
    before, address = latent.detach().clone(), latent.data_ptr()
    after_one_estimate("fogzo", model)
    assert torch.equal(latent, before)
    assert (latent.data_ptr(), latent.stride()) == (address, (2, 8))


@every_estimator
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 2, 3, 4, 5])
def test_weights_and_generator_are_restored_when_a_forward_pass_raises(name, error, call):
    def before_dropout(*_):
        passes.append(call)
        if len(passes) == call:
            raise error

    model, twin, passes = quantized(), quantized(), []
    model[2].register_forward_hook(before_dropout)
    before, closure = snapshot(model), Closure(model)
    torch.manual_seed(3)
    try:
        estimator_for(name, model).estimate(closure, step=0)
        assert len(passes) < call
    except error:
        pass
    assert not moved(model, before)
    assert int(model[1].num_batches_tracked) == 1
    drawn = torch.rand(3)
    torch.manual_seed(3)
    if call > 1:  # the first-order pass has drawn its mask; the probes have drawn nothing
        twin(closure.x)
    assert torch.equal(torch.rand(3), drawn)


@pytest.fixture
def ctrl_c():
    """SIGINT raises KeyboardInterrupt, even under nohup; SIGVTALRM sends it (SIGALRM is pytest-timeout's)."""
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    alarm = signal.signal(signal.SIGVTALRM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    yield
    signal.signal(signal.SIGVTALRM, alarm)
    signal.signal(signal.SIGINT, interrupt)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("name", ["fogzo", "nspsa"])
def test_weights_survive_an_interrupt_at_any_time(name):
    model = quantized()
    estimator, closure, before = estimator_for(name, model), Closure(model), snapshot(model)

    def estimate_for_ever(seconds):
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        while True:
            model.zero_grad()
            estimator.estimate(closure, step=0)

    for attempt in range(20):
        with pytest.raises(KeyboardInterrupt):
            estimate_for_ever(0.004 + 0.0007 * attempt)
        assert not moved(model, before)


class InterruptAt:
    """Press Ctrl-C at one of the places where Python looks for signals: function entries and returns from C."""

    def __init__(self, event):
        self.left = event

    def __call__(self, frame, event, argument):
        self.left -= event in ("call", "c_return")
        if self.left == 0:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("ctrl_c")
def test_weights_survive_an_interrupt_wherever_python_looks_for_one():
    model = quantized()
    estimator, closure, before = estimator_for("beta 1", model), Closure(model), snapshot(model)
    lost, event, pressed = {}, 0, True
    while pressed:
        event += 1
        model.zero_grad()
        interrupt = InterruptAt(event)
        try:
            sys.setprofile(interrupt)
            estimator.estimate(closure, step=0)
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        pressed = interrupt.left == 0
        if moved(model, before):
            lost[event] = moved(model, before)
            model.load_state_dict(before)
            model[1].track_running_stats = True
    assert event > 100
    assert not lost


@every_estimator
@pytest.mark.parametrize("quantizer", [fogzo.FixedScale(2), fogzo.LSQ(2)], ids=readable)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_statistics_and_float_parameters_are_those_of_one_straight_through_step(mode, quantizer, name):
    state, expected = after_one_estimate("ste", getattr(quantized(quantizer), mode)())
    found_state, found = after_one_estimate(name, getattr(quantized(quantizer), mode)())
    assert not differences(state, found_state)
    assert int(state["1.num_batches_tracked"]) == (mode == "train")
    assert 0 < len(differences(expected, found)) <= 2
    assert set(differences(expected, found)) <= LATENTS


@every_estimator
def test_statistics_are_updated_once_where_nothing_needs_a_backward_pass(name):
    expected, _ = after_one_estimate("ste", quantized(affine=False))
    found, _ = after_one_estimate(name, quantized(affine=False))
    assert not differences(expected, found)


@pytest.mark.parametrize(
    "options", [{"beta": 0.9}, {"beta": 1.0}, {"beta": 0.0}, {"beta": 0.9, "probe_batch": 3}], ids=readable
)
def test_a_pair_without_displacement_has_equal_losses_to_the_last_bit(options):
    weights = fogzo.quantized_weights(quantized())
    closure = Closure(weights[0].model)
    estimate = fogzo.FOGZO(weights, samples=3, epsilon=1e-12, **options).estimate(closure, step=0)  # w ± 1e-12 u = w
    assert estimate.zero_probes == 1
    if "probe_batch" not in options:
        assert len({loss.item() for loss in closure.losses}) == 1  # dropout as in the first-order pass


def test_noise_follows_the_smoothing_in_the_basis_in_which_codes_are_decided():
    weights = fogzo.quantized_weights(quantized(fogzo.QuEST(2)))
    *_, z = Noise(weights, seed=0, step=0).draw(range(3))  # of the linear layer, whose rows are rotated
    assert z.abs().max() > 2
    assert weights[-1].quantizer.rotate(z).abs().max() < math.sqrt(3) + 1e-5


@pytest.mark.parametrize("quantizer", [fogzo.FixedScale(2), fogzo.LSQ(2), fogzo.QuEST(2), fogzo.Sign()], ids=readable)
def test_autocast_does_not_touch_the_codes_of_a_probe(quantizer):
    def weights_seen(autocast):
        model, seen = quantized(quantizer), []
        model[5].register_forward_pre_hook(lambda layer, _: seen.append(layer.weight.detach().clone()))
        after_one_estimate("nspsa", model, autocast=autocast)
        return torch.stack(seen)

    assert weights_seen(True).dtype == torch.float32
    assert torch.equal(weights_seen(True), weights_seen(False))


@pytest.mark.parametrize("quantizer", [fogzo.FixedScale(2), fogzo.LSQ(2), fogzo.QuEST(2), fogzo.Sign()], ids=readable)
@pytest.mark.parametrize("options", [{}, {"beta": 1.0}, {"beta": 0.0, "samples": 3}, {"samples": 3, "epsilon": 9.0}])
def test_crossings_are_the_codes_that_the_first_pair_changes(quantizer, options):
    model = quantized(quantizer)
    weights, closure, codes = fogzo.quantized_weights(model), Closure(model), []

    def spying(*, backward):
        codes.append(torch.cat([w.quantizer.codes(w.latent.detach()).flatten() for w in weights]))
        return closure(backward=backward)

    found = fogzo.FOGZO(weights, crossings_every=1, **{"beta": 0.5} | options).estimate(spying, step=0)
    assert found.crossings == (codes[1] != codes[2]).sum()  # codes[0]: of the first-order pass
    assert found.crossings > 0 or options.get("beta") == 1.0


@pytest.mark.parametrize("probe_batch", [0, 2])
def test_counting_crossings_changes_no_bit_of_an_estimate_and_goes_by_the_step(probe_batch):
    def estimates(every):
        model = quantized()
        estimator = fogzo.FOGZO(
            fogzo.quantized_weights(model), samples=2, beta=0.9, probe_batch=probe_batch, crossings_every=every
        )
        for step in range(6):
            model.zero_grad()
            yield estimator.estimate(Closure(model), step=step).crossings, gradients(model)

    without, with_them = list(estimates(0)), list(estimates(3))
    assert not any(differences(a, b) for (_, a), (_, b) in zip(without, with_them, strict=True))
    assert [crossings is not None for crossings, _ in with_them] == [False, False, True, False, False, True]
    assert all(crossings is None for crossings, _ in without)


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
