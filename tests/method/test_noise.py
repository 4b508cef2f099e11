"""Noise and seeds: other numbers for every place that should have its own, and as wide as the surrogate says."""

import math
from collections import Counter

import pytest
import torch
from helpers.checks import readable
from torch import nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

import fogzo
from fogzo.estimators import philox
from fogzo.estimators.perturb import Noise
from fogzo.seeding import derive_seed, seed_step

PLACES = [("step", 1, 12), ("step", 11, 2), ("step", 112), ("probe", 0, 0, 1), ("probe", 0, 1, 0), ("probe", 1, 0, 0)]


def weights_of(*shapes, quantizer=None):
    torch.manual_seed(0)
    layers = [nn.Linear(width, height, bias=False) for height, width in shapes]
    return fogzo.quantized_weights(fogzo.quantize_model(nn.Sequential(*layers), quantizer or fogzo.FixedScale(2)))


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def test_every_place_has_a_seed_of_its_own():
    assert len({derive_seed(*place) for place in PLACES}) == len(PLACES)


def test_ranks_that_see_other_examples_draw_other_masks():
    def drawn(*place):
        seed_step(*place)
        return torch.rand(4).tolist()

    draws = [drawn(0, 0), drawn(0, 0, 1), drawn(0, 1), drawn(1, 0), drawn(0, 0, 2)]
    assert len({tuple(draw) for draw in draws}) == len(draws)
    assert drawn(0, 0, 1) == drawn(0, 0, 1)


@pytest.mark.parametrize("shapes", [[(8, 16)] * 3, [(300, 300)] * 3], ids=["one group", "a group each"])
def test_samples_tensors_steps_and_seeds_have_noise_of_their_own(shapes):
    weights = weights_of(*shapes)
    drawn = [
        z
        for seed, step in ((0, 0), (0, 1), (1, 0))
        for stack in Noise(weights, seed, step).draw(range(3))
        for z in stack
    ]
    bound = 5 / math.sqrt(drawn[0].numel())
    pairs = [(a, b) for i, a in enumerate(drawn) for b in drawn[:i]]
    assert max(abs(cosine(a, b)) for a, b in pairs) < bound


def test_a_sample_is_the_same_drawn_alone_or_with_others():
    weights = weights_of((8, 16), (300, 300), (4, 8))
    together = list(Noise(weights, 3, 5).draw(range(4)))
    for i in range(4):
        alone = list(Noise(weights, 3, 5).draw(range(i, i + 1)))
        assert all(torch.equal(one[0], many[i]) for one, many in zip(alone, together, strict=True))


@pytest.mark.parametrize(
    ("quantizer", "half_width"),
    [
        (fogzo.FixedScale(2), 0.5),
        (fogzo.LSQ(2), 0.5),
        (fogzo.LSQ(4), 0.5),
        (fogzo.QuEST(2), 0.5),
        (fogzo.QuEST(4), 0.5),
        (fogzo.Sign("hardtanh"), 1.0),
    ],
    ids=readable,
)
def test_noise_reaches_half_a_step_to_either_side_and_a_sign_reaches_a_whole_one(quantizer, half_width):
    (weight,) = weights_of((256, 128), quantizer=quantizer)
    (z,) = Noise([weight], 0, 0).draw(range(1))
    moved = weight.quantizer.rotate(z[0] * weight.grid_unit()) / weight.quantizer.scale(weight.latent)  # code units
    moved = moved.detach()
    assert moved.abs().max() <= half_width + 1e-5
    assert moved.abs().max() > 0.99 * half_width
    assert abs(float(moved.mean())) < 5 * half_width / math.sqrt(3 * moved.numel())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_sums_that_are_zero_have_one_code_whatever_rounding_makes_of_them(bits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 32))
    fogzo.quantize_model(model, fogzo.QuEST(2), activations=fogzo.QuEST(bits))
    quantizer, x = model[1].input_quantizer.quantizer, model[0](torch.randn(4096, 64)).detach()
    codes = quantizer.codes(x)
    assert (quantizer.rotate(x)[:, 0] < 0).any(), "rounding errors have both signs, else this tests nothing"
    assert (codes[:, 0] == 0.5).all()
    assert (codes[:, 1] < 0).any()
    assert torch.equal(quantizer.codes(x[:1]), codes[:1])
    passes = quantizer.surrogate_derivative(quantizer.rotate(x) / quantizer.scale(x))
    assert (passes[:, 0] == 1).all()
    x.requires_grad_()
    assert torch.equal(quantizer(x).detach(), quantizer(x.detach()))


