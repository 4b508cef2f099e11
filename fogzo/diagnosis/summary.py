"""From slopes and codes to what can be said of a network: rows of numbers, and one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import reduce
from operator import add
from typing import Any

from fogzo.diagnosis.bias import Interval, TensorBias, fogzo_moments
from fogzo.diagnosis.health import Flips, TensorHealth, tensor_health
from fogzo.diagnosis.probing import Slopes, measure
from fogzo.diagnosis.subject import Options, Subject

AVERAGED = 20.0  # batches that momentum averages: (1 + 0.9) / (1 - 0.9)
RIGHT = 0.95  # a cosine from which on the STE's direction is taken to be right


@dataclass(frozen=True)
class Row:
    """One tensor, or the whole network: cosines with the reference, and what its codes are like."""

    name: str
    weights: int
    ste: Interval
    matched: Interval
    fogzo: Interval
    draw: Interval
    ratio: Interval | None  # ‖STE's gradient‖ / ‖reference‖
    dead: float  # share of weights that get no gradient through the surrogate
    health: TensorHealth | None = None


@dataclass(frozen=True)
class Diagnosis:
    """All that is known of one network; ``rows`` are its tensors, and the last one the whole."""

    run: str
    label: str
    step: int
    beta: float
    suggested: float
    pairs: int
    verdict: str
    rows: list[Row]
    batch_noise: float  # variance of one batch's gradient over the squared norm of the mean gradient
    flips: Flips | None
    path: list[dict[str, float]] = field(default_factory=list)  # of the kept checkpoints
    logged: list[dict[str, float]] = field(default_factory=list)  # flip_share, loss and agreement of the run's rows
    interrupted: bool = False

    def plain(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)


def diagnose(
    subject: Subject,
    options: Options,
    told: Callable[[int, int], None] = lambda done, of: None,
    *,
    brief: bool = False,
) -> Diagnosis:
    """Measure and return all that is known of ``subject``; ``brief`` leaves out other checkpoints and steps to come.

    The weights of a checkpoint that training can go on from have taken a few steps more then.

    Raises:
        UserError: for more batches than there are.
        KeyboardInterrupt: before there is anything to say; later Ctrl-C ends the measurement.
    """
    subject.check(options)
    weights = subject.trainer.codes.weights
    d = sum(weight.latent.numel() for weight in weights)
    suggested = d / (d + 1)  # √((1-β) d/β) = 1
    beta = options.beta if options.beta is not None else subject.beta()
    beta = suggested if beta is None else beta
    path = [] if brief else subject.path()
    found = measure(
        weights,
        subject.closure_of,
        batches=options.batches,
        probes=options.probes,
        beta=beta,
        seed=options.seed,
        told=told,
    )
    rows = rows_of(found)
    noise = batch_noise(found)
    estimator = subject.record.get("estimator") or {}
    return Diagnosis(
        run=str(subject.place),
        label=f"{estimator.get('name', '')} at step {subject.step}".strip(),
        step=subject.step,
        beta=beta,
        suggested=suggested,
        pairs=sum(map(len, found.of_tensor)) + len(found.of_fogzo),
        verdict=verdict(rows[-1], noise, suggested, d),
        rows=rows,
        batch_noise=noise,
        flips=None if brief or found.interrupted else subject.flips(),
        path=path,
        logged=subject.logged(),
        interrupted=found.interrupted,
    )


def rows_of(found: Slopes) -> list[Row]:
    """Return a row for each tensor, and one for all; without two pairs of each there is nothing to say of cosines."""
    healths = [tensor_health(weight) for weight in found.weights]
    known = min(len(found.of_fogzo), *map(len, found.of_tensor)) >= 2
    tensors = [found.bias(place) for place in range(len(found.weights))] if known else []
    parts = [(h.name, slice(place, place + 1), h) for place, h in enumerate(healths)]
    return [
        _row(name, healths[part], tensors[part], own) for name, part, own in [*parts, ("network", slice(None), None)]
    ]


def _row(name: str, healths: list[TensorHealth], tensors: list[TensorBias], own: TensorHealth | None) -> Row:
    count = sum(health.weights for health in healths)
    dead = sum(health.dead * health.weights for health in healths) / count
    ste = matched = fogzo = draw = Interval(0.0, -1.0, 1.0)
    ratio = None
    if tensors:
        of_ste = reduce(add, [tensor.ste for tensor in tensors])
        of_matched = reduce(add, [tensor.matched for tensor in tensors])
        ste, matched, fogzo, draw = (m.cosine() for m in (of_ste, of_matched, *fogzo_moments(tensors)))
        ratio = of_ste.ratio()
    return Row(name, count, ste, matched, fogzo, draw, ratio, dead, own)


def batch_noise(found: Slopes) -> float:
    """Return the variance of one batch's STE gradient over the squared norm of the expected one."""
    count = len(found.batch_squares)
    mean = sum(found.batch_squares) / count
    expected = (count * found.guide_square - mean) / (count - 1)  # without the batches' own noise
    return (mean - expected) / expected if expected > 0 else float("inf")


def verdict(network: Row, noise: float, suggested: float, d: int) -> str:
    """Return in one sentence whether bias or variance is this network's problem, and which β its size allows."""
    rule = f"; the noise-to-signal rule suggests β of at least 1 - {1 - suggested:.1e} for d = {d:,} weights."
    cosine = network.matched
    said = f"(cosine {cosine.value:.2f} {cosine.shown})"
    along = max(cosine.value, 0.0) ** 2
    steps = noise * along / (1 - along) if along < 1 else math.inf
    if not cosine.resolved:
        what = f"Not resolved: the STE's cosine with the smoothed gradient lies in {cosine.shown}, so give more probes"
    elif cosine.low >= RIGHT:
        what = f"Variance: the STE's direction is right {said}, and what is left is the batches' noise"
    elif math.isinf(noise):
        what = f"Variance: the batches' gradients cancel, and what is left of them points nowhere {said}"
    elif cosine.value <= 0:
        what = f"Bias: the STE's direction is no way down {said}"
    elif steps <= AVERAGED:
        over = "in a single batch" if steps <= 1 else f"once {steps:.0f} batches are averaged"
        missed = f"Bias: the STE misses {1 - along:.0%} of the smoothed gradient {said}"
        what = f"{missed}, more than the batches' noise {over}"
    else:
        what = f"Variance: until {steps:,.0f} batches are averaged their noise exceeds what the STE misses {said}"
    return what + rule
