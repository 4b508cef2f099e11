"""What estimators say of their cost, passes and buffers, is what a closure counts and what tensors take."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fogzo
from fogzo.estimators import (
    EWGS,
    ControlVariate,
    DisplacedStraightThrough,
    ExactDirectional,
    GuideOrNoise,
    IntermittentFOGZO,
    NoisyStraightThrough,
    OneSidedFOGZO,
    Phased,
    RescaledStraightThrough,
    SplitFOGZO,
    evaluations_per_call,
)
from fogzo.estimators.beta import Ramp
from fogzo.training.costs import PeakTensorMemory

STEPS = 5
WIDTH, DEPTH = 32, 20  # many alike weights: what is held for one of them at a time is little


def network(*, biases=False, norm=None):
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH, bias=biases) for _ in range(DEPTH)]
    return fogzo.quantize_model(nn.Sequential(*layers, norm or nn.Identity()), fogzo.FixedScale(2))


def half_steps(weights):
    return Phased(fogzo.StraightThrough(weights), fogzo.FOGZO(weights, samples=3, beta=0.5), switch_step=2)


ESTIMATORS = {
    "ste": lambda weights: fogzo.StraightThrough(weights),
    "ste without weights": lambda weights: fogzo.StraightThrough(),
    "fogzo": lambda weights: fogzo.FOGZO(weights),
    "fogzo, 3 samples": lambda weights: fogzo.FOGZO(weights, samples=3),
    "fogzo, batched": lambda weights: fogzo.FOGZO(weights, samples=5, beta=0.9, probe_batch=2),
    "fogzo, one pair at once": lambda weights: fogzo.FOGZO(weights, beta=0.9, probe_batch=8),
    "fogzo, β = 1": lambda weights: fogzo.FOGZO(weights, samples=3, beta=1.0),
    "fogzo, β falls": lambda weights: fogzo.FOGZO(weights, samples=3, beta=Ramp(1.0, 0.5, STEPS)),
    "fogzo, β becomes 0": lambda weights: fogzo.FOGZO(weights, samples=3, beta=Ramp(1.0, 0.0, STEPS)),
    "nspsa": lambda weights: fogzo.NSPSA(weights, samples=4),
    "nspsa, batched": lambda weights: fogzo.NSPSA(weights, samples=4, probe_batch=8),
    "phased": half_steps,
    "phases of phases": lambda weights: Phased(half_steps(weights), RescaledStraightThrough(weights), switch_step=4),
    "noisy": lambda weights: NoisyStraightThrough(weights),
    "rescaled": lambda weights: RescaledStraightThrough(weights, samples=2, beta=0.9),
    "displaced": lambda weights: DisplacedStraightThrough(weights),
    "control variate": lambda weights: ControlVariate(weights, samples=2),
    "control variate, one-sided": lambda weights: ControlVariate(weights, samples=2, sides="one"),
    "one-sided": lambda weights: OneSidedFOGZO(weights, samples=2),
    "now and then": lambda weights: IntermittentFOGZO(fogzo.FOGZO(weights, samples=2), every=2),
    "exact": lambda weights: ExactDirectional(weights, samples=2),
    "guide or noise": lambda weights: GuideOrNoise(weights),
    "ewgs": lambda weights: EWGS(weights),
    "split": lambda weights: SplitFOGZO(weights, beta=0.9),
}
MODELS = {
    "quantized alone": {},
    "float biases": {"biases": True},
    "statistics to keep": {"norm": nn.BatchNorm1d(WIDTH, affine=False)},
}


class Counting:
    """The loss of one small batch; counts its passes, and the tensors' bytes beside .grad when it is called.

    A pass over one of its slices counts as that part of a pass.
    """

    slices = 2

    def __init__(self, model):
        self.model, self.forwards, self.backwards = model, 0, 0
        self.memory, self.most = None, 0
        self.parameters = list(model.parameters())  # inside batched probes the model has stacked ones
        self.x, self.y = torch.randn(2, WIDTH), torch.arange(2)

    def look(self):
        if self.memory is not None:
            gradients = sum(p.grad.nbytes for p in self.parameters if p.grad is not None)
            self.most = max(self.most, self.memory.alive - self.memory.existing - gradients)

    def slice_loss(self, k):
        self.forwards += 1 / self.slices
        self.look()
        return F.cross_entropy(self.model(self.x[k : k + 1]), self.y[k : k + 1])

    def __call__(self, *, backward):
        self.forwards += evaluations_per_call()
        self.backwards += backward
        self.look()
        loss = F.cross_entropy(self.model(self.x), self.y)
        if backward:
            loss.backward()
        return loss.detach()


REFUSED = ("split", "statistics to keep")  # slices have other statistics than the batch


@pytest.mark.parametrize(("name", "model"), [one for one in product(ESTIMATORS, MODELS) if one != REFUSED])
def test_an_estimator_makes_as_many_passes_as_it_says(name, model):
    model = network(**MODELS[model])
    estimator, closure = ESTIMATORS[name](fogzo.quantized_weights(model)), Counting(model)
    for step in range(STEPS):
        model.zero_grad()
        estimator.estimate(closure, step=step)
        assert estimator.passes(step + 1) == (closure.forwards, closure.backwards)
    for first in range(STEPS):
        early, late = estimator.passes(first), estimator.passes(STEPS - first, first=first)
        assert (early[0] + late[0], early[1] + late[1]) == (closure.forwards, closure.backwards)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_holds_as_many_weight_sized_buffers_as_it_says(name):
    model = network()
    estimator, closure = ESTIMATORS[name](fogzo.quantized_weights(model)), Counting(model)
    with PeakTensorMemory([*model.parameters(), *model.buffers()]) as closure.memory:
        for step in range(STEPS):
            model.zero_grad()
            estimator.estimate(closure, step=step)
    one = 4 * WIDTH**2 * DEPTH
    assert closure.most / one == pytest.approx(estimator.buffers, abs=3 / DEPTH)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_evaluates_as_many_losses_together_as_it_says(name):
    model, most = network(), [0]

    def closure(*, backward):
        most[0] = max(most[0], evaluations_per_call())
        return counting(backward=backward)

    counting = Counting(model)
    closure.slices, closure.slice_loss = counting.slices, counting.slice_loss
    estimator = ESTIMATORS[name](fogzo.quantized_weights(model))
    for step in range(STEPS):
        model.zero_grad()
        estimator.estimate(closure, step=step)
    assert most[0] == estimator.together