# ---- the generator whose numbers have no state

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # Random123's known answers
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers(counter, key, words):
    given = tuple(torch.tensor([word]) for word in counter)
    assert " ".join(f"{int(word):08x}" for word in philox.philox(given, key)) == words


def test_any_part_of_philox_is_drawn_alone_also_beyond_32_bits_of_places():
    whole = philox.uniform(5, 0, 3 * 4 * philox.BLOCKS, CPU)
    for start, count in ((0, 1), (1, 2), (4 * philox.BLOCKS - 3, 9), (17, 5 * philox.BLOCKS)):
        assert torch.equal(philox.uniform(5, start, count, CPU), whole[start : start + count])
    assert not torch.equal(philox.uniform(5, 2**34, 8, CPU), whole[:8])
    assert not torch.equal(philox.uniform(5 + 2**32, 0, 8, CPU), whole[:8])  # a seed that mt19937 takes for 5
    assert float(whole.min()) > 0
    assert float(whole.max()) < 1
    assert abs(float(whole.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / len(whole))
    assert abs(float(whole.double().var()) - 1 / 12) < 5e-4


def test_philox_is_compiled_once_for_all_seeds_and_places():
    torch.compiler.reset()
    counters.clear()
    fused = torch.compile(philox._blocks, dynamic=True, backend="eager")
    for first, key, count in ((0, (1, 2), 8), (3, (7, 5), 8), (2**33, (9, 1), 12)):
        given = [torch.full((), number, dtype=torch.int64) for number in (first, *key)]
        numbers = fused(given[0], count, tuple(given[1:]), CPU)
        assert torch.equal(numbers, philox.uniform(key[0] + (key[1] << 32), 4 * first, 4 * count, CPU))
    assert counters["stats"]["unique_graphs"] == 1
    torch.compiler.reset()


@pytest.mark.parametrize("generator", ["mt19937", "philox"])
def test_noise_is_a_function_of_seed_step_and_sample_with_either_generator(generator):
    weights = weights_of((8, 16), (300, 300), (4, 8))
    together = list(Noise(weights, 3, 5, generator).draw(range(3)))
    alone = list(Noise(weights, 3, 5, generator).draw(range(2, 3)))
    assert all(torch.equal(one[0], many[2]) for one, many in zip(alone, together, strict=True))
    other = [list(Noise(weights, *place, generator).draw(range(1)))[1] for place in ((3, 6), (4, 5))]
    assert max(abs(cosine(z, together[1][0])) for z in other) < 5 / 300
    assert all(abs(float(z.var()) - 1) < 0.02 for z in together[1])


def test_an_estimate_takes_the_generator_that_it_is_given_and_refuses_others():
    weights = weights_of((8, 16))
    x = torch.randn(4, 16)
    found = {}
    for generator in ("mt19937", "philox"):
        weights[0].latent.grad = None
        estimator = fogzo.NSPSA(weights, generator=generator)
        estimator.estimate(lambda *, backward: weights[0].model(x).square().mean(), step=0)
        found[generator] = weights[0].latent.grad
    assert abs(cosine(*found.values())) < 0.5
    with pytest.raises(ValueError, match="generator='mt' is not known: choose one of mt19937, philox"):
        fogzo.FOGZO(weights, generator="mt")


# ---- many tensors in one call


class Operations(TorchDispatchMode):
    """Counts what starts a kernel: all operations but views, and room for results."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and "empty" not in func.name():
            self.seen[func.name()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("generator", ["mt19937", "philox"])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("beta", [0.0, 0.9])
@pytest.mark.parametrize("quantizer", [fogzo.FixedScale(2), fogzo.Sign("approxsign")], ids=["fixed", "sign"])
def test_what_an_estimate_adds_to_the_passes_does_not_grow_with_the_tensors(quantizer, beta, samples, generator):
    counts = []
    for layers in (10, 40):
        weights = weights_of(*[(8, 8)] * layers, quantizer=quantizer)
        loss = torch.tensor(1.0)

        def closure(*, backward, weights=weights, loss=loss):
            if backward:
                for weight in weights:
                    weight.latent.grad = torch.empty_like(weight.latent).fill_(0.5)
            return loss

        estimator = fogzo.FOGZO(weights, beta=beta, samples=samples, generator=generator)
        with Operations() as operations:
            estimator.estimate(closure, step=0)
        seen = operations.seen
        seen["aten::fill_.Scalar"] -= layers * (beta > 0)  # the closure's own
        counts.append(+seen)
    assert counts[0] == counts[1]
