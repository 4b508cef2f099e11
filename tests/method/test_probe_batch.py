"""Probes in batches: the same noise and losses as one by one, for every kind of layer and loss; and what each holds."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fogzo
from fogzo.estimators import RescaledStraightThrough, evaluations_per_call


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x):  # (B, T, C)
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        return x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))


def mlp(dropout=0.0, bias=True):
    return nn.Sequential(nn.Linear(8, 12, bias=bias), nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, 4, bias=bias))


def conv_net():
    convolutions = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=3, padding=1)]
    return nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), nn.Upsample(scale_factor=2), *convolutions, nn.Flatten(), nn.Linear(24, 4)
    )


# model, quantizer, shape of the input
MODELS = {
    "mlp": (mlp, fogzo.FixedScale(2), (16, 8)),
    "per channel": (mlp, fogzo.FixedScale(3, per_channel=True), (16, 8)),
    "lsq": (mlp, fogzo.LSQ(2), (16, 8)),
    "quest": (mlp, fogzo.QuEST(2), (16, 8)),
    "sign, tanh": (mlp, fogzo.Sign(), (16, 8)),
    "sign, approxsign": (mlp, fogzo.Sign("approxsign"), (16, 8)),
    "dropout": (lambda: mlp(dropout=0.5), fogzo.FixedScale(2), (16, 8)),
    "dropout on the input": (lambda: nn.Sequential(nn.Dropout(0.5), mlp(0.5)), fogzo.FixedScale(2), (16, 8)),
    "one linear layer": (lambda: nn.Linear(8, 4), fogzo.FixedScale(2), (16, 8)),
    "one output": (lambda: nn.Linear(8, 1), fogzo.FixedScale(2, scale=0.5), (16, 8)),
    "conv net": (conv_net, fogzo.FixedScale(2), (16, 8)),
    "conv net, eval": (lambda: conv_net().eval(), fogzo.LSQ(3), (16, 8)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(4, 4, 3, dilation=2)), fogzo.QuEST(2), (5, 4, 8)),
    "sequences": (mlp, fogzo.FixedScale(2), (3, 5, 8)),
    "a single vector": (mlp, fogzo.FixedScale(2), (8,)),
    "attention": (lambda: nn.Sequential(Attention(), mlp()), fogzo.QuEST(2), (3, 5, 8)),
}


def quantized(name, biases=False, dtype=torch.float64):
    torch.manual_seed(0)
    build, quantizer, shape = MODELS[name]
    model = fogzo.quantize_model(build().to(dtype), quantizer, biases=biases)
    return model, torch.randn(shape, dtype=dtype)


def square(output):
    return F.mse_loss(output, torch.ones_like(output))


def closure_for(model, x, loss=square, autocast=False, spy=lambda output, loss: None):
    def closure(*, backward):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = model(x)
            value = loss(output)
        spy(output, value)
        if backward:
            value.backward()
        return value

    return closure


def estimate(model, closure, kind=fogzo.FOGZO, **options):
    """One estimate with seven pairs; returns (estimate, all gradients as one vector)."""
    torch.manual_seed(3)
    model.zero_grad()
    result = kind(fogzo.quantized_weights(model), **{"samples": 7, "seed": 1} | options).estimate(closure, step=2)
    return result, torch.cat([p.grad.flatten() for p in model.parameters()])


def assert_same_estimate(first, second, **tolerance):
    (one, g), (other, h) = first, second
    torch.testing.assert_close(g, h, **tolerance)
    for field in ("loss", "agreement", "zero_probes", "guide_norm"):
        a, b = getattr(one, field), getattr(other, field)
        assert a is b is None or torch.allclose(a, b, **tolerance)


@pytest.mark.parametrize("biases", [False, True], ids=["float biases", "quantized biases"])
@pytest.mark.parametrize("name", MODELS)
def test_batches_of_any_size_equal_one_by_one(name, biases):
    model, x = quantized(name, biases)
    closure = closure_for(model, x)
    for options in ({"beta": 0.5}, {"beta": 1.0}, {"kind": fogzo.NSPSA}, {"beta": 0.9, "guide_norm": "rms"}):
        expected = estimate(model, closure, **options)
        for probe_batch in (1, 8) if biases else (3, 64):
            assert_same_estimate(estimate(model, closure, probe_batch=probe_batch, **options), expected)


CLASSES = torch.arange(16) % 4
IGNORED = torch.where(torch.arange(16) % 3 == 0, -100, CLASSES)
PROBABILITIES = torch.rand(16, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LOSSES = {
    "cross entropy": lambda o: F.cross_entropy(o, CLASSES),
    "targets in bytes": lambda o: F.cross_entropy(o, CLASSES.to(torch.uint8)),
    "a module": lambda o: nn.CrossEntropyLoss()(o, CLASSES),
    "by keyword": lambda o: F.cross_entropy(input=o, target=CLASSES, reduction="mean"),
    "ignored entries": lambda o: F.cross_entropy(o, IGNORED),
    "another ignored index": lambda o: F.cross_entropy(o, CLASSES, ignore_index=2),
    "masked classes": lambda o: F.cross_entropy(
        o.masked_fill(torch.tensor([True, False, False, False]), -torch.inf), CLASSES, ignore_index=0
    ),
    "label smoothing": lambda o: F.cross_entropy(o, CLASSES, label_smoothing=0.1),
    "class weights": lambda o: F.cross_entropy(o, CLASSES, torch.tensor([1.0, 2.0, 3.0, 0.5], dtype=o.dtype)),
    "sum": lambda o: F.cross_entropy(o, CLASSES, reduction="sum"),
    "a row each": lambda o: F.cross_entropy(o, CLASSES, reduction="none").square().mean(),
    "probabilities": lambda o: F.cross_entropy(o, PROBABILITIES.softmax(1)),
    "positions": lambda o: F.cross_entropy(o.view(4, 4, 4).mT, CLASSES.view(4, 4)),
    "one row": lambda o: F.cross_entropy(o[0], CLASSES[0]),
    "nll": lambda o: F.nll_loss(o.log_softmax(1), CLASSES),
}


@pytest.mark.parametrize("name", LOSSES)
def test_any_loss_is_the_same_in_batches(name):
    model, x = quantized("mlp", biases=True)
    closure = closure_for(model, x, LOSSES[name])
    for options in ({"beta": 0.5}, {"kind": fogzo.NSPSA}):
        expected = estimate(model, closure, **options)
        assert expected[1].isfinite().all()
        assert_same_estimate(estimate(model, closure, probe_batch=3, **options), expected)


def test_batches_agree_in_fp32():
    model, x = quantized("mlp", dtype=torch.float32)
    closure = closure_for(model, x, LOSSES["cross entropy"])
    one_by_one, batched = (estimate(model, closure, beta=0.5, probe_batch=k)[1] for k in (0, 8))
    assert (one_by_one - batched).norm() < 1e-3 * one_by_one.norm()


@pytest.mark.parametrize("bias", [True, False])
def test_batches_agree_under_autocast(bias):
    torch.manual_seed(0)
    model = fogzo.quantize_model(mlp(bias=bias), fogzo.FixedScale(2))
    seen = []
    spy = lambda output, loss: seen.append((output.dtype, loss.dtype))  # noqa: E731
    closure = closure_for(model, torch.randn(16, 8), LOSSES["cross entropy"], autocast=True, spy=spy)
    one_by_one, batched = (estimate(model, closure, beta=0.5, probe_batch=k)[1] for k in (0, 8))
    assert set(seen) == {(torch.bfloat16, torch.float32)}
    assert (one_by_one - batched).norm() < 0.02 * one_by_one.norm()


def test_the_closure_can_ask_how_many_losses_its_call_evaluates():
    model, x = quantized("mlp")
    seen = []
    closure = closure_for(model, x, spy=lambda output, loss: seen.append(evaluations_per_call()))
    estimate(model, closure, probe_batch=3)
    assert seen == [1, 6, 6, 2]
    assert evaluations_per_call() == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_batch_that_raises_leaves_parameters_and_statistics_alone(error):
    def spy(output, loss):
        seen.append(loss)
        if len(seen) == 2:
            raise error

    model, x = quantized("conv net")
    seen, parameters = [], dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    with pytest.raises(error):
        estimate(model, closure_for(model, x, spy=spy), probe_batch=3)
    assert all(p is parameters[name] and torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert evaluations_per_call() == 1
    assert int(model[3].num_batches_tracked) == 1
    assert model[3].track_running_stats
    estimate(model, closure_for(model, x), probe_batch=3)


@pytest.mark.parametrize("probe_batch", [0, 3])
def test_micro_batches_inside_the_closure_equal_the_whole_batch(probe_batch):
    model, x = quantized("mlp")

    def micro_batches(*, backward):
        total = 0.0
        for rows in x.split(4):
            loss = square(model(rows)) / 4
            if backward:
                loss.backward()
            total += loss.detach()
        return total

    whole = estimate(model, closure_for(model, x), beta=0.5)
    assert_same_estimate(estimate(model, micro_batches, beta=0.5, probe_batch=probe_batch), whole)


class LiveBytes(TorchDispatchMode):
    """How many bytes are held by tensors that were made within, and the most that were held at a time."""

    def __init__(self, model):
        super().__init__()
        self.old = {p.untyped_storage()._cdata for p in [*model.parameters(), *model.buffers()]}
        self.storages, self.peak = {}, 0

    def held(self):
        self.storages = {key: entry for key, entry in self.storages.items() if entry[0]() is not None}
        return sum(size for _, size in self.storages.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for storage in (t.untyped_storage() for t in tree_leaves(result) if isinstance(t, torch.Tensor)):
            if storage._cdata not in self.old:
                self.storages[storage._cdata] = (weakref.ref(storage), storage.nbytes())
        self.peak = max(self.peak, self.held())
        return result


@pytest.mark.parametrize(
    ("estimator", "copies"),
    [
        (lambda _: fogzo.StraightThrough(), 0),
        (lambda weights: fogzo.FOGZO(weights), 2),
        (lambda weights: fogzo.FOGZO(weights, beta=1.0), 2),
        (lambda weights: fogzo.FOGZO(weights, samples=3, beta=0.5), 2),
        (lambda weights: fogzo.NSPSA(weights, samples=3), 2),
        (lambda weights: RescaledStraightThrough(weights), 3),
    ],
)
def test_one_by_one_an_estimate_holds_the_gradient_and_one_copy_of_the_weights(estimator, copies):
    model = fogzo.quantize_model(nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(8)]), fogzo.Sign())
    size, held = 4 * sum(p.numel() for p in model.parameters()), []
    closure = closure_for(model, torch.ones(1, 256), spy=lambda output, loss: held.append(memory.held()))
    estimator = estimator(fogzo.quantized_weights(model))
    with LiveBytes(model) as memory:
        estimator.estimate(closure, step=0)
    if copies:  # RescaledStraightThrough keeps the STE's gradient as well
        assert max(held[1:]) == pytest.approx(copies * size, abs=0.02 * size)
    assert memory.peak < max(2.3, copies + 0.8) * size  # STE's backward pass; noise exists for one layer at a time
