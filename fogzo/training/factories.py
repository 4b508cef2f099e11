"""Estimators from the values of ``configs/estimator/*.yaml``: what their ``_target_`` names.

Each takes the quantized weights, the run's number of steps, its seed and the steps between logged rows (where probes
count what they cross), and then the config's values as keywords.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fogzo import estimators
from fogzo.checks import choice, choices_of
from fogzo.estimators.beta import LinearBeta
from fogzo.quantize import QuantizedWeight
from fogzo.training.schedules import LearningRate

Weights = list[QuantizedWeight]
ToZero = Literal["constant", "linear", "cosine"]


def straight_through(weights: Weights, steps: int, seed: int, log_every: int) -> estimators.Estimator:
    """``estimator=ste``"""
    return estimators.StraightThrough(weights or None)  # quantizer=none leaves it without


def fogzo(
    weights: Weights, steps: int, seed: int, log_every: int, *, beta_min: float, beta_schedule: str, **options: Any
) -> estimators.Estimator:
    """``estimator=fogzo`` and ``estimator=slope``"""
    beta = beta_of(beta_min, beta_schedule, steps)
    return estimators.FOGZO(_some(weights), beta=beta, seed=seed, crossings_every=log_every, **options)


def nspsa(weights: Weights, steps: int, seed: int, log_every: int, **options: Any) -> estimators.Estimator:
    """``estimator=nspsa``"""
    return estimators.NSPSA(_some(weights), seed=seed, crossings_every=log_every, **options)


def phased(
    weights: Weights, steps: int, seed: int, log_every: int, *, ste_share: float, **options: Any
) -> estimators.Estimator:
    """``estimator=phased``"""
    if not 0 <= ste_share <= 1:
        raise ValueError(f"estimator.ste_share={ste_share!r} lies outside [0, 1]: 0.7 is 70 % STE, then FOGZO")
    then = fogzo(weights, steps, seed, log_every, **options)
    return estimators.Phased(estimators.StraightThrough(weights), then, switch_step=round(ste_share * steps))


def noisy_straight_through(
    weights: Weights, steps: int, seed: int, log_every: int, *, beta_min: float, beta_schedule: str
) -> estimators.Estimator:
    """``estimator=noisy_ste``"""
    beta = beta_of(beta_min, beta_schedule, steps)
    return estimators.NoisyStraightThrough(_some(weights), beta=beta, seed=seed)


def rescaled_straight_through(
    weights: Weights, steps: int, seed: int, log_every: int, *, beta_min: float, beta_schedule: str, **options: Any
) -> estimators.Estimator:
    """``estimator=rescaled_ste``"""
    beta = beta_of(beta_min, beta_schedule, steps)
    return estimators.RescaledStraightThrough(
        _some(weights), beta=beta, seed=seed, crossings_every=log_every, **options
    )


def displaced_straight_through(
    weights: Weights, steps: int, seed: int, log_every: int, *, sigma: float, sigma_schedule: ToZero
) -> estimators.Estimator:
    """``estimator=displaced_ste``"""
    choice(sigma_schedule, "sigma_schedule", choices_of(ToZero))
    shape = LearningRate(steps, sigma_schedule)
    return estimators.DisplacedStraightThrough(
        _some(weights), sigma=sigma if sigma_schedule == "constant" else lambda step: sigma * shape(step), seed=seed
    )


def control_variate(
    weights: Weights,
    steps: int,
    seed: int,
    log_every: int,
    *,
    trust: float,
    trust_schedule: Literal["constant", "linear"],
    **options: Any,
) -> estimators.Estimator:
    """``estimator=control_variate``"""
    choice(trust_schedule, "trust_schedule", ("constant", "linear"))
    rising = trust if trust_schedule == "constant" else lambda step: trust * step / max(steps - 1, 1)
    return estimators.ControlVariate(_some(weights), trust=rising, seed=seed, **options)


def one_sided(
    weights: Weights, steps: int, seed: int, log_every: int, *, beta_min: float, beta_schedule: str, **options: Any
) -> estimators.Estimator:
    """``estimator=one_sided``"""
    beta = beta_of(beta_min, beta_schedule, steps)
    return estimators.OneSidedFOGZO(_some(weights), beta=beta, seed=seed, **options)


def split(
    weights: Weights, steps: int, seed: int, log_every: int, *, beta_min: float, beta_schedule: str, **options: Any
) -> estimators.Estimator:
    """``estimator=split``"""
    return estimators.SplitFOGZO(_some(weights), beta=beta_of(beta_min, beta_schedule, steps), seed=seed, **options)


def intermittent(
    weights: Weights, steps: int, seed: int, log_every: int, *, every: int, **options: Any
) -> estimators.Estimator:
    """``estimator=intermittent``"""
    inner = fogzo(weights, steps, seed, log_every, **options)
    assert isinstance(inner, estimators.FOGZO)
    return estimators.IntermittentFOGZO(inner, every=every)


def exact(
    weights: Weights, steps: int, seed: int, log_every: int, *, samples: int, beta_min: float, beta_schedule: str
) -> estimators.Estimator:
    """``estimator=exact``"""
    beta = beta_of(beta_min, beta_schedule, steps)
    return estimators.ExactDirectional(_some(weights), samples=samples, beta=beta, seed=seed)


def guide_or_noise(weights: Weights, steps: int, seed: int, log_every: int, *, epsilon: float) -> estimators.Estimator:
    """``estimator=guide_or_noise``"""
    return estimators.GuideOrNoise(_some(weights), epsilon=epsilon, seed=seed)


def beta_of(beta_min: float, beta_schedule: str, steps: int) -> float | Callable[[int], float]:
    """β as a constant or as a function of the step."""
    linear = LinearBeta(beta_min, steps)
    if beta_schedule not in ("linear", "constant"):
        raise ValueError(f"estimator.beta_schedule={beta_schedule!r} is not known: choose linear or constant")
    return linear if beta_schedule == "linear" else beta_min


def _some(weights: Weights) -> Weights:
    if not weights:
        raise ValueError(
            "quantizer=none leaves no quantized weights to perturb: choose estimator=ste, or another quantizer"
        )
    return weights
