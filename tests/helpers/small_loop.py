"""A small quantized network, its closure, and one of every estimator, for tests of what an estimate leaves behind."""

import torch
import torch.nn.functional as F
from torch import nn

import fogzo
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
