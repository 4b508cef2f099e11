"""What the records say of one method against another, by rule: verdicts in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from fogzo.checks import choice
from fogzo.evidence.compare import LEVEL, Difference, holm
from fogzo.evidence.experiment import Cell
from fogzo.evidence.frame import Evidence
from fogzo.evidence.numbers import Effect
from fogzo.evidence.published import is_published, published_direction
from fogzo.evidence.words import OUTCOMES, PARTS, Word
from fogzo.runs.schema import COMPARED, METRICS


@dataclass(frozen=True)
class Case:
    """Two methods compared in one setting of one experiment.

    Attributes:
        direction: of the paper's difference: 1 for better, -1 for worse, 0 where it is not known.
        by: the metric, if not the one that the cell is compared by.
    """

    evidence: Evidence
    cell: Cell
    other: Cell
    direction: int = 0
    by: str = ""

    def __post_init__(self) -> None:
        choice(self.metric, "metric", COMPARED)

    @property
    def metric(self) -> str:
        """What they are compared by."""
        return self.by or self.cell.metric

    @cached_property
    def difference(self) -> Difference | None:
        """``None`` if no seed was finished by both."""
        return self.evidence.difference(self.cell, self.other, self.metric)

    @cached_property
    def outcome(self) -> Word:
        """What it came to, also where no seed was finished by both."""
        return self.evidence.outcome(self.cell, self.other, self.metric)


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

    def sentence(self) -> str:
        """Return the comparison with its numbers, to stand after the word."""
        said = [self.counts if self.counts != self.word else "", _effects(self.cases)]
        if aside := run_of(self.aside):
            said.append(f"by {METRICS[aside[0].metric].name} {_outcomes(self.aside)}, {_effects(aside)}")
        numbers = "; ".join(part for part in said if part)
        return f"{self.method.label} against {self.against.label}" + (f": {numbers}" if numbers else "") + "."


def rerun(evidence: Evidence, cell: Cell) -> str:
    """Return the command that makes a cell's first run anew, beside the records, and what it ends with."""
    seed, value = next(iter(evidence.values(cell).items()))
    metric = METRICS[cell.metric]
    command = f"python train.py -m experiment={evidence.name} cell={cell.name} seed={seed} results_dir=check"
    return f"{command}   # {metric.name} {value:.{metric.digits}f}{metric.sign}"


def run_of(cases: Sequence[Case]) -> list[Case]:
    """Return the cases that were run."""
    return [case for case in cases if case.outcome is not Word.NOT_RUN]


def _outcomes(cases: Sequence[Case]) -> str:
    """Return how many settings had which outcome, as in "better in 2, worse in 1"; of one setting its outcome."""
    counts = Counter(case.outcome for case in run_of(cases))
    if len(cases) == 1 or not counts:
        return next(iter(counts), Word.NOT_RUN)
    return ", ".join(f"{word} in {counts[word]}" for word in OUTCOMES if counts[word])


def _effects(cases: Sequence[Case]) -> str:
    return ", ".join(effect.directed() for effect in effects_of(cases))


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
    """Return those of every method against the baseline, then against its controls."""
    also = next((key for key in evidence.experiment.also if METRICS[key].higher_is_better is not None), None)
    every_verdict, first = [], dict[str, Cell]()
    for cell in evidence.cells.values():
        first.setdefault(cell.method.name, cell)
    for method, against in comparisons(evidence):
        pairs = pairs_of(evidence, method, against)
        claimed = against == evidence.experiment.baseline
        every = [
            Case(evidence, cell, other, published_direction(evidence, cell) if claimed else 0) for cell, other in pairs
        ]
        aside = [Case(evidence, cell, other, by=also) for cell, other in pairs] if also else []
        every_verdict.append(Verdict(first[method], first[against], every, aside))
    return every_verdict


def comparisons(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Yield pairs of methods: those that are published or held against controls and the baseline, then the controls."""
    methods = {cell.method.name: cell.method for cell in evidence.cells.values()}
    published = {cell.method.name for cell in evidence.cells.values() if is_published(evidence, cell)}
    for method in methods.values():
        held = method.name in published or (method.controls and not method.is_control)
        if held and method.name != evidence.experiment.baseline:
            yield method.name, evidence.experiment.baseline
    for method in methods.values():
        yield from ((method.name, control) for control in methods if control in method.controls)


def pairs_of(evidence: Evidence, method: str, against: str, models: Collection[str] = ()) -> list[tuple[Cell, Cell]]:
    """Return the cells of two methods in every setting that has both, or in those of some models."""
    cells = [cell for cell in evidence.cells.values() if cell.method.name == method]
    pairs = [(cell, evidence.sibling(cell, against)) for cell in cells if not models or cell.setting.model in models]
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
    # where no seed was finished by both, an outcome is certain, and without one nothing is known
    pairs = zip(cases, directions, strict=True)
    corrected = holm([case.difference.p_t if case.difference else float(not direction) for case, direction in pairs])
    left = {direction for direction, p in zip(directions, corrected, strict=True) if direction and p <= LEVEL}
    if len(left) == 2:
        return Word.MIXED
    if left:
        return PARTS[words[left.pop()]]
    return Word.UNDECIDED if any(case.outcome is not Word.TOO_FEW for case in cases) else Word.TOO_FEW
