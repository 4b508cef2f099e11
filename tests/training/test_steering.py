"""A schedule that is steered by flips, and the pull to the grid."""

import pytest
import torch
from helpers.trainers import make
from torch import nn

import fogzo
from fogzo.training.schedules import GridPull, TransitionRate


def quantized_line(values):
    model = nn.Linear(len(values), 1, bias=False)
    model.weight.data.copy_(torch.tensor([values]))
    fogzo.quantize_model(model, fogzo.FixedScale(2, scale=1.0))
    return fogzo.quantized_weights(model)


def test_the_rate_falls_while_more_codes_flip_than_the_curve_wants_and_rises_while_fewer_do():
    weights = quantized_line([0.4, 0.6, -0.2, -1.2])
    schedule = TransitionRate(steps=11, target=0.25 / 2**0.5, gain=2.0, memory=0.0)
    schedule.follow(weights)
    assert [round(schedule.target_at(step), 3) for step in (0, 5, 10)] == [0.25, 0.125, 0.0]
    schedule.observe(0)  # nothing flipped: U = 1 + 2 (0.25 - 0)
    assert schedule(1) == pytest.approx(1.5)
    with torch.no_grad():
        weights[0].latent.neg_()  # every code flips
    schedule.observe(5)  # U = 1.5 + 2 (0.125 - 1), not below 0
    assert schedule(6) == 0.0


def test_the_steered_rate_goes_on_from_its_state():
    one, other = (TransitionRate(steps=10, gain=0.5) for _ in range(2))
    weights = quantized_line([0.4, 0.6, -0.2, -1.2])
    one.follow(weights)
    other.follow(weights)
    for step in range(3):
        with torch.no_grad():
            weights[0].latent.add_(0.3)
        one.observe(step)
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        weights[0].latent.add_(0.5)
    one.observe(3)
    other.observe(3)
    assert one(4) == other(4) != 1.0


def test_a_steered_rate_without_codes_is_refused():
    with pytest.raises(ValueError, match="choose a quantizer"):
        TransitionRate(steps=10).follow([])


def test_the_pull_is_silent_first_and_draws_weights_to_their_codes_at_the_end():
    weights = quantized_line([0.4, 0.6, -0.3, -1.2])
    codes = torch.tensor([[0.5, 0.5, -0.5, -1.5]])
    pull = GridPull(weights, strength=10.0, start=0.8, steps=10)
    before = weights[0].latent.detach().clone()
    pull(7, lr=0.01)
    assert torch.equal(before, weights[0].latent)
    pull(9, lr=0.01)
    torch.testing.assert_close(weights[0].latent.detach(), before - 0.1 * (before - codes))
    pull(9, lr=1.0)  # never beyond the code
    torch.testing.assert_close(weights[0].latent.detach(), codes)


def test_a_trainer_draws_its_weights_to_the_grid():
    distance = {}
    for strength in (0.001, 50.0):
        trainer = make("fogzo")
        weights = fogzo.quantized_weights(trainer.model)
        trainer.pull = GridPull(weights, strength=strength, start=0.0, steps=6)
        trainer.fit()
        with torch.no_grad():
            distance[strength] = sum(float((w.latent - w.quantizer(w.latent)).abs().sum()) for w in weights)
    assert distance[50.0] < 0.5 * distance[0.001]
