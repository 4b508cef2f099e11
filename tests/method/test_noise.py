"""Noise and seeds: other numbers for every place that should have its own, and as wide as the surrogate says."""

import math

import pytest
import torch
from helpers.ids import readable
from torch import nn

import fogzo
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
