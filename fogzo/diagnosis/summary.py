"""From slopes and codes to what can be said of a network: rows of numbers, and one sentence."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial, reduce
from operator import add
from typing import Any

from fogzo.diagnosis.bias import Interval, Measured
from fogzo.diagnosis.health import Flips, Point, TensorHealth, tensor_health
from fogzo.diagnosis.probing import Slopes, Told, measure
from fogzo.diagnosis.subject import Options, Subject

AVERAGED = 20.0  # batches that momentum averages: (1 + 0.9) / (1 - 0.9)
RIGHT = 0.95  # a cosine from which on the STE's direction is taken to be right
SECONDS, FEWEST, MOST = 180.0, 8, 1024  # of a measurement, and pairs a batch, where nothing else was asked for
UNKNOWN = Interval(0.0, -1.0, 1.0)


@dataclass(frozen=True)
class Row:
    """One tensor, or the whole network: cosines with the reference, and what its codes are like.

    Attributes:
        ratio: ‖STE's gradient‖ / ‖reference‖.
        factor: how many times as many probes would resolve ``matched``, if it is not and any number in reach would.
        dead: share of weights that get no gradient through the surrogate.
    """

    name: str
    weights: int
    dead: float
    health: TensorHealth | None = None
    ste: Interval = UNKNOWN
    matched: Interval = UNKNOWN
    fogzo: Interval = UNKNOWN
    draw: Interval = UNKNOWN
    ratio: Interval | None = None
    factor: float | None = None


@dataclass(frozen=True)
class Diagnosis:
    """All that is known of one network; ``rows`` are its tensors, and the last one the whole.

    Attributes:
        batch_noise: variance of one batch's gradient over the squared norm of the mean gradient, where that is known.
        path: of the kept checkpoints.
        logged: flip_share, loss and agreement of the run's rows.
    """

    run: str
    label: str
    step: int
    beta: float
    suggested: float
    pairs: int
    probes: int
    verdict: str
    rows: list[Row]
    batch_noise: float | None
    flips: Flips | None = None
    path: list[Point] = field(default_factory=list)
    logged: list[dict[str, float]] = field(default_factory=list)
    interrupted: bool = False

    def plain(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)


def diagnose(
    subject: Subject, options: Options, told: Told = lambda done, of: None, *, brief: bool = False
) -> Diagnosis:
    """Measure and return all that is known of ``subject``; ``brief`` leaves out other checkpoints and steps to come.

    Ctrl-C ends the measurement.  The weights of a checkpoint that training can go on from have taken a few steps more
    then.

    Raises:
        UserError: for more batches than there are.
    """
    subject.check(options)
    weights = subject.trainer.codes.weights
    d = sum(weight.latent.numel() for weight in weights)
    suggested = d / (d + 1)  # √((1-β) d/β) = 1
    beta = options.beta if options.beta is not None else subject.beta()
    beta = suggested if beta is None else beta
    path = [] if brief else subject.path()
    asked = partial(measure, weights, subject.closure_of, beta=beta, seed=options.seed)
    found = _measured(asked, options, told)
    pairs = len(found.of_fogzo)
    probes = math.ceil(pairs / options.batches)
    rows = rows_of(found)
    noise = batch_noise(found)
    flips, interrupted = None, found.interrupted
    try:
        flips = None if brief or interrupted else subject.flips()
    except KeyboardInterrupt:
        interrupted = True
    return Diagnosis(
        run=str(subject.place),
        label=f"{(subject.record.get('estimator') or {}).get('name', '')} at step {subject.step}".strip(),
        step=subject.step,
        beta=beta,
        suggested=suggested,
        pairs=pairs,
        probes=probes,
        verdict=verdict(rows[-1], noise, suggested, d, probes),
        rows=rows,
        batch_noise=noise if math.isfinite(noise) else None,
        flips=flips,
        path=path,
        logged=subject.logged(),
        interrupted=interrupted,
    )


def _measured(asked: Callable[..., Slopes], options: Options, told: Told) -> Slopes:
    """Return slopes of as many pairs as asked for, or as :data:`SECONDS` hold, by the time that two take."""
    probes = options.probes
    if probes is None:
        started = time.monotonic()
        rows_of(two := asked(batches=2, probes=1))
        if two.interrupted:
            return two
        probes = max(FEWEST, min(MOST, int(SECONDS / (time.monotonic() - started) * 2 / options.batches)))
    return asked(batches=options.batches, probes=probes, told=told)


def rows_of(found: Slopes) -> list[Row]:
    """Return a row for each tensor, and one for all; without two pairs there is nothing to say of cosines."""
    healths = [tensor_health(weight) for weight in found.weights]
    known = len(found.of_fogzo) >= 2
    tensors = [found.measured(place) for place in range(len(found.weights))] if known else []
    rows = [
        Row(health.name, health.weights, health.dead, health, **_cosines(tensors[place : place + 1]))
        for place, health in enumerate(healths)
    ]
    count = sum(health.weights for health in healths)
    dead = sum(health.dead * health.weights for health in healths) / count
    return [*rows, Row("network", count, dead, **_cosines(tensors))]


def _cosines(tensors: list[Measured]) -> dict[str, Any]:
    """Return what a row says of the gradients of ``tensors`` together."""
    if not tensors:
        return {}
    ste, matched, fogzo, draw = reduce(add, tensors).moments()
    cosines = {"ste": ste.cosine(), "matched": matched.cosine(), "fogzo": fogzo.cosine(), "draw": draw.cosine()}
    return cosines | {"ratio": ste.ratio(), "factor": matched.factor()}


def resolution(rows: list[Row], probes: int) -> str:
    """Return how much of the network ``probes`` pairs a batch resolve, and how many would resolve the rest."""
    *tensors, network = rows
    unclear = [row for row in tensors if not row.matched.resolved]
    share = sum(row.weights for row in unclear) / network.weights
    if not unclear:
        return f"{probes} probes a batch resolve the bias of every tensor"
    part = f"{share:.0%}" if share >= 0.01 else "less than 1%"
    said = f"{part} of the weights are in tensors whose bias {probes} probes a batch do not resolve"
    factors = [row.factor for row in unclear if row.factor]
    if not factors:
        return f"{said}, and no number in reach would"
    which = "these" if len(factors) == len(unclear) else f"{len(factors)} of these {len(unclear)}"
    return f"{said}: about --probes {probes * max(factors):,.0f} would resolve {which}"


def batch_noise(found: Slopes) -> float:
    """Return the variance of one batch's STE gradient over the squared norm of the expected one."""
    count = len(found.batch_squares)
    if not found.of_fogzo:
        return math.inf
    mean = sum(found.batch_squares) / count
    expected = (count * found.guide_square - mean) / (count - 1)  # without the batches' own noise
    return (mean - expected) / expected if expected > 0 else math.inf


def verdict(network: Row, noise: float, suggested: float, d: int, probes: int) -> str:
    """Return in one sentence whether bias or variance is this network's problem, and which β its size allows."""
    rule = f"; the noise-to-signal rule suggests β of at least 1 - {1 - suggested:.1e} for d = {d:,} weights."
    cosine = network.matched
    said = f"(cosine {cosine.value:.2f} {cosine.shown})"
    along = max(cosine.value, 0.0) ** 2
    steps = noise * along / (1 - along) if along < 1 else math.inf
    if not cosine.resolved:
        enough = f", and --probes {probes * network.factor:,.0f} would do" if network.factor else ""
        what = f"Not resolved: the STE's cosine with the smoothed gradient lies in {cosine.shown}{enough}"
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
