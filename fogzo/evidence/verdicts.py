"""What the records say of one method against another, by rule: verdicts in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fogzo.evidence.compare import Difference, holm
from fogzo.evidence.experiment import Cell, Method
from fogzo.evidence.frame import Evidence
from fogzo.evidence.published import is_published, published_direction
from fogzo.evidence.tables.base import Effect
from fogzo.evidence.words import OUTCOMES, PARTS, Word
from fogzo.runs.schema import METRICS

FOGZO = ("fogzo", "fogzo_dropin", "phased")  # families that are compared with the controls
# controls with the noise, the norm or the compute of FOGZO with n = 1: no match for more samples
OF_ONE_SAMPLE = ("noisy_ste", "rescaled_ste", "ste_longer")


@dataclass(frozen=True)
class Case:
    """Two methods compared in one setting of one experiment.

    Attributes:
        metric: what they are compared by.
        outcome: also where there is no ``difference`` because one of them diverged on every seed.
        direction: of the paper's difference: 1 for better, -1 for worse, 0 where it is not known.
    """

    evidence: Evidence
    cell: Cell
    other: Cell
    metric: str
    outcome: Word
    difference: Difference | None
    direction: int = 0


def case_of(evidence: Evidence, cell: Cell, other: Cell, *, metric: str | None = None, direction: int = 0) -> Case:
    """Return the comparison of two cells, by their own metric if no other is given."""
    outcome, difference = evidence.outcome(cell, other, metric), evidence.difference(cell, other, metric)
    return Case(evidence, cell, other, metric or cell.metric, outcome or Word.NOT_RUN, difference, direction)


@dataclass(frozen=True)
class Verdict:
    """What the settings together say of one method against another.

    Attributes:
        method, against: a cell of each.
        every: the settings that have both, run or not.
        aside: the same settings by another metric that the experiment shows.
    """

    method: Cell
    against: Cell
    every: Sequence[Case]
    aside: Sequence[Case]

    @property
    def cases(self) -> list[Case]:
        """The settings that were run."""
        return run_of(self.every)

    @property
    def directed(self) -> list[Case]:
        """Those among them of which the paper gives a direction."""
        return [case for case in self.cases if case.direction]

    @property
    def word(self) -> Word:
        # where the paper says something of some settings, those alone can confirm it
        return word_of(self.directed or self.cases)

    @property
    def counts(self) -> str:
        """How many settings had which outcome, in words."""
        text = _outcomes(self.every)
        if len(self.every) == 1 or not self.cases:
            return text
        not_run = len(self.every) - len(self.cases)
        unknown = len(self.cases) - len(self.directed) if self.directed else 0
        text += f" of {len(self.cases)} settings" + (f", {not_run} not run" if not_run else "")
        return text + (f" (of {unknown} the paper's direction is not known)" if unknown else "")

    def sentence(self, *, directed: bool = False) -> str:
        """Return the comparison with its numbers, to stand after the word.

        Args:
            directed: say the direction of differences in words.
        """
        said = [self.counts if self.counts != self.word else "", _effects(self.cases, directed)]
        if run_of(self.aside):
            label = METRICS[self.aside[0].metric].label.removesuffix(", %")
            said.append(f"by {label} {_outcomes(self.aside)}, {_effects(run_of(self.aside), directed)}")
        numbers = "; ".join(part for part in said if part)
        return f"{self.method.label} against {self.against.label}" + (f": {numbers}" if numbers else "") + "."


def run_of(cases: Sequence[Case]) -> list[Case]:
    """Return the cases that were run."""
    return [case for case in cases if case.outcome is not Word.NOT_RUN]


def _outcomes(cases: Sequence[Case]) -> str:
    """How many settings had which outcome, as in "better in 2, worse in 1"; of one setting its outcome."""
    counts = Counter(case.outcome for case in run_of(cases))
    if len(cases) == 1 or not counts:
        return next(iter(counts), Word.NOT_RUN)
    return ", ".join(f"{word} in {counts[word]}" for word in OUTCOMES if counts[word])


def _effects(cases: Sequence[Case], directed: bool) -> str:
    return ", ".join(replace(effect, directed=directed).text for effect in effects_of(cases))


def effects_of(cases: Sequence[Case], *, intervals: bool = False) -> list[Effect]:
    """Return the smallest to the greatest difference, by metric: accuracies and perplexities have no common mean.

    Args:
        intervals: with the ends of all intervals, which say what may be hidden where nothing is told apart.
    """
    by_metric: dict[str, list[Difference]] = {}
    for case in cases:
        if case.difference is not None:
            by_metric.setdefault(case.metric, []).append(case.difference)
    effects = []
    for metric, differences in by_metric.items():
        ends = [end for difference in differences for end in difference.interval]
        known = intervals and all(difference.pairs > 1 for difference in differences)
        means = [difference.mean for difference in differences]
        effects.append(Effect(means, METRICS[metric], (min(ends), max(ends)) if known else None))
    return effects


def verdicts(evidence: Evidence) -> list[Verdict]:
    """Return those of every published method against the baseline, then of FOGZO against every control."""
    first = {cell.method.name: cell for cell in reversed(list(evidence.cells.values()))}
    also = next((key for key in evidence.experiment.also if METRICS[key].higher_is_better is not None), None)
    found = []
    for method, against in comparisons(evidence):
        pairs = pairs_of(evidence, method, against)
        claimed = against == evidence.experiment.baseline
        every = [
            case_of(evidence, cell, other, direction=published_direction(evidence, cell) if claimed else 0)
            for cell, other in pairs
        ]
        aside = [case_of(evidence, cell, other, metric=also) for cell, other in pairs] if also else []
        found.append(Verdict(first[method], first[against], every, aside))
    return found


def comparisons(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Yield pairs of methods: published ones and the baseline; every FOGZO, and β = 1, with controls that match."""
    cells = list(evidence.cells.values())
    baseline = evidence.experiment.baseline
    methods = list({cell.method.name: cell.method for cell in cells}.values())
    published = {cell.method.name for cell in cells if is_published(evidence, cell)}
    controls = [method.name for method in methods if method.is_control]
    fogzos = [method for method in methods if method.family in FOGZO]
    for method in methods:
        if method.name != baseline and (method.name in published or method in fogzos):
            yield method.name, baseline
    for method in fogzos:
        for control in controls:
            if _matches(control, method):
                yield method.name, control
    if {"slope", "ste_longer"} <= set(controls):  # FOGZO without noise, at FOGZO's cost
        yield "slope", "ste_longer"


