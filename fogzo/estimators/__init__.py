"""Gradient estimators: what fills ``.grad`` before the optimizer steps."""

from fogzo.estimators.base import Closure, Estimate, Estimator
from fogzo.estimators.control_variate import ControlVariate
from fogzo.estimators.controls import NoisyStraightThrough, RescaledStraightThrough
from fogzo.estimators.directional import ExactDirectional, GuideOrNoise
from fogzo.estimators.displaced import DisplacedStraightThrough
from fogzo.estimators.ewgs import EWGS
from fogzo.estimators.fogzo import FOGZO, NSPSA
from fogzo.estimators.intermittent import IntermittentFOGZO
from fogzo.estimators.one_sided import OneSidedFOGZO
from fogzo.estimators.phased import Phased
from fogzo.estimators.probes import evaluations_per_call
from fogzo.estimators.split import SlicedClosure, Slices, SplitFOGZO
from fogzo.estimators.straight_through import StraightThrough

__all__ = [
    "EWGS",
    "FOGZO",
    "NSPSA",
    "Closure",
    "ControlVariate",
    "DisplacedStraightThrough",
    "Estimate",
    "Estimator",
    "ExactDirectional",
    "GuideOrNoise",
    "IntermittentFOGZO",
    "NoisyStraightThrough",
    "OneSidedFOGZO",
    "Phased",
    "RescaledStraightThrough",
    "SlicedClosure",
    "Slices",
    "SplitFOGZO",
    "StraightThrough",
    "evaluations_per_call",
]
