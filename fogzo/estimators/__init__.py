"""Gradient estimators: what fills ``.grad`` before the optimizer steps."""

from fogzo.estimators.base import Closure, Estimate, Estimator
from fogzo.estimators.controls import NoisyStraightThrough, RescaledStraightThrough
from fogzo.estimators.fogzo import FOGZO, NSPSA
from fogzo.estimators.phased import Phased
from fogzo.estimators.probes import evaluations_per_call
from fogzo.estimators.straight_through import StraightThrough

__all__ = [
    "FOGZO",
    "NSPSA",
    "Closure",
    "Estimate",
    "Estimator",
    "NoisyStraightThrough",
    "Phased",
    "RescaledStraightThrough",
    "StraightThrough",
    "evaluations_per_call",
]
