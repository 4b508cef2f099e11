"""Estimators from the values of ``configs/estimator/*.yaml``: what their ``_target_`` names.

Each takes what it has to know of the run, and then the config's values as keywords; those that it does not name are
arguments of the class that it makes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

from fogzo import estimators
from fogzo.checks import check_arguments, share
from fogzo.errors import UserError
from fogzo.estimators.beta import LinearBeta
from fogzo.quantize import QuantizedWeight
from fogzo.training.schedules import LearningRate

E = TypeVar("E", bound=estimators.Estimator)
BetaSchedule = Literal["linear", "constant"]


class Run(NamedTuple):
    """What an estimator has to know of a run; every ``log_every`` steps probes count what they cross."""

    weights: list[QuantizedWeight]  # empty without a quantizer
    steps: int
    seed: int
    log_every: int


def straight_through(run: Run) -> estimators.Estimator:
    """Return the estimator of ``estimator=ste``."""
    return estimators.StraightThrough(run.weights or None)


def fogzo(run: Run, *, beta_min: float, beta_schedule: BetaSchedule, **options: Any) -> estimators.FOGZO:
    """Return the estimator of ``estimator=fogzo`` and ``estimator=slope``."""
    beta = beta_of(beta_min, beta_schedule, run.steps)
    return _make(estimators.FOGZO, run, options, beta=beta, crossings_every=run.log_every)


def nspsa(run: Run, **options: Any) -> estimators.Estimator:
    """Return the estimator of ``estimator=nspsa``."""
    return _make(estimators.NSPSA, run, options, crossings_every=run.log_every)


def phased(run: Run, *, ste_share: float, **options: Any) -> estimators.Estimator:
    """Return the estimator of ``estimator=phased``."""
    share(ste_share, "ste_share", hint=": 0.7 is 70 % STE, then FOGZO")
    then = fogzo(run, **options)
    return estimators.Phased(estimators.StraightThrough(run.weights), then, switch_step=round(ste_share * run.steps))


def noisy_straight_through(run: Run, *, beta_min: float, beta_schedule: BetaSchedule) -> estimators.Estimator:
    """Return the estimator of ``estimator=noisy_ste``."""
    return _make(estimators.NoisyStraightThrough, run, {}, beta=beta_of(beta_min, beta_schedule, run.steps))


def rescaled_straight_through(
    run: Run, *, beta_min: float, beta_schedule: BetaSchedule, **options: Any
) -> estimators.Estimator:
    """Return the estimator of ``estimator=rescaled_ste``."""
    beta = beta_of(beta_min, beta_schedule, run.steps)
    return _make(estimators.RescaledStraightThrough, run, options, beta=beta, crossings_every=run.log_every)


def displaced_straight_through(
    run: Run, *, sigma: float, sigma_schedule: Literal["constant", "linear", "cosine"]
) -> estimators.Estimator:
    """Return the estimator of ``estimator=displaced_ste``."""
    shape = LearningRate(run.steps, sigma_schedule)
    falling = sigma if sigma_schedule == "constant" else lambda step: sigma * shape(step)
    return _make(estimators.DisplacedStraightThrough, run, {}, sigma=falling)


def control_variate(
    run: Run, *, trust: float, trust_schedule: Literal["constant", "linear"], **options: Any
) -> estimators.Estimator:
    """Return the estimator of ``estimator=control_variate``."""
    rising = trust if trust_schedule == "constant" else lambda step: trust * step / max(run.steps - 1, 1)
    return _make(estimators.ControlVariate, run, options, trust=rising)


def one_sided(run: Run, *, beta_min: float, beta_schedule: BetaSchedule, **options: Any) -> estimators.Estimator:
    """Return the estimator of ``estimator=one_sided``."""
    return _make(estimators.OneSidedFOGZO, run, options, beta=beta_of(beta_min, beta_schedule, run.steps))


def split(run: Run, *, beta_min: float, beta_schedule: BetaSchedule, **options: Any) -> estimators.Estimator:
    """Return the estimator of ``estimator=split``."""
    return _make(estimators.SplitFOGZO, run, options, beta=beta_of(beta_min, beta_schedule, run.steps))


def intermittent(run: Run, *, every: int, **options: Any) -> estimators.Estimator:
    """Return the estimator of ``estimator=intermittent``."""
    return estimators.IntermittentFOGZO(fogzo(run, **options), every=every)


def exact(run: Run, *, beta_min: float, beta_schedule: BetaSchedule, **options: Any) -> estimators.Estimator:
    """Return the estimator of ``estimator=exact``."""
    return _make(estimators.ExactDirectional, run, options, beta=beta_of(beta_min, beta_schedule, run.steps))


def guide_or_noise(run: Run, **options: Any) -> estimators.Estimator:
    """Return the estimator of ``estimator=guide_or_noise``."""
    return _make(estimators.GuideOrNoise, run, options)


def beta_of(beta_min: float, beta_schedule: BetaSchedule, steps: int) -> float | Callable[[int], float]:
    """Return β as a constant or as a function of the step."""
    linear = LinearBeta(beta_min, steps)
    return linear if beta_schedule == "linear" else beta_min


def _make(kind: Callable[..., E], run: Run, options: dict[str, Any], **given: Any) -> E:
    """An estimator that perturbs quantized weights, of which there must be some."""
    if not run.weights:
        raise UserError(
            "quantizer=none leaves no quantized weights to perturb: choose estimator=ste, or another quantizer"
        )
    check_arguments(kind, options)
    return kind(run.weights, seed=run.seed, **given, **options)