def _matches(control: str, method: Method) -> bool:
    """Whether a control has what it is to have in common with ``method``: noise, norm, compute or tuning."""
    if method.name == "fogzo_dropin":
        return control == "ste_longer"  # the others are tuned, or of the noise that was tuned
    return method.samples == 1 or control not in OF_ONE_SAMPLE


def pairs_of(evidence: Evidence, method: str, against: str) -> list[tuple[Cell, Cell]]:
    """Return the cells of two methods in every setting that has both."""
    pairs = [(cell, evidence.sibling(cell, against)) for cell in evidence.cells.values() if cell.method.name == method]
    return [(cell, other) for cell, other in pairs if other is not None]


def word_of(cases: Sequence[Case]) -> Word:
    """Return one word for several settings: confirmed or opposite where the paper says something of them.

    Where they don't all agree only those count that stand after Holm's correction of the paired t-tests of all of them:
    of a dozen settings in which nothing differs, some would otherwise make a claim true "in part" every second time.
    """
    if not cases:
        return Word.NOT_RUN
    claimed = any(case.direction for case in cases)
    words = {1: Word.CONFIRMED, -1: Word.OPPOSITE} if claimed else {1: Word.BETTER, -1: Word.WORSE}
    signs = {Word.BETTER: 1, Word.WORSE: -1}
    directions = [signs.get(case.outcome, 0) * (-1 if case.direction < 0 else 1) for case in cases]
    if directions[0] and len(set(directions)) == 1:
        return words[directions[0]]
    stands = holm([0.0 if case.difference is None else case.difference.p_t for case in cases])
    left = {direction for direction, holds in zip(directions, stands, strict=True) if direction and holds}
    if len(left) == 2:
        return Word.MIXED
    if left:
        return PARTS[words[left.pop()]]
    return Word.UNDECIDED if any(case.outcome is not Word.TOO_FEW for case in cases) else Word.TOO_FEW
